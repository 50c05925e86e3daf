//! What goes into a turn and what comes out of it.

use core::fmt;
use std::{collections::BTreeMap, sync::Arc};

use braid_api::{
    Epoch, Hello, Rejected, Transaction, TunnelStats, Verdict,
    launcher::{KernelPlan, RouteChanges},
};

use super::{
    IkeState,
    learned::Learned,
    sets::{MAX_GROUPS, MAX_UNEVEN},
};
use crate::{
    config::Config,
    desired::{MAX_APART, Negotiated},
    failover::Obstacle,
    outer::{Links, Outer},
};

/// Names whoever waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A reload read a valid configuration; `outer` are the outer paths of its tunnels.
    Configured {
        /// The configuration.
        config: Arc<Config>,
        /// By tunnel name.
        outer: BTreeMap<String, Outer>,
        /// Who asked.
        token: Token,
    },
    /// Outer paths changed.
    Outer(BTreeMap<String, Outer>),
    /// Of the links of routes and neighbors, these are up.
    Links(Links),
    /// The plan sent last is in force.
    PlanDone,
    /// The plan sent last is not in force.
    PlanFailed {
        /// The launcher's line.
        message: String,
    },
    /// The core is there.
    CoreHello(Hello),
    /// The connection to the core is lost.
    CoreGone,
    /// A transaction is in force.
    Applied(Epoch),
    /// A transaction is not in force.
    Rejected(Rejected),
    /// The core reports.
    Core(braid_api::Event),
    /// The core's counters, asked for by [`Effect::QueryStats`].
    Stats(Vec<TunnelStats>),
    /// Take a tunnel out of service.
    Drain {
        /// Its name.
        tunnel: String,
        /// Who asked.
        token: Token,
    },
    /// Take it back into service.
    Undrain {
        /// Its name.
        tunnel: String,
        /// Who asked.
        token: Token,
    },
    /// IKE says where tunnels stand.
    Ike(BTreeMap<String, IkeState>),
    /// The stash was read: outer paths of tunnels whose SAs an earlier life of control had negotiated.
    Adopt {
        /// By tunnel name.
        negotiated: BTreeMap<String, Negotiated>,
    },
    /// BGP has chosen.
    Learned(Learned),
    /// The launcher has done what [`Effect::Routes`] said.
    RoutesDone,
    /// [`super::Turn::poll_timeout`] has come.
    Timer,
}

/// What to do, in the order in which it is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Write [`super::Turn::memory`] to where it survives control, before anything else is done: it says
    /// which keys are about to be sent.
    Remember,
    /// Send to the core.
    Transaction(Transaction),
    /// Send to the launcher; answered by [`Event::PlanDone`] or [`Event::PlanFailed`].
    Plan(Box<KernelPlan>),
    /// Send to the launcher; answered by [`Event::RoutesDone`].
    Routes(RouteChanges),
    /// Ask the core for its counters.
    QueryStats,
    /// Close the connection to the core and connect again.
    Reconnect,
    /// Write [`super::Turn::memory`], after what is urgent.
    RememberLater,
    /// The configuration of this reload is what control's next life may go on with.
    InForce(Token),
    /// Answer.
    Reply(Token, Result<String, Vec<String>>),
    /// Log.
    Note(Note),
    /// The first plan failed: end with status 2.
    Exit {
        /// The line for stderr.
        message: String,
    },
}

impl Effect {
    pub(super) fn rank(&self) -> u8 {
        match self {
            Effect::Remember => 0,
            Effect::Transaction(_) => 1,
            Effect::Plan(_) => 2,
            Effect::Routes(_) => 3,
            Effect::QueryStats => 4,
            Effect::Reconnect => 5,
            Effect::RememberLater => 6,
            Effect::InForce(_) => 7,
            Effect::Reply(..) => 8,
            Effect::Note(_) => 9,
            Effect::Exit { .. } => 10,
        }
    }
}

