//! Transactions: the safety invariants one by one, all-or-nothing against a naive model, and
//! readers beside a writer.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use braid_api::{
    Allowed, DfPolicy, Direction, Event, Probe, SecretKey, Selectors, Spi, StashValue, Suite, TunnelState,
};

use super::*;
use crate::{
    esp::sa::{InboundSa, OutboundSa},
    tables::{IDLE_GAP, sas::key_check},
};

#[path = "apply_model_tests.rs"]
mod model;
#[path = "apply_wireguard_tests.rs"]
mod wireguard;
use model::dump;

const BOOT: BootId = BootId([7; 16]);

fn writer() -> Writer {
    Writer::new(2, BOOT, Engine::Ring, &[9; 32])
}

fn tunnel(id: u32) -> braid_api::Tunnel {
    braid_api::Tunnel {
        id: TunnelId(id),
        name: format!("t{id}"),
        local: "192.0.2.1:4500".parse().unwrap(),
        remote: Some("203.0.113.1:4500".parse().unwrap()),
        uplink: None,
        follow_remote: false,
        encapsulation: Encapsulation::Udp,
        keepalive: false,
        inside: vec!["169.254.10.2".parse().unwrap()],
        peer_inside: vec!["169.254.10.1".parse().unwrap()],
        path_mtu: 1500,
        clamp_mtu: 1400,
        df: DfPolicy::Honour,
        allowed: Allowed::Routed,
        probe: None,
        bfd: Vec::new(),
        reach: Vec::new(),
    }
}

fn sa(id: u64, tunnel: u32, direction: Direction, spi: u32) -> Sa {
    let suite = Suite::Aes128Gcm16;
    let mut key = vec![1; suite.key_len()];
    key[..8].copy_from_slice(&id.to_be_bytes());
    Sa {
        id: SaId(id),
        boot: BOOT,
        tunnel: TunnelId(tunnel),
        direction,
        spi: Spi(spi),
        suite,
        key: SecretKey::new(key),
        esn: false,
        replay_window: 2048,
        selectors: Selectors::default(),
    }
}

fn group(id: u32, tunnels: &[u32]) -> Op {
    let member = |&tunnel: &u32| Member { tunnel: TunnelId(tunnel), weight: 1, priority: 0 };
    Op::PutGroup(braid_api::Group { id: GroupId(id), members: tunnels.iter().map(member).collect() })
}

fn net(prefix: &str) -> IpNet {
    prefix.parse().unwrap()
}

fn route(prefix: &str, target: Target) -> Op {
    Op::PutRoute { prefix: net(prefix), target }
}

fn to_group(id: u32) -> Target {
    Target::Group(GroupId(id))
}

/// Applies with the next epoch.
fn apply(writer: &mut Writer, ops: Vec<Op>) -> Result<Applied, Rejected> {
    let epoch = Epoch(writer.last_epoch.map_or(1, |last| last.0 + 1));
    writer.apply(Transaction { epoch, ops }, NOW)
}

/// Of the transactions, in nanoseconds.
const NOW: u64 = 1_000_000;

fn ok(writer: &mut Writer, ops: Vec<Op>) -> Applied {
    apply(writer, ops).expect("accepted")
}

/// The reason of the last operation's rejection; nothing may have changed.
fn refused(writer: &mut Writer, ops: Vec<Op>) -> RejectReason {
    let before = dump(writer);
    let last = ops.len() as u32 - 1;
    let rejected = apply(writer, ops).expect_err("refused");
    assert_eq!(rejected.op, last);
    assert_eq!(dump(writer), before);
    rejected.reason
}

fn outbound(writer: &Writer, id: u32) -> Arc<OutboundSa> {
    let mut reader = writer.reader();
    let tables = reader.enter();
    tables.tunnel(TunnelId(id)).unwrap().outbound.as_ref().and_then(Carrier::esp).cloned().unwrap()
}

fn inbound(writer: &Writer, spi: u32) -> Option<Arc<InboundSa>> {
    let mut reader = writer.reader();
    reader.enter().inbound(Spi(spi)).cloned()
}

