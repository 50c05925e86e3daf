//! `braid import`: configurations of others, turned into Braid's.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use zeroize::Zeroizing;

use super::{FAILED, WRONG_USAGE};
use crate::import::{aws, wireguard};

/// Turns a configuration of another program, or of AWS, into one of Braid's.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples: braid import wireguard /etc/wireguard/wg0.conf -o /etc/braid/braid.toml
          braid import aws vpn.json -o /etc/braid/braid.toml")]
pub(super) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand, Debug)]
enum Kind {
    Wireguard(Wireguard),
    Aws(Aws),
}

/// Reads a configuration of wg-quick.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each peer becomes a tunnel, its allowed IPs become routes. What cannot be carried over is said on stderr,
one line each. The result holds keys: the file of -o is readable by its owner only.

Example: braid import wireguard /etc/wireguard/wg0.conf -o /etc/braid/braid.toml")]
struct Wireguard {
    /// The configuration of wg-quick
    file: PathBuf,
    /// Write to FILE instead of stdout
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Our outer address, needed for peers without an Endpoint
    #[arg(long, value_name = "ADDRESS")]
    local: Option<IpAddr>,
}

/// Reads what AWS says of Site-to-Site VPN connections.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A FILE is the JSON of one or more connections, or the XML of one:

  aws ec2 describe-vpn-connections --vpn-connection-ids vpn-0123456789abcdef0 > vpn.json
  aws ec2 describe-vpn-connections --vpn-connection-ids vpn-0123456789abcdef0 \\
    --query 'VpnConnections[0].CustomerGatewayConfiguration' --output text > vpn.xml

The JSON tells more: which algorithms each tunnel takes. Of these the strongest is offered, alone. What the
console offers for download, for the devices of others, is not read. What has to be added, such as our
networks for BGP, is said on stderr, one line each, and stands as a comment where it belongs. The result holds
keys: the file of -o is readable by its owner only.

Example: braid import aws vpn.json -o /etc/braid/braid.toml")]
struct Aws {
    /// What AWS says, as JSON or XML
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write to FILE instead of stdout
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Our outer address, where routing is not to choose it
    #[arg(long, value_name = "ADDRESS")]
    local: Option<IpAddr>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let done = match &args.kind {
        Kind::Wireguard(args) => from_wireguard(args),
        Kind::Aws(args) => from_aws(args),
    };
    done.err().map_or(ExitCode::SUCCESS, ExitCode::from)
}

/// The exit status, after the lines on stderr.
type Done = Result<(), u8>;

fn from_wireguard(args: &Wireguard) -> Done {
    let shown = args.file.display();
    let text = read(&args.file)?;
    let name = args.file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let imported = wireguard::import(&text, name, args.local).map_err(|errors| {
        errors.iter().for_each(|error| eprintln!("{shown}:{error}"));
        WRONG_USAGE
    })?;
    imported.notes.iter().for_each(|note| eprintln!("{shown}:{note}"));
    write(args.output.as_deref(), &imported.text)
}

fn from_aws(args: &Aws) -> Done {
    let texts = args.files.iter().map(|file| read(file)).collect::<Result<Vec<_>, u8>>()?;
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
    let say = |(file, line): &aws::Said| {
        let shown = args.files.get(*file).map(|file| file.display().to_string());
        eprintln!("{}:{line}", shown.unwrap_or_default());
    };
    let imported = aws::import(&texts, args.local).map_err(|errors| {
        errors.iter().for_each(say);
        WRONG_USAGE
    })?;
    imported.notes.iter().for_each(say);
    write(args.output.as_deref(), &imported.text)
}

fn read(path: &Path) -> Result<Zeroizing<String>, u8> {
    read_text(path).map_err(|error| {
        eprintln!("{}: cannot be read: {error}", path.display());
        WRONG_USAGE
    })
}

fn read_text(path: &Path) -> io::Result<Zeroizing<String>> {
    /// Longer than any that a person keeps.
    const MAX_LEN: u64 = 64 * 1024 * 1024;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > MAX_LEN {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Sized first: a growing buffer would leave copies of keys in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(len as usize + 1));
    Read::by_ref(&mut file).take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}

fn write(path: Option<&Path>, text: &str) -> Done {
    write_bytes(path, text.as_bytes()).map_err(|error| {
        eprintln!("braid: cannot write {}: {error}", path.unwrap_or(Path::new("stdout")).display());
        FAILED
    })
}

fn write_bytes(path: Option<&Path>, bytes: &[u8]) -> io::Result<()> {
    let Some(path) = path else { return io::stdout().write_all(bytes) };
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // One that was there keeps its mode otherwise; a device is everybody's.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
    }
    file.write_all(bytes)
}
