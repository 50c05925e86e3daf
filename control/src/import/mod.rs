//! Configurations of others, turned into Braid's.
//!
//! Pure.

pub mod aws;
pub mod wireguard;
mod xml;

#[cfg(test)]
mod wireguard_tests;

use core::fmt::{self, Write};

use zeroize::Zeroizing;

/// What came of it.
#[derive(Debug)]
pub struct Imported {
    /// A configuration in TOML. It holds keys.
    pub text: Zeroizing<String>,
    /// What could not be carried over, and why.
    pub notes: Vec<Line>,
}

/// Something to be said of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// In words; it shows no key.
    pub text: String,
}

/// To stand behind the file's name.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        // One line, whatever the file holds.
        write!(f, " {}", self.text.replace(|c: char| c.is_control(), " "))
    }
}

/// More errors are not worth reading.
const MAX_ERRORS: usize = 200;

fn write_list<T: fmt::Display>(out: &mut String, key: &str, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    writeln!(out, "{key} = [{}]", items.join(", "))
}

/// A name for tunnels, from that of something else, or this one where nothing of it can stay.
fn usable_name(name: &str, otherwise: &str) -> String {
    /// Leaves room for a number.
    const MAX_LEN: usize = 48;
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = name.chars().map(plain).take(MAX_LEN).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { otherwise } else { name }.to_owned()
}
