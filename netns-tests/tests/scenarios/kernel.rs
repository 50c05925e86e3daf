//! What a gateway does to the kernel it runs on, and that it undoes it: routes, rules, addresses,
//! sysctls; and that nothing of a protected prefix ever leaves in clear, whatever is killed.

use crate::pair::{START, Setup, Side, patient};
use braid_netns::capture::Capture;
use braid_netns::gateway::{Gateway, binary};
use braid_netns::guard::temp_dir;
use braid_netns::leak::State;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, CLIENT6, NET_A, NET_A6, SERVER, SERVER6};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Netns, Process, Ran, Result, Topology, poll_until, retry_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("kernel::everything_is_put_back", everything_is_put_back),
    ("kernel::nothing_in_clear_whatever_is_killed", nothing_in_clear_whatever_is_killed),
    ("kernel::what_is_protected_goes_nowhere_whatever_is_killed", what_is_protected_goes_nowhere),
    ("kernel::nothing_from_a_tunnel_into_a_tunnel", nothing_from_a_tunnel_into_a_tunnel),
    ("kernel::two_gateways_in_one_namespace", two_gateways_in_one_namespace),
    ("kernel::what_others_remove_comes_back", what_others_remove_comes_back),
    ("kernel::refusals_are_one_line", refusals_are_one_line),
    ("kernel::deadlines_come_before_ordinary_threads", deadlines_come_before_ordinary_threads),
];

/// A host in the middle, reached by the default route and, once there is a tunnel, by it alone.
const OUTSIDE: &str = "203.0.113.9";
const OUTSIDE6: &str = "2001:db8:c::9";
const DEFAULT_ROUTES: &str = "\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = [\"t0\"]\n\
     \n[[route]]\nprefix = \"::/0\"\nvia = [\"t0\"]\n";
const SOON: Duration = Duration::from_secs(10);
/// Requests that nothing needs to answer.
const FEW: Pings = Pings { count: 2, interval: Duration::from_millis(10), size: 56, df: false };

/// Of the second gateways of one namespace.
const OTHER_NET_A: &str = "10.3.0.0/24";
const OTHER_NET_B: &str = "10.4.0.0/24";
const OTHER_CLIENT: &str = "10.3.0.2";
const OTHER_SERVER: &str = "10.4.0.2";

fn setup() -> Setup {
    Setup { tunnels: 1, ..Setup::default() }
}

/// The standard network, with default routes in clear to a host in the middle that answers.
fn network() -> Result<Topology> {
    let topology = Topology::builder().build()?;
    let path = &topology.paths[0];
    if let Some(internet) = &topology.internet {
        internet.address("lo", &format!("{OUTSIDE}/32"))?;
        internet.address("lo", &format!("{OUTSIDE6}/128"))?;
        internet.ip(&format!("route add {NET_A} via {} dev a0", path.a))?;
        internet.ip(&format!("-6 route add {NET_A6} via {} dev a0", path.a6))?;
    }
    topology.gateway_a.ip("route add default via 192.0.2.2")?;
    topology.gateway_a.ip("-6 route add default via 2001:db8:a::2")?;
    Ok(topology)
}

fn start(topology: &Topology, side: Side, more: &str) -> Result<Gateway> {
    let netns = if side == Side::A { &topology.gateway_a } else { &topology.gateway_b };
    let text = patient(setup().configuration(side, &topology.paths)) + more;
    let mut gateway = Gateway::start(netns, &text)?;
    gateway.wait_up(START)?;
    Ok(gateway)
}

/// Starts a killed gateway again, in the same run directory.
fn start_again(gateway: &Gateway, netns: &Netns) -> Result<Process> {
    let run_dir = gateway.run_dir();
    let config = run_dir.with_file_name("braid.toml");
    let program = binary("braid")?;
    let [program, config, run_dir] = [&program, &config, &run_dir].map(|path| path.to_string_lossy());
    netns.spawn(&[&program, "run", "--config", &config, "--run-dir", &run_dir, "--insecure-manual-keys"])
}

