//! What a network stack holds, so that "everything was removed" can be checked instead of hoped.

use crate::process::{check, run};
use crate::{Netns, Result, guard};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Per-device switches that gateways change.
const SWITCHES: [(&str, &[&str]); 2] = [
    (
        "net/ipv4/conf",
        &["rp_filter", "forwarding", "accept_local", "accept_redirects", "send_redirects", "src_valid_mark"],
    ),
    ("net/ipv6/conf", &["forwarding", "accept_ra", "disable_ipv6", "addr_gen_mode", "accept_dad"]),
];
const LISTS: [(&str, &[&str]); 8] = [
    ("device", &["ip", "-o", "link", "show"]),
    ("address", &["ip", "-o", "addr", "show"]),
    ("route", &["ip", "-4", "-o", "route", "show", "table", "all"]),
    ("route6", &["ip", "-6", "-o", "route", "show", "table", "all"]),
    ("nexthop", &["ip", "-o", "nexthop", "show"]),
    ("rule", &["ip", "-4", "rule", "show"]),
    ("rule6", &["ip", "-6", "rule", "show"]),
    ("nftables", &["nft", "-s", "list", "ruleset"]),
];

/// Devices, addresses, routes, next hops, rules, nftables rules, sysctls and processes of one namespace at
/// one moment, one text line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

impl State {
    /// Of a namespace.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut lines = netns.enter(read)??;
        for pid in netns.processes()? {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            lines.insert(format!("process {}", name.trim()));
        }
        Ok(Self(lines))
    }

    /// Of the namespace this process runs in, processes left out.
    ///
    /// # Errors
    /// When `ip` or `nft` fails.
    pub fn of_machine() -> Result<Self> {
        Ok(Self(read()?))
    }

    /// One line for everything that came (`+`) or went (`-`) since `self`.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let came = now.0.difference(&self.0).map(|line| format!("+ {line}"));
        let went = self.0.difference(&now.0).map(|line| format!("- {line}"));
        came.chain(went).collect()
    }
}

fn read() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for (kind, argv) in LISTS {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]);
        let ran = check(&argv.join(" "), run(command)?)?;
        lines.extend(ran.stdout.lines().filter_map(|line| entry(kind, line)));
    }
    for (path, names) in SWITCHES {
        for device in directories(&Path::new("/proc/sys").join(path)) {
            for name in names {
                let value = fs::read_to_string(device.join(name)).unwrap_or_default();
                let shown = device.join(name);
                let shown = shown.strip_prefix("/proc/sys").unwrap_or(&shown);
                lines.insert(format!("sysctl {} = {}", shown.display(), value.trim()));
            }
        }
    }
    Ok(lines)
}

/// Keeps what identifies an entry; counters, states and remaining lifetimes change by themselves.
fn entry(kind: &str, line: &str) -> Option<String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let kept = match kind {
        "device" => words.get(1)?.trim_end_matches(':').to_owned(),
        // Link-local addresses come when a carrier comes.
        "address" if words.get(3).is_some_and(|address| address.starts_with("fe80:")) => {
            return None;
        }
        "address" => format!("{} {}", words.get(1)?, words.get(3)?),
        "route" | "route6" => {
            if words.iter().any(|word| word.starts_with("fe80:")) {
                return None;
            }
            words.retain(|word| *word != "linkdown");
            if let Some(at) = words.iter().position(|word| *word == "expires") {
                words.drain(at..(at + 2).min(words.len()));
            }
            words.join(" ")
        }
        "nexthop" => {
            words.retain(|word| !["linkdown", "dead"].contains(word));
            words.join(" ")
        }
        _ => words.join(" "),
    };
    (!kept.is_empty()).then(|| format!("{kind} {kept}"))
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// The machine before a test, to be compared with the machine after it.
#[derive(Debug)]
pub struct Check {
    before: State,
    children: BTreeSet<i32>,
}

impl Check {
    /// Looks at the machine before.
    ///
    /// # Errors
    /// When `ip` or `nft` fails.
    pub fn begin() -> Result<Self> {
        Ok(Self { before: State::of_machine()?, children: own_children() })
    }

    /// What is left over: namespaces, directories and child processes of this run, and whatever
    /// changed in the machine's own namespace.
    ///
    /// # Errors
    /// When `ip` or `nft` fails.
    pub fn left_over(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> =
            guard::leftovers().iter().map(|left| format!("+ {}", left.display())).collect();
        for pid in own_children().difference(&self.children) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push(format!("+ process {pid} {}", name.trim()));
        }
        found.extend(self.before.changes(&State::of_machine()?));
        Ok(found)
    }
}

/// Processes whose parent is this one, the dead but not yet awaited included.
fn own_children() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    directories(Path::new("/proc"))
        .into_iter()
        .filter_map(|path| {
            let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            // The name in parentheses may contain anything.
            let (_, rest) = stat.rsplit_once(") ")?;
            (rest.split(' ').nth(1) == Some(own.as_str())).then_some(pid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_name_what_came_and_what_went() {
        let state = |lines: &[&str]| State(lines.iter().map(|&line| line.to_owned()).collect());
        let before = state(&["device lo", "route a"]);
        let after = state(&["device lo", "device braid0"]);
        assert_eq!(before.changes(&after), ["+ device braid0", "- route a"]);
        assert!(before.changes(&before).is_empty());
    }

    #[test]
    fn entries_keep_identity_only() {
        assert_eq!(entry("device", "7: eth0@if6: <UP> mtu 1500").as_deref(), Some("device eth0@if6"));
        assert_eq!(
            entry("address", "7: eth0    inet 10.1.0.2/24 scope global eth0").as_deref(),
            Some("address eth0 10.1.0.2/24")
        );
        assert_eq!(
            entry("route6", "default via fd00::1 dev eth0 expires 1790sec metric 1").as_deref(),
            Some("route6 default via fd00::1 dev eth0 metric 1")
        );
    }
}
