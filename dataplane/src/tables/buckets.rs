//! Who owns which of a group's 4096 buckets: exact shares, and few changes when members change.
//!
//! How many buckets a member gets is apportioned by largest remainder. Which ones is a stable matching
//! (Gale and Shapley, 1962): every bucket ranks the members by weighted rendezvous (each pair draws
//! an exponential variate at the rate of the weight; the smallest wins), every member ranks the
//! buckets by the same variates and keeps as many as it is due. Both sides ranking by one number
//! makes the matching unique, found by taking pairs by ascending number while both are free, and steady:
//! a member that comes or goes moves little more than its own share. Rendezvous alone would leave shares
//! off by more than 5 % at eight members.
//!
//! The variates depend on tunnel and bucket only, so that equal members have equal buckets in every
//! group and after every restart.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Buckets of a group; a power of two.
pub const BUCKETS: usize = 4096;

/// A member as the matching sees it.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Below 65,536.
    pub(super) tunnel: u16,
    /// At least 1.
    pub(super) weight: u16,
}

/// First and second choice of a bucket; without a second one, the first again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    pub(super) home: u16,
    pub(super) second: u16,
}

/// The choices of every bucket among at least one member.
pub(super) fn choices(members: &[Share]) -> Box<[Choice]> {
    let ranks = Ranks::of(members);
    let all: Vec<u16> = (0..BUCKETS as u16).collect();
    let everyone: Vec<usize> = (0..members.len()).collect();
    let homes = assign(&all, &everyone, members, &ranks);
    let mut choices: Box<[Choice]> = homes
        .iter()
        .map(|&member| Choice { home: members[member].tunnel, second: members[member].tunnel })
        .collect();
    if members.len() < 2 {
        return choices;
    }
    let mut owned = vec![Vec::new(); members.len()];
    all.iter().for_each(|&bucket| owned[homes[bucket as usize]].push(bucket));
    // When a member fails, its own buckets are apportioned over the others as exactly.
    for (index, owned) in owned.iter().enumerate() {
        let others: Vec<usize> = everyone.iter().copied().filter(|&other| other != index).collect();
        for (&bucket, second) in owned.iter().zip(assign(owned, &others, members, &ranks)) {
            choices[bucket as usize].second = members[second].tunnel;
        }
    }
    choices
}

/// How every bucket ranks every member: they are asked for again and again.
struct Ranks {
    members: usize,
    /// Bucket by bucket.
    all: Vec<u32>,
}

impl Ranks {
    fn of(members: &[Share]) -> Self {
        // Without weights the variates order as their uniforms do, and logarithms are most of the cost.
        let equal = members.iter().all(|member| member.weight == members[0].weight);
        let all = (0..BUCKETS as u16)
            .flat_map(|bucket| {
                members.iter().map(move |&member| {
                    if equal { !((draw(bucket, member.tunnel) >> 32) as u32) } else { rank(bucket, member) }
                })
            })
            .collect();
        Ranks { members: members.len(), all }
    }

    fn of_bucket(&self, bucket: u16) -> &[u32] {
        &self.all[usize::from(bucket) * self.members..][..self.members]
    }
}

/// How many of `total` each weight is due: largest remainder, ties to the earlier.
pub(super) fn apportion(total: usize, members: &[Share]) -> Vec<usize> {
    let sum: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let exact = |member: &Share| total as u64 * u64::from(member.weight);
    let mut due: Vec<usize> = members.iter().map(|member| (exact(member) / sum) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..members.len()).collect();
    by_remainder.sort_by_key(|&index| Reverse(exact(&members[index]) % sum));
    // Fewer are left over than there are members: each lost less than one.
    let left = total - due.iter().sum::<usize>();
    by_remainder.iter().take(left).for_each(|&index| due[index] += 1);
    due
}

/// For each of `buckets` the one of `among`, indices of `members`, that owns it.
fn assign(buckets: &[u16], among: &[usize], members: &[Share], ranks: &Ranks) -> Vec<usize> {
    let shares: Vec<Share> = among.iter().map(|&member| members[member]).collect();
    // By place in `among`: how many more it is due.
    let mut due = apportion(buckets.len(), &shares);
    let first_choice = |position: usize, due: &[usize]| {
        let of_bucket = ranks.of_bucket(buckets[position]);
        let open = among.iter().enumerate().filter(|&(place, _)| due[place] > 0);
        let (rank, place) = open.map(|(place, &member)| (of_bucket[member], place)).min()?;
        Some(Reverse((rank, position, place)))
    };
    let mut owners = vec![0; buckets.len()];
    let mut waiting: BinaryHeap<_> =
        (0..buckets.len()).filter_map(|position| first_choice(position, &due)).collect();
    while let Some(Reverse((_, position, place))) = waiting.pop() {
        if due[place] > 0 {
            due[place] -= 1;
            owners[position] = among[place];
        } else {
            waiting.extend(first_choice(position, &due));
        }
    }
    owners
}

