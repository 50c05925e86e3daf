//! Every collision of exchanges that RFC 7296 sections 2.8.1, 2.8.2 and 2.25 speak of, drawn and played.
//!
//! Whatever crosses, in the end there is one IKE SA and one pair of SAs, the same on both sides.

use std::time::Duration;

use braid_ike::wire::{ExchangeType, Header};
use braid_ike::{Event, PeerId, Role};

use crate::config::{A, B, peer};
use crate::exchanges::{pair, run_with_traffic, sas_in_core, up};
use crate::net::Net;

/// What a side may begin.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Does {
    RekeyChild,
    RekeyIke,
    DeleteChild,
    DeleteIke,
}

impl Does {
    const ALL: [Self; 4] = [Self::RekeyChild, Self::RekeyIke, Self::DeleteChild, Self::DeleteIke];

    fn begin(self, net: &mut Net, node: usize) {
        let other = PeerId(1 - node as u32);
        net.act(node, |e, now, rng| match self {
            Self::RekeyChild => e.rekey_child(now, rng, other),
            Self::RekeyIke => e.rekey_ike(now, rng, other),
            Self::DeleteChild => e.delete_child(now, rng, other),
            Self::DeleteIke => e.reset_peer(now, rng, other),
        });
    }

    /// Whether traffic goes on meanwhile.
    fn breaks(self) -> bool {
        matches!(self, Self::DeleteChild | Self::DeleteIke)
    }
}

fn one_pair(net: &Net) -> bool {
    net.connected(0, 1) && net.nodes.iter().all(|node| node.stash.len() == 1 && node.core.sas.len() == 2)
}

/// Drops the first `count` requests of an exchange that a node sends.
fn delay_requests(net: &mut Net, node: usize, exchange: ExchangeType, count: usize) {
    let mut dropped = 0;
    net.censor = Some(Box::new(move |from, bytes| {
        let header = Header::decode(bytes).unwrap().0;
        let drops = from == node && !header.response && header.exchange == exchange && dropped < count;
        dropped += usize::from(drops);
        drops
    }));
}

/// RFC 7296 section 2.25: whatever one side begins while the other begins something, at once, or a part of a
/// round trip later, or with a request that is lost and comes a second late.
///
/// ```text
/// A                                  B
/// one of four ---------\\   /-------- one of four
///                      \\ /
///          <-------------X------------>
/// what either side answers depends on what it has under way itself (sections 2.25.1, 2.25.2):
///   delete of what is being rekeyed           done, the rekey finds nothing
///   rekey of a child that is being deleted    TEMPORARY_FAILURE
///   rekey of a child that is gone             CHILD_SA_NOT_FOUND
///   rekey of the child that is being rekeyed  done, the lowest nonce's pair goes (section 2.8.1)
///   rekey of the IKE SA, child in the making  TEMPORARY_FAILURE
///   child wanted, IKE SA being rekeyed        TEMPORARY_FAILURE
///   rekey of the IKE SA that is being rekeyed done, the lowest nonce's SA goes (section 2.8.2)
///   anything on an IKE SA that is being closed TEMPORARY_FAILURE, and the close is answered
/// ```
#[test]
fn whatever_crosses_one_pair_is_left() {
    let cases = Does::ALL.into_iter().flat_map(|a| Does::ALL.map(|b| (a, b)));
    for (seed, (a, b)) in (0..).zip(cases) {
        for (late, lost) in [(0, None), (4, None), (12, None), (25, None), (0, Some(0)), (0, Some(1))] {
            let what = format!("{a:?} against {b:?}, {late} ms later, lost by {lost:?}");
            let mut net = pair(seed);
            up(&mut net);
            net.run(Duration::from_secs(20));
            if let Some(node) = lost {
                delay_requests(&mut net, node, ExchangeType::CreateChildSa, 2);
            }
            a.begin(&mut net, 0);
            net.run(Duration::from_millis(late));
            b.begin(&mut net, 1);
            if !a.breaks() && !b.breaks() {
                run_with_traffic(&mut net, Duration::from_secs(10));
                for node in &net.nodes {
                    assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })), "{what}");
                }
            }
            net.run(Duration::from_secs(90));
            assert!(one_pair(&net), "{what}: {:#?}", net.nodes.iter().map(|n| &n.events).collect::<Vec<_>>());
            let lost_before = [net.nodes[0].esp_lost_here, net.nodes[1].esp_lost_here];
            for _ in 0..20 {
                assert!(net.ping(0, 1) && net.ping(1, 0), "{what}");
                net.run(Duration::from_millis(50));
            }
            assert_eq!([net.nodes[0].esp_lost_here, net.nodes[1].esp_lost_here], lost_before, "{what}");
        }
    }
}

