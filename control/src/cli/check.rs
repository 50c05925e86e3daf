//! `braid check`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use super::WRONG_USAGE;
use crate::config::{self, Config, Place};

/// Says whether a configuration is right, and every line that is not.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Prints one line per error, `FILE:LINE: key: what is wrong; what would be right`, and exits with 2.
Nothing is started or changed.

Example: braid check --config /etc/braid/braid.toml
         braid check --keys | less")]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "keys")]
    config: Option<PathBuf>,
    /// Print every key that a configuration may have, with its default
    #[arg(long, conflicts_with = "config")]
    keys: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let Some(file) = &args.config else {
        let _ = std::io::stdout().write_all(config::KEYS.as_bytes());
        return ExitCode::SUCCESS;
    };
    match config::load(file) {
        Ok(config) => {
            // Whoever closed our stdout does not want to know.
            let _ = std::io::stdout().write_all(summary(&config).as_bytes());
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in errors {
                eprintln!("{error}");
            }
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn summary(config: &Config) -> String {
    let mut text = format!(
        "{}: right: gateway {}, {}, {}, device {}\n",
        config.file.display(),
        config.gateway.name,
        count(config.tunnels.len(), "tunnel"),
        count(config.routes.len(), "route"),
        config.core.device,
    );
    let idle = unused(config);
    if !idle.is_empty() {
        text.push_str(&format!("no route leads through: {}\n", idle.join(", ")));
    }
    if config.manual_keys().is_some() {
        text.push_str("it has fixed keys, for tests only: braid run wants --insecure-manual-keys\n");
    }
    text
}

/// Names of tunnels that no route uses and no neighbor brings any to; the first few.
fn unused(config: &Config) -> Vec<&str> {
    const SHOWN: usize = 8;
    let mut used = vec![false; config.tunnels.len()];
    for index in config.routes.iter().flat_map(|route| &route.via) {
        if let Some(used) = used.get_mut(*index as usize) {
            *used = true;
        }
    }
    let learns = |name: &str| {
        let neighbors = config.bgp.iter().flat_map(|bgp| &bgp.neighbors);
        neighbors
            .map(|neighbor| &neighbor.place)
            .any(|place| matches!(place, Place::Tunnel(of) if of == name))
    };
    // Clients need no route: each has its own address.
    let client = |tunnel: &config::Tunnel| !tunnel.reach.is_empty();
    let unrouted = config.tunnels.iter().zip(used).filter(|(tunnel, used)| !used && !client(tunnel));
    let idle = unrouted.filter(|(tunnel, _)| !learns(&tunnel.name));
    idle.map(|(tunnel, _)| tunnel.name.as_str()).take(SHOWN).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_tunnel_with_a_neighbor_is_in_use() {
        let tunnel = |name: &str, number: u32| {
            format!(
                "[[tunnel]]\nname = \"{name}\"\ntype = \"ipsec\"\nlocal = \"192.0.2.1\"\n\
                 remote = \"198.51.100.{number}\"\ninside = \"169.254.{number}.2/30\"\n\
                 [tunnel.ike]\npsk = \"a long and random string\"\n"
            )
        };
        let text = format!(
            "[gateway]\nname = \"g\"\n{}{}[bgp]\nasn = 65010\nrouter-id = \"10.1.0.1\"\n\
             [[bgp.neighbor]]\ntunnel = \"a\"\nasn = 64512\n",
            tunnel("a", 1),
            tunnel("b", 2)
        );
        let config = config::parse(&text, Path::new("braid.toml"), 0o600).unwrap();
        assert_eq!(unused(&config), ["b"]);
    }
}