fn without_processes(before: &State, now: &State) -> Vec<String> {
    let mut changes = before.changes(now);
    changes.retain(|line| !line.contains(" process "));
    changes
}

fn wait_for(netns: &Netns, wanted: &State) -> Result<()> {
    retry_until("the kernel as it was", SOON, || {
        let now = State::of(netns).map_err(|error| error.to_string())?;
        let changes = without_processes(wanted, &now);
        if changes.is_empty() { Ok(()) } else { Err(changes.join("; ")) }
    })
}

/// The id of one of a gateway's processes.
fn part(netns: &Netns, name: &str) -> Result<i32> {
    poll_until(&format!("{name} running"), SOON, || {
        netns.processes().ok()?.into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(name))
        })
    })
}

/// Signals one of a gateway's processes; its process id.
pub(crate) fn signal_part(netns: &Netns, name: &str, signal: Signal) -> Result<i32> {
    let pid = part(netns, name)?;
    let _ = kill(Pid::from_raw(pid), signal);
    Ok(pid)
}

/// Kills one of a gateway's processes and waits until the launcher has started another.
pub(crate) fn kill_part(netns: &Netns, name: &str) -> Result<()> {
    let pid = signal_part(netns, name, Signal::SIGKILL)?;
    poll_until(&format!("{name} started again"), SOON, || {
        let others = netns.processes().ok()?.into_iter().filter(|other| *other != pid);
        others
            .into_iter()
            .any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(name))
            })
            .then_some(())
    })
}

fn answered(netns: &Netns, address: &str) -> Result<bool> {
    Ok(!ping(netns, address, &FEW)?.rtt_ms.is_empty())
}

/// Pings from behind the gateway and from it, to a host of the other side and to one outside.
/// Whether they are answered is not looked at, nor whether they could be sent.
fn try_everything(topology: &Topology) -> Result<()> {
    for address in [SERVER, SERVER6, OUTSIDE, OUTSIDE6] {
        for netns in [&topology.client, &topology.gateway_a] {
            netns.output(&["ping", "-n", "-c", "2", "-i", "0.01", "-W", "1", address])?;
        }
    }
    Ok(())
}

fn everything_is_put_back() -> Outcome {
    let topology = network()?;
    let netns = &topology.gateway_a;
    // As on a machine that was no router, with a strict filter.
    for (path, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv4/conf/wan0/rp_filter", "1"),
        ("net/ipv6/conf/wan0/accept_ra", "1"),
        ("net/ipv4/conf/all/accept_redirects", "1"),
    ] {
        netns.sysctl(path, value)?;
    }
    let before = State::of(netns)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // Anew each time: with fixed keys, a peer that goes on takes the second start for replays.
        let _b = start(&topology, Side::B, "")?;
        let mut gateway = start(&topology, Side::A, DEFAULT_ROUTES)?;
        assert!(answered(&topology.client, SERVER)? && answered(&topology.client, SERVER6)?);
        assert_eq!(netns.read_sysctl("net/ipv4/ip_forward")?, "1");
        // Strict would refuse the peer's packets, since its address is routed into the tunnel.
        assert_eq!(netns.read_sysctl("net/ipv4/conf/wan0/rp_filter")?, "2");
        assert_eq!(netns.read_sysctl("net/ipv6/conf/wan0/accept_ra")?, "2");
        gateway.process().signal(signal);
        assert_eq!(gateway.process().wait(SOON)?.code(), Some(0));
        assert_eq!(without_processes(&before, &State::of(netns)?), Vec::<String>::new(), "{signal}");
        let left = fs::read_dir(gateway.run_dir())?.flatten().map(|entry| entry.file_name());
        let sockets: Vec<_> = left.filter(|name| name.to_string_lossy().ends_with(".sock")).collect();
        assert!(sockets.is_empty(), "{sockets:?}");
    }
    Ok(())
}

