//! Text to value: addresses, prefixes, durations, names, hexadecimal.

use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::error::Fault;

/// Longest name of a tunnel or gateway, in bytes (the core's limit).
pub(super) const MAX_NAME_LEN: usize = 64;
/// Longest interface name, in bytes (IFNAMSIZ less the terminator).
const MAX_INTERFACE_LEN: usize = 15;

fn invalid<T>(problem: impl Into<String>, remedy: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Invalid { problem: problem.into(), remedy: remedy.into() })
}

/// `"300ms"`, `"10s"`, `"5m"`, `"8h"`, `"1d"`.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    const EXAMPLE: &str = "write a number and a unit, as in \"300ms\", \"10s\", \"5m\" or \"8h\"";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let Ok(number) = number.parse::<u64>() else {
        return invalid(format!("{text:?} is no duration"), EXAMPLE);
    };
    let milliseconds = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return invalid(format!("{text:?} is no duration"), EXAMPLE),
    };
    match number.checked_mul(milliseconds) {
        Some(total) => Ok(Duration::from_millis(total)),
        None => invalid(format!("{text:?} is too long"), EXAMPLE),
    }
}

/// A name that is one word everywhere: in commands, metrics and logs.
pub(crate) fn name(text: &str) -> Result<String, Fault> {
    const REMEDY: &str = "use letters, digits, '-', '_' and '.', beginning with a letter or digit";
    if text.is_empty() {
        return invalid("an empty name", REMEDY);
    }
    if text.len() > MAX_NAME_LEN {
        return invalid(
            format!("a name of {} bytes", text.len()),
            format!("at most {MAX_NAME_LEN} are possible"),
        );
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.chars().all(plain) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return invalid(format!("{text:?} is no usable name"), REMEDY);
    }
    Ok(text.to_owned())
}

/// The kernel's rules for interface names.
pub(super) fn interface(text: &str) -> Result<String, Fault> {
    if text.len() > MAX_INTERFACE_LEN {
        return invalid(
            format!("{text:?} has {} bytes", text.len()),
            format!("an interface name has at most {MAX_INTERFACE_LEN}"),
        );
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if text.is_empty() || text == "." || text == ".." || text.contains(bad) {
        return invalid(format!("{text:?} is no interface name"), "use one like \"eth1\"");
    }
    Ok(text.to_owned())
}

pub(super) fn address(text: &str) -> Result<IpAddr, Fault> {
    match text.parse() {
        Ok(address) => Ok(address),
        Err(_) => invalid(
            format!("{text:?} is no address"),
            "write one like \"192.0.2.10\" or \"2001:db8::10\", without a prefix length",
        ),
    }
}

/// An address that a host can have.
pub(super) fn host_address(text: &str) -> Result<IpAddr, Fault> {
    let address = address(text)?;
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return invalid(format!("{text:?} is no address of a host"), "give the host's own address");
    }
    Ok(address)
}

/// A network: no host bits.
pub(super) fn prefix(text: &str) -> Result<IpNet, Fault> {
    let Ok(net) = text.parse::<IpNet>() else {
        let remedy = match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("\"{text}/32\" would be right for one host"),
            Ok(IpAddr::V6(_)) => format!("\"{text}/128\" would be right for one host"),
            Err(_) => "write one like \"10.2.0.0/16\" or \"2001:db8:2::/48\"".to_owned(),
        };
        return invalid(format!("{text:?} is no prefix"), remedy);
    };
    if net.trunc() != net {
        return invalid(format!("{text:?} has host bits set"), format!("\"{}\" would be right", net.trunc()));
    }
    Ok(net)
}

/// Why a prefix cannot be routed into a tunnel.
pub(crate) fn unroutable(prefix: &IpNet) -> Option<&'static str> {
    let first = prefix.network();
    if prefix.prefix_len() > 0 && first.is_multicast() {
        return Some("multicast");
    }
    (prefix.prefix_len() > 0 && first.is_loopback()).then_some("loopback")
}

/// An address of ours with its network, as in `"169.254.10.2/30"`.
pub(crate) fn inside(text: &str) -> Result<IpNet, Fault> {
    let Ok(net) = text.parse::<IpNet>() else {
        return invalid(
            format!("{text:?} is no address with a prefix length"),
            "write one like \"169.254.10.2/30\" or \"fd00::2/126\"",
        );
    };
    host_address(&net.addr().to_string())?;
    let hosts = match net {
        IpNet::V4(v4) => v4.prefix_len() >= 31 || (v4.addr() != v4.network() && v4.addr() != v4.broadcast()),
        // RFC 4291 section 2.6.1: the first address is the subnet-router anycast address; RFC 6164
        // makes an exception of /127.
        IpNet::V6(v6) => v6.prefix_len() >= 127 || v6.addr() != v6.network(),
    };
    if !hosts {
        let what = if net.addr() == net.network() { "own" } else { "broadcast" };
        return invalid(
            format!("{} is the network's {what} address, not a host's", net.addr()),
            "give a host's address",
        );
    }
    Ok(net)
}

/// The other host of a network of two.
pub(super) fn other_host(net: IpNet) -> Option<IpAddr> {
    match net {
        IpNet::V4(v4) => {
            let ours = u32::from(v4.addr());
            let other = match v4.prefix_len() {
                30 => ours ^ 3, // hosts are 1 and 2
                31 => ours ^ 1, // RFC 3021
                _ => return None,
            };
            Some(Ipv4Addr::from(other).into())
        }
        IpNet::V6(v6) => {
            let ours = u128::from(v6.addr());
            let other = match v6.prefix_len() {
                126 if matches!(ours & 3, 1 | 2) => ours ^ 3,
                127 => ours ^ 1, // RFC 6164
                _ => return None,
            };
            Some(Ipv6Addr::from(other).into())
        }
    }
}

/// Hexadecimal digits, two a byte; colons and spaces between bytes are allowed. Never shown.
pub(super) fn hex(text: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
    const REMEDY: &str = "write it in hexadecimal digits, two a byte, without 0x";
    let digits = text.bytes().filter(|byte| !matches!(byte, b':' | b' '));
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2 + 1));
    let mut high = None;
    for digit in digits {
        let Some(value) = (digit as char).to_digit(16) else {
            return invalid("something in it is no hexadecimal digit", REMEDY);
        };
        match high.take() {
            None => high = Some(value),
            Some(first) => bytes.push((first * 16 + value) as u8),
        }
    }
    if high.is_some() {
        return invalid("an odd number of digits", REMEDY);
    }
    Ok(bytes)
}

/// Whether a text can be a DNS name (RFC 1123 section 2.1).
pub(crate) fn dns_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    // All digits and dots is a mistyped address, not a name.
    text.len() <= 253 && text.split('.').all(label) && !text.chars().all(|c| c.is_ascii_digit() || c == '.')
}
