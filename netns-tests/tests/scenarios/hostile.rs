//! What a host on the way can send to a gateway, with and without the keys: each packet is counted
//! under its own reason, exactly, and the tunnel goes on as if nothing had happened.

use crate::pair::{PROBE_INTERVAL, PROBE_MULTIPLIER, Pair, Setup, Side};
use braid_netns::capture::{Capture, Packet};
use braid_netns::content::Pattern;
use braid_netns::raw::{self, RawSocket};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::topology::{CLIENT, SERVER};
use braid_netns::traffic::{Pings, ping};
use braid_netns::{Error, Family, Netns, Result, Topology, poll_until, retry_until};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("hostile::altered_in_udp", altered_in_udp),
    ("hostile::altered_in_udp_over_ipv6", altered_in_udp_over_ipv6),
    ("hostile::altered_as_raw_esp", altered_as_raw_esp),
    ("hostile::altered_as_raw_esp_over_ipv6", altered_as_raw_esp_over_ipv6),
    ("hostile::authentic_but_wrong", authentic_but_wrong),
    ("hostile::a_flood_costs_nothing", a_flood_costs_nothing),
];

const SOON: Duration = Duration::from_secs(10);
const NATT: u16 = 4500;
const ESP: u8 = 50;
/// SPI, sequence number, IV; padding length and next header; ICV.
const SHORTEST: usize = 16 + 2 + 16;
/// Small, so that it is soon passed.
const WINDOW: u64 = 64;
/// In the tunnels' own reasons: multicast from the hosts' stacks comes when it likes.
const NOT_OURS: &str = "not_routable";

fn altered_in_udp() -> Outcome {
    altered(&Setup { tunnels: 1, ..Setup::default() })
}

fn altered_in_udp_over_ipv6() -> Outcome {
    altered(&Setup { tunnels: 1, outer6: Some(0), ..Setup::default() })
}

fn altered_as_raw_esp() -> Outcome {
    altered(&Setup { tunnels: 1, encapsulation: "esp", ..Setup::default() })
}

fn altered_as_raw_esp_over_ipv6() -> Outcome {
    altered(&Setup { tunnels: 1, encapsulation: "esp", outer6: Some(0), ..Setup::default() })
}

/// A place between the gateways, from which packets go to gateway B in A's name.
pub(crate) struct Attacker {
    pub(crate) pair: Pair,
    pub(crate) socket: RawSocket,
    /// UDP's, at both ends; or it is ESP as it is.
    port: Option<u16>,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
}

impl Attacker {
    /// With a tunnel that carries nothing but what is sent on purpose.
    fn new(setup: &Setup, window: u64, edit: impl Fn(Side, String) -> String) -> Result<Self> {
        let pair = Pair::start_edited(setup, Topology::builder().build()?, |side, text| {
            let window = format!("\n[tunnel.manual]\nreplay-window = {window}\n");
            edit(side, unprobed(&text).replace("\n[tunnel.manual]\n", &window))
        })?;
        let path = &pair.topology.paths[0];
        let (from, to): (IpAddr, IpAddr) = match setup.outer6 {
            Some(_) => (path.a6.into(), path.b6.into()),
            None => (path.a.into(), path.b.into()),
        };
        Self::between(pair, (setup.encapsulation == "udp").then_some(NATT), from, to)
    }

    /// Between these outer addresses.
    pub(crate) fn between(pair: Pair, port: Option<u16>, from: IpAddr, to: IpAddr) -> Result<Self> {
        let internet =
            pair.topology.internet.as_ref().ok_or_else(|| Error::Usage("no internet".to_owned()))?;
        let socket = RawSocket::open(internet, if from.is_ipv4() { Family::V4 } else { Family::V6 })?;
        let attacker = Self { socket, port, from, to, pair };
        attacker.healthy()?;
        Ok(attacker)
    }

    fn outer(&self, payload: &[u8], tos: u8) -> Vec<u8> {
        match self.port {
            Some(port) => raw::udp((self.from, port), (self.to, port), tos, payload),
            None => raw::ip(self.from, self.to, ESP, tos, payload),
        }
    }