/// The host in the middle does at first, or its silence would say nothing.
fn answers_in_clear(topology: &Topology) -> Outcome {
    for address in [OUTSIDE, OUTSIDE6] {
        assert!(answered(&topology.client, address)?, "{address} must answer in clear at first");
    }
    Ok(())
}

fn nothing_in_clear_whatever_is_killed() -> Outcome {
    let topology = network()?;
    let netns = &topology.gateway_a;
    let before = State::of(netns)?;
    answers_in_clear(&topology)?;
    let _b = start(&topology, Side::B, "")?;
    let mut gateway = start(&topology, Side::A, DEFAULT_ROUTES)?;
    let capture = Capture::start(netns, "wan0", "ip or ip6", 128)?;
    assert!(answered(&topology.client, SERVER)? && answered(&topology.client, SERVER6)?);
    try_everything(&topology)?;
    kill_part(netns, "braid-control")?;
    try_everything(&topology)?;
    kill_part(netns, "braid-dataplane")?;
    try_everything(&topology)?;
    gateway.process().signal(Signal::SIGKILL);
    gateway.process().wait(SOON)?;
    poll_until("the device gone", SOON, || {
        netns.devices().ok()?.iter().all(|device| device != "braid0").then_some(())
    })?;
    try_everything(&topology)?;
    let mut second = start_again(&gateway, netns)?;
    try_everything(&topology)?;
    retry_until("the tunnel up again", START, || match answered(&topology.client, SERVER) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no answer".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    try_everything(&topology)?;
    let packets = capture.stop()?;
    let inner = [CLIENT, CLIENT6, SERVER, SERVER6, OUTSIDE, OUTSIDE6];
    let inner: Vec<IpAddr> = inner.iter().filter_map(|text| text.parse().ok()).collect();
    let in_clear = packets
        .iter()
        .filter_map(|packet| packet.headers())
        .find(|headers| inner.contains(&headers.source) || inner.contains(&headers.destination));
    assert_eq!(in_clear, None);
    assert!(packets.iter().any(|packet| packet.is_esp_in_udp()), "nothing was encrypted");
    // What the killed one left is undone by the next.
    assert_eq!(second.stop(SOON)?.code(), Some(0));
    assert_eq!(without_processes(&before, &State::of(netns)?), Vec::<String>::new());
    Ok(())
}

/// Prefixes that no route leads into the tunnel, and a default route would carry in clear.
fn what_is_protected_goes_nowhere() -> Outcome {
    let topology = network()?;
    let netns = &topology.gateway_a;
    let before = State::of(netns)?;
    answers_in_clear(&topology)?;
    let _b = start(&topology, Side::B, "")?;
    let text = patient(setup().configuration(Side::A, &topology.paths));
    let protect = format!("[gateway]\nprotect = [\"{OUTSIDE}/32\", \"{OUTSIDE6}/128\"]\n");
    let mut gateway = Gateway::start(netns, &text.replacen("[gateway]\n", &protect, 1))?;
    gateway.wait_up(START)?;
    let capture = Capture::start(netns, "wan0", "ip or ip6", 128)?;
    assert!(answered(&topology.client, SERVER)? && answered(&topology.client, SERVER6)?);
    let nowhere = |when: &str| -> Outcome {
        for address in [OUTSIDE, OUTSIDE6] {
            let ping = ["ping", "-n", "-c", "2", "-i", "0.01", "-W", "1", address];
            // Of refusals only some are told.
            assert_eq!(topology.client.output(&ping)?.status.code(), Some(1), "{when}: {address}");
            assert_eq!(netns.output(&ping)?.status.code(), Some(2), "{when}: {address} from the gateway");
        }
        Ok(())
    };
    nowhere("all runs")?;
    kill_part(netns, "braid-control")?;
    nowhere("control was killed")?;
    kill_part(netns, "braid-dataplane")?;
    nowhere("the core was killed")?;
    gateway.process().signal(Signal::SIGKILL);
    gateway.process().wait(SOON)?;
    nowhere("all was killed")?;
    let mut second = start_again(&gateway, netns)?;
    nowhere("it starts again")?;
    let packets = capture.stop()?;
    let outside: Vec<IpAddr> = vec![OUTSIDE.parse()?, OUTSIDE6.parse()?];
    let in_clear = packets.iter().filter_map(|packet| packet.headers());
    assert_eq!(in_clear.into_iter().find(|headers| outside.contains(&headers.destination)), None);
    assert!(packets.iter().any(|packet| packet.is_esp_in_udp()), "nothing was encrypted");
    assert_eq!(second.stop(SOON)?.code(), Some(0));
    assert_eq!(without_processes(&before, &State::of(netns)?), Vec::<String>::new());
    assert!(answered(&topology.client, OUTSIDE)?, "nothing protects it any more");
    Ok(())
}

fn nothing_from_a_tunnel_into_a_tunnel() -> Outcome {
    const ELSEWHERE: &str = "10.99.0.1";
    let topology = network()?;
    let elsewhere = "\n[[route]]\nprefix = \"10.99.0.0/16\"\nvia = [\"t0\"]\n";
    let _a = start(&topology, Side::A, elsewhere)?;
    // All that B has no better route for, it would send back into the tunnel.
    let b = start(&topology, Side::B, DEFAULT_ROUTES)?;
    assert!(answered(&topology.client, SERVER)? && answered(&topology.client, SERVER6)?);
    let refused = topology.client.output(&["ping", "-n", "-c", "2", "-W", "1", ELSEWHERE])?;
    assert!(refused.stdout.contains("Unreachable"), "{}", refused.stdout);

    let text = patient(setup().configuration(Side::B, &topology.paths)) + DEFAULT_ROUTES;
    b.write_configuration(&text.replacen("[gateway]\n", "[gateway]\ntransit = true\n", 1))?;
    let reload = b.braid(&["reload"])?;
    assert!(reload.status.success(), "{}", reload.stderr);
    assert!(answered(&topology.client, SERVER)?);
    // Now it comes back, to a gateway that does not take our client's address from a tunnel.
    let sent = topology.client.output(&["ping", "-n", "-c", "2", "-W", "1", ELSEWHERE])?;
    assert!(!sent.stdout.contains("Unreachable"), "{}", sent.stdout);
    Ok(())
}

fn two_gateways_in_one_namespace() -> Outcome {
    let topology = Topology::builder().paths(2).build()?;
    let netns = &topology.gateway_a;
    netns.sysctl("net/ipv4/ip_forward", "0")?;
    let before = State::of(netns)?;
    let text = setup().configuration(Side::A, &topology.paths);
    let mut first = Gateway::start(netns, &text)?;
    first.wait_up(START)?;
    let same_dir = run_in(netns, first.run_dir().with_file_name("braid.toml").as_path(), &first.run_dir())?;
    refused(&same_dir, &["in use", "--run-dir"]);
    // The same device, then the same address.
    let mut same_device = Gateway::start(netns, &text)?;
    same_device.process().wait(START)?;
    let said = same_device.process().stderr();
    assert!(said.contains("4500") || said.contains("braid0"), "{said}");
    let other = text.replacen("[gateway]\n", "[core]\ndevice = \"braid1\"\n\n[gateway]\n", 1);
    let mut same_address = Gateway::start(netns, &other)?;
    assert_eq!(same_address.process().wait(START)?.code(), Some(2));
    let said = same_address.process().stderr();
    assert!(said.contains("in use") && said.contains(":4500"), "{said}");
    // Another address: both live, and what both need stays until the last has gone.
    let path = &topology.paths[1];
    let moved = other.replace(&topology.paths[0].a.to_string(), &path.a.to_string());
    let moved = moved.replace("169.254.10.", "169.254.20.").replace("fd00:ffff:10::", "fd00:ffff:20::");
    // Its own networks, to a peer of its own.
    let moved = moved.replace("10.2.0.0/24", OTHER_NET_B).replace("fd00:2::/64", "fd00:4::/64");
    let moved = moved.replace(&topology.paths[0].b.to_string(), &path.b.to_string());
    let far_text = setup().configuration(Side::B, &topology.paths);
    let mut far_first = Gateway::start(&topology.gateway_b, &far_text)?;
    let far_moved = far_text
        .replacen("[gateway]\n", "[core]\ndevice = \"braid1\"\n\n[gateway]\n", 1)
        .replace(&topology.paths[0].a.to_string(), &path.a.to_string())
        .replace(&topology.paths[0].b.to_string(), &path.b.to_string())
        .replace("169.254.10.", "169.254.20.")
        .replace("fd00:ffff:10::", "fd00:ffff:20::")
        .replace("10.1.0.0/24", OTHER_NET_A)
        .replace("fd00:1::/64", "fd00:3::/64");
    let mut second = Gateway::start(netns, &moved)?;
    let mut far_second = Gateway::start(&topology.gateway_b, &far_moved)?;
    poll_until("both devices", START, || {
        let devices = netns.devices().ok()?;
        ["braid0", "braid1"].iter().all(|name| devices.iter().any(|d| d == name)).then_some(())
    })?;
    retry_until("the second's routes", START, || {
        let routes = netns.ip("route show proto 177").map_err(|error| error.to_string())?;
        if routes.contains("braid1") { Ok(()) } else { Err(routes) }
    })?;
    for gateway in [&mut first, &mut second, &mut far_first, &mut far_second] {
        gateway.wait_up(START)?;
    }
    topology.client.address("lo", &format!("{OTHER_CLIENT}/32"))?;
    topology.server.address("lo", &format!("{OTHER_SERVER}/32"))?;
    for (netns, via) in [(netns, CLIENT), (&topology.gateway_b, SERVER)] {
        let other = if via == CLIENT { OTHER_CLIENT } else { OTHER_SERVER };
        netns.ip(&format!("route add {other}/32 via {via} dev lan0"))?;
    }
    for (device, idle, from, to) in
        [("braid0", "braid1", CLIENT, SERVER), ("braid1", "braid0", OTHER_CLIENT, OTHER_SERVER)]
    {
        let [used, other] = [device, idle].map(|device| Capture::start(netns, device, "icmp", 64));
        let (used, other) = (used?, other?);
        let said =
            topology.client.run(&["ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", "-I", from, to])?;
        assert!(said.stdout.contains(" 0% packet loss"), "{}", said.stdout);
        assert_eq!((used.stop()?.len(), other.stop()?.len()), (6, 0), "by {device}");
    }
    assert_eq!(first.process().stop(SOON)?.code(), Some(0));
    // The other one goes on.
    topology.client.run(&[
        "ping",
        "-n",
        "-c",
        "3",
        "-i",
        "0.05",
        "-W",
        "5",
        "-I",
        OTHER_CLIENT,
        OTHER_SERVER,
    ])?;
    netns.ip(&format!("route del {OTHER_CLIENT}/32"))?;
    assert_eq!(netns.read_sysctl("net/ipv4/ip_forward")?, "1");
    assert!(netns.ip("route show proto 177")?.contains("unreachable"));
    assert_eq!(second.process().stop(SOON)?.code(), Some(0));
    assert_eq!(without_processes(&before, &State::of(netns)?), Vec::<String>::new());
    Ok(())
}

fn what_others_remove_comes_back() -> Outcome {
    let topology = network()?;
    let netns = &topology.gateway_a;
    let _b = start(&topology, Side::B, "")?;
    let mut gateway = start(&topology, Side::A, DEFAULT_ROUTES)?;
    let running = State::of(netns)?;
    for removal in [
        "rule del priority 22050",
        "route flush proto 177",
        "-6 route flush proto 177",
        "addr flush dev braid0",
        "link set braid0 down",
        "link del braid0",
    ] {
        netns.ip(removal)?;
        wait_for(netns, &running)?;
    }
    retry_until("traffic on the new device", START, || match answered(&topology.client, SERVER) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no answer".to_owned()),
        Err(error) => Err(error.to_string()),
    })?;
    assert_eq!(gateway.process().stop(SOON)?.code(), Some(0));
    Ok(())
}

