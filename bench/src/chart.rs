//! A bar chart of a report as SVG, without any library.

use crate::report::{Entry, Report};
use std::fmt::Write;

const WIDTH: u32 = 900;
const LABELS: u32 = 290;
/// Room for the value behind the longest bar.
const VALUES: u32 = 90;
const BAR: u32 = 18;
const STEP: u32 = 24;
const PANEL_HEAD: u32 = 44;
const MARGIN: u32 = 16;

/// One group of bars: title, the figure shown, decimals.
struct Panel {
    title: String,
    figure: String,
    decimals: usize,
}

/// Draws one bar per system for each of the main figures that were measured.
#[must_use]
pub fn svg(report: &Report) -> String {
    let mut panels = vec![
        panel("One TCP flow, Gbit/s (more is better)", "tcp1_up_gbps", 2),
        panel("Eight TCP flows, Gbit/s (more is better)", "tcp8_up_gbps", 2),
        panel("Processor seconds per GB, one TCP flow (less is better)", "tcp1_up_cpu_s_per_gb", 2),
    ];
    for kpps in &report.plan.offers_kpps {
        panels.push(panel(
            &format!("{}-byte packets delivered of {kpps} k offered, k/s", report.plan.small_length),
            &format!("small{kpps}_delivered_kpps"),
            0,
        ));
    }
    let mut body = String::new();
    let mut y = MARGIN;
    for panel in &panels {
        y = draw(&mut body, panel, &report.systems, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n",
        height = y + MARGIN
    )
}

fn panel(title: &str, figure: &str, decimals: usize) -> Panel {
    Panel { title: title.to_owned(), figure: figure.to_owned(), decimals }
}

/// Returns where the next panel starts.
fn draw(body: &mut String, panel: &Panel, systems: &[Entry], top: u32) -> u32 {
    let bars: Vec<(&Entry, f64)> =
        systems.iter().filter_map(|entry| Some((entry, *entry.medians.get(&panel.figure)?))).collect();
    let most = bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if most <= 0.0 {
        return top;
    }
    // Writing to a String does not fail.
    let _ = writeln!(
        body,
        "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"15\" font-weight=\"bold\" fill=\"#222222\">{}</text>",
        top + 24,
        escape(&panel.title)
    );
    let mut y = top + PANEL_HEAD;
    let room = f64::from(WIDTH - LABELS - VALUES - MARGIN);
    for (entry, value) in bars {
        let width = (value / most * room).max(1.0);
        let middle = y + BAR - 5;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{middle}\" fill=\"#222222\">{value:.*}</text>",
            LABELS - 8,
            escape(&entry.title),
            colour(&entry.name),
            f64::from(LABELS) + width + 6.0,
            panel.decimals,
        );
        y += STEP;
    }
    y + MARGIN / 2
}

fn colour(name: &str) -> &'static str {
    match name.split('-').next() {
        Some("plain") => "#9aa5b1",
        Some("braid") => "#1f77b4",
        _ => "#e0a458",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_a_bar_per_system_in_proportion() {
        let entry = |name: &str, gbps: f64| Entry {
            name: name.to_owned(),
            title: format!("{name} <&>"),
            medians: [("tcp1_up_gbps".to_owned(), gbps)].into(),
            ..Entry::default()
        };
        let report = Report::of(vec![entry("plain", 10.0), entry("braid-128-1", 5.0)]);
        let drawn = svg(&report);
        let room = f64::from(WIDTH - LABELS - VALUES - MARGIN);
        assert!(drawn.contains(&format!("width=\"{room:.1}\"")));
        assert!(drawn.contains(&format!("width=\"{:.1}\"", room / 2.0)));
        assert!(drawn.contains("plain &lt;&amp;&gt;") && !drawn.contains("<&>"));
        // What was not measured is not drawn.
        assert!(!drawn.contains("Eight TCP"));
    }
}
