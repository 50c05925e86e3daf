//! `braid reload`, `braid drain`, `braid undrain`, `braid rekey` and `braid path`: one question each to the gateway
//! of a run directory.

use std::{
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::Value;

use super::{FAILED, RunDir};
use crate::{
    admin::{self, Request, Response},
    desired::{STANDBY, YIELDING},
    status::Way,
};

/// Applies a changed configuration; tunnels that did not change lose no packet.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The gateway reads its configuration file again. With an error in it, every line that is wrong is
printed, nothing changes, and the exit status is 2.

Example: braid reload --run-dir /run/braid")]
pub(super) struct Reload {
    #[command(flatten)]
    run_dir: RunDir,
}

/// Takes a tunnel out of service without losing or reordering packets.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
New flows use the other tunnels at once, the flows that are on it leave when they fall idle. `braid
status` says how many buckets are left. If no other tunnel is up it goes on carrying.

Example: braid drain aws-a")]
pub(super) struct Drain {
    /// The tunnel's name
    tunnel: String,
    #[command(flatten)]
    run_dir: RunDir,
}

/// Takes a drained tunnel back into service.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: braid undrain aws-a")]
pub(super) struct Undrain {
    /// The tunnel's name
    tunnel: String,
    #[command(flatten)]
    run_dir: RunDir,
}

/// Gives a tunnel new keys now, whatever is left of its lifetimes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Make before break: no packet is lost. Returns when the exchange is begun; `braid status --json` shows
the new SPIs, or WireGuard's handshakes, once it is done.

Example: braid rekey aws-a")]
pub(super) struct Rekey {
    /// The tunnel's name
    tunnel: String,
    /// Replace the IKE SA instead of the child SA
    #[arg(long)]
    ike: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

/// Says which prefix, group, bucket and tunnel a flow takes, and why.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exits with 1 when the flow takes no tunnel.

Examples: braid path 10.2.0.5
          braid path 10.2.0.5 --src 10.1.0.7 --proto tcp --sport 40000 --dport 443")]
pub(super) struct PathArgs {
    /// Destination address
    dst: IpAddr,
    /// Source address [default: the gateway's own]
    #[arg(long, value_name = "ADDRESS")]
    src: Option<IpAddr>,
    /// IP protocol: tcp, udp, icmp, icmpv6, sctp, or a number [default: tcp with ports, else none]
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<u8>,
    /// Source port, or identifier of an ICMP echo
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Destination port
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// Print one JSON document and nothing else
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

const TCP: u8 = 6;
/// RFC 6890: 253 and 254 are for experiments; a protocol without ports.
const NO_PORTS: u8 = 253;

pub(super) fn reload(args: &Reload) -> ExitCode {
    order(&args.run_dir.path, &Request::Reload)
}

pub(super) fn drain(args: Drain) -> ExitCode {
    order(&args.run_dir.path, &Request::Drain { tunnel: args.tunnel })
}

pub(super) fn undrain(args: Undrain) -> ExitCode {
    order(&args.run_dir.path, &Request::Undrain { tunnel: args.tunnel })
}

pub(super) fn rekey(args: Rekey) -> ExitCode {
    order(&args.run_dir.path, &Request::Rekey { tunnel: args.tunnel, ike: args.ike })
}

pub(super) fn path(args: &PathArgs) -> ExitCode {
    let has_ports = args.sport.is_some() || args.dport.is_some();
    let request = Request::Path {
        dst: args.dst,
        src: args.src,
        protocol: args.proto.unwrap_or(if has_ports { TCP } else { NO_PORTS }),
        sport: args.sport.unwrap_or(0),
        dport: args.dport.unwrap_or(0),
    };
    let value = match ask(&args.run_dir.path, &request) {
        Ok(value) => value,
        Err(code) => return code,
    };
    let text = if args.json {
        format!("{value}\n")
    } else {
        match serde_json::from_value::<Way>(value.clone()) {
            Ok(way) => describe(&way),
            Err(error) => {
                eprintln!("braid: the gateway is of another version: {error}");
                return ExitCode::from(FAILED);
            }
        }
    };
    print(&text);
    if value.get("tunnel").is_some_and(|tunnel| !tunnel.is_null()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

fn order(run_dir: &Path, request: &Request) -> ExitCode {
    match ask(run_dir, request) {
        Ok(value) => {
            if let Value::String(line) = value {
                print(&format!("{line}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// The answer, or the exit status after the lines on stderr.
pub(super) fn ask(run_dir: &Path, request: &Request) -> Result<Value, ExitCode> {
    match admin::request(run_dir, request) {
        Ok(Response::Ok(value)) => Ok(value),
        Ok(Response::Failed { lines, status }) => {
            lines.iter().for_each(|line| eprintln!("{line}"));
            Err(ExitCode::from(status))
        }
        Err(line) => {
            eprintln!("{line}");
            Err(ExitCode::from(FAILED))
        }
    }
}

/// Whoever closed our stdout does not want to know.
pub(super) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The default run directory.
pub(super) fn default_run_dir() -> PathBuf {
    PathBuf::from("/run/braid")
}

fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(TCP),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        number => number.parse().map_err(|_| "use tcp, udp, icmp, icmpv6, sctp or a number".to_owned()),
    }
}

fn describe(way: &Way) -> String {
    let port = |port: u16| if port == 0 { String::new() } else { format!(" port {port}") };
    let mut text = format!(
        "flow    {}{} -> {}{}, protocol {}\n",
        way.src,
        port(way.sport),
        way.dst,
        port(way.dport),
        way.protocol
    );
    text.push_str(&format!("prefix  {}\n", way.prefix.as_deref().unwrap_or("none")));
    if let Some(group) = way.group {
        text.push_str(&format!("group   {group}\n"));
        let width = way.members.iter().map(|member| member.tunnel.len()).max().unwrap_or(0);
        for member in &way.members {
            let reason =
                if member.reason.is_empty() { String::new() } else { format!(": {}", member.reason) };
            let priority = match member.priority {
                STANDBY | YIELDING => "behind the others".to_owned(),
                priority => format!("priority {priority}"),
            };
            text.push_str(&format!(
                "          {:width$}  weight {}, {priority}, {}{reason}\n",
                member.tunnel, member.weight, member.state,
            ));
        }
    }
    if let Some(bucket) = way.bucket {
        text.push_str(&format!("bucket  {bucket}, of {}\n", way.home.as_deref().unwrap_or("nobody")));
    }
    text.push_str(&format!("tunnel  {}\n", way.tunnel.as_deref().unwrap_or("none")));
    text.push_str(&format!("why     {}\n", way.why));
    text
}
