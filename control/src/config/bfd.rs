//! `bfd` of a tunnel or a neighbour: `true`, `false`, or `{ interval, multiplier }`.

use core::time::Duration;

use super::{
    error::{Fault, Report},
    section::{Item, Schema},
    tunnel::within,
};

/// What the table form knows, for the schema of whoever has one.
pub(super) const KEYS: &[&str] = &["interval", "multiplier"];

/// What a session sends and accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BfdTiming {
    /// Between two packets, in both directions.
    pub interval: Duration,
    /// So many intervals of silence take a session down.
    pub multiplier: u8,
}

impl Default for BfdTiming {
    fn default() -> Self {
        BfdTiming { interval: Duration::from_millis(300), multiplier: 3 }
    }
}

/// What is asked for, a table being of this `schema`; `None` for `false`, and for what was reported.
pub(super) fn read(item: Item<'_>, schema: &'static Schema, report: &mut Report) -> Option<BfdTiming> {
    let timing = BfdTiming::default();
    if !item.is_table() {
        return item.boolean(report)?.then_some(timing);
    }
    let table = item.section(schema, report)?;
    let interval = table.get("interval").map(|item| item.parse(interval, report));
    let multiplier = table.get("multiplier").map(|item| item.integer(1, 255, report));
    Some(BfdTiming {
        interval: interval.unwrap_or(Some(timing.interval))?,
        // Within the bounds above, which are those of the type.
        multiplier: multiplier.map_or(Some(timing.multiplier), |read| read.map(|number| number as u8))?,
    })
}

fn interval(text: &str) -> Result<Duration, Fault> {
    within(text, Duration::from_millis(10), Duration::from_secs(60))
}
