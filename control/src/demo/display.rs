//! What a person sees while the demonstration runs: a line per finished step, and below it, on a
//! terminal, the tunnels with their state and what they carry. Elsewhere only the lines, and with
//! `--json` nothing.

use std::io::{IsTerminal, Stdout, Write, stdout};

use crossterm::cursor::{MoveToColumn, MoveUp};
use crossterm::queue;
use crossterm::style::Stylize;
use crossterm::terminal::{Clear, ClearType};

/// Where progress goes.
#[derive(Debug)]
pub(super) struct Display {
    mode: Mode,
    live_lines: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    Lines,
    Terminal,
}

/// One tunnel as it is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    /// Tunnel.
    pub(super) name: &'static str,
    /// What to say of it.
    pub(super) state: State,
    /// What it carries, 0 to 1 of the scale.
    pub(super) level: f64,
    /// The same as a number in `unit`.
    pub(super) rate: f64,
    /// Of `rate`.
    pub(super) unit: &'static str,
}

/// State of a tunnel as the demonstration knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Carries traffic.
    Up,
    /// Its path is cut.
    Cut,
}

impl Display {
    /// Silent when a document is wanted on stdout.
    pub(super) fn new(silent: bool) -> Self {
        let mode = match silent {
            true => Mode::Silent,
            false if stdout().is_terminal() => Mode::Terminal,
            false => Mode::Lines,
        };
        Self { mode, live_lines: 0 }
    }

    /// A line that stays.
    pub(super) fn line(&mut self, text: &str) {
        self.write(|out| writeln!(out, "{text}"));
    }

    /// A step that is done.
    pub(super) fn done(&mut self, step: &str, outcome: &str) {
        match self.mode {
            Mode::Terminal => self.write(|out| writeln!(out, "  {} {step:<24} {outcome}", "✓".green())),
            _ => self.line(&format!("  {step:<24} {outcome}")),
        }
    }

    /// What goes on now; on a terminal, replaces what was said last.
    pub(super) fn live(&mut self, step: &str, bars: &[Bar]) {
        if self.mode != Mode::Terminal {
            return;
        }
        self.write(|out| {
            writeln!(out, "  {} {step}", "▸".cyan())?;
            for bar in bars {
                let state = match bar.state {
                    State::Up => "up ".green(),
                    State::Cut => "cut".red().bold(),
                };
                let (full, empty) = blocks(bar.level);
                let bar_text = if bar.state == State::Cut { full.red() } else { full.cyan() };
                let (name, rate, unit) = (bar.name, bar.rate, bar.unit);
                writeln!(out, "      {name:<8} {state} {bar_text}{} {rate:7.2} {unit}", empty.dark_grey())?;
            }
            Ok(())
        });
        // Bounded by the number of tunnels.
        self.live_lines = u16::try_from(bars.len() + 1).unwrap_or(u16::MAX);
    }

    fn write(&mut self, text: impl FnOnce(&mut Stdout) -> std::io::Result<()>) {
        if self.mode == Mode::Silent {
            return;
        }
        let mut out = stdout();
        let lines = std::mem::take(&mut self.live_lines);
        // A terminal that is gone is no reason to stop measuring.
        if lines > 0 {
            let _ = queue!(out, MoveUp(lines), MoveToColumn(0), Clear(ClearType::FromCursorDown));
        }
        let _ = text(&mut out).and_then(|()| out.flush());
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.write(|_| Ok(()));
    }
}

fn blocks(level: f64) -> (String, String) {
    // In range by the clamp.
    let full = (level.clamp(0.0, 1.0) * BAR_WIDTH as f64).round() as usize;
    ("█".repeat(full), "░".repeat(BAR_WIDTH - full))
}

const BAR_WIDTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_the_same_width_at_any_level() {
        for level in [-1.0, 0.0, 0.3, 1.0, 7.0, f64::NAN] {
            let (full, empty) = blocks(level);
            assert_eq!(full.chars().count() + empty.chars().count(), BAR_WIDTH);
        }
        assert_eq!(blocks(1.0).0.chars().count(), BAR_WIDTH);
    }
}
