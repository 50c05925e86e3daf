//! What the writer tells: summaries for a control that adopts, counters, SA lifetimes, the stash.

use std::{net::SocketAddr, time::Duration};

use braid_api::{
    Event, GroupSummary, Hello, MAX_FRAME_LEN, SaStats, SaSummary, SaTraffic, StashValue, Stats, TunnelId,
    TunnelStats, TunnelSummary, VERSION,
};

use super::{BUCKETS, Carrier, Ticks, Tunnel, Writer, sas::SaHandle};

/// Bytes of stash in one answer: half a frame, so that the rest of the message fits whatever it is.
const STASH_ANSWER_LEN: usize = MAX_FRAME_LEN / 2;

impl Writer {
    /// The answer to control's `Hello`, with which a synchronisation begins. `offload`: what the kernel
    /// gave.
    pub fn hello(&mut self, uptime: Duration, workers: u32, offload: bool) -> Hello {
        let generation = self.begin_sync();
        let (tunnels, sas, groups) = self.summary();
        Hello {
            version: VERSION,
            boot: self.boot(),
            generation,
            uptime,
            workers,
            offload,
            tunnels,
            sas,
            groups,
            stash_entries: self.stash_entries(),
        }
    }

    /// Tunnels, SAs and groups by ascending id, for `Hello`.
    pub fn summary(&self) -> (Vec<TunnelSummary>, Vec<SaSummary>, Vec<GroupSummary>) {
        let tunnels = self.ledger.tunnels().map(|(id, entry)| TunnelSummary {
            id,
            name: entry.tunnel.settings.name.clone(),
            state: self.states().get(id),
        });
        let sas = self.ledger.sas().map(|(id, sa)| sa.summary(id));
        let groups = self
            .ledger
            .groups()
            .map(|(id, entry)| GroupSummary { id, members: entry.group.settings.members.clone() });
        (tunnels.collect(), sas.collect(), groups.collect())
    }

    /// All counters of the tables at `now`, in monotonic nanoseconds; `drops` and `bfd_links` are left to
    /// the caller.
    pub fn stats(&self, now: u64) -> Stats {
        Stats {
            tunnels: self.tunnel_stats(now),
            sas: self.ledger.sas().map(|(id, sa)| sa_stats(id, sa, now)).collect(),
            drops: Vec::new(),
            routes: self.routes() as u64,
            bfd_links: Vec::new(),
        }
    }

    fn tunnel_stats(&self, now: u64) -> Vec<TunnelStats> {
        let buckets = self.buckets_by_tunnel(Ticks::from_nanos(now));
        let entries = self.ledger.tunnels().map(|(id, entry)| {
            let live = &entry.tunnel.live;
            let ago = |at: u64| Duration::from_nanos(now.saturating_sub(at));
            let ((tx_packets, tx_bytes), (rx_packets, rx_bytes)) = (live.tx(), live.rx());
            TunnelStats {
                tunnel: id,
                state: self.states().get(id),
                masked_by_core: self.states().is_masked_by_core(id),
                tx_packets,
                tx_bytes,
                rx_packets,
                rx_bytes,
                heard_ago: live.last_heard().map(ago),
                answered_ago: live.last_answered().map(ago),
                latency: live.latency(),
                latency_p99: live.latency_p99(),
                probes: live.probes(),
                mtu: entry.tunnel.mtu,
                remote: live.remote(),
                buckets: buckets.get(id.0 as usize).copied().unwrap_or(0),
                bfd: live.bfd().collect(),
                wireguard: entry
                    .tunnel
                    .outbound
                    .as_ref()
                    .and_then(Carrier::wireguard)
                    .map(|peer| peer.stats()),
            }
        });
        entries.collect()
    }

    /// How many buckets lead to each tunnel, indexed by its id.
    fn buckets_by_tunnel(&self, now: Ticks) -> Vec<u32> {
        let mut buckets = Vec::new();
        for (_, entry) in self.ledger.groups().filter(|(_, entry)| !entry.group.is_single()) {
            for bucket in 0..BUCKETS as u16 {
                let Some(TunnelId(tunnel)) = entry.group.peek(bucket, self.states(), now).now else {
                    continue;
                };
                let index = tunnel as usize;
                if index >= buckets.len() {
                    buckets.resize(index + 1, 0);
                }
                buckets[index] += 1;
            }
        }
        buckets
    }

    /// What has become due since the last call: an outbound SA without ESN that has used three quarters
    /// of its sequence numbers, or one that has stopped. Looks at every SA; every few seconds is enough: a quarter
    /// of the numbers lasts a minute at any rate.
    pub fn lifetimes(&mut self) -> Vec<Event> {
        let ledger = &self.ledger;
        self.reported.retain(|id, _| ledger.sa(*id).is_some());
        let mut events = Vec::new();
        for (id, sa) in self.ledger.sas() {
            let SaHandle::Out(sa) = sa else { continue };
            let hard = sa.is_stopped();
            let due = hard || sa.sequence() > sa.last_sequence() / 4 * 3;
            if due && self.reported.get(&id).is_none_or(|&reported| hard && !reported) {
                self.reported.insert(id, hard);
                events.push(Event::SaLifetime { sa: id, hard });
            }
        }
        events
    }

    /// Peers that were heard from another address than at the last call, of tunnels that follow their peer.
    /// Looks at every tunnel; once a second is enough.
    pub fn moved(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut peers = Vec::with_capacity(self.peers.len());
        for (id, entry) in self.ledger.tunnels() {
            let (tunnel, index) = (&entry.tunnel, id.0 as usize);
            // By ascending id: what lies between is gone.
            peers.resize(index, None);
            let known = self.peers.get(index).copied().flatten();
            let heard = followed(tunnel);
            if let Some(remote) = heard.filter(|remote| known != Some(*remote)) {
                events.push(Event::EndpointMoved { tunnel: id, remote });
            }
            peers.push(heard.or(known));
        }
        self.peers = peers;
        events
    }