/// A tunnel with an SA each way, a group, a route, and traffic that has passed.
fn busy() -> Writer {
    let mut writer = writer();
    writer.begin_sync();
    ok(
        &mut writer,
        vec![
            Op::PutTunnel(tunnel(0)),
            Op::PutTunnel(tunnel(1)),
            Op::PutSa(sa(1, 0, Direction::Out, 0x1001)),
            Op::PutSa(sa(2, 0, Direction::In, 0x2001)),
            group(0, &[0, 1]),
            route("10.2.0.0/16", to_group(0)),
            Op::Unmask(TunnelId(0)),
        ],
    );
    assert_eq!(outbound(&writer, 0).lock().reserve(1000), Ok(1));
    inbound(&writer, 0x2001).unwrap().replay().commit(500).unwrap();
    writer
}

#[test]
fn a_transaction_takes_effect_for_readers() {
    let writer = busy();
    let mut reader = writer.reader();
    let tables = reader.enter();
    assert_eq!(tables.generation(), 1);
    assert_eq!(tables.route("10.2.3.4".parse().unwrap()), Some((net("10.2.0.0/16"), to_group(0))));
    assert!(tables.group(GroupId(0)).unwrap().contains(TunnelId(1)));
    assert_eq!(tables.tunnel(TunnelId(0)).unwrap().mtu, 1438);
    // Without an SA, what any suite leaves.
    assert_eq!(tables.tunnel(TunnelId(1)).unwrap().mtu, 1406);
    let states = [0, 1, 2].map(|id| tables.states().get(TunnelId(id)));
    assert_eq!(states, [TunnelState::Live, TunnelState::Masked, TunnelState::Masked]);
}

#[test]
fn an_sa_id_is_never_used_twice() {
    let mut writer = busy();
    let again = || vec![Op::PutSa(sa(2, 1, Direction::Out, 0x3001))];
    assert_eq!(refused(&mut writer, again()), RejectReason::SaIdUsed);
    ok(&mut writer, vec![Op::RemoveSa(SaId(2))]);
    assert_eq!(refused(&mut writer, again()), RejectReason::SaIdUsed);
    ok(&mut writer, vec![Op::RemoveRoute { prefix: net("10.2.0.0/16") }, Op::RemoveGroup(GroupId(0))]);
    ok(&mut writer, vec![Op::RemoveTunnel(TunnelId(0))]);
    assert_eq!(refused(&mut writer, again()), RejectReason::SaIdUsed);
    writer.begin_sync();
    assert_eq!(refused(&mut writer, again()), RejectReason::SaIdUsed);
    ok(&mut writer, vec![Op::PutSa(sa(3, 1, Direction::Out, 0x3001))]);
}

#[test]
fn an_outbound_key_is_never_used_twice() {
    let mut writer = busy();
    let again = |id: u64, tunnel: u32| {
        let mut again = sa(1, tunnel, Direction::Out, 0x9001);
        again.id = SaId(id);
        vec![Op::PutSa(again)]
    };
    assert_eq!(refused(&mut writer, again(10, 0)), RejectReason::BadKey);
    assert_eq!(refused(&mut writer, again(10, 1)), RejectReason::BadKey);
    ok(&mut writer, vec![Op::RemoveSa(SaId(1))]);
    assert_eq!(refused(&mut writer, again(10, 0)), RejectReason::BadKey);
    // What a rejected transaction brought was not used.
    let ops = vec![Op::PutSa(sa(11, 0, Direction::Out, 0x1002)), Op::RemoveSa(SaId(77))];
    assert_eq!(refused(&mut writer, ops), RejectReason::UnknownSa);
    ok(&mut writer, vec![Op::PutSa(sa(11, 0, Direction::Out, 0x1002))]);
}

#[test]
fn an_sa_of_another_life_is_refused() {
    let mut writer = busy();
    let mut other = sa(10, 0, Direction::Out, 0x1002);
    other.boot = BootId([8; 16]);
    assert_eq!(refused(&mut writer, vec![Op::PutSa(other)]), RejectReason::OtherBoot);
}

