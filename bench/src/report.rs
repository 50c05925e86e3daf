//! What a comparison found: medians over runs, ratios to plain forwarding, as Markdown and JSON.

use crate::cpu::Machine;
use crate::goals::Goal;
use crate::measure::{Figures, Plan};
use serde::Serialize;
use std::fmt::Write;

/// A whole comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub plan: Plan,
    /// Runs asked for of each system.
    pub runs: u32,
    /// Plain forwarding first.
    pub systems: Vec<Entry>,
    /// What Braid is to reach.
    pub goals: Vec<Goal>,
}

/// One system's figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Entry {
    /// Short name.
    pub name: String,
    /// For people.
    pub title: String,
    /// Processes, threads and the processors they may use, gateway A and B.
    pub placement: Vec<String>,
    /// Of each figure over the runs.
    pub medians: Figures,
    /// Of each throughput: the median over runs of its ratio to plain forwarding (offloads on)
    /// measured just before, or in the same round.
    pub of_plain: Figures,
    /// Every run.
    pub each: Vec<Run>,
    /// What went wrong, if anything.
    pub failures: Vec<String>,
}

/// One run of one system.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Its figures.
    pub figures: Figures,
    /// Plain forwarding's, measured just before, or in the same round.
    pub plain: Figures,
}

impl Entry {
    /// Computes medians and ratios from the runs.
    pub fn summarize(&mut self) {
        self.medians = medians(self.each.iter().map(|run| run.figures.clone()));
        self.of_plain = medians(self.each.iter().map(|run| {
            let throughput = run.figures.iter().filter(|(name, _)| is_throughput(name));
            throughput
                .filter_map(|(name, value)| {
                    let plain = run.plain.get(name).filter(|plain| **plain > 0.0)?;
                    Some((name.clone(), value / plain))
                })
                .collect()
        }));
    }
}

fn is_throughput(name: &str) -> bool {
    name.ends_with("_gbps") || name.ends_with("_delivered_kpps")
}

fn medians(runs: impl Iterator<Item = Figures>) -> Figures {
    let mut values: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
    for run in runs {
        for (name, value) in run {
            values.entry(name).or_default().push(value);
        }
    }
    values.into_iter().filter_map(|(name, values)| Some((name, median(values)?))).collect()
}

/// Of an even number of values the mean of the middle two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values[middle - 1] + upper) / 2.0)
}

/// A column: its heading, and a cell from an entry.
type Column = (String, Box<dyn Fn(&Entry) -> Option<String>>);

impl Report {
    /// As Markdown tables, with how it was taken.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let columns = self.throughput_columns();
        table(&mut text, &self.systems, &columns);
        text.push('\n');
        table(&mut text, &self.systems, &rtt_columns());
        let Machine { processor, processors, kernel } = &self.machine;
        let when = if self.plan.rounds { "in the same round" } else { "just before, in the same topology" };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\nMedians of {} runs of {} s each; the ratio is to plain forwarding with offloads on, \
             measured {when}. {processor}, {processors} processors, \
             Linux {kernel}. TCP with {}. Small packets: {} bytes of IP, {} flows, k packets a \
             second delivered (offered). Round trips: ping every 10 ms, p50 / p99 ms and loss, from client to server (RTT) and \
             inside the tunnel from gateway to gateway (probe); own probes: p99 and loss of those that a system \
             sends by itself, every 10 ms; overload: {} k small packets a second \
             offered.",
            self.runs,
            self.plan.seconds,
            self.plan.congestion,
            self.plan.small_length,
            self.plan.small_flows,
            self.plan.overload_kpps,
        );
        for Goal { what, is, wanted, reached } in &self.goals {
            let verdict = if *reached { "reached" } else { "**missed**" };
            let _ = writeln!(text, "\n{what}: {is:.2}, wanted {wanted}: {verdict}");
        }
        text.push_str("\nThreads at gateway A and B:\n");
        for entry in self.systems.iter().filter(|entry| !entry.placement.is_empty()) {
            let _ = writeln!(text, "- {}: {}", entry.title, entry.placement.join("; "));
        }
        for entry in &self.systems {
            for failure in &entry.failures {
                let _ = writeln!(text, "\n**{} failed:** {failure}", entry.title);
            }
        }
        text
    }

    fn throughput_columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for flows in [1, 8] {
            for (direction, arrow) in [("up", "→"), ("down", "←")] {
                let name = format!("tcp{flows}_{direction}_gbps");
                let heading = format!("{flows} TCP {arrow} Gbit/s (of plain)");
                columns.push((
                    heading,
                    Box::new(move |entry| {
                        let rate = entry.medians.get(&name)?;
                        Some(with_ratio(format!("{rate:.2}"), entry.of_plain.get(&name)))
                    }),
                ));
            }
        }
        columns.push((
            "CPU s/GB, 1 TCP →".to_owned(),
            Box::new(|entry| Some(format!("{:.2}", entry.medians.get("tcp1_up_cpu_s_per_gb")?))),
        ));
        for &kpps in &self.plan.offers_kpps {
            let key = move |what: &str| format!("small{kpps}_{what}");
            columns.push((
                format!("{} B at {kpps} kpps (of plain)", self.plan.small_length),
                Box::new(move |entry| {
                    let delivered = entry.medians.get(&key("delivered_kpps"))?;
                    let offered = entry.medians.get(&key("offered_kpps"))?;
                    let cell = format!("{delivered:.0} ({offered:.0})");
                    Some(with_ratio(cell, entry.of_plain.get(&key("delivered_kpps"))))
                }),
            ));
        }
        columns
    }
}

