//! `braid demo --json`, as root and as anybody else.

use braid_netns::gateway::binary;
use braid_netns::guard::temp_dir;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::{Error, Netns, Ran, Result, retry_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("demo::as_root", as_root),
    ("demo::of_every_type", of_every_type),
    ("demo::as_an_ordinary_user", as_an_ordinary_user),
    ("demo::with_no_other_program", with_no_other_program),
    ("demo::interrupted_it_leaves_nothing", interrupted_it_leaves_nothing),
];

const SOON: Duration = Duration::from_secs(60);
/// Debian's `nobody`.
const NOBODY: &str = "65534";

fn as_root() -> Outcome {
    let program = binary("braid")?;
    // In a namespace of its own: whatever it would leave behind, or need from outside, shows.
    let netns = Netns::new("demo")?;
    let before = netns.devices()?;
    let ran = netns.output(&[&program.to_string_lossy(), "demo", "--json", "--seconds", "1"])?;
    judge(&ran);
    assert_eq!(netns.devices()?, before);
    assert_eq!(netns.processes()?, Vec::<i32>::new());
    Ok(())
}

fn of_every_type() -> Outcome {
    let program = binary("braid")?;
    let netns = Netns::new("demo")?;
    for kind in ["wireguard", "mixed"] {
        let argv = [&program.to_string_lossy(), "demo", "--json", "--seconds", "1", "--type", kind];
        judge(&netns.output(&argv)?);
    }
    Ok(())
}

fn as_an_ordinary_user() -> Outcome {
    // What was built may lie where nobody else may look.
    let directory = temp_dir("demo")?;
    let program = directory.path().join("braid");
    fs::copy(binary("braid")?, &program)?;
    for path in [directory.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let netns = Netns::new("demo")?;
    // The device as Debian's udev makes it, whatever this machine's administrator has made of it.
    let tun = directory.path().join("tun").to_string_lossy().into_owned();
    netns.run(&["mknod", "--mode=666", &tun, "c", "10", "200"])?;
    let private = format!("mount --bind {tun} /dev/net/tun && exec \"$@\"");
    let user = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        &private,
        "sh",
        "setpriv",
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--inh-caps=-all",
    ];
    let program = program.to_string_lossy();
    let demo: [&str; 5] = [&program, "demo", "--json", "--seconds", "1"];
    let ran = netns.output(&[&user[..], &demo[..]].concat())?;
    if user_namespaces_allowed(&netns, &user)? {
        judge(&ran);
    } else {
        assert_eq!(ran.status.code(), Some(1));
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains("user namespace"), "{}", ran.stderr);
    }
    assert_eq!(netns.processes()?, Vec::<i32>::new());
    Ok(())
}

fn with_no_other_program() -> Outcome {
    let program = binary("braid")?;
    let netns = Netns::new("demo")?;
    let without = ["env", "--ignore-environment", "PATH=/nonexistent"];
    let demo = [&program.to_string_lossy(), "demo", "--json", "--seconds", "1"];
    judge(&netns.output(&[&without[..], &demo].concat())?);
    Ok(())
}

fn interrupted_it_leaves_nothing() -> Outcome {
    let program = binary("braid")?;
    let netns = Netns::new("demo")?;
    let before = netns.devices()?;
    let elsewhere = namespaces_of(&all_processes());
    let mut demo = netns.spawn(&[&program.to_string_lossy(), "demo", "--seconds", "60"])?;
    // The tunnels are up, and are about to be loaded for a minute.
    demo.wait_for_output("crossed", SOON)?;
    let family = family_of(demo.pid());
    let gateways = family.iter().filter(|pid| command_line(**pid).starts_with("braid-dataplane")).count();
    assert_eq!(gateways, 2, "{family:?}");
    let namespaces: BTreeSet<u64> = namespaces_of(&family).difference(&elsewhere).copied().collect();
    assert!(namespaces.len() >= 5, "{namespaces:?}");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.wait(SOON)?.code(), Some(1));
    assert_eq!(demo.stderr(), "braid demo: interrupted\n");
    // What the kernel kills, or takes apart, is gone in a moment.
    retry_until("nothing left", SOON, || {
        let left: Vec<_> = family.iter().filter(|pid| !command_line(**pid).is_empty()).collect();
        let held = namespaces_of(&all_processes()).intersection(&namespaces).count();
        if left.is_empty() && held == 0 { Ok(()) } else { Err(format!("{left:?}, {held} namespaces")) }
    })?;
    assert_eq!(netns.devices()?, before);
    assert_eq!(netns.processes()?, Vec::<i32>::new());
    Ok(())
}

fn all_processes() -> BTreeSet<i32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

/// A process, its children and theirs.
fn family_of(pid: i32) -> BTreeSet<i32> {
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let parents: BTreeMap<i32, i32> =
        all_processes().into_iter().filter_map(|pid| Some((pid, parent(&pid)?))).collect();
    let mut family = BTreeSet::from([pid]);
    loop {
        let children = parents.iter().filter(|(_, parent)| family.contains(parent)).map(|(pid, _)| *pid);
        let larger: BTreeSet<i32> = children.chain(family.iter().copied()).collect();
        if larger == family {
            return family;
        }
        family = larger;
    }
}

/// Empty for one that is dead.
fn command_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Network namespaces that any of their threads is in.
fn namespaces_of(processes: &BTreeSet<i32>) -> BTreeSet<u64> {
    let threads =
        processes.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    threads
        .flatten()
        .filter_map(|thread| Some(fs::metadata(thread.path().join("ns/net")).ok()?.ino()))
        .collect()
}

fn user_namespaces_allowed(netns: &Netns, user: &[&str]) -> Result<bool> {
    let unshare = ["unshare", "--user", "--map-root-user", "--net", "true"];
    Ok(netns.output(&[user, &unshare[..]].concat())?.status.success() && Path::new("/dev/net/tun").exists())
}

/// The document says that all of it worked, and the exit status agrees.
fn judge(ran: &Ran) {
    let parsed: std::result::Result<Value, _> = serde_json::from_str(&ran.stdout);
    let document = parsed.map_err(|bad| Error::parse("braid demo", bad));
    assert!(ran.status.success(), "{}: {}", ran.status, ran.stderr);
    let document = document.unwrap_or_default();
    let number = |pointer: &str| {
        let value = document.pointer(pointer).and_then(Value::as_f64);
        assert!(value.is_some(), "no {pointer} in {}", ran.stdout);
        value.unwrap_or_default()
    };
    assert!(number("/gbps") > 0.0 && number("/plain_gbps") > 0.0);
    let ratio = number("/gbps") / number("/plain_gbps");
    assert!((number("/ratio") - ratio).abs() < 0.02, "{}", ran.stdout);
    let shares: f64 = [0, 1].map(|tunnel| number(&format!("/tunnels/{tunnel}/share"))).iter().sum();
    assert!((shares - 1.0).abs() < 0.02, "{}", ran.stdout);
    assert!(document["tunnels"].as_array().is_some_and(|tunnels| {
        tunnels.len() == 2 && tunnels.iter().all(|tunnel| tunnel["name"].is_string())
    }));
    assert!(number("/failover/lost_packets") > 0.0, "a silent cut costs packets");
    assert!(number("/failover/recovery_ms") > 0.0);
    assert_eq!(document.pointer("/failover/healthy_flows_moved"), Some(&Value::from(0)));
    assert_eq!(document["encrypted"], true);
    assert_eq!(ran.stderr, "");
}