#[test]
fn spi_key_and_window_are_checked() {
    let mut writer = busy();
    for spi in [0, 1, 255] {
        for direction in [Direction::In, Direction::Out] {
            let ops = vec![Op::PutSa(sa(10, 0, direction, spi))];
            assert_eq!(refused(&mut writer, ops), RejectReason::SpiTaken);
        }
    }
    let taken = vec![Op::PutSa(sa(10, 1, Direction::In, 0x2001))];
    assert_eq!(refused(&mut writer, taken), RejectReason::SpiTaken);
    for suite in Suite::ALL {
        for wrong in [0, suite.key_len() - 1, suite.key_len() + 1] {
            for direction in [Direction::In, Direction::Out] {
                let key = SecretKey::new(vec![5; wrong]);
                let bad = Sa { suite, key, ..sa(10, 0, direction, 0x5001) };
                assert_eq!(refused(&mut writer, vec![Op::PutSa(bad)]), RejectReason::BadKey);
            }
        }
    }
    for replay_window in [0, 63, 65, 8193, 8256, u32::MAX] {
        let bad = Sa { replay_window, ..sa(10, 0, Direction::In, 0x5001) };
        assert_eq!(refused(&mut writer, vec![Op::PutSa(bad)]), RejectReason::BadReplayWindow);
    }
    let orphan = vec![Op::PutSa(sa(10, 9, Direction::Out, 0x5001))];
    assert_eq!(refused(&mut writer, orphan), RejectReason::UnknownTunnel);
    ok(
        &mut writer,
        vec![
            Op::PutSa(Sa { replay_window: 64, ..sa(10, 0, Direction::In, 256) }),
            Op::PutSa(Sa { replay_window: 8192, ..sa(11, 0, Direction::In, 257) }),
        ],
    );
}

#[test]
fn no_other_operation_touches_a_live_sa() {
    let mut writer = busy();
    let (out, in_) = (outbound(&writer, 0), inbound(&writer, 0x2001).unwrap());
    let mut changed = tunnel(0);
    changed.path_mtu = 1400;
    changed.name = "renamed".to_owned();
    changed.remote = Some("203.0.113.9:4500".parse().unwrap());
    writer.begin_sync();
    let wider = GatewaySettings {
        hash_seed: [3; 16],
        symmetric_hash: true,
        pin_replies: false,
        icmp_source: vec![],
        own: vec![],
    };
    ok(
        &mut writer,
        vec![
            Op::SetGateway(wider),
            Op::PutTunnel(changed),
            Op::PutTunnel(tunnel(1)),
            group(0, &[1, 0]),
            group(0, &[0]),
            route("10.2.0.0/16", to_group(0)),
            Op::Mask(TunnelId(0)),
            Op::Drain(TunnelId(0)),
            Op::Sweep,
            Op::Undrain(TunnelId(0)),
            Op::Unmask(TunnelId(0)),
        ],
    );
    assert!(writer.set_path_mtu(TunnelId(0), Some(1300)).is_some());
    assert!(Arc::ptr_eq(&out, &outbound(&writer, 0)));
    assert!(Arc::ptr_eq(&in_, &inbound(&writer, 0x2001).unwrap()));
    assert_eq!(out.lock().reserve(1), Ok(1001));
    assert!(in_.replay().check(500).is_err());
    assert_eq!(in_.replay().top(), 500);
}

#[test]
fn the_newest_outbound_sa_carries_the_tunnel() {
    let mut writer = busy();
    ok(&mut writer, vec![Op::PutSa(sa(5, 0, Direction::Out, 0x1005))]);
    ok(&mut writer, vec![Op::PutSa(sa(6, 0, Direction::In, 0x2006))]);
    assert_eq!(outbound(&writer, 0).id, SaId(5));
    ok(&mut writer, vec![Op::RemoveSa(SaId(5)), Op::RemoveSa(SaId(2))]);
    assert_eq!(outbound(&writer, 0).id, SaId(1));
    assert_eq!(outbound(&writer, 0).sequence(), 1000);
    assert!(inbound(&writer, 0x2001).is_none() && inbound(&writer, 0x2006).is_some());
    ok(&mut writer, vec![Op::RemoveSa(SaId(1))]);
    let mut reader = writer.reader();
    assert!(reader.enter().tunnel(TunnelId(0)).unwrap().outbound.is_none());
    assert_eq!(refused(&mut writer, vec![Op::RemoveSa(SaId(1))]), RejectReason::UnknownSa);
}