fn rtt_columns() -> Vec<Column> {
    let own: Column = (
        "own probes in overload".to_owned(),
        Box::new(|entry| {
            let loss = entry.medians.get("rtt_overload_own_loss")? * 100.0;
            let p99 = entry.medians.get("rtt_overload_own_p99_ms")?;
            Some(format!("{p99:.2} ms, {loss:.1} %"))
        }),
    );
    let headings = [
        ("idle", "RTT idle"),
        ("tcp", "RTT under TCP"),
        ("tcp_probe", "probe under TCP"),
        ("overload", "RTT in overload"),
        ("overload_probe", "probe in overload"),
    ];
    headings
        .into_iter()
        .map(|(when, heading)| -> Column {
            (
                heading.to_owned(),
                Box::new(move |entry| {
                    let loss = entry.medians.get(&format!("rtt_{when}_loss"))? * 100.0;
                    let at = |quantile| entry.medians.get(&format!("rtt_{when}_{quantile}_ms"));
                    let (Some(p50), Some(p99)) = (at("p50"), at("p99")) else {
                        return Some(format!("- / -, {loss:.1} %"));
                    };
                    Some(format!("{p50:.2} / {p99:.2} ms, {loss:.1} %"))
                }),
            )
        })
        .chain([own])
        .collect()
}

#[cfg(test)]
impl Report {
    /// Of these systems, by a plan that nobody looks at.
    pub(crate) fn of(systems: Vec<Entry>) -> Self {
        let plan = Plan {
            tests: Vec::new(),
            seconds: 1,
            offers_kpps: vec![270],
            overload_kpps: 400,
            small_length: 64,
            small_flows: 256,
            congestion: String::new(),
            rounds: false,
        };
        let machine = Machine { processor: String::new(), processors: 1, kernel: String::new() };
        Self { machine, plan, runs: 1, systems, goals: Vec::new() }
    }
}

fn with_ratio(cell: String, ratio: Option<&f64>) -> String {
    match ratio {
        Some(ratio) => format!("{cell} · {ratio:.2}"),
        None => cell,
    }
}

fn table(text: &mut String, systems: &[Entry], columns: &[Column]) {
    // A column nobody measured only widens the table.
    let shown: Vec<&Column> =
        columns.iter().filter(|(_, cell)| systems.iter().any(|entry| cell(entry).is_some())).collect();
    if shown.is_empty() {
        return;
    }
    let headings: Vec<&str> = shown.iter().map(|(heading, _)| heading.as_str()).collect();
    let _ = writeln!(text, "| System | {} |", headings.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(shown.len()));
    for entry in systems {
        let cells: Vec<String> =
            shown.iter().map(|(_, cell)| cell(entry).unwrap_or_else(|| "–".to_owned())).collect();
        let _ = writeln!(text, "| {} | {} |", entry.title, cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(pairs: &[(&str, f64)]) -> Figures {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_ratio_is_taken_within_its_pair() {
        let run = |own, plain| Run {
            figures: figures(&[("tcp1_up_gbps", own), ("rtt_idle_loss", 0.0)]),
            plain: figures(&[("tcp1_up_gbps", plain), ("rtt_idle_loss", 0.0)]),
        };
        let mut entry =
            Entry { each: vec![run(5.0, 10.0), run(6.0, 20.0), run(7.0, 10.0)], ..Entry::default() };
        entry.summarize();
        assert_eq!(entry.medians["tcp1_up_gbps"], 6.0);
        // Not 6 of 10: the machine was twice as fast in that run.
        assert_eq!(entry.of_plain["tcp1_up_gbps"], 0.5);
        assert!(!entry.of_plain.contains_key("rtt_idle_loss"));
    }
}