/// The exponential variate of a pair as an integer that orders the same way; the smallest wins.
pub(super) fn rank(bucket: u16, member: Share) -> u32 {
    let bits = draw(bucket, member.tunnel);
    // In (0, 1), by the upper 53 bits.
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let variate = -uniform.ln() / f64::from(member.weight);
    // Floats above zero order as their bits do.
    (variate as f32).to_bits()
}

/// Uniform bits of a pair.
fn draw(bucket: u16, tunnel: u16) -> u64 {
    mix(SEED ^ (u64::from(tunnel) << 16 | u64::from(bucket)))
}

/// Any number does: it only makes the variates differ from those of other uses of `mix`.
const SEED: u64 = 0x6272_6169_645f_6563;

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn equal(count: u16) -> Vec<Share> {
        (0..count).map(|tunnel| Share { tunnel, weight: 1 }).collect()
    }

    fn count(choices: &[Choice], of: impl Fn(&Choice) -> u16, tunnel: u16) -> usize {
        choices.iter().filter(|choice| of(choice) == tunnel).count()
    }

    proptest! {
        #[test]
        fn apportionment_is_exact(total in 0usize..=BUCKETS, weights in proptest::collection::vec(1u16.., 1..=256)) {
            let members: Vec<Share> =
                weights.iter().enumerate().map(|(tunnel, &weight)| Share { tunnel: tunnel as u16, weight }).collect();
            let due = apportion(total, &members);
            prop_assert_eq!(due.iter().sum::<usize>(), total);
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            for (&due, &weight) in due.iter().zip(&weights) {
                prop_assert!((due as f64 - total as f64 * f64::from(weight) / sum).abs() < 1.0);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn homes_and_second_choices_have_exact_shares(
            weights in proptest::collection::vec(prop_oneof![1u16..10, any::<u16>().prop_map(|w| w.max(1))], 2..=24),
        ) {
            let members: Vec<Share> = weights
                .iter()
                .enumerate()
                .map(|(index, &weight)| Share { tunnel: index as u16 * 7, weight })
                .collect();
            let choices = choices(&members);
            for (member, due) in members.iter().zip(apportion(BUCKETS, &members)) {
                prop_assert_eq!(count(&choices, |choice| choice.home, member.tunnel), due);
                let owned: Vec<Choice> =
                    choices.iter().copied().filter(|choice| choice.home == member.tunnel).collect();
                let others: Vec<Share> =
                    members.iter().copied().filter(|other| other.tunnel != member.tunnel).collect();
                for (other, due) in others.iter().zip(apportion(owned.len(), &others)) {
                    prop_assert_eq!(count(&owned, |choice| choice.second, other.tunnel), due);
                }
            }
        }
    }

    #[test]
    fn a_member_that_comes_or_goes_moves_little_more_than_its_share() {
        for members in [2u16, 3, 4, 7, 8, 16, 40] {
            let before = choices(&equal(members));
            let after = choices(&equal(members + 1));
            let moved = before.iter().zip(&after).filter(|(old, new)| old.home != new.home).count();
            let ideal = BUCKETS / usize::from(members + 1);
            assert!(moved >= ideal, "{members}: {moved} of at least {ideal}");
            assert!(moved <= ideal + BUCKETS / 16, "{members}: {moved} where {ideal} would do");
        }
    }

    #[test]
    fn equal_weights_rank_as_their_variates_do() {
        let members = equal(40);
        let ranks = Ranks::of(&members);
        for bucket in [0, 1, 77, 4095] {
            let order = |rank: &dyn Fn(usize) -> u32| {
                let mut order: Vec<usize> = (0..members.len()).collect();
                order.sort_by_key(|&member| rank(member));
                order
            };
            let all = ranks.of_bucket(bucket);
            assert_eq!(order(&|member| all[member]), order(&|member| rank(bucket, members[member])));
        }
    }

    #[test]
    fn many_members_are_matched() {
        let choices = choices(&equal(256));
        for tunnel in 0..256 {
            assert_eq!(count(&choices, |choice| choice.home, tunnel), 16);
        }
        assert!(choices.iter().all(|choice| choice.home != choice.second));
    }

    #[test]
    fn a_weight_too_small_for_a_bucket_has_none() {
        let members = [Share { tunnel: 0, weight: 1 }, Share { tunnel: 1, weight: u16::MAX }];
        let choices = choices(&members);
        assert_eq!(count(&choices, |choice| choice.home, 0), 0);
        assert!(choices.iter().all(|choice| choice.second == 0));
    }
}
