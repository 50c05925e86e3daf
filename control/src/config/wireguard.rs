//! `[tunnel.wireguard]`.

use core::time::Duration;
use std::path::Path;

use super::{
    WireGuard,
    error::{Fault, Report},
    ike::read_file,
    section::{Item, Schema, Section},
    tunnel::{refuse_exposed, within},
};
use crate::wireguard::{PublicKey, Secret};

pub(super) static WIREGUARD: Schema = Schema {
    path: "tunnel.wireguard",
    keys: &[
        "private-key",
        "private-key-file",
        "listen-port",
        "remote-port",
        "peer-public-key",
        "preshared-key",
        "preshared-key-file",
        "keepalive",
    ],
};

/// What everybody uses.
pub(super) const DEFAULT_PORT: u16 = 51_820;

pub(super) fn read(
    section: Section<'_>,
    (file, mode): (&Path, u32),
    exposed: &mut bool,
    report: &mut Report,
) -> Option<WireGuard> {
    let private = read_private_key(section, (file, mode), exposed, report);
    let named = ("preshared-key", "preshared-key-file");
    let preshared = secret(section, named, (file, mode), exposed, report);
    let peer = section
        .require("peer-public-key", "peer-public-key = \"…\", which the peer has from `braid pubkey`", report)
        .and_then(|item| Some((item.parse(public_key, report)?, item)));
    let mut port = |name| {
        let item = section.get(name)?;
        item.integer(1, 65_535, report).map(|port| port as u16)
    };
    let (listen_port, remote_port) = (port("listen-port"), port("remote-port"));
    let keepalive = section.get("keepalive").and_then(|item| read_keepalive(item, report));
    let (private_key, (peer_public_key, item)) = (private?, peer?);
    if private_key.public() == peer_public_key {
        let remedy = "it is our own: give the one that `braid pubkey` makes of the peer's private key";
        item.invalid(report, "the public key of our private key", remedy);
    }
    Some(WireGuard {
        private_key,
        peer_public_key,
        preshared_key: preshared,
        listen_port: listen_port.unwrap_or(DEFAULT_PORT),
        remote_port: remote_port.unwrap_or(DEFAULT_PORT),
        keepalive,
    })
}

/// `private-key` or `private-key-file`, one of which is needed.
pub(super) fn read_private_key(
    section: Section<'_>,
    file: (&Path, u32),
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Secret> {
    if section.get("private-key-file").is_none() {
        let example = "private-key-file = \"/etc/braid/wg.key\"; `braid genkey` makes one";
        section.require("private-key", example, report);
    }
    secret(section, ("private-key", "private-key-file"), file, exposed, report)
}

/// In seconds; `"off"` is none.
pub(super) fn read_keepalive(item: Item<'_>, report: &mut Report) -> Option<u16> {
    const SECOND: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(65_535);
    if item.string(report)? == "off" {
        return None;
    }
    let every = item.parse(|text| within(text, SECOND, LONGEST), report)?;
    Some(every.as_secs() as u16)
}

/// A key in the file itself, or in one of its own.
fn secret(
    section: Section<'_>,
    (inline, named): (&'static str, &'static str),
    (file, mode): (&Path, u32),
    exposed: &mut bool,
    report: &mut Report,
) -> Option<Secret> {
    match (section.get(inline), section.get(named)) {
        (Some(_), Some(second)) => {
            second.invalid(report, "a second key", format!("give {inline} or {named}"));
            None
        }
        (Some(item), None) => {
            refuse_exposed(item, mode, exposed, report);
            item.parse(secret_key, report)
        }
        (None, Some(item)) => {
            let read = read_file(item, file, true, report)?;
            let text = core::str::from_utf8(&read.bytes).unwrap_or_default().trim_end_matches(['\n', '\r']);
            secret_key(text).map_err(|fault| item.fault(report, fault)).ok()
        }
        (None, None) => None,
    }
}

pub(super) fn secret_key(text: &str) -> Result<Secret, Fault> {
    text.parse().map_err(|_| no_key("`braid genkey` or `braid genpsk` makes one"))
}

pub(super) fn public_key(text: &str) -> Result<PublicKey, Fault> {
    text.parse()
        .ok()
        .filter(|key: &PublicKey| key.0 != [0; 32])
        .ok_or_else(|| no_key("`braid pubkey` makes it of the peer's private key"))
}

/// Without the text, which may be a key with a mistake in it.
fn no_key(remedy: &str) -> Fault {
    let problem = "no key of 32 bytes in base64 (44 characters)".to_owned();
    Fault::Invalid { problem, remedy: remedy.to_owned() }
}