    pub(crate) fn send(&self, payload: &[u8]) -> Result<()> {
        self.socket.send(&self.outer(payload, 0))
    }

    /// Bytes of the outer headers.
    fn headers(&self) -> usize {
        let ip = if self.from.is_ipv4() { 20 } else { 40 };
        if self.port.is_some() { ip + 8 } else { ip }
    }

    /// ESP packets, or data messages of WireGuard, that gateway A sends for that many pings, which do not arrive when
    /// `lost`.
    pub(crate) fn esp_of_pings(&self, count: u32, lost: bool) -> Result<Vec<Vec<u8>>> {
        let Topology { client, gateway_a, .. } = &self.pair.topology;
        let filter = format!(
            "src host {} and {}",
            self.from,
            if self.port.is_some() { "udp" } else { "(ip proto 50 or ip6 proto 50)" }
        );
        let capture = Capture::start(gateway_a, "wan0", &filter, 2000)?;
        let cut = if lost { self.pair.topology.cut(0)? } else { Vec::new() };
        let pings = Pings { count, interval: Duration::from_millis(5), size: 64, df: false };
        let answered = ping(client, SERVER, &pings)?.rtt_ms.len();
        drop(cut);
        assert_eq!(answered, if lost { 0 } else { count as usize });
        let sealed = capture.stop()?.into_iter().map(|Packet { ip, .. }| ip[self.headers()..].to_vec());
        // WireGuard has keepalives, of 32 bytes.
        let esp: Vec<Vec<u8>> = sealed.filter(|sealed| sealed.len() > 32).collect();
        assert_eq!(esp.len(), count as usize);
        Ok(esp)
    }

    fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let mut drops = self.pair.b.drops()?;
        drops.remove(NOT_OURS);
        Ok(drops)
    }

    /// Does something, and waits for exactly these packets more to be counted.
    pub(crate) fn counts(
        &self,
        what: &str,
        expected: &[(&str, u64)],
        attack: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut wanted = self.drops()?;
        for (reason, count) in expected {
            *wanted.entry((*reason).to_owned()).or_default() += count;
        }
        wanted.retain(|_, count| *count > 0);
        let total: u64 = wanted.values().sum();
        attack()?;
        let counted = retry_until(what, SOON, || {
            let drops = self.drops().map_err(|error| error.to_string())?;
            let sum: u64 = drops.values().sum();
            if sum >= total { Ok(drops) } else { Err(format!("{drops:?} instead of {wanted:?}")) }
        })?;
        assert_eq!(counted, wanted, "{what}");
        self.healthy()?;
        assert_eq!(self.drops()?, wanted, "{what}, a ping later");
        Ok(())
    }

    /// The tunnel carries what it should.
    pub(crate) fn healthy(&self) -> Result<()> {
        let one = Pings { count: 1, ..Pings::default() };
        assert_eq!(ping(&self.pair.topology.client, SERVER, &one)?.rtt_ms.len(), 1);
        Ok(())
    }

    pub(crate) fn received(&self) -> Result<u64> {
        let status = self.pair.b.status()?;
        status["tunnels"][0]["rx_packets"]
            .as_u64()
            .ok_or_else(|| Error::parse("braid status", "no rx_packets"))
    }
}

/// The text without probes.
pub(crate) fn unprobed(text: &str) -> String {
    let probe = format!("{{ interval = \"{PROBE_INTERVAL}ms\", multiplier = {PROBE_MULTIPLIER} }}");
    text.replace(&probe, "\"off\"")
}

