//! What the figures are to be.

use super::{Drained, How, Quiet, Round};
use crate::scale::Target;
use serde::Serialize;

const MOST_SILENT_MS: f64 = 50.0;
const MOST_TOLD_MS: f64 = 10.0;
const MOST_MASKED_US: f64 = 1000.0;
/// After an ICMP error, before traffic is to be on the other tunnel.
const PROBES: f64 = 3.0;

/// A figure of all rounds, and what it is to be.
#[derive(Debug, Clone, Serialize)]
pub struct Goal {
    /// In words.
    pub what: &'static str,
    /// The worst round's, or the sum of all.
    #[serde(flatten)]
    pub target: Target,
}

/// Those of what was measured.
#[must_use]
pub fn goals(how: How, quiet: Option<&Quiet>, rounds: &[Round], drains: &[Drained]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut at_most = |what, is, most| goals.push(Goal { what, target: Target::most(is, most) });
    if let Some(quiet) = quiet {
        at_most("tunnels taken out though nothing was cut", quiet.failovers as f64, 0.0);
    }
    let worst = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    let slowest = |round: &Round| round.traffic_ms[2];
    if !rounds.is_empty() {
        match how {
            How::Silent => at_most(
                "milliseconds until the slowest flow is on the other tunnel",
                worst(&slowest),
                MOST_SILENT_MS,
            ),
            How::Link => {
                at_most(
                    "milliseconds until the slowest flow is on the other tunnel",
                    worst(&slowest),
                    MOST_TOLD_MS,
                );
            }
            How::Icmp => at_most(
                "milliseconds until the slowest flow is on the other tunnel, beside three round trips of probes",
                worst(&|round| slowest(round) - PROBES * round.probe_ms.unwrap_or(0.0)),
                MOST_TOLD_MS,
            ),
            How::Drain => {}
        }
        // B is not always told before its own BFD is, nor has it to be.
        let found = |round: &&Round| match how {
            How::Silent => round.masked_us.iter().all(Option::is_some),
            How::Link | How::Icmp | How::Drain => round.masked_us[0].is_some(),
        };
        let not_found = rounds.len() - rounds.iter().filter(found).count();
        at_most("cuts that a core did not find by itself", not_found as f64, 0.0);
        let masked = |round: &Round| round.masked_us.iter().flatten().copied().fold(0.0, f64::max);
        at_most("microseconds from detection to the mask", worst(&masked), MOST_MASKED_US);
        let taken: usize = rounds.iter().map(|round| round.false_verdicts.len()).sum();
        at_most("tunnels taken out that were not cut", taken as f64, 0.0);
        let moved: usize = rounds.iter().map(|round| round.healthy_moved).sum();
        at_most("flows of the healthy tunnel moved", moved as f64, 0.0);
    }
    if !drains.is_empty() {
        let sum = |of: fn(&Drained) -> usize| drains.iter().map(of).sum::<usize>() as f64;
        at_most("packets lost by drain and return", sum(|drained| drained.lost), 0.0);
        at_most("packets reordered by drain and return", sum(|drained| drained.reordered), 0.0);
        at_most("flows that a drain did not move", sum(|drained| drained.flows - drained.left), 0.0);
        at_most("flows of the healthy tunnel moved", sum(|drained| drained.healthy_moved), 0.0);
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Round = Round {
        cutting_ms: 5.0,
        detected_ms: [Some(30.0); 2],
        masked_us: [Some(20.0), Some(1000.0)],
        flows_hit: 16,
        traffic_ms: [1.0, 30.0, 50.0],
        healthy_moved: 0,
        false_verdicts: Vec::new(),
        probe_ms: Some(15.0),
        causes: [const { String::new() }; 2],
        gbit_per_s: 7.0,
    };
    const DRAINED: Drained =
        Drained { flows: 20, left: 20, lost: 0, reordered: 0, healthy_moved: 0, gbit_per_s: 7.0 };

    fn missed(how: How, rounds: &[Round], drains: &[Drained]) -> usize {
        let quiet = Quiet { seconds: 1, failovers: 0, causes: Vec::new(), gbit_per_s: 7.0 };
        goals(how, Some(&quiet), rounds, drains).iter().filter(|goal| !goal.target.reached).count()
    }

    #[test]
    fn each_figure_has_its_limit_and_the_worst_round_counts() {
        assert_eq!(missed(How::Silent, &[ROUND], &[]), 0);
        let slow = Round { traffic_ms: [1.0, 30.0, 50.1], ..ROUND };
        let late = Round { masked_us: [Some(1000.1), Some(1.0)], ..ROUND };
        let blind = Round { masked_us: [Some(1.0), None], ..ROUND };
        let moved = Round { healthy_moved: 1, ..ROUND };
        let wrong = Round { false_verdicts: vec!["bfd".to_owned()], ..ROUND };
        for bad in [slow, late, blind, moved, wrong] {
            assert_eq!(missed(How::Silent, &[ROUND, bad.clone(), ROUND], &[]), 1, "{bad:?}");
        }
        let at = |slowest| Round { traffic_ms: [0.0, 0.0, slowest], ..ROUND };
        for (how, most) in [(How::Link, 10.0), (How::Icmp, 55.0)] {
            assert_eq!((missed(how, &[at(most)], &[]), missed(how, &[at(most + 0.1)], &[])), (0, 1));
        }
        // B is not told, and its BFD may not have found it yet.
        assert_eq!(missed(How::Link, &[Round { masked_us: [Some(1.0), None], ..at(1.0) }], &[]), 0);
    }

    #[test]
    fn nothing_may_fail_where_nothing_was_cut_nor_be_lost_by_a_drain() {
        let quiet = Quiet { seconds: 1, failovers: 1, causes: Vec::new(), gbit_per_s: 7.0 };
        assert!(!goals(How::Silent, Some(&quiet), &[], &[])[0].target.reached);
        assert_eq!(missed(How::Drain, &[], &[DRAINED]), 0);
        let bad = [
            Drained { lost: 1, ..DRAINED },
            Drained { reordered: 1, ..DRAINED },
            Drained { left: 19, ..DRAINED },
            Drained { healthy_moved: 1, ..DRAINED },
        ];
        for bad in bad {
            assert_eq!(missed(How::Drain, &[], &[DRAINED, bad.clone()]), 1, "{bad:?}");
        }
    }
}
