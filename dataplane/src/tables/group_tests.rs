//! Spread, failure, return, drain and change of members, bucket by bucket.

use std::{hash::Hasher, time::Duration};

use braid_api::GroupId;
use proptest::prelude::*;

use super::*;
use crate::tables::state::{DRAINING, MASKED};

/// Longer than the gap.
const LONG: u32 = IDLE_GAP + 1;

fn live() -> Arc<TunnelLive> {
    Arc::new(TunnelLive::new(1, None))
}

fn member(tunnel: u32, weight: u16, priority: i32) -> Member {
    Member { tunnel: TunnelId(tunnel), weight, priority }
}

fn group_after(members: &[Member], previous: Option<&Group>, now: Ticks) -> Group {
    let live = members.iter().map(|_| live()).collect();
    Group::new(braid_api::Group { id: GroupId(0), members: members.to_vec() }, live, previous, now)
}

fn group(members: &[Member]) -> Group {
    group_after(members, None, Ticks(0))
}

fn weights(weights: &[u16]) -> Vec<Member> {
    weights.iter().enumerate().map(|(tunnel, &weight)| member(tunnel as u32, weight, 0)).collect()
}

fn all_live(members: &[Member]) -> TunnelStates {
    let states = TunnelStates::new();
    members.iter().for_each(|member| states.clear(member.tunnel, MASKED));
    states
}

fn pick_all(group: &Group, states: &TunnelStates, now: Ticks) -> Vec<Option<u32>> {
    (0..BUCKETS as u16)
        .map(|bucket| group.pick(bucket, group.home(bucket), states, now, 0).map(|tunnel| tunnel.0))
        .collect()
}

fn count(picks: &[Option<u32>], tunnel: u32) -> usize {
    picks.iter().filter(|&&pick| pick == Some(tunnel)).count()
}

#[test]
fn flows_spread_within_five_percent_of_each_weight() {
    const FLOWS: u32 = 100_000;
    let cases: [&[u16]; 7] =
        [&[1, 1], &[1, 1, 1], &[1; 4], &[1; 8], &[1, 2], &[1, 2, 3, 4], &[5, 1, 1, 1, 2, 2, 3, 9]];
    for case in cases {
        let members = weights(case);
        let (group, states) = (group(&members), all_live(&members));
        for seed in 0..4u64 {
            let mut flows = vec![0u32; case.len()];
            for flow in 0..FLOWS {
                let mut hasher = siphasher::sip::SipHasher13::new_with_keys(seed, !seed);
                hasher.write_u32(flow);
                let bucket = group.bucket_of(hasher.finish());
                flows[group.pick(bucket, group.home(bucket), &states, Ticks(0), 0).unwrap().0 as usize] += 1;
            }
            let sum: u32 = case.iter().map(|&weight| u32::from(weight)).sum();
            for (&flows, &weight) in flows.iter().zip(case) {
                let due = f64::from(FLOWS) * f64::from(weight) / f64::from(sum);
                let error = (f64::from(flows) - due).abs() / due;
                assert!(error < 0.05, "{case:?} seed {seed}: {flows} where {due} were due");
            }
        }
    }
}

#[test]
fn a_failure_moves_only_the_dead_tunnels_buckets_and_spreads_them_by_weight() {
    let members = weights(&[1, 2, 3, 4]);
    let (group, states) = (group(&members), all_live(&members));
    let before = pick_all(&group, &states, Ticks(0));
    states.set(TunnelId(3), MASKED);
    let after = pick_all(&group, &states, Ticks(1));
    for (before, after) in before.iter().zip(&after) {
        assert!(if *before == Some(3) { *after != Some(3) } else { before == after });
    }
    // 4096 * 4/10 buckets over weights 1, 2, 3, to the bucket.
    let lost = count(&before, 3);
    for (tunnel, weight) in [(0, 1), (1, 2), (2, 3)] {
        let gained = count(&after, tunnel) - count(&before, tunnel);
        assert!(gained.abs_diff(lost * weight / 6) <= 1, "tunnel {tunnel} gained {gained} of {lost}");
    }
}