fn altered(setup: &Setup) -> Outcome {
    let attacker = Attacker::new(setup, WINDOW, |_, text| text)?;
    let seen = attacker.esp_of_pings(20, false)?;
    let replay = || seen.iter().chain(&seen).try_for_each(|esp| attacker.send(esp));
    attacker.counts("replays", &[("replayed", 40)], replay)?;
    // Authentic, and new to gateway B.
    let lost = attacker.esp_of_pings(3, true)?;
    let (whole, other) = (&lost[0], &lost[1]);
    let bits = (whole.len() as u64 - 8) * 8;
    attacker.counts("flipped bits", &[("unknown_spi", 32), ("bad_icv", 24 + bits)], || {
        // The sequence number's last byte aside: another number that was seen is a replay.
        (0..whole.len() * 8).filter(|bit| !(56..64).contains(bit)).try_for_each(|bit| {
            let mut esp = whole.clone();
            esp[bit / 8] ^= 0x80 >> (bit % 8);
            attacker.send(&esp)
        })
    })?;
    let shortest = SHORTEST as u64;
    let cut = [("truncated", shortest), ("bad_icv", other.len() as u64 - shortest)];
    attacker.counts("cut at every length", &cut, || {
        (0..other.len()).try_for_each(|length| attacker.send(&other[..length]))
    })?;
    attacker.counts("lengthened", &[("bad_icv", 64)], || {
        (1..=64).try_for_each(|more| attacker.send(&[&other[..], &vec![0; more]].concat()))
    })?;
    attacker.counts("unknown SPIs", &[("unknown_spi", 500)], || {
        // The other direction's SPI first.
        (0..500_u32).try_for_each(|spi| attacker.send(&[&(0x1002 + spi).to_be_bytes(), &whole[4..]].concat()))
    })?;
    if attacker.port.is_some() {
        // The first two are shorter than a header of IKE.
        attacker.counts("IKE", &[("nobody_listens", 98), ("truncated", 2)], || {
            (0..100_usize).try_for_each(|length| {
                let mut ike = vec![0; 5 + 14 * length];
                Pattern::new(length as u64).fill(&mut ike[4..]);
                attacker.send(&ike)
            })
        })?;
        attacker.counts("keepalives", &[], || (0..100).try_for_each(|_| attacker.send(&[0xFF])))?;
        attacker.counts("single bytes", &[("truncated", 255)], || {
            (0..255).try_for_each(|byte| attacker.send(&[byte]))
        })?;
    }
    // What was altered above is good as it was, once.
    let before = attacker.received()?;
    attacker.counts("the originals", &[], || lost.iter().try_for_each(|esp| attacker.send(esp)))?;
    assert_eq!(attacker.received()?, before + 3 + 1);
    attacker.esp_of_pings(WINDOW as u32, false)?;
    attacker.counts("old ones", &[("too_old", 20)], || seen.iter().try_for_each(|esp| attacker.send(esp)))?;
    Ok(())
}

/// Seals as gateway A does; RFC 4303 section 2, RFC 4106 sections 3 to 5.
struct Sealer {
    key: LessSafeKey,
    salt: [u8; 4],
    spi: u32,
    next: u32,
}

impl Sealer {
    /// Numbers from `first` on.
    fn new(setup: &Setup, first: u32) -> Option<Self> {
        let hex = setup.key(0, Side::A);
        let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok());
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        let (key, salt) = bytes.split_at_checked(16)?;
        Some(Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).ok()?),
            salt: salt.try_into().ok()?,
            spi: Setup::spi(0, Side::A) as u32,
            next: first,
        })
    }

    /// An ESP packet around `text`, which ends with padding, its length and the next header.
    fn seal(&mut self, mut text: Vec<u8>) -> Vec<u8> {
        let sequence = self.next;
        self.next += 1;
        // Not gateway A's own counter: no nonce is used twice.
        let iv = (u64::from(sequence) | 1 << 63).to_be_bytes();
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&iv);
        let header = [self.spi.to_be_bytes(), sequence.to_be_bytes()].concat();
        // Never refused: the text is far below GCM's limit.
        let sealed = self.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&header),
            &mut text,
        );
        assert!(sealed.is_ok());
        [&header[..], &iv, &text].concat()
    }

    /// As it should be, around an inner packet.
    fn packet(&mut self, inner: &[u8]) -> Vec<u8> {
        let next = if inner[0] >> 4 == 6 { 41 } else { 4 };
        self.seal(padded(inner, next))
    }
}

fn padded(inner: &[u8], next: u8) -> Vec<u8> {
    let padding = (inner.len() + 2).next_multiple_of(4) - inner.len() - 2;
    let mut text = inner.to_vec();
    text.extend((1..).take(padding));
    text.extend([padding as u8, next]);
    text
}

