//! `[gateway]` and `[core]`.

use std::path::PathBuf;

use super::{
    CoreSettings, Gateway, MAX_ROUTES,
    error::{Fault, Report},
    section::{Schema, Section},
    value,
};

pub(super) static GATEWAY: Schema = Schema {
    path: "gateway",
    keys: &["name", "source", "protect", "transit", "hash-seed", "symmetric-hash", "pin-replies"],
};

pub(super) static CORE: Schema = Schema { path: "core", keys: &["device", "workers", "offload", "run-dir"] };

/// Most forwarding threads.
const MAX_WORKERS: i64 = 64;

pub(super) fn read_gateway(root: Section<'_>, report: &mut Report) -> Gateway {
    let mut gateway = Gateway {
        name: host_name(),
        source: Vec::new(),
        protect: Vec::new(),
        transit: false,
        hash_seed: None,
        symmetric_hash: false,
        pin_replies: false,
    };
    let Some(section) = root.get("gateway").and_then(|item| item.section(&GATEWAY, report)) else {
        return gateway;
    };
    if let Some(name) = section.get("name").and_then(|item| item.parse(value::name, report)) {
        gateway.name = name;
    }
    if let Some(item) = section.get("source") {
        for (address, item) in item.one_or_list(2, value::host_address, report) {
            if gateway.source.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                item.invalid(report, "two sources of one family", "give at most one IPv4 and one IPv6");
            }
            gateway.source.push(address);
        }
    }
    if let Some(item) = section.get("protect") {
        gateway.protect =
            item.one_or_list(MAX_ROUTES, value::prefix, report).into_iter().map(|(net, _)| net).collect();
        gateway.protect.sort_unstable();
        gateway.protect.dedup();
    }
    if let Some(transit) = section.get("transit").and_then(|item| item.boolean(report)) {
        gateway.transit = transit;
    }
    gateway.hash_seed = section.get("hash-seed").and_then(|item| item.parse(hash_seed, report));
    if let Some(symmetric) = section.get("symmetric-hash").and_then(|item| item.boolean(report)) {
        gateway.symmetric_hash = symmetric;
    }
    if let Some(pin) = section.get("pin-replies").and_then(|item| item.boolean(report)) {
        gateway.pin_replies = pin;
    }
    gateway
}

pub(super) fn read_core(root: Section<'_>, report: &mut Report) -> CoreSettings {
    let mut core = CoreSettings { device: "braid0".to_owned(), workers: None, offload: true, run_dir: None };
    let Some(section) = root.get("core").and_then(|item| item.section(&CORE, report)) else {
        return core;
    };
    if let Some(device) = section.get("device").and_then(|item| item.parse(value::interface, report)) {
        core.device = device;
    }
    if let Some(item) = section.get("workers") {
        core.workers = item.integer(1, MAX_WORKERS, report).map(|workers| workers as u32);
    }
    if let Some(offload) = section.get("offload").and_then(|item| item.parse(offload, report)) {
        core.offload = offload;
    }
    core.run_dir = section.get("run-dir").and_then(|item| item.parse(run_dir, report));
    core
}

fn offload(text: &str) -> Result<bool, Fault> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(Fault::Invalid {
            problem: format!("{text:?} is no way to offload"),
            remedy: "\"auto\" or \"off\" is right".to_owned(),
        }),
    }
}

fn run_dir(text: &str) -> Result<PathBuf, Fault> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    Err(Fault::Invalid {
        problem: format!("{text:?} is no absolute path"),
        remedy: "write one like \"/run/braid\"".to_owned(),
    })
}

fn hash_seed(text: &str) -> Result<[u8; 16], Fault> {
    let bytes = value::hex(text)?;
    bytes.as_slice().try_into().map_err(|_| Fault::Invalid {
        problem: format!("{} bytes", bytes.len()),
        remedy: "a seed has 16, that is 32 hexadecimal digits".to_owned(),
    })
}

/// The host's name, for a gateway without one.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    value::name(&name).unwrap_or_else(|_| "gateway".to_owned())
}