#[test]
fn a_second_failure_moves_only_what_the_second_tunnel_holds() {
    let members = weights(&[1; 5]);
    let (group, states) = (group(&members), all_live(&members));
    pick_all(&group, &states, Ticks(0));
    states.set(TunnelId(0), MASKED);
    let before = pick_all(&group, &states, Ticks(1));
    states.set(TunnelId(1), MASKED);
    let after = pick_all(&group, &states, Ticks(2));
    for (before, after) in before.iter().zip(&after) {
        assert!(if *before == Some(1) { !matches!(after, Some(0 | 1)) } else { before == after });
    }
    for tunnel in 2..5 {
        // A third of the whole, within the spread of rendezvous for what has lost both choices.
        assert!(count(&after, tunnel).abs_diff(BUCKETS / 3) < BUCKETS / 20);
    }
    states.clear(TunnelId(0), MASKED);
    states.clear(TunnelId(1), MASKED);
    let home = pick_all(&group, &states, Ticks(2 + LONG));
    assert_eq!(home, pick_all(&self::group(&members), &states, Ticks(0)));
}

#[test]
fn a_bucket_goes_home_only_in_an_idle_gap() {
    let members = weights(&[1, 1, 1]);
    let (group, states) = (group(&members), all_live(&members));
    let before = pick_all(&group, &states, Ticks(0));
    states.set(TunnelId(1), MASKED);
    let during = pick_all(&group, &states, Ticks(1));
    states.clear(TunnelId(1), MASKED);
    let mut now = 1;
    // Busy: a packet in every gap.
    for _ in 0..100 {
        now += IDLE_GAP;
        assert_eq!(pick_all(&group, &states, Ticks(now)), during);
    }
    assert_eq!(pick_all(&group, &states, Ticks(now + LONG)), before);
}

#[test]
fn a_slower_path_is_left_after_a_longer_gap() {
    let members = weights(&[1, 1]);
    let lives = [live(), live()];
    let settings = braid_api::Group { id: GroupId(0), members: members.clone() };
    let group = Group::new(settings, lives.to_vec(), None, Ticks(0));
    let states = all_live(&members);
    let bucket = (0..BUCKETS as u16).find(|&bucket| group.home(bucket) == TunnelId(0)).unwrap();
    let answered = |live: &TunnelLive, ms| {
        let took = Duration::from_millis(ms);
        live.answered(1, took, took);
    };
    answered(&lives[0], 10);
    answered(&lives[1], 60);
    states.set(TunnelId(0), MASKED);
    assert_eq!(group.pick(bucket, group.home(bucket), &states, Ticks(0), 0), Some(TunnelId(1)));
    states.clear(TunnelId(0), MASKED);
    // Packets on the way over tunnel 1 arrive 50 ms later than those sent over tunnel 0.
    assert_eq!(group.pick(bucket, group.home(bucket), &states, Ticks(IDLE_GAP + 500), 0), Some(TunnelId(1)));
    // The last packet may have been as late as this one seems to be after it.
    let back = |late| {
        let at = Ticks(2 * IDLE_GAP + 1001);
        group.pick(bucket, group.home(bucket), &states, at, late)
    };
    assert_eq!(back(1), Some(TunnelId(1)));
    let group = &group;
    let later = Ticks(3 * IDLE_GAP + 1502);
    assert_eq!(group.pick(bucket, group.home(bucket), &states, later, 0), Some(TunnelId(0)));
}

#[test]
fn a_draining_tunnel_keeps_what_is_busy_and_carries_when_nothing_else_does() {
    let members = weights(&[1, 1]);
    let (group, states) = (group(&members), all_live(&members));
    let before = pick_all(&group, &states, Ticks(0));
    states.set(TunnelId(0), DRAINING);
    assert_eq!(pick_all(&group, &states, Ticks(IDLE_GAP)), before);
    assert_eq!(count(&pick_all(&group, &states, Ticks(IDLE_GAP + LONG)), 1), BUCKETS);
    states.set(TunnelId(1), MASKED);
    assert_eq!(count(&pick_all(&group, &states, Ticks(IDLE_GAP + LONG + 1)), 0), BUCKETS);
    states.clear(TunnelId(1), MASKED);
    states.clear(TunnelId(0), DRAINING);
    assert_eq!(pick_all(&group, &states, Ticks(IDLE_GAP + 2 * LONG + 1)), before);
}