/// Traffic selectors of gateway B's tunnel, wider than its routes.
const SELECTORS: &str = "type = \"ipsec\"\nremote-ts = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n\
    local-ts = [\"10.2.0.0/16\", \"fd00:2::/64\"]\n";

fn authentic_but_wrong() -> Outcome {
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let attacker = Attacker::new(&setup, WINDOW, |side, text| {
        if side == Side::B { text.replace("type = \"ipsec\"\n", SELECTORS) } else { text }
    })?;
    // Numbers that gateway A has used, and B has not seen.
    let lost = attacker.esp_of_pings(WINDOW as u32 - 20, true)?;
    let first = u32::from_be_bytes([lost[0][4], lost[0][5], lost[0][6], lost[0][7]]);
    let mut sealer = Sealer::new(&setup, first).ok_or("no key")?;
    let address = |text: &str| text.parse::<IpAddr>();
    let (client, server) = (address(CLIENT)?, address(SERVER)?);
    let good = raw::udp((client, 7), (server, 9), 0, b"content");

    let before = attacker.received()?;
    attacker.counts("a good one", &[], || attacker.send(&sealer.packet(&good)))?;
    assert_eq!(attacker.received()?, before + 2, "the attacker must be able to seal");
    // RFC 3948 section 2.1: receivers must not depend on the outer checksum being there.
    attacker.counts("without a checksum", &[], || {
        let mut packet = attacker.outer(&sealer.packet(&good), 0);
        packet[26..28].fill(0);
        attacker.socket.send(&packet)
    })?;
    attacker.counts("in outer fragments", &[], || {
        fragments(&attacker.outer(&sealer.packet(&good), 0), 40, 77)
            .iter()
            .try_for_each(|part| attacker.socket.send(part))
    })?;
    attacker.counts("a dummy", &[], || attacker.send(&sealer.seal(padded(b"anything", 59))))?;
    assert_eq!(attacker.received()?, before + 2 * 4);

    attacker.counts("wrong selectors", &[("selector_in", 3)], || {
        for (from, to) in [("10.9.0.2", SERVER), (CLIENT, "10.9.0.2"), ("fd00:9::2", "fd00:2::2")] {
            let (from, to) = (from.parse(), to.parse());
            let (Ok(from), Ok(to)) = (from, to) else { return Err(Error::Usage("no address".to_owned())) };
            attacker.send(&sealer.packet(&raw::udp((from, 7), (to, 9), 0, b"content")))?;
        }
        Ok(())
    })?;
    let elsewhere = address("10.1.77.7")?;
    attacker.counts("a source that is not routed there", &[("source_not_allowed", 1)], || {
        attacker.send(&sealer.packet(&raw::udp((elsewhere, 7), (server, 9), 0, b"content")))
    })?;
    attacker.counts("CE around what knows no ECN", &[("ecn_illegal", 1)], || {
        attacker.socket.send(&attacker.outer(&sealer.packet(&good), 3))
    })?;
    attacker.counts("bad trailers", &[("bad_trailer", 3)], || {
        let mut padding = padded(&good, 4);
        let end = padding.len() - 3;
        padding[end] ^= 1;
        attacker.send(&sealer.seal(padding))?;
        attacker.send(&sealer.seal([&good[..], &[255, 4]].concat()))?;
        attacker.send(&sealer.seal(padded(&good, 6)))
    })?;
    let mut longer = good.clone();
    longer[3] += 1;
    attacker.counts("no packets inside", &[("decrypted_malformed", 5)], || {
        attacker.send(&sealer.seal(padded(&good, 41)))?;
        attacker.send(&sealer.seal(padded(&good[..1], 4)))?;
        attacker.send(&sealer.packet(&longer))?;
        attacker.send(&sealer.seal(padded(&good[..19], 4)))?;
        attacker.send(&sealer.seal(padded(&[], 4)))
    })?;
    huge(&attacker)
}

