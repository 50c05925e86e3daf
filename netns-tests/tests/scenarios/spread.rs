//! How 100,000 flows spread over the tunnels of a group, counted packet by packet on each outer wire.
//! Hash seed, addresses and ports are fixed: every run draws the same lots.

use crate::pair::{START, Setup, Side, patient};
use braid_netns::gateway::Gateway;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::CLIENT;
use braid_netns::{Error, Netns, Offload, Result, Topology, retry_until};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[("spread::within_five_percent_of_every_weight", within_five_percent)];

const TUNNELS: usize = 8;
/// Sizes of the groups.
const GROUPS: [usize; 4] = [2, 3, 4, 8];
const WEIGHTS: [u16; TUNNELS] = [1, 2, 3, 4, 4, 3, 2, 1];
const FLOWS: u64 = 100_000;
/// Source ports; with the destination ports they make all flows.
const SOURCES: u16 = 32;
/// Packets each millisecond.
const PACE: usize = 40;
const PAYLOAD: usize = 100;
/// RFC 4303: SPI, sequence number, IV; 128 or 148 bytes inside with a trailer of two, padded to
/// four; ICV of 16. Then UDP's header.
const OUTER_UDP: [usize; 2] = [16 + 132 + 16 + 8, 16 + 152 + 16 + 8];
const TOLERANCE: f64 = 0.05;
const SOON: Duration = Duration::from_secs(20);

fn within_five_percent() -> Outcome {
    let topology = Topology::builder().paths(TUNNELS).build()?;
    let mut a = Gateway::start(&topology.gateway_a, &configuration(&topology, Side::A, &[1; TUNNELS]))?;
    let mut b = Gateway::start(&topology.gateway_b, &configuration(&topology, Side::B, &[1; TUNNELS]))?;
    a.wait_up(START)?;
    b.wait_up(START)?;
    topology.offloads(Offload::UdpSegmentation, false)?;
    topology.gateway_b.ip("route add 10.2.16.0/20 via 10.2.0.2")?;
    topology.gateway_b.ip("-6 route add fd00:2:0:10::/60 via fd00:2::2")?;
    // Flows are counted here, not the patience of a busy machine: none shall be lost before the gateway.
    topology.gateway_a.ip(&format!("link set braid0 txqueuelen {FLOWS}"))?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let counters = Counters::install(internet, &topology.server)?;
    let spread = |members: usize, weights: &[u16; TUNNELS], v6: bool| -> Outcome {
        counters.reset()?;
        let before = queue_drops(&topology.gateway_a)?;
        let overruns_before = overruns(&topology.gateway_b)?;
        send(&topology.client, destination(members, v6))?;
        let [wires, arrived] = counters.settled()?;
        // A slow machine may drop some before the gateway sees them.
        let unseen = queue_drops(&topology.gateway_a)? - before;
        let what =
            format!("{members} of {weights:?}, IPv6 {v6}: {wires:?}, {arrived:?} arrived, {unseen} unseen");
        judge(&wires, &weights[..members]).map_err(|why| format!("{why}: {what}"))?;
        assert_eq!(wires.iter().sum::<u64>() + unseen, FLOWS, "{what}");
        // And may drop some before the far gateway has read them.
        let unread = overruns(&topology.gateway_b)? - overruns_before;
        let (crossed, arrived) = (wires.iter().sum::<u64>(), arrived.iter().sum::<u64>());
        assert!((crossed.saturating_sub(unread)..=crossed).contains(&arrived), "{unread} unread of {what}");
        Ok(())
    };
    for members in GROUPS {
        spread(members, &[1; TUNNELS], false)?;
    }
    a.write_configuration(&configuration(&topology, Side::A, &WEIGHTS))?;
    let reload = a.braid(&["reload"])?;
    assert!(reload.status.success(), "{}", reload.stderr);
    for members in GROUPS {
        spread(members, &WEIGHTS, false)?;
    }
    spread(TUNNELS, &WEIGHTS, true)
}

/// Every tunnel's share within the tolerance of its weight's; the tunnels not in the group have none.
fn judge(wires: &[u64], weights: &[u16]) -> std::result::Result<(), String> {
    let total: u64 = wires.iter().sum();
    if !(FLOWS / 10 * 9..=FLOWS).contains(&total) {
        return Err(format!("{total} packets of {FLOWS}"));
    }
    let all: u16 = weights.iter().sum();
    for (wire, count) in wires.iter().enumerate() {
        let weight = weights.get(wire).copied().unwrap_or(0);
        // Both far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let (count, due) = (*count as f64, total as f64 * f64::from(weight) / f64::from(all));
        if (count - due).abs() > due * TOLERANCE {
            return Err(format!("tunnel {wire} has {count} flows, {due:.0} are due"));
        }
    }
    Ok(())
}

/// Packets that the device's queue had no room for, while the gateway did not come to read it.
fn queue_drops(netns: &Netns) -> Result<u64> {
    let text = netns.ip("-j -s link show braid0")?;
    let links: serde_json::Value = serde_json::from_str(&text).map_err(|bad| Error::parse("ip", bad))?;
    let dropped = links.pointer("/0/stats64/tx/dropped").and_then(serde_json::Value::as_u64);
    dropped.ok_or_else(|| Error::parse("ip", "no drops"))
}