#[test]
fn the_highest_priority_that_has_a_live_member_carries() {
    let members = [member(4, 1, 10), member(5, 1, 10), member(6, 1, 5), member(7, 1, -1)];
    let (group, states) = (group(&members), all_live(&members));
    let mut now = 0;
    let mut carriers = |states: &TunnelStates| {
        now += LONG;
        let picks = pick_all(&group, states, Ticks(now));
        (4..=7).map(|tunnel| count(&picks, tunnel)).collect::<Vec<_>>()
    };
    assert_eq!(carriers(&states), [2048, 2048, 0, 0]);
    states.set(TunnelId(4), MASKED);
    assert_eq!(carriers(&states), [0, 4096, 0, 0]);
    states.set(TunnelId(5), MASKED);
    assert_eq!(carriers(&states), [0, 0, 4096, 0]);
    states.set(TunnelId(6), DRAINING);
    assert_eq!(carriers(&states), [0, 0, 0, 4096]);
    states.set(TunnelId(7), MASKED);
    assert_eq!(carriers(&states), [0, 0, 4096, 0]);
    states.set(TunnelId(6), MASKED);
    assert_eq!(carriers(&states), [0, 0, 0, 0]);
    states.clear(TunnelId(4), MASKED);
    states.clear(TunnelId(5), MASKED);
    assert_eq!(carriers(&states), [2048, 2048, 0, 0]);
}

#[test]
fn busy_flows_stay_when_members_change() {
    let old = group(&weights(&[1, 1, 1]));
    let states = all_live(&weights(&[1; 4]));
    let before = pick_all(&old, &states, Ticks(0));
    let more = group_after(&weights(&[1, 1, 1, 1]), Some(&old), Ticks(1));
    assert_eq!(pick_all(&more, &states, Ticks(2)), before);
    let settled = pick_all(&more, &states, Ticks(2 + LONG));
    assert_eq!(count(&settled, 3), BUCKETS / 4);
    // Whatever was on the member that goes moves at once, the rest stays.
    let fewer = group_after(&weights(&[1, 1]), Some(&more), Ticks(3 + LONG));
    let after = pick_all(&fewer, &states, Ticks(3 + LONG));
    for (before, after) in settled.iter().zip(after) {
        assert!(if matches!(before, Some(2 | 3)) { matches!(after, Some(0 | 1)) } else { *before == after });
    }
}

#[test]
fn busy_flows_stay_when_a_group_of_one_grows() {
    let one = group(&[member(1, 1, 0)]);
    let states = all_live(&weights(&[1, 1]));
    assert!(one.is_single());
    assert_eq!(
        one.pick(BUCKETS as u16 - 1, one.home(BUCKETS as u16 - 1), &states, Ticks(9), 0),
        Some(TunnelId(1))
    );
    let two = group_after(&weights(&[1, 1]), Some(&one), Ticks(10));
    assert_eq!(count(&pick_all(&two, &states, Ticks(11)), 1), BUCKETS);
    assert_eq!(count(&pick_all(&two, &states, Ticks(11 + LONG)), 0), BUCKETS / 2);
    let again = group_after(&[member(0, 1, 0)], Some(&two), Ticks(12 + LONG));
    assert!(again.is_single() && again.contains(TunnelId(0)) && !again.contains(TunnelId(1)));
    states.set(TunnelId(0), MASKED);
    assert_eq!(again.pick(0, again.home(0), &states, Ticks(0), 0), None);
}

#[test]
fn busy_flows_stay_when_their_prefix_moves_to_another_group() {
    let states = all_live(&weights(&[1; 4]));
    let old = group(&weights(&[1, 1, 1]));
    let before = pick_all(&old, &states, Ticks(10));
    let new = group(&weights(&[1, 1, 1, 1]));
    new.take_over(&old, Ticks(10 + IDLE_GAP));
    assert_eq!(pick_all(&new, &states, Ticks(10 + IDLE_GAP)), before);
    let settled = pick_all(&new, &states, Ticks(10 + 2 * LONG));
    assert_eq!(count(&settled, 3), BUCKETS / 4);
    // One that is in use already: its busy flows stay, and so do those that come.
    let busy_here = 0..BUCKETS as u16 / 2;
    let at = Ticks(10 + 3 * LONG);
    for bucket in busy_here.clone() {
        new.pick(bucket, new.home(bucket), &states, at, 0);
    }
    // Those there are the younger ones.
    let at = Ticks(at.0 + IDLE_GAP / 2);
    assert_eq!(pick_all(&old, &states, at), before);
    new.take_over(&old, at);
    let after = pick_all(&new, &states, at);
    let (here, there) = after.split_at(busy_here.len());
    assert_eq!(here, &settled[..here.len()]);
    assert_eq!(there, &before[here.len()..]);
    // What was idle there longer than here has nothing to say.
    let later = Ticks(at.0 + 2 * LONG);
    let home = pick_all(&new, &states, later);
    new.take_over(&old, Ticks(later.0 + LONG));
    assert_eq!(pick_all(&new, &states, Ticks(later.0 + LONG)), home);
    // All flows of a group of one were on its tunnel.
    let alone = group(&[member(2, 1, 0)]);
    let fresh = group(&weights(&[1, 1, 1]));
    fresh.take_over(&alone, at);
    assert_eq!(count(&pick_all(&fresh, &states, at), 2), BUCKETS);
    alone.take_over(&fresh, at);
}

