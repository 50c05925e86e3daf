//! Exchanges that cross: Braid and strongSwan each start one before either hears of the other's, at
//! 1000 packets a second each way.
//!
//! IKE is held back in the middle until both have sent their request, then let through: both are sent
//! again, and each side gets the other's while its own is unanswered. ESP passes all the time.
//!
//! ```text
//!     Braid                         strongSwan
//!       │── request ──▶╳      ╳◀── request ──│      held, and counted
//!       │── request ──╲          ╱─ request ──│      both sent again
//!       │◀─────────────╳────────────────────▶│
//!       │── answer to it ─╲   ╱─ answer to it │
//!       │◀─────────────────╳────────────────▶│      then whatever the collision asks for
//! ```

use crate::swan::{Both, Braid, START, swan};
use braid_netns::fault;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::{Topology, poll_until};
use std::time::{Duration, Instant};

pub(crate) const ALL: &[Scenario] = &[
    ("collide::rekeys_of_the_child", rekeys_of_the_child),
    ("collide::rekeys_of_the_ike_sa", rekeys_of_the_ike_sa),
    ("collide::rekeys_of_both_kinds", rekeys_of_both_kinds),
    ("collide::rekeys_and_deletions", rekeys_and_deletions),
];

const ROUNDS: usize = 6;
/// A packet sent just before a deletion may die on its way.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// What strongSwan starts while Braid rekeys.
#[derive(Clone, Copy, Debug)]
enum Act {
    Rekey { ike: bool },
    Delete { ike: bool },
}

/// RFC 7296 section 2.8.1: of the two new pairs the one with the lowest nonce goes, whoever made it
/// deletes it, and the old one is deleted by whose pair stays.
fn rekeys_of_the_child() -> Outcome {
    let both = up()?;
    let loads = both.loads(Instant::now())?;
    for round in 0..ROUNDS {
        cross(&both, false, Act::Rekey { ike: false }).map_err(|error| format!("round {round}: {error}"))?;
    }
    both.none_lost(loads)
}

/// RFC 7296 section 2.8.2: the same for IKE SAs; the children go to the one that stays.
fn rekeys_of_the_ike_sa() -> Outcome {
    let both = up()?;
    let loads = both.loads(Instant::now())?;
    let child = both.tunnel()?["child"]["spi_in"].clone();
    for round in 0..ROUNDS {
        cross(&both, true, Act::Rekey { ike: true }).map_err(|error| format!("round {round}: {error}"))?;
    }
    assert_eq!(child, both.tunnel()?["child"]["spi_in"], "the child goes on");
    both.none_lost(loads)
}

/// RFC 7296 section 2.25.2: each refuses the other's with TEMPORARY_FAILURE, or it is done as if the own
/// had not been asked for; nothing is lost either way.
fn rekeys_of_both_kinds() -> Outcome {
    let both = up()?;
    let loads = both.loads(Instant::now())?;
    for round in 0..ROUNDS {
        let ours = round % 2 == 0;
        cross(&both, ours, Act::Rekey { ike: !ours }).map_err(|error| format!("round {round}: {error}"))?;
    }
    both.none_lost(loads)
}

/// RFC 7296 section 2.25.1: what is being deleted is not rekeyed. Braid makes anew what is gone; until
/// then, and only then, packets are lost.
fn rekeys_and_deletions() -> Outcome {
    let both = up()?;
    let origin = Instant::now();
    let loads = both.loads(origin)?;
    let mut gaps = Vec::new();
    for ours in [false, true] {
        for theirs in [false, true] {
            let begin = origin.elapsed().saturating_sub(UNDER_WAY);
            let what = format!("Braid rekeys (IKE: {ours}), strongSwan deletes (IKE: {theirs})");
            cross(&both, ours, Act::Delete { ike: theirs }).map_err(|error| format!("{what}: {error}"))?;
            both.wait_crossing()?;
            gaps.push((begin, origin.elapsed()));
        }
    }
    for (log, from) in both.finish(loads)?.iter().zip(["Braid", "strongSwan"]) {
        let outside = |sent: Duration| gaps.iter().all(|(begin, end)| !(*begin..*end).contains(&sent));
        let lost: Vec<_> = log.lost().into_iter().filter(|packet| outside(packet.sent)).collect();
        assert!(lost.is_empty(), "from {from}, outside {gaps:?}: {lost:?}");
    }
    Ok(())
}

fn up() -> Result<Both, Box<dyn std::error::Error>> {
    let topology = Topology::builder().build()?;
    let connection = swan(&topology);
    let mut both = Both::start(topology, &Braid::default(), &connection)?;
    both.wait_up()?;
    both.wait_crossing()?;
    Ok(both)
}

/// Has both start, lets neither hear of it before, and waits until nothing is left of it.
fn cross(both: &Both, ours_is_ike: bool, theirs: Act) -> Outcome {
    let before = (both.swan_ike_sa()?, both.tunnel()?["child"]["spi_in"].clone());
    let internet = both.topology.internet.as_ref().ok_or("no internet")?;
    let held = fault::hold_ike(internet, &["a0", "b0"])?;
    let wait = |device: usize| {
        poll_until("a request that is held back", START, || {
            held.counts().ok()?.get(device).is_some_and(|count| *count > 0).then_some(())
        })
    };
    both.braid.rekey("swan", ours_is_ike)?;
    wait(0)?;
    match theirs {
        Act::Rekey { ike } => both.swan.rekey(ike)?,
        Act::Delete { ike } => both.swan.terminate(ike)?,
    }
    wait(1)?;
    held.release()?;
    both.wait_settled(|ike, child| match theirs {
        // What both replace, or the peer deletes, is not what is left.
        Act::Rekey { ike: true } if ours_is_ike => ike.spis != before.0,
        Act::Rekey { ike: false } if !ours_is_ike => child["spi_in"] != before.1,
        // Of two kinds one may have been refused for now, or both.
        Act::Rekey { .. } => true,
        Act::Delete { ike: true } => ike.spis != before.0 && child["spi_in"] != before.1,
        Act::Delete { ike: false } => child["spi_in"] != before.1,
    })
}