    /// Where the peer of one tunnel was heard, if the tunnel follows it, whether it has moved or not.
    pub fn heard_at(&self, id: TunnelId) -> Option<Event> {
        let remote = followed(&self.ledger.tunnel(id)?.tunnel)?;
        Some(Event::EndpointMoved { tunnel: id, remote })
    }

    /// SAs that have carried packets since the last call, or since control said `Hello`.
    pub fn traffic(&mut self, now: u64) -> Vec<SaTraffic> {
        let Writer { ledger, told, .. } = self;
        told.retain(|id, _| ledger.sa(*id).is_some());
        let mut traffic = Vec::new();
        for (id, sa) in ledger.sas() {
            let counter = sa.counter();
            let packets = counter.packets();
            if told.get(&id).copied().unwrap_or(0) == packets {
                continue;
            }
            told.insert(id, packets);
            let heard = match sa {
                SaHandle::In(_) => {
                    ledger.tunnel(sa.tunnel()).and_then(|entry| entry.tunnel.live.last_heard())
                }
                SaHandle::Out(_) => None,
            };
            traffic.push(SaTraffic {
                sa: id,
                tunnel: sa.tunnel(),
                direction: sa.direction(),
                spi: sa.spi(),
                packets,
                bytes: counter.bytes(),
                heard_ago: heard.map(|heard| Duration::from_nanos(now.saturating_sub(heard))),
            });
        }
        traffic
    }

    /// Stash entries by ascending key from `from` on, as many as fit into a frame.
    pub fn stash(&self, from: u64) -> Vec<(u64, StashValue)> {
        let mut room = STASH_ANSWER_LEN;
        let fits = |(_, value): &(&u64, &StashValue)| {
            // Key and length take at most 16 bytes.
            let needed = value.0.len() + 16;
            let fits = needed <= room;
            room = room.saturating_sub(needed);
            fits
        };
        self.ledger.stash().range(from..).take_while(fits).map(|(key, value)| (*key, value.clone())).collect()
    }

    /// Values in the stash.
    pub fn stash_entries(&self) -> u32 {
        self.ledger.stash().len() as u32
    }
}

fn sa_stats(id: braid_api::SaId, sa: &SaHandle, now: u64) -> SaStats {
    let (counter, sequence, installed) = match sa {
        SaHandle::Out(sa) => (&sa.counter, sa.sequence(), sa.installed),
        SaHandle::In(sa) => (&sa.counter, sa.replay().top(), sa.installed),
    };
    SaStats {
        sa: id,
        tunnel: sa.tunnel(),
        direction: sa.direction(),
        spi: sa.spi(),
        suite: sa.suite(),
        packets: counter.packets(),
        bytes: counter.bytes(),
        sequence,
        age: Duration::from_nanos(now.saturating_sub(installed)),
    }
}

/// Where a tunnel's peer was heard, if the tunnel follows it.
fn followed(tunnel: &Tunnel) -> Option<SocketAddr> {
    let follows = tunnel.settings.remote.is_none() || tunnel.settings.follow_remote;
    tunnel.live.remote().filter(|_| follows)
}

#[cfg(test)]
mod tests {
    use braid_api::{Allowed, BootId, DfPolicy, Encapsulation, Epoch, Op, Transaction, Tunnel};

    use super::*;
    use crate::esp::Engine;

    fn tunnel(id: u32, remote: Option<&str>) -> Op {
        Op::PutTunnel(Tunnel {
            id: TunnelId(id),
            name: format!("t{id}"),
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: remote.map(|remote| remote.parse().unwrap()),
            uplink: None,
            follow_remote: false,
            encapsulation: Encapsulation::Udp,
            keepalive: false,
            inside: Vec::new(),
            peer_inside: Vec::new(),
            path_mtu: 1500,
            clamp_mtu: 1400,
            df: DfPolicy::Honour,
            allowed: Allowed::Routed,
            probe: None,
            bfd: Vec::new(),
            reach: Vec::new(),
        })
    }

    #[test]
    fn a_peer_that_is_found_or_moves_is_told_once() {
        let mut writer = Writer::new(1, BootId([7; 16]), Engine::Ring, &[9; 32]);
        writer.begin_sync();
        let ops = vec![tunnel(0, None), tunnel(1, Some("203.0.113.1:4500"))];
        writer.apply(Transaction { epoch: Epoch(1), ops }, 0).unwrap();
        assert_eq!(writer.moved(), []);
        for from in ["198.51.100.7:4500", "198.51.100.7:61000"] {
            let remote = from.parse().unwrap();
            let mut reader = writer.reader();
            for id in [TunnelId(0), TunnelId(1)] {
                reader.enter().tunnel(id).unwrap().live.heard_from(remote);
            }
            assert_eq!(writer.moved(), [Event::EndpointMoved { tunnel: TunnelId(0), remote }]);
            assert_eq!(writer.moved(), []);
        }
        let remote = "198.51.100.8:4500".parse().unwrap();
        for id in [TunnelId(0), TunnelId(1)] {
            writer.reader().enter().tunnel(id).unwrap().live.heard_from(remote);
        }
        let heard = Some(Event::EndpointMoved { tunnel: TunnelId(0), remote });
        let told = [0, 0, 1, 2].map(|id| writer.heard_at(TunnelId(id)));
        assert_eq!(told, [heard.clone(), heard, None, None]);
    }
}