#[test]
fn buckets_count_and_are_small() {
    assert_eq!(size_of::<Bucket>(), 16);
    let group = group(&weights(&[1, 1]));
    group.count(7, 2, 3000);
    group.count(7, 1, 100);
    assert_eq!(group.load(7), (3, 3100));
    assert_eq!(group.load(8), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Set(u32, u8),
    Clear(u32, u8),
    Wait(u32),
    Pick(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let bits = || prop_oneof![Just(MASKED), Just(DRAINING)];
    prop_oneof![
        (0..6u32, bits()).prop_map(|(tunnel, bits)| Step::Set(tunnel, bits)),
        (0..6u32, bits()).prop_map(|(tunnel, bits)| Step::Clear(tunnel, bits)),
        (0..2 * IDLE_GAP).prop_map(Step::Wait),
        (0..8u16).prop_map(Step::Pick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_pick_obeys_the_rules(
        members in proptest::collection::vec((1u16..4, 0i32..3), 2..=6),
        steps in proptest::collection::vec(step(), 1..200),
        start in any::<u32>(),
    ) {
        let members: Vec<Member> = members
            .iter()
            .enumerate()
            .map(|(tunnel, &(weight, priority))| member(tunnel as u32, weight, priority))
            .collect();
        let (group, states) = (group(&members), all_live(&members));
        let mut now = Ticks(start);
        let mut last: [Option<(TunnelId, Ticks)>; 8] = [None; 8];
        let priority = |tunnel: TunnelId| members[tunnel.0 as usize].priority;
        let best = |wanted: TunnelState| {
            let standing = members.iter().filter(|member| states.get(member.tunnel) == wanted);
            standing.map(|member| member.priority).max()
        };
        for step in steps {
            match step {
                Step::Set(tunnel, bits) => states.set(TunnelId(tunnel % members.len() as u32), bits),
                Step::Clear(tunnel, bits) => states.clear(TunnelId(tunnel % members.len() as u32), bits),
                Step::Wait(ticks) => now = Ticks(now.0.wrapping_add(ticks)),
                Step::Pick(bucket) => {
                    let path = group.peek(bucket, &states, now);
                    let picked = group.pick(bucket, group.home(bucket), &states, now, 0);
                    prop_assert_eq!(path.now, picked);
                    prop_assert_eq!(path.home, group.home(bucket));
                    let Some(tunnel) = picked else {
                        prop_assert!(members.iter().all(|member| states.is_masked(member.tunnel)));
                        // A packet that was dropped was seen as well.
                        last[bucket as usize] = last[bucket as usize].map(|(tunnel, _)| (tunnel, now));
                        continue;
                    };
                    prop_assert!(!states.is_masked(tunnel));
                    let held = last[bucket as usize].filter(|(held, _)| !states.is_masked(*held));
                    if let Some((held, seen)) = held && !now.passed_since(seen, IDLE_GAP) {
                        prop_assert_eq!(tunnel, held, "moved without need or gap");
                    } else if let Some(best) = best(TunnelState::Live) {
                        prop_assert!(states.is_live(tunnel));
                        prop_assert_eq!(priority(tunnel), best);
                        if states.is_live(path.home) {
                            prop_assert_eq!(tunnel, path.home);
                        }
                    } else {
                        prop_assert_eq!(Some(priority(tunnel)), best(TunnelState::Draining));
                    }
                    last[bucket as usize] = Some((tunnel, now));
                }
            }
        }
    }
}