#[test]
fn a_tunnel_goes_with_its_sas_once_nothing_names_it() {
    let mut writer = busy();
    assert_eq!(refused(&mut writer, vec![Op::RemoveTunnel(TunnelId(0))]), RejectReason::InUse);
    ok(&mut writer, vec![route("169.254.10.1/32", Target::Tunnel(TunnelId(0))), group(0, &[1])]);
    assert_eq!(refused(&mut writer, vec![Op::RemoveTunnel(TunnelId(0))]), RejectReason::InUse);
    assert_eq!(refused(&mut writer, vec![Op::RemoveGroup(GroupId(0))]), RejectReason::InUse);
    let applied = ok(
        &mut writer,
        vec![Op::RemoveRoute { prefix: net("169.254.10.1/32") }, Op::RemoveTunnel(TunnelId(0))],
    );
    assert_eq!(applied.tunnels, [TunnelId(0)]);
    assert!(inbound(&writer, 0x2001).is_none());
    let (tunnels, sas, _) = writer.summary();
    assert_eq!((tunnels.len(), sas.len()), (1, 0));
    assert!(writer.states().is_masked(TunnelId(0)));
    // Its name and its id are free; what takes them starts masked.
    let heir = braid_api::Tunnel { name: "t0".to_owned(), ..tunnel(0) };
    ok(&mut writer, vec![Op::PutTunnel(heir)]);
    assert!(writer.states().is_masked(TunnelId(0)));
}

#[test]
fn bad_tunnels_groups_and_routes_are_refused() {
    let mut writer = busy();
    let mut tunnel_with = |change: &dyn Fn(&mut braid_api::Tunnel)| {
        let mut bad = tunnel(3);
        change(&mut bad);
        refused(&mut writer, vec![Op::PutTunnel(bad)])
    };
    assert_eq!(tunnel_with(&|t| t.id = TunnelId(65_536)), RejectReason::IdOutOfRange);
    assert_eq!(tunnel_with(&|t| t.name = "x".repeat(65)), RejectReason::BadName);
    assert_eq!(tunnel_with(&|t| t.name.clear()), RejectReason::BadName);
    assert_eq!(tunnel_with(&|t| t.name = "t1".to_owned()), RejectReason::BadName);
    assert_eq!(tunnel_with(&|t| t.path_mtu = 100), RejectReason::BadMtu);
    assert_eq!(tunnel_with(&|t| t.clamp_mtu = 0), RejectReason::BadMtu);
    let probe = |millis, multiplier| Some(Probe { interval: Duration::from_millis(millis), multiplier });
    assert_eq!(tunnel_with(&|t| t.probe = probe(0, 3)), RejectReason::BadProbe);
    assert_eq!(tunnel_with(&|t| t.probe = probe(300, 0)), RejectReason::BadProbe);
    let other_family = |t: &mut braid_api::Tunnel| {
        t.probe = probe(300, 3);
        t.peer_inside = vec!["fd00::1".parse().unwrap()];
    };
    assert_eq!(tunnel_with(&other_family), RejectReason::BadProbe);

    assert_eq!(refused(&mut writer, vec![group(1, &[])]), RejectReason::BadMembers);
    assert_eq!(refused(&mut writer, vec![group(1, &[0, 0])]), RejectReason::BadMembers);
    assert_eq!(refused(&mut writer, vec![group(1, &[0, 9])]), RejectReason::UnknownTunnel);
    assert_eq!(refused(&mut writer, vec![group(65_536, &[0])]), RejectReason::IdOutOfRange);
    let many: Vec<u32> = (0..257).collect();
    assert_eq!(refused(&mut writer, vec![group(1, &many)]), RejectReason::BadMembers);
    let weightless = vec![Member { tunnel: TunnelId(0), weight: 0, priority: 0 }];
    let weightless = Op::PutGroup(braid_api::Group { id: GroupId(1), members: weightless });
    assert_eq!(refused(&mut writer, vec![weightless]), RejectReason::BadMembers);

    assert_eq!(refused(&mut writer, vec![route("10.0.0.0/8", to_group(9))]), RejectReason::UnknownGroup);
    let nowhere = Target::Tunnel(TunnelId(9));
    assert_eq!(refused(&mut writer, vec![route("10.0.0.0/8", nowhere)]), RejectReason::UnknownTunnel);
    for op in [Op::Mask, Op::Unmask, Op::Drain, Op::Undrain, Op::RemoveTunnel] {
        assert_eq!(refused(&mut writer, vec![op(TunnelId(9))]), RejectReason::UnknownTunnel);
    }
    assert_eq!(refused(&mut writer, vec![Op::RemoveGroup(GroupId(9))]), RejectReason::UnknownGroup);
    writer.set_sockets(vec![("192.0.2.1:4500".parse().unwrap(), Encapsulation::Udp)]);
    let elsewhere = braid_api::Tunnel { local: "192.0.2.2:4500".parse().unwrap(), ..tunnel(3) };
    assert_eq!(refused(&mut writer, vec![Op::PutTunnel(elsewhere)]), RejectReason::NoSocket);
    ok(&mut writer, vec![Op::PutTunnel(tunnel(3))]);
}