/// RFC 7296 section 2.25.1: a child is rekeyed whose maker does not know of it yet.
///
/// ```text
/// A                                  B
/// deletes the only child             deletes it too, or notes its end
/// <------------------- CREATE_CHILD_SA (new)
/// answers: has it ------- lost ----x
/// REKEY_SA (new) ------------------->   does not know it yet: TEMPORARY_FAILURE, not CHILD_SA_NOT_FOUND,
/// <--------------------------------     upon which A would end a child that B is about to learn of
/// <------------------- CREATE_CHILD_SA again
/// answers again -------------------->
/// ```
#[test]
fn a_rekey_overtakes_the_answer_that_makes_the_child() {
    for seed in 0..20 {
        let mut net = Net::new(seed, &[A, B]);
        net.put_peer(1, 0, peer(Role::Initiate, B, A));
        net.put_peer(0, 1, peer(Role::Respond, A, B));
        up(&mut net);
        net.run(Duration::from_secs(20));
        let mut dropped = 0;
        net.censor = Some(Box::new(move |from, bytes| {
            let header = Header::decode(bytes).unwrap().0;
            let is_answer = from == 0 && header.response && header.exchange == ExchangeType::CreateChildSa;
            dropped += usize::from(is_answer && dropped < 2);
            is_answer && dropped < 2
        }));
        let before = net.nodes[0].core.outbound(PeerId(1)).unwrap().id;
        net.act(1, |e, now, rng| e.delete_child(now, rng, PeerId(0)));
        let remade = |net: &Net| net.nodes[0].core.outbound(PeerId(1)).is_some_and(|sa| sa.id != before);
        assert!(net.run_until(Duration::from_secs(10), remade));
        net.act(0, |e, now, rng| e.rekey_child(now, rng, PeerId(1)));
        net.run(Duration::from_secs(30));
        net.censor = None;
        assert!(one_pair(&net), "seed {seed}");
        let downs = net.nodes[0].events.iter().filter(|e| matches!(e, Event::PeerDown { .. })).count();
        assert_eq!(downs, 1, "the child that A had made was kept");
    }
}

/// RFC 7296 sections 2.8.2 and 2.25.2: both rekey the IKE SA, and one forgets its own part in it.
///
/// ```text
/// A                                  B
/// rekey of the IKE SA ---\ /--- rekey of the IKE SA
/// <-----------------------X----------------------->    both answer
/// its control restarts                 its SA inherits the child
/// the keys of its new SA are lost: its old SA ends with the child
/// <------ one IKE SA is left, in which B has the child and A has none; one of them makes another
/// the younger stays, the older is deleted by who has it
/// ```
#[test]
fn a_child_that_one_side_lost_in_a_change_of_ike_sas_is_dropped_by_the_other() {
    for (seed, node) in (0..60).flat_map(|seed| [(seed, 0), (seed, 1)]) {
        for late in [5, 12, 15, 22, 30] {
            let mut net = pair(seed);
            up(&mut net);
            net.run(Duration::from_secs(15));
            Does::RekeyIke.begin(&mut net, 0);
            Does::RekeyIke.begin(&mut net, 1);
            net.run(Duration::from_millis(late));
            let (role, local, remote) =
                if node == 0 { (Role::Initiate, A, B) } else { (Role::Respond, B, A) };
            net.restart_control(node, 1, 1 - node as u32, peer(role, local, remote));
            assert!(net.run_until(Duration::from_secs(150), |net| net.connected(0, 1)));
            net.run(Duration::from_secs(150));
            assert!(one_pair(&net), "seed {seed}, node {node}, {late} ms");
        }
    }
}