fn refusals_are_one_line() -> Outcome {
    let topology = network()?;
    let netns = &topology.gateway_a;
    let before = State::of(netns)?;
    let text = setup().configuration(Side::A, &topology.paths);
    let refuse = |text: &str, words: &[&str]| -> Result<()> {
        let mut gateway = Gateway::start(netns, text)?;
        let status = gateway.process().wait(START)?;
        let said = gateway.process().stderr();
        assert_eq!(status.code(), Some(2), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("braid")).collect();
        assert!(matches!(errors[..], [line] if words.iter().all(|word| line.contains(word))), "{said}");
        Ok(())
    };
    netns.ip("tuntap add braid0 mode tun")?;
    refuse(&text, &["braid0", "exists"])?;
    netns.ip("link del braid0")?;
    refuse(&text.replace("local = \"192.0.2.1\"", "local = \"192.0.2.77\""), &["192.0.2.77"])?;
    refuse(&text.replacen("10.1.0.1", "10.1.0.77", 1), &["10.1.0.77"])?;
    // A container that was given too little.
    let directory = temp_dir("refused")?;
    let config = directory.path().join("braid.toml");
    fs::write(&config, &text)?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
    for (dropped, name) in [("-net_admin", "CAP_NET_ADMIN"), ("-net_raw", "CAP_NET_RAW")] {
        let without = ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped];
        refused(&run_with(netns, &without, &config, &directory.path().join("run"))?, &[name, "is missing"]);
    }
    assert_eq!(without_processes(&before, &State::of(netns)?), Vec::<String>::new());
    Ok(())
}

