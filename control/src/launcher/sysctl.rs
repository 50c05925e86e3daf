//! Forwarding and reverse-path filtering: turned on where needed, put back as they were.
//!
//! Some settings drag others along: `ip_forward` resets `accept_redirects` and every interface's
//! own forwarding, forwarding of IPv6 makes an uplink ignore router advertisements. What may be
//! dragged is noted before and put back after. What has another value at the end than we gave it
//! was set by somebody else since, and stays.
//!
//! Not done: interfaces that appear later take the kernel's defaults.

use std::fs;
use std::io;
use std::path::Path;

use braid_api::launcher::KernelPlan;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::error::PlanError;

const ROOT: &str = "/proc/sys";

/// One setting that was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Changed {
    /// Path below `/proc/sys`.
    pub(super) path: String,
    /// As it was.
    pub(super) original: String,
    /// As it is now, because of us.
    pub(super) ours: String,
}

impl Changed {
    fn new(path: impl Into<String>, original: &str, ours: &str) -> Self {
        Self { path: path.into(), original: original.to_owned(), ours: ours.to_owned() }
    }

    /// Whether this is a setting that a launcher changes: what another process hands over is not
    /// taken for more.
    pub(super) fn is_plausible(&self) -> bool {
        let number = |text: &str| text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
        let known = |path: &str| {
            let Some((scope, key)) = path.split_once("/conf/").and_then(|(_, rest)| rest.split_once('/'))
            else {
                return path == "net/ipv4/ip_forward";
            };
            let keys = ["forwarding", "rp_filter", "accept_ra", "accept_redirects"];
            keys.contains(&key) && scope != ".." && scope != "."
        };
        let rooted = self.path.starts_with("net/ipv4/") || self.path.starts_with("net/ipv6/");
        rooted && known(&self.path) && number(&self.original) && number(&self.ours)
    }
}

/// What has to change for a plan, in order, and what may be dragged along. Changes nothing.
pub(super) fn needed(plan: &KernelPlan) -> Vec<Changed> {
    let mut prefixes = plan.addresses.iter().chain(plan.routes.iter().map(|r| &r.prefix));
    let v4 = prefixes.clone().any(|p| matches!(p, IpNet::V4(_)));
    let v6 = prefixes.any(|p| matches!(p, IpNet::V6(_)));
    let mut changes = Vec::new();
    if v4 && read("net/ipv4/ip_forward").as_deref() == Some("0") {
        // RFC 1812 defaults replace these when forwarding is turned on, RFC 1122's when off.
        for interface in interfaces("net/ipv4/conf").into_iter().filter(|name| *name != plan.device) {
            note(&mut changes, format!("net/ipv4/conf/{interface}/forwarding"), "1", "1");
        }
        let path = "net/ipv4/conf/all/accept_redirects";
        if let Some(original) = read(path) {
            changes.push(Changed::new(path, &original, "0"));
        }
        changes.push(Changed::new("net/ipv4/ip_forward", "0", "1"));
    }
    if v6 && read("net/ipv6/conf/all/forwarding").as_deref() == Some("0") {
        for interface in interfaces("net/ipv6/conf").into_iter().filter(|name| *name != plan.device) {
            note(&mut changes, format!("net/ipv6/conf/{interface}/forwarding"), "1", "1");
            // With 1, a forwarding host ignores advertisements and drops their default route.
            note(&mut changes, format!("net/ipv6/conf/{interface}/accept_ra"), "1", "2");
        }
        changes.push(Changed::new("net/ipv6/conf/all/forwarding", "0", "1"));
    }
    // The strictest of `all` and the interface's own counts, and 2 (loose) is above 1 (strict).
    match read("net/ipv4/conf/all/rp_filter").as_deref() {
        Some("1") => changes.push(Changed::new("net/ipv4/conf/all/rp_filter", "1", "2")),
        Some("0") => {
            for interface in interfaces("net/ipv4/conf").into_iter().filter(|name| *name != plan.device) {
                note(&mut changes, format!("net/ipv4/conf/{interface}/rp_filter"), "1", "2");
            }
        }
        _ => {}
    }
    changes
}

fn note(changes: &mut Vec<Changed>, path: String, when: &str, ours: &str) {
    if read(&path).as_deref() == Some(when) {
        changes.push(Changed::new(path, when, ours));
    }
}

/// Makes one change.
///
/// # Errors
/// What the system said.
pub(super) fn set(change: &Changed) -> Result<(), PlanError> {
    if read(&change.path).as_deref() == Some(&change.ours) {
        return Ok(());
    }
    // Dragged along by its master: nothing to do now.
    if change.path.ends_with("/accept_redirects") {
        return Ok(());
    }
    write(&change.path, &change.ours).map_err(|error| PlanError::Sysctl {
        path: change.path.clone(),
        value: change.ours.clone(),
        error,
    })
}

/// Puts settings back that still have the value we gave them, last change first.
pub(super) fn restore(changes: &[Changed]) {
    let untouched: Vec<&Changed> =
        changes.iter().filter(|c| read(&c.path).as_deref() == Some(&c.ours)).collect();
    for change in untouched.into_iter().rev() {
        if read(&change.path).as_deref() == Some(&change.original) {
            continue;
        }
        if let Err(error) = write(&change.path, &change.original) {
            tracing::warn!("cannot set sysctl {} back to {}: {error}", change.path, change.original);
        }
    }
}

/// Settings of our own device, which go with it: no traffic of the kernel's own, loose filter,
/// our own address as a source.
///
/// # Errors
/// What the system said to a setting that matters.
pub(super) fn prepare_device(device: &str) -> Result<(), PlanError> {
    let v4 = format!("net/ipv4/conf/{device}");
    let v6 = format!("net/ipv6/conf/{device}");
    for (path, value) in [
        (format!("{v4}/rp_filter"), "2"),
        // The core writes ICMP errors to the device in the gateway's own name.
        (format!("{v4}/accept_local"), "1"),
        (format!("{v4}/forwarding"), "1"),
        // 1 is none: no link-local address, so no solicitations into the tunnels.
        (format!("{v6}/addr_gen_mode"), "1"),
        (format!("{v6}/accept_ra"), "0"),
        (format!("{v6}/router_solicitations"), "0"),
        (format!("{v6}/forwarding"), "1"),
    ] {
        if read(&path).is_none_or(|is| is == value) {
            continue;
        }
        let change = Changed::new(path, "", value);
        set(&change)?;
    }
    Ok(())
}

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new(ROOT).join("net/ipv6/conf/all").is_dir()
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new(ROOT).join(path)).ok()?.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(path), value)
}

/// Interfaces that have settings, without `all`, `default` and the loopback.
fn interfaces(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join(directory)) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| !["all", "default", "lo"].contains(&name.as_str())).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_a_launcher_changes_are_plausible() {
        let plausible = |path: &str, value: &str| Changed::new(path, value, "1").is_plausible();
        assert!(plausible("net/ipv4/ip_forward", "0"));
        assert!(plausible("net/ipv4/conf/eth0/rp_filter", "1"));
        assert!(plausible("net/ipv6/conf/eth0.5/accept_ra", "2"));
        for path in [
            "kernel/core_pattern",
            "net/ipv4/../../kernel/core_pattern",
            "net/ipv4/conf/../forwarding",
            "net/ipv4/conf/eth0/../../ip_forward",
            "net/ipv4/tcp_mem",
            "net/core/rmem_max",
        ] {
            assert!(!plausible(path, "0"), "{path}");
        }
        assert!(!plausible("net/ipv4/ip_forward", "|/bin/sh"));
    }
}