/// Datagrams as large as they come; and fragments of which the rest never comes, which the kernel
/// keeps for a while and forgets.
fn huge(attacker: &Attacker) -> Outcome {
    let mut payload = vec![0; 65_507];
    Pattern::new(1).fill(&mut payload);
    attacker.counts("huge ones", &[("unknown_spi", 2)], || {
        for id in [1, 2] {
            let packet = attacker.outer(&payload, 0);
            fragments(&packet, 1480, id).iter().try_for_each(|part| attacker.socket.send(part))?;
        }
        Ok(())
    })?;
    payload[..4].copy_from_slice(&(Setup::spi(0, Side::A) as u32).to_be_bytes());
    payload[4..8].copy_from_slice(&5000_u32.to_be_bytes());
    attacker.counts("a huge one of a known SPI", &[("bad_icv", 1)], || {
        fragments(&attacker.outer(&payload, 0), 1480, 3)
            .iter()
            .try_for_each(|part| attacker.socket.send(part))
    })?;
    attacker.counts("incomplete ones", &[], || {
        for id in 100..200 {
            let all = fragments(&attacker.outer(&payload[..4000], 0), 1480, id);
            attacker.socket.send(&all[usize::from(id % 3)])?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Cuts an IPv4 packet into fragments of `step` bytes, a multiple of 8.
fn fragments(packet: &[u8], step: usize, id: u16) -> Vec<Vec<u8>> {
    let (header, data) = packet.split_at(20);
    let count = data.len().div_ceil(step);
    let part = |(index, part): (usize, &[u8])| {
        let mut fragment = [header, part].concat();
        let more = if index + 1 < count { 0x2000 } else { 0 };
        let offset = (index * step / 8) as u16 | more;
        fragment[4..6].copy_from_slice(&id.to_be_bytes());
        fragment[6..8].copy_from_slice(&offset.to_be_bytes());
        fragment
    };
    data.chunks(step).enumerate().map(part).collect()
}

fn a_flood_costs_nothing() -> Outcome {
    /// Packets at once: what a socket buffer holds while its worker is not running.
    const BURST: u64 = 1000;
    let setup = Setup { tunnels: 1, ..Setup::default() };
    let attacker = Attacker::new(&setup, 8192, |_, text| text)?;
    let seen = attacker.esp_of_pings(20, false)?;
    let forged = |number: u64| {
        let mut esp = seen[(number % 20) as usize].clone();
        // Replays, unknown SPIs, numbers still to come, IKE, by turns.
        match number % 4 {
            0 => {}
            1 => Pattern::new(number).fill(&mut esp[1..]),
            2 => esp[4..8].copy_from_slice(&(1000 + number as u32).to_be_bytes()),
            _ => esp[..4].fill(0),
        }
        esp
    };
    let names = ["replayed", "unknown_spi", "bad_icv", "nobody_listens"];
    let expected: Vec<(&str, u64)> = names.iter().map(|name| (*name, BURST / 4)).collect();
    let round = |start: u64| {
        attacker.counts("a burst", &expected, || {
            (start..start + BURST).try_for_each(|number| attacker.send(&forged(number)))
        })
    };
    // All that is allocated once is allocated by now.
    round(0)?;
    let before = resident_kib(&attacker.pair.topology.gateway_b)?;
    let client = &attacker.pair.topology.client;
    let mut beside = client.spawn(&["ping", "-n", "-i", "0.01", "-c", "100000", "-W", "1", SERVER])?;
    for burst in 1..=120 {
        round(burst * BURST)?;
    }
    beside.signal(nix::sys::signal::Signal::SIGINT);
    beside.wait(SOON)?;
    let summary = beside.stdout();
    let counts = summary.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
    let counts: Vec<u64> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
    // The signal does not wait for an answer that is under way.
    assert!(matches!(counts[..], [sent, received, ..] if sent > 0 && sent - received <= 1), "{summary}");
    let after = resident_kib(&attacker.pair.topology.gateway_b)?;
    assert!(after < before + 2048, "{before} KiB grew to {after} KiB");
    Ok(())
}

/// Of all that runs in the namespace.
fn resident_kib(netns: &Netns) -> Result<u64> {
    let resident = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().split(' ').next()?.parse::<u64>().ok()
    };
    poll_until("memory", SOON, || netns.processes().ok()?.into_iter().map(resident).sum::<Option<u64>>())
}