/// RFC 7296 section 2.8.1: both rekey the same child at once.
///
/// ```text
/// A                                  B
/// rekey(old) ------\    /------ rekey(old)
///                   \  /
///          <---------\/--------->           each answers, and knows of both
/// <-- answer --------/\-------- answer -->
/// the pair with the lowest nonce is deleted by its maker,
/// the old one by the maker of the other
/// ```
#[test]
fn both_rekey_a_child_at_once() {
    for seed in 0..40 {
        let mut net = pair(seed);
        up(&mut net);
        for node in [0, 1] {
            net.act(node, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - node as u32)));
        }
        run_with_traffic(&mut net, Duration::from_millis(500));
        net.run(Duration::from_secs(20));
        assert!(net.connected(0, 1), "seed {seed}");
        assert_eq!(sas_in_core(&net), [2, 2], "seed {seed}: one pair is left");
    }
}

/// RFC 7296 section 2.8.2: both rekey the IKE SA at once; as above, and the children go with the winner.
#[test]
fn both_rekey_the_ike_sa_at_once() {
    for seed in 0..40 {
        let mut net = pair(seed);
        up(&mut net);
        for node in [0, 1] {
            net.act(node, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - node as u32)));
        }
        run_with_traffic(&mut net, Duration::from_millis(500));
        net.run(Duration::from_secs(60));
        assert!(net.connected(0, 1), "seed {seed}");
        for node in &net.nodes {
            assert_eq!(node.endpoint.ike_sas(), 1, "seed {seed}");
            assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })), "seed {seed}");
        }
        assert_eq!(sas_in_core(&net), [2, 2], "seed {seed}");
    }
}

/// RFC 7296 section 2.25.1: one rekeys the child that the other deletes.
///
/// ```text
/// A                                  B
/// rekey(old) ------\    /------ delete(old)
/// <----------------------------/    \------> TEMPORARY_FAILURE: it is being deleted
/// deleted ------------------------------->   no child is left: the initiator makes one
/// ```
#[test]
fn one_rekeys_the_child_that_the_other_deletes() {
    for (rekeys, seed) in [(0, 1), (1, 2)] {
        let mut net = pair(seed);
        up(&mut net);
        net.run(Duration::from_secs(20));
        net.act(rekeys, |e, now, rng| e.rekey_child(now, rng, PeerId(1 - rekeys as u32)));
        net.act(1 - rekeys, |e, now, rng| e.delete_child(now, rng, PeerId(rekeys as u32)));
        net.run(Duration::from_secs(30));
        assert!(net.connected(0, 1), "{:#?} {:#?}", net.nodes[0].events, net.nodes[1].events);
        assert_eq!(sas_in_core(&net), [2, 2]);
        assert_eq!(net.nodes[0].endpoint.ike_sas(), 1);
    }
}

/// RFC 7296 section 2.25.2: one rekeys the IKE SA while the other rekeys a child: the former is put off.
#[test]
fn one_rekeys_the_ike_sa_while_the_other_rekeys_a_child() {
    for node in [0, 1] {
        let mut net = pair(26);
        up(&mut net);
        net.act(node, |e, now, rng| e.rekey_ike(now, rng, PeerId(1 - node as u32)));
        net.act(1 - node, |e, now, rng| e.rekey_child(now, rng, PeerId(node as u32)));
        run_with_traffic(&mut net, Duration::from_secs(10));
        let has = |net: &Net, what: fn(&Event) -> bool| net.nodes[0].events.iter().any(what);
        assert!(has(&net, |e| matches!(e, Event::IkeRekeyed { .. })));
        assert!(has(&net, |e| matches!(e, Event::ChildRekeyed { .. })));
        net.run(Duration::from_secs(60));
        assert_eq!(sas_in_core(&net), [2, 2]);
    }
}