/// Something for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// A tunnel is offered to traffic.
    Up {
        /// Its name.
        tunnel: String,
    },
    /// A tunnel is taken out.
    Down {
        /// Its name.
        tunnel: String,
        /// Why.
        why: Obstacle,
    },
    /// A tunnel answers again and has to prove itself.
    Watched {
        /// Its name.
        tunnel: String,
        /// Failures in a row.
        failures: u32,
    },
    /// The core is there.
    CoreFound {
        /// How many SAs go on working.
        adopted: usize,
        /// It is not the core that was there before.
        new: bool,
    },
    /// The core is gone.
    CoreLost,
    /// The core refused a change.
    CoreRefused {
        /// The tunnel at fault, if one is.
        tunnel: Option<String>,
        /// What it said.
        rejected: Rejected,
    },
    /// A plan is not in force.
    PlanFailed {
        /// The launcher's line.
        message: String,
    },
    /// Fixed keys are being installed.
    ManualKeys {
        /// For so many tunnels.
        tunnels: usize,
    },
    /// BGP wants more groups of tunnels than it may have.
    TooManyGroups,
    /// Peers of unknown addresses are not reached where they lie within some of the configured prefixes.
    NotApart {
        /// So many.
        more: usize,
    },
    /// An SA is about to run out of sequence numbers.
    NearlyExhausted {
        /// The tunnel.
        tunnel: String,
    },
    /// The peer's outer address is another.
    Moved {
        /// The tunnel.
        tunnel: String,
        /// To where.
        remote: core::net::SocketAddr,
    },
    /// A link of a route or a neighbor is up, or no longer.
    Link {
        /// Its name.
        interface: String,
        /// Whether it is.
        is_up: bool,
    },
    /// What BFD says of the path to a neighbor outside the tunnels has changed.
    Bfd {
        /// Its address.
        remote: core::net::IpAddr,
        /// What it says.
        verdict: Verdict,
        /// Down: for how long nothing was heard; zero where the neighbor said so.
        silent: core::time::Duration,
    },
    /// A configuration is in force.
    Reloaded,
}

impl Note {
    /// Whether somebody should look at it.
    pub fn is_warning(&self) -> bool {
        match self {
            Note::Down { .. }
            | Note::CoreLost
            | Note::CoreRefused { .. }
            | Note::PlanFailed { .. }
            | Note::ManualKeys { .. }
            | Note::TooManyGroups
            | Note::NotApart { .. }
            | Note::NearlyExhausted { .. }
            | Note::Bfd { verdict: Verdict::Down, .. }
            | Note::Link { is_up: false, .. } => true,
            Note::Up { .. }
            | Note::Watched { .. }
            | Note::CoreFound { .. }
            | Note::Moved { .. }
            | Note::Link { is_up: true, .. }
            | Note::Bfd { verdict: Verdict::Up | Verdict::Withdrawn, .. }
            | Note::Reloaded => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Up { tunnel } => write!(f, "tunnel {tunnel} is up"),
            Note::Down { tunnel, why } => write!(f, "tunnel {tunnel} is down: {why}"),
            Note::Watched { tunnel, failures } => {
                write!(f, "tunnel {tunnel} answers again and is watched ({failures} failures in a row)")
            }
            Note::CoreFound { adopted: 0, .. } => write!(f, "the forwarding core is there"),
            Note::CoreFound { adopted, .. } => {
                write!(f, "the forwarding core is there; {adopted} SAs go on working")
            }
            Note::CoreLost => write!(f, "the forwarding core is gone"),
            Note::CoreRefused { tunnel: Some(tunnel), rejected } => {
                write!(f, "the forwarding core refused tunnel {tunnel}: {:?}", rejected.reason)
            }
            Note::CoreRefused { tunnel: None, rejected } => {
                write!(f, "the forwarding core refused operation {}: {:?}", rejected.op, rejected.reason)
            }
            Note::PlanFailed { message } => write!(f, "{message}"),
            Note::ManualKeys { tunnels: 1 } => {
                write!(
                    f,
                    "a tunnel has fixed keys: for tests only, since every start of braid counts from 1 again"
                )
            }
            Note::ManualKeys { tunnels } => write!(
                f,
                "{tunnels} tunnels have fixed keys: for tests only, since every start of braid counts from 1 again",
            ),
            Note::TooManyGroups => write!(
                f,
                "BGP's prefixes want tunnels in more than {MAX_UNEVEN} different shares and sets: more of these \
                 share by configured weights, beyond {MAX_GROUPS} by one tunnel each; let neighbors send fewer \
                 different link bandwidths"
            ),
            Note::NotApart { more } => write!(
                f,
                "a tunnel has no `remote`, and {more} routes and protected prefixes are beyond the {MAX_APART} widest: a \
                 peer whose address lies within one of these does not come up; write fewer and wider ones"
            ),
            Note::NearlyExhausted { tunnel } => {
                write!(f, "tunnel {tunnel}: the SA's sequence numbers run out soon; change the keys")
            }
            Note::Moved { tunnel, remote } => write!(f, "tunnel {tunnel}: the peer is now at {remote}"),
            Note::Link { interface, is_up } => {
                write!(f, "link {interface} is {}", if *is_up { "up" } else { "down" })
            }
            Note::Bfd { remote, verdict, silent } => match verdict {
                Verdict::Up => write!(f, "BFD: {remote} is heard again"),
                Verdict::Withdrawn => write!(f, "BFD: no verdict on {remote} any more"),
                Verdict::Down if silent.is_zero() => write!(f, "BFD: {remote} says that the path is down"),
                Verdict::Down => {
                    write!(f, "BFD: nothing from {remote} for {:.0} ms", silent.as_secs_f64() * 1e3)
                }
            },
            Note::Reloaded => write!(f, "the configuration is in force"),
        }
    }
}