#[test]
fn epochs_ascend_within_a_connection_and_transactions_are_bounded() {
    let mut writer = busy();
    let mut at =
        |epoch, ops| writer.apply(Transaction { epoch: Epoch(epoch), ops }, 0).map_err(|bad| bad.reason);
    assert!(at(5, vec![]).is_ok());
    assert_eq!(at(5, vec![]), Err(RejectReason::StaleEpoch));
    assert_eq!(at(4, vec![]), Err(RejectReason::StaleEpoch));
    let many = (0..=MAX_OPS as u64).map(|key| Op::RemoveStash { key }).collect();
    assert_eq!(at(6, many), Err(RejectReason::TooManyOps));
    assert_eq!(writer.begin_sync(), Generation(2));
    assert!(writer.apply(Transaction { epoch: Epoch(1), ops: vec![] }, 0).is_ok());
}

#[test]
fn putting_everything_again_changes_nothing_and_sweep_removes_the_rest() {
    let mut writer = busy();
    ok(
        &mut writer,
        vec![
            Op::PutTunnel(tunnel(2)),
            Op::PutSa(sa(3, 2, Direction::In, 0x2003)),
            group(1, &[2, 0]),
            route("10.9.0.0/16", to_group(1)),
            route("fd00:9::/32", Target::Tunnel(TunnelId(2))),
            Op::Unmask(TunnelId(1)),
        ],
    );
    let generation = writer.reader().enter().generation();
    let kept = writer.reader().enter().group(GroupId(0)).cloned().unwrap();
    writer.begin_sync();
    let again = || {
        vec![
            Op::PutTunnel(tunnel(0)),
            Op::PutTunnel(tunnel(1)),
            group(0, &[1, 0]),
            route("10.2.0.0/16", to_group(0)),
        ]
    };
    ok(&mut writer, again());
    assert_eq!(writer.reader().enter().generation(), generation);
    ok(&mut writer, vec![Op::Sweep]);
    let mut reader = writer.reader();
    {
        let tables = reader.enter();
        assert!(Arc::ptr_eq(tables.group(GroupId(0)).unwrap(), &kept));
        assert!(tables.group(GroupId(1)).is_none() && tables.tunnel(TunnelId(2)).is_none());
        assert!(tables.inbound(Spi(0x2003)).is_none() && tables.inbound(Spi(0x2001)).is_some());
        assert_eq!(tables.route("10.9.0.1".parse().unwrap()), None);
        assert_eq!(tables.route("fd00:9::1".parse().unwrap()), None);
        assert!(tables.states().is_live(TunnelId(0)) && tables.states().is_live(TunnelId(1)));
    }
    // A second sweep finds nothing; a control that puts nothing empties the tables.
    let before = dump(&mut writer);
    ok(&mut writer, vec![Op::Sweep]);
    assert_eq!(dump(&mut writer), before);
    writer.begin_sync();
    // A route that is put again needs its group.
    let ops = vec![route("10.2.0.0/16", to_group(0)), Op::Sweep];
    assert_eq!(refused(&mut writer, ops), RejectReason::InUse);
    ok(&mut writer, vec![Op::Sweep]);
    assert_eq!(writer.summary(), (vec![], vec![], vec![]));
    assert_eq!(writer.stats(0).routes, 0);
}

#[test]
fn masks_follow_the_order_of_operations_and_of_effects() {
    let mut writer = busy();
    let id = TunnelId(0);
    ok(&mut writer, vec![Op::Mask(id), Op::Unmask(id)]);
    assert!(writer.states().is_live(id));
    ok(&mut writer, vec![Op::Unmask(id), Op::Drain(id), Op::Mask(id)]);
    assert!(writer.states().is_masked(id));
    ok(&mut writer, vec![Op::Unmask(id)]);
    assert_eq!(writer.states().get(id), TunnelState::Draining);
    ok(&mut writer, vec![Op::Undrain(id)]);
    assert!(writer.states().mask_by_core(id));
    assert!(writer.stats(0).tunnels[0].masked_by_core);
    ok(&mut writer, vec![Op::PutTunnel(tunnel(0))]);
    assert!(writer.states().is_masked(id), "only control unmasks, and only by saying so");
    ok(&mut writer, vec![Op::Unmask(id)]);
    assert!(writer.states().is_live(id) && !writer.states().is_masked_by_core(id));
    // A rejected transaction masks nothing.
    assert_eq!(refused(&mut writer, vec![Op::Mask(id), Op::RemoveTunnel(id)]), RejectReason::InUse);
}

