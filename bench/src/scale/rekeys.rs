//! Keys replaced under load: first the rate at which nothing is dropped is searched, then half of it is
//! offered while one side after the other rekeys.

use super::Target;
use super::pair::{Pair, Setup, Side};
use crate::counter::Counter;
use crate::generator::{self, Control, FirstHop, Offer};
use braid_netns::{Error, Result, retry_until};
use serde::Serialize;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);
const FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const TO: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const FLOWS: u16 = 256;
const TRIAL: Duration = Duration::from_secs(2);
/// Bounds of the search, thousands a second, and when it is fine enough.
const LOWEST_KPPS: f64 = 10.0;
const HIGHEST_KPPS: f64 = 400.0;
const STEP_KPPS: f64 = 10.0;
/// Longer than all rekeys take.
const LONGEST: Duration = Duration::from_secs(600);

/// What became of the packets.
#[derive(Debug, Clone, Serialize)]
pub struct Rekeys {
    /// Bytes of an IP packet.
    pub length: usize,
    /// Highest rate without loss that was found, thousands a second.
    pub no_drop_kpps: f64,
    /// Rate during the rekeys.
    pub offered_kpps: f64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Of the child SA.
    pub child_rekeys: u32,
    /// Of the IKE SA.
    pub ike_rekeys: u32,
    /// Packets sent meanwhile.
    pub sent: u64,
    /// That did not arrive.
    pub lost: Target,
    /// What both gateways say they dropped, by reason.
    pub drops: [Value; 2],
}

/// Measures it, with so many rekeys of either kind, and packets of this length.
///
/// # Errors
/// When the tunnel does not come up or a rekey does not come about.
#[allow(clippy::cast_precision_loss)] // some millions
pub fn rekeys(child_rekeys: u32, ike_rekeys: u32, length: usize) -> Result<Rekeys> {
    let pair = Setup { tunnels: 1, ..Setup::default() }.launch_on(Setup::direct().build()?)?;
    pair.wait_up(1, PAUSE, LIMIT)?;
    let counter = Counter::start(&pair.topology.server, "eth0", length)?;
    let (mut good, mut bad) = (LOWEST_KPPS, HIGHEST_KPPS);
    while bad - good > STEP_KPPS {
        let middle = f64::midpoint(good, bad);
        let before = counter.settle()?;
        let sent =
            generator::send(&hop(&pair), FROM, TO, &offer(middle, TRIAL, length), &Control::default())?;
        let arrived = counter.settle()?.datagrams - before.datagrams;
        // A generator that cannot offer it says nothing about the gateway.
        let offered = sent.rate() / 1e3 > middle * 0.97;
        *(if arrived == sent.packets && offered { &mut good } else { &mut bad }) = middle;
    }
    let rate = good / 2.0;
    let drops = |side| Ok::<_, Error>(pair.gateway(side).status()?["drops"].clone());
    let dropped = [drops(Side::A)?, drops(Side::B)?];
    let before = counter.settle()?;
    let control = Control::default();
    let begin = Instant::now();
    let (done, sent) = std::thread::scope(|scope| {
        let sender =
            scope.spawn(|| generator::send(&hop(&pair), FROM, TO, &offer(rate, LONGEST, length), &control));
        let done = replace_keys(&pair, child_rekeys, ike_rekeys);
        control.stop.store(true, Ordering::Relaxed);
        match sender.join() {
            Ok(sent) => (done, sent),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    done?;
    let sent = sent?;
    let arrived = counter.settle()?.datagrams - before.datagrams;
    Ok(Rekeys {
        length,
        no_drop_kpps: good,
        offered_kpps: sent.rate() / 1e3,
        seconds: begin.elapsed().as_secs_f64(),
        child_rekeys,
        ike_rekeys,
        sent: sent.packets,
        lost: Target::most(sent.packets.saturating_sub(arrived) as f64, 0.0),
        drops: [grown(&drops(Side::A)?, &dropped[0]), grown(&drops(Side::B)?, &dropped[1])],
    })
}

fn offer(kpps: f64, duration: Duration, length: usize) -> Offer {
    Offer { rate: kpps * 1e3, duration, flows: FLOWS, length }
}

fn hop(pair: &Pair) -> FirstHop<'_> {
    FirstHop {
        client: &pair.topology.client,
        device: "eth0",
        gateway: &pair.topology.gateway_a,
        gateway_device: "lan0",
    }
}

/// Both sides by turns, the IKE SA's spread among the child's; each is waited for.
fn replace_keys(pair: &Pair, child_rekeys: u32, ike_rekeys: u32) -> Result<()> {
    let mut ike_done = 0;
    for number in 0..child_rekeys {
        let side = if number % 2 == 0 { Side::A } else { Side::B };
        let before = pair.first(Side::A)?["child"]["spi_in"].clone();
        pair.gateway(side).rekey("t0", false)?;
        retry_until("a new child SA", LIMIT, || {
            let child = pair.first(Side::A).map_err(|error| error.to_string())?["child"].clone();
            if child["spi_in"] == before || child.is_null() { Err(child.to_string()) } else { Ok(()) }
        })?;
        let due = (number + 1) * ike_rekeys / child_rekeys.max(1);
        while ike_done < due {
            replace_ike(pair)?;
            ike_done += 1;
        }
    }
    Ok(())
}

/// By the side that did not make the IKE SA: afterwards it is who did.
fn replace_ike(pair: &Pair) -> Result<()> {
    let was_ours = pair.first(Side::A)?["ike"]["initiator"] == true;
    pair.gateway(if was_ours { Side::B } else { Side::A }).rekey("t0", true)?;
    retry_until("a new IKE SA", LIMIT, || {
        let ike = pair.first(Side::A).map_err(|error| error.to_string())?["ike"].clone();
        if ike["initiator"] == !was_ours { Ok(()) } else { Err(ike.to_string()) }
    })
}

/// The counters that have moved.
fn grown(after: &Value, before: &Value) -> Value {
    let moved = after.as_object().into_iter().flatten().filter_map(|(reason, count)| {
        let grown = count.as_u64()? - before[reason].as_u64().unwrap_or(0);
        (grown > 0).then(|| (reason.clone(), grown.into()))
    });
    Value::Object(moved.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counters_that_moved_are_told() {
        let (before, after) =
            (serde_json::json!({"a": 1, "b": 2}), serde_json::json!({"a": 1, "b": 5, "c": 0}));
        assert_eq!(grown(&after, &before), serde_json::json!({"b": 3}));
    }
}