fn run_in(netns: &Netns, config: &Path, run_dir: &Path) -> Result<Ran> {
    run_with(netns, &[], config, run_dir)
}

/// By way of another program.
fn run_with(netns: &Netns, by: &[&str], config: &Path, run_dir: &Path) -> Result<Ran> {
    let program = binary("braid")?;
    let [program, config, run_dir] = [&program, config, run_dir].map(|path| path.to_string_lossy());
    let run = [&program, "run", "--config", &config, "--run-dir", &run_dir, "--insecure-manual-keys"];
    netns.output(&[by, &run].concat())
}

fn refused(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.status.code(), Some(2), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(matches!(lines[..], [line] if words.iter().all(|word| line.contains(word))), "{}", ran.stderr);
}

/// What watches tunnels and links runs before all else that wants a processor, where the machine allows it; what
/// carries packets does not.
fn deadlines_come_before_ordinary_threads() -> Outcome {
    /// Of sched(7).
    const SCHED_FIFO: &str = "1";
    const SCHED_OTHER: &str = "0";
    /// `policy` in proc_pid_stat(5), counted from the state, which is field 3.
    const POLICY: usize = 41 - 3;
    let topology = network()?;
    let netns = &topology.gateway_a;
    let _gateway = start(&topology, Side::A, "")?;
    let allowed = netns.output(&["chrt", "--fifo", "1", "true"])?.status.success();
    let core = part(netns, "braid-dataplane")?;
    let mut policies = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{core}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (name, fields) = stat.rsplit_once(") ").ok_or("no name in stat")?;
        let name = name.split_once('(').map_or(name, |(_, name)| name).to_owned();
        policies.insert(name, fields.split(' ').nth(POLICY).unwrap_or_default().to_owned());
    }
    for (thread, policy) in [
        ("liveness", SCHED_FIFO),
        ("uplinks", SCHED_FIFO),
        ("bfd-links", SCHED_FIFO),
        ("handshakes", SCHED_OTHER),
        ("worker-0", SCHED_OTHER),
    ] {
        let wanted = if allowed { policy } else { SCHED_OTHER };
        assert_eq!(policies.get(thread).map(String::as_str), Some(wanted), "{thread} of {policies:?}");
    }
    Ok(())
}