#[test]
fn a_mask_needs_no_transaction_to_be_seen() {
    let writer = busy();
    let mut reader = writer.reader();
    let tables = reader.enter();
    let group = tables.group(GroupId(0)).unwrap();
    assert_eq!(group.pick(0, group.home(0), tables.states(), Ticks(0), 0), Some(TunnelId(0)));
    writer.states().mask_by_core(TunnelId(0));
    assert_eq!(group.pick(0, group.home(0), tables.states(), Ticks(0), 0), None);
}

#[test]
fn busy_flows_stay_when_one_prefix_after_the_other_moves_to_a_new_group() {
    let mut writer = busy();
    ok(&mut writer, vec![Op::PutTunnel(tunnel(2)), Op::Unmask(TunnelId(1)), Op::Unmask(TunnelId(2))]);
    ok(&mut writer, vec![route("10.3.0.0/16", to_group(0))]);
    let now = Ticks::from_nanos(NOW);
    let pick = |writer: &Writer, id: u32, now| {
        let mut reader = writer.reader();
        let tables = reader.enter();
        let group = tables.group(GroupId(id)).unwrap();
        let of = |bucket| group.pick(bucket, group.home(bucket), tables.states(), now, 0);
        (0..64).map(of).collect::<Vec<_>>()
    };
    let before = pick(&writer, 0, now);
    // As control does of very many prefixes: some still need the group as it was.
    ok(&mut writer, vec![group(1, &[0, 1, 2]), route("10.2.0.0/16", to_group(1))]);
    assert_eq!(pick(&writer, 1, now), before);
    // The first prefix is idle, and the others have a tunnel more; the second is not.
    let later = Ticks(now.0 + 2 * IDLE_GAP);
    let moved = pick(&writer, 1, later);
    assert_ne!(moved, before);
    let at = Ticks(later.0 + 2 * IDLE_GAP);
    assert_eq!(pick(&writer, 0, at), before);
    let ops = vec![route("10.3.0.0/16", to_group(1)), Op::RemoveGroup(GroupId(0))];
    writer.apply(Transaction { epoch: Epoch(100), ops }, u64::from(at.0) * Ticks::NANOS).unwrap();
    assert_eq!(pick(&writer, 1, at), before);
}

#[test]
fn a_peer_that_moved_stays_until_control_names_another_address() {
    let mut writer = busy();
    let live = writer.reader().enter().tunnel(TunnelId(0)).unwrap().live.clone();
    let moved = "198.51.100.7:999".parse().unwrap();
    assert!(live.heard_from(moved) && !live.heard_from(moved));
    let longer = |remote: &str| {
        let remote = Some(remote.parse().unwrap());
        Op::PutTunnel(braid_api::Tunnel { remote, clamp_mtu: 1300, ..tunnel(0) })
    };
    ok(&mut writer, vec![longer("203.0.113.1:4500")]);
    assert_eq!(live.remote(), Some(moved));
    let ops = vec![longer("[2001:db8::1]:4500"), Op::PutSa(sa(8, 0, Direction::Out, 0x1008))];
    ok(&mut writer, ops);
    assert_eq!(live.remote(), Some("[2001:db8::1]:4500".parse().unwrap()));
    assert_eq!(writer.reader().enter().tunnel(TunnelId(0)).unwrap().mtu, 1418);
}

#[test]
fn the_path_mtu_bounds_the_inner_mtu() {
    let mut writer = busy();
    assert_eq!(writer.set_path_mtu(TunnelId(0), Some(1400)), Some(1338));
    assert_eq!(writer.reader().enter().tunnel(TunnelId(0)).unwrap().mtu, 1338);
    assert_eq!(writer.set_path_mtu(TunnelId(0), Some(9000)), Some(1438));
    assert_eq!(writer.set_path_mtu(TunnelId(0), None), Some(1438));
    assert_eq!(writer.set_path_mtu(TunnelId(9), None), None);
}

