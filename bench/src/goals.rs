//! What Braid is to reach beside plain forwarding and beside others, as far as both were measured.

use crate::report::{Entry, Report};
use serde::Serialize;

/// A figure and what it is to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// In words.
    pub what: String,
    /// Measured.
    pub is: f64,
    /// At least, or at most.
    pub wanted: f64,
    /// It is.
    pub reached: bool,
}

/// One TCP flow, as a share of plain forwarding and as a multiple of the others'.
struct Flow {
    system: &'static str,
    of_plain: f64,
    times: &'static [(&'static str, f64)],
}

const FLOWS: [Flow; 2] = [
    Flow {
        system: "braid-128-1",
        of_plain: 0.55,
        times: &[("strongswan", 10.0), ("boringtun", 10.0), ("wireguard-go", 5.0)],
    },
    Flow {
        system: "braid-wireguard-1",
        of_plain: 0.35,
        times: &[("boringtun", 10.0), ("wireguard-go", 4.0)],
    },
];
/// Of small packets, as a share of plain forwarding at the same offer.
const SMALL_OF_PLAIN: f64 = 0.8;
/// Of Braid's own probes in overload, at the 99th percentile.
const PROBE_MS: f64 = 10.0;
const ONE_FLOW: &str = "tcp1_up_gbps";

/// All of them.
#[must_use]
pub fn goals(report: &Report) -> Vec<Goal> {
    let entry = |name: &str| report.systems.iter().find(|entry| entry.name == name);
    let mut goals = Vec::new();
    let mut least = |what: String, is: Option<f64>, wanted: f64| {
        goals.extend(is.map(|is| Goal { what, is, wanted, reached: is >= wanted }));
    };
    for Flow { system, of_plain, times } in FLOWS {
        let Some(ours) = entry(system) else { continue };
        let title = &ours.title;
        least(format!("{title}: one TCP flow, of plain"), ours.of_plain.get(ONE_FLOW).copied(), of_plain);
        for &(other, wanted) in times {
            let Some(theirs) = entry(other) else { continue };
            let rate = |entry: &Entry| entry.medians.get(ONE_FLOW).copied();
            let ratio =
                rate(ours).zip(rate(theirs).filter(|rate| *rate > 0.0)).map(|(ours, theirs)| ours / theirs);
            least(format!("{title}: one TCP flow, times that of {}", theirs.title), ratio, wanted);
        }
    }
    let Some(ours) = entry(FLOWS[0].system) else { return goals };
    for kpps in &report.plan.offers_kpps {
        let share = ours.of_plain.get(&format!("small{kpps}_delivered_kpps")).copied();
        least(format!("{}: small packets at {kpps} kpps, of plain", ours.title), share, SMALL_OF_PLAIN);
    }
    if let Some(&is) = ours.medians.get("rtt_overload_own_p99_ms") {
        let what = format!("{}: own probes in overload, p99 in ms, below", ours.title);
        goals.push(Goal { what, is, wanted: PROBE_MS, reached: is < PROBE_MS });
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Figures;

    fn figures(pairs: &[(&str, f64)]) -> Figures {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn measured(name: &str, medians: &[(&str, f64)], of_plain: &[(&str, f64)]) -> Entry {
        Entry {
            name: name.to_owned(),
            medians: figures(medians),
            of_plain: figures(of_plain),
            ..Entry::default()
        }
    }

    #[test]
    fn what_was_measured_is_judged_and_nothing_else() {
        let reached =
            |systems| goals(&Report::of(systems)).iter().map(|goal| goal.reached).collect::<Vec<_>>();
        assert!(reached(vec![measured("plain", &[(ONE_FLOW, 9.0)], &[(ONE_FLOW, 1.0)])]).is_empty());
        let ours = |share, small, probe| {
            let medians = [(ONE_FLOW, 5.0), ("rtt_overload_own_p99_ms", probe)];
            measured("braid-128-1", &medians, &[(ONE_FLOW, share), ("small270_delivered_kpps", small)])
        };
        assert_eq!(reached(vec![ours(0.55, 0.8, 9.9)]), [true; 3]);
        assert_eq!(reached(vec![ours(0.54, 0.79, 10.0)]), [false; 3]);
        // 5 times as fast is enough beside wireguard-go, and not beside boringtun.
        let others = ["boringtun", "wireguard-go"].map(|name| measured(name, &[(ONE_FLOW, 1.0)], &[]));
        let all = [vec![ours(1.0, 1.0, 1.0)], others.to_vec()].concat();
        assert_eq!(reached(all), [true, false, true, true, true]);
    }
}