/// Datagrams that found a socket's buffer full.
fn overruns(netns: &Netns) -> Result<u64> {
    let text = netns.run(&["cat", "/proc/net/snmp"])?.stdout;
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, counts) = udp.next().zip(udp.next()).ok_or_else(|| Error::parse("snmp", "no UDP"))?;
    let found = names.zip(counts).find(|(name, _)| *name == "RcvbufErrors");
    let (_, count) = found.ok_or_else(|| Error::parse("snmp", "no RcvbufErrors"))?;
    count.parse().map_err(|bad| Error::parse("snmp", bad))
}

/// One destination network for every size of a group.
fn destination(members: usize, v6: bool) -> IpAddr {
    // At most eight.
    #[allow(clippy::cast_possible_truncation)]
    let members = members as u8;
    if v6 {
        Ipv6Addr::new(0xfd00, 2, 0, 0x10 + u16::from(members), 0, 0, 0, 9).into()
    } else {
        Ipv4Addr::new(10, 2, 16 + members, 9).into()
    }
}

fn configuration(topology: &Topology, side: Side, weights: &[u16; TUNNELS]) -> String {
    let mut text = Setup { tunnels: TUNNELS, ..Setup::default() }.configuration(side, &topology.paths);
    for (index, weight) in weights.iter().enumerate() {
        let name = format!("name = \"t{index}\"\n");
        text = text.replace(&name, &format!("{name}weight = {weight}\n"));
    }
    if side == Side::A {
        for members in GROUPS {
            let via: Vec<String> = (0..members).map(|index| format!("t{index}")).collect();
            for (address, length) in [(destination(members, false), 24), (destination(members, true), 64)] {
                let network = match address {
                    IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) & !0xff)),
                    IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !0xffff)),
                };
                // Writing to a String does not fail.
                let _ = write!(text, "\n[[route]]\nprefix = \"{network}/{length}\"\nvia = {via:?}\n");
            }
        }
    }
    patient(text)
}

/// One packet of each flow.
fn send(client: &Netns, to: IpAddr) -> Outcome {
    let any: IpAddr = if to.is_ipv4() { CLIENT.parse()? } else { braid_netns::topology::CLIENT6.parse()? };
    let sockets = client.enter(|| {
        (0..SOURCES).map(|port| UdpSocket::bind((any, 20_000 + port))).collect::<std::io::Result<Vec<_>>>()
    })??;
    let per_source = u16::try_from(FLOWS / u64::from(SOURCES))?;
    let targets = (0..per_source).map(|port| SocketAddr::new(to, 10_000 + port));
    let start = Instant::now();
    let mut sent = 0;
    for target in targets {
        for socket in &sockets {
            socket.send_to(&[0x5a; PAYLOAD], target)?;
            sent += 1;
            if sent % PACE == 0 {
                let due = start + Duration::from_millis(u64::try_from(sent / PACE)?);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
    }
    Ok(())
}

/// Counters on every outer wire, and where the packets arrive; there they end.
struct Counters<'n>([&'n Netns; 2]);

impl<'n> Counters<'n> {
    fn install(internet: &'n Netns, server: &'n Netns) -> Result<Self> {
        let lengths = OUTER_UDP.map(|length| length.to_string()).join(", ");
        let mut script = "table netdev spread {\n".to_owned();
        for wire in 0..TUNNELS {
            // Writing to a String does not fail.
            let _ = write!(
                script,
                "counter w{wire} {{ }}\nchain c{wire} {{ type filter hook ingress device \"a{wire}\" \
                 priority 0; udp length {{ {lengths} }} counter name w{wire}; }}\n"
            );
        }
        internet.nft(&(script + "}"))?;
        server.nft(
            "table netdev spread {\ncounter w0 { }\nchain c0 { type filter hook ingress device \"eth0\" \
             priority 0; udp dport 10000-19999 counter name w0 drop; }\n}",
        )?;
        Ok(Self([internet, server]))
    }

    fn reset(&self) -> Result<()> {
        self.0.iter().try_for_each(|netns| netns.run(&["nft", "reset", "counters"]).map(drop))
    }

    fn read(netns: &Netns) -> Result<Vec<u64>> {
        let text = netns.run(&["nft", "-j", "list", "counters"])?.stdout;
        let listed: serde_json::Value =
            serde_json::from_str(&text).map_err(|bad| Error::parse("nft", bad))?;
        let counters = listed["nftables"].as_array().into_iter().flatten();
        let mut named: Vec<(String, u64)> = counters
            .filter_map(|entry| {
                let counter = &entry["counter"];
                Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
            })
            .collect();
        named.sort();
        Ok(named.into_iter().map(|(_, packets)| packets).collect())
    }

    /// When no more packets come.
    fn settled(&self) -> Result<[Vec<u64>; 2]> {
        /// When all have come, for what should not.
        const QUIET: Duration = Duration::from_millis(500);
        /// Longer than a worker is kept off a processor.
        const PATIENCE: Duration = Duration::from_secs(3);
        let (mut last, mut since) = ([Vec::new(), Vec::new()], Instant::now());
        retry_until("the last packet counted", SOON, || {
            let now = [Self::read(self.0[0]), Self::read(self.0[1])];
            let [Ok(wires), Ok(arrived)] = now else { return Err("no counters") };
            let now = [wires, arrived];
            if now != last {
                (last, since) = (now, Instant::now());
            }
            let all = last.iter().all(|counts| counts.iter().sum::<u64>() == FLOWS);
            let quiet = if all { QUIET } else { PATIENCE };
            if since.elapsed() >= quiet { Ok(last.clone()) } else { Err("still counting") }
        })
    }
}