#[test]
fn what_control_says_of_a_path_takes_the_place_of_what_was_found() {
    let mut writer = busy();
    let put = |path_mtu| vec![Op::PutTunnel(braid_api::Tunnel { path_mtu, ..tunnel(0) })];
    let mtu = |writer: &Writer| writer.reader().enter().tunnel(TunnelId(0)).unwrap().mtu;
    assert_eq!(writer.set_path_mtu(TunnelId(0), Some(1400)), Some(1338));
    // Not what comes to nothing.
    let mut ops = put(1500);
    ops.push(Op::PutTunnel(braid_api::Tunnel { path_mtu: 0, ..tunnel(1) }));
    assert_eq!(refused(&mut writer, ops), RejectReason::BadMtu);
    assert_eq!(mtu(&writer), 1338);
    for (id, path_mtu, expected) in [(100, 1500, 1438), (101, 1400, 1338), (102, 1500, 1438)] {
        ok(&mut writer, put(path_mtu));
        assert_eq!(mtu(&writer), expected);
        // Whatever else makes it anew.
        ok(&mut writer, vec![Op::PutSa(sa(id, 0, Direction::Out, 0x1009 + id as u32))]);
        assert_eq!(mtu(&writer), expected);
    }
}

#[test]
fn sequence_numbers_end_and_lifetimes_are_told_once() {
    let mut writer = busy();
    let sa = outbound(&writer, 0);
    assert_eq!(writer.lifetimes(), []);
    assert_eq!(sa.lock().reserve(0xc000_0000 - 1000), Ok(1001));
    let soft = Event::SaLifetime { sa: SaId(1), hard: false };
    assert_eq!(writer.lifetimes(), [soft]);
    assert_eq!(writer.lifetimes(), []);
    assert!(sa.lock().reserve(0x3fff_ffff).is_ok());
    assert_eq!(sa.sequence(), u64::from(u32::MAX));
    assert!(!sa.is_stopped());
    assert!(sa.lock().reserve(1).is_err() && sa.is_stopped());
    assert_eq!(writer.lifetimes(), [Event::SaLifetime { sa: SaId(1), hard: true }]);
    assert_eq!(writer.lifetimes(), []);
    assert!(writer.summary().1[0].stopped);
}

#[test]
fn summaries_and_stats_tell_what_is_there() {
    let mut writer = busy();
    let mut reader = writer.reader();
    let live = reader.enter().tunnel(TunnelId(0)).unwrap().live.clone();
    live.sent(0, 2, 300);
    live.sent(1, 1, 100);
    live.received(1, 5, 50);
    live.heard(4_000_000);
    (0..3).for_each(|_| live.probed());
    live.answered(1_000_000, Duration::from_micros(4000), Duration::from_micros(4000));
    live.answered(2_000_000, Duration::from_micros(800), Duration::from_micros(1200));
    outbound(&writer, 0).counter.add(3, 400);
    let stats = writer.stats(9_000_000);
    let first = &stats.tunnels[0];
    assert_eq!((first.tx_packets, first.tx_bytes, first.rx_packets, first.rx_bytes), (3, 400, 5, 50));
    assert_eq!(first.heard_ago, Some(Duration::from_millis(5)));
    assert_eq!(first.answered_ago, Some(Duration::from_millis(7)));
    assert_eq!(first.latency, Some(Duration::from_micros(1200)));
    assert!((4000..4500).contains(&first.latency_p99.unwrap().as_micros()));
    assert_eq!(first.probes, (3, 2));
    assert_eq!((first.buckets, stats.tunnels[1].buckets), (4096, 0));
    let (out, in_) = (&stats.sas[0], &stats.sas[1]);
    assert_eq!((out.packets, out.bytes, out.sequence), (3, 400, 1000));
    assert_eq!((in_.direction, in_.sequence), (Direction::In, 500));
    assert_eq!(out.age, Duration::from_millis(8));
    assert_eq!(stats.routes, 1);
    let (tunnels, sas, groups) = writer.summary();
    assert_eq!(tunnels[1].name, "t1");
    assert_eq!(sas[0].key_check, key_check(BOOT, sa(1, 0, Direction::Out, 0).key.expose()));
    assert_ne!(sas[0].key_check, key_check(BootId([8; 16]), sa(1, 0, Direction::Out, 0).key.expose()));
    assert_eq!(groups[0].members.len(), 2);
    ok(&mut writer, vec![Op::Unmask(TunnelId(1))]);
    let stats = writer.stats(9_000_000_000);
    assert_eq!((stats.tunnels[0].buckets, stats.tunnels[1].buckets), (2048, 2048));
}

