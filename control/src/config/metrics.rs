//! `[metrics]`.

use std::net::{IpAddr, SocketAddr};

use super::{
    Metrics,
    error::{Fault, Report},
    section::{Schema, Section},
};

pub(super) static METRICS: Schema = Schema { path: "metrics", keys: &["listen"] };

const EXAMPLE: &str = "write one like \"127.0.0.1:9466\" or \"[::1]:9466\"";

pub(super) fn read(root: Section<'_>, report: &mut Report) -> Option<Metrics> {
    let section = root.get("metrics")?.section(&METRICS, report)?;
    let listen = section.require("listen", "listen = \"127.0.0.1:9466\"", report)?;
    Some(Metrics { listen: listen.parse(listen_address, report)? })
}

fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    let invalid = |problem: String, remedy: &str| Err(Fault::Invalid { problem, remedy: remedy.to_owned() });
    let Ok(address) = text.parse::<SocketAddr>() else {
        return invalid(format!("{text:?} is no address with a port"), EXAMPLE);
    };
    let broadcast = matches!(address.ip(), IpAddr::V4(v4) if v4.is_broadcast());
    if address.ip().is_multicast() || broadcast {
        return invalid(format!("{} is no address of a host", address.ip()), "give the host's own address");
    }
    if address.port() == 0 {
        return invalid("port 0 is none that anybody can ask".to_owned(), EXAMPLE);
    }
    Ok(address)
}