#[test]
fn a_path_is_explained() {
    let writer = busy();
    let mut reader = writer.reader();
    let tables = reader.enter();
    let flow = |dst: &str| braid_api::Flow {
        src: "10.1.0.1".parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        src_port: 1,
        dst_port: 2,
    };
    let path = tables.path(&flow("10.2.0.1"), 5 << 52, None, Ticks(0));
    assert_eq!((path.prefix, path.group, path.bucket), (Some(net("10.2.0.0/16")), Some(GroupId(0)), Some(5)));
    assert_eq!(path.tunnel, Some(TunnelId(0)));
    let nowhere = tables.path(&flow("10.3.0.1"), 5 << 52, None, Ticks(0));
    assert_eq!((nowhere.prefix, nowhere.tunnel), (None, None));
}

#[test]
fn the_stash_is_bounded_and_told_in_order() {
    let mut writer = writer();
    let value = |len| StashValue(vec![7; len]);
    let put = |key, len| Op::PutStash { key, value: value(len) };
    ok(&mut writer, vec![put(5, 3), put(1, 0), put(9, MAX_STASH_LEN)]);
    let keys = |writer: &Writer, from| writer.stash(from).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(&writer, 0), [1, 5, 9]);
    assert_eq!(keys(&writer, 6), [9]);
    assert_eq!(refused(&mut writer, vec![put(5, 9), put(2, MAX_STASH_LEN + 1)]), RejectReason::StashFull);
    assert_eq!(writer.stash(5)[0].1, value(3));
    ok(&mut writer, vec![Op::RemoveStash { key: 5 }, Op::RemoveStash { key: 77 }]);
    assert_eq!(writer.stash_entries(), 2);
    ok(&mut writer, (10..10 + MAX_STASH_ENTRIES as u64 - 2).map(|key| put(key, 1)).collect());
    assert_eq!(refused(&mut writer, vec![put(0, 1)]), RejectReason::StashFull);
    ok(&mut writer, vec![put(10, 2)]);
    // Large values come in several answers.
    ok(&mut writer, (10..1034).map(|key| put(key, MAX_STASH_LEN)).collect());
    let mut from = 0;
    let mut told = 0;
    while let Some((last, _)) = writer.stash(from).last() {
        told += writer.stash(from).len();
        from = last + 1;
    }
    assert_eq!(told, MAX_STASH_ENTRIES);
}

#[test]
fn readers_beside_a_writer_see_whole_transactions() {
    let mut writer = writer();
    ok(&mut writer, vec![Op::PutTunnel(tunnel(0)), group(0, &[0]), group(1, &[0])]);
    let done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        let reads: Vec<_> = (0..3)
            .map(|_| {
                let (mut reader, done) = (writer.reader(), &done);
                scope.spawn(move || {
                    let (mut reads, mut last) = (0u64, 0);
                    loop {
                        // Once more after the end, however late this thread got its turn.
                        let ends = done.load(Ordering::Acquire);
                        let tables = reader.enter();
                        let target = |dst: &str| tables.route(dst.parse().unwrap()).map(|found| found.1);
                        assert_eq!(target("10.1.0.1"), target("10.2.0.1"));
                        assert_eq!(target("10.1.0.1"), target("fd00::1"));
                        assert!(tables.generation() >= last);
                        last = tables.generation();
                        reads += 1;
                        if ends {
                            return (reads, last);
                        }
                    }
                })
            })
            .collect();
        let mut applied = 0;
        while applied < 3000 && Instant::now() < deadline {
            let target = to_group(applied % 2);
            let prefixes = ["10.1.0.0/16", "10.2.0.0/16", "fd00::/16"];
            ok(&mut writer, prefixes.iter().map(|prefix| route(prefix, target)).collect());
            applied += 1;
        }
        done.store(true, Ordering::Release);
        assert_eq!(applied, 3000, "the writer starved");
        for thread in reads {
            let (reads, last) = thread.join().unwrap();
            assert!(reads > 0 && last > 1, "{reads} reads up to generation {last}");
        }
    });
}
