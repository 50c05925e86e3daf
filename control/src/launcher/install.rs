//! Carries out the steps of learned routes ([`super::learned`]), and knows which next hops the kernel does not have.
//!
//! Invariants:
//! - A next-hop object is removed only if the kernel took it from here: one of our number that was there before is
//!   another's.
//! - There are routes only by next hops that the kernel has taken. A route whose next hop it refuses has nothing in
//!   its place, neither what was there before.

use std::collections::BTreeSet;
use std::io;

use braid_api::launcher::NextHop;

use super::learned::{Learned, Route, Step, Way};

/// The kernel, as far as learned routes need it.
pub(super) trait Routing {
    /// The numbers of a slot's next-hop objects; `None`: the kernel knows of no such objects.
    ///
    /// # Errors
    /// What the kernel said.
    fn next_hops(&mut self, slot: u8) -> io::Result<Option<BTreeSet<u32>>>;

    /// A slot's routes, as [`Learned::adopt`] has them.
    ///
    /// # Errors
    /// What the kernel said.
    fn learned_routes(&mut self, slot: u8) -> io::Result<Vec<Route>>;

    /// Makes a next-hop object; one that is there is an error, since it may be another's.
    ///
    /// # Errors
    /// The link is not there or down, the gateway is not on it, or what else the kernel said.
    fn put_next_hop(&mut self, id: u32, next_hop: &NextHop) -> io::Result<()>;

    /// Removes a next-hop object, and all routes by it. One that is gone, as with its link, is no error.
    ///
    /// # Errors
    /// What the kernel said.
    fn remove_next_hop(&mut self, id: u32) -> io::Result<()>;

    /// Makes many changes of routes; yields those that the kernel refused, but for removals of what was gone already.
    /// `device` is the device's index.
    ///
    /// # Errors
    /// Netlink itself failed.
    fn change_routes<'r>(
        &mut self,
        changes: &[Change<'r>],
        device: u32,
    ) -> io::Result<Vec<(&'r Route, io::Error)>>;
}

/// One change of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change<'r> {
    /// Creates or replaces.
    Put(&'r Route),
    /// Removes what is in its place.
    Remove(&'r Route),
}

/// What is known of the kernel's next-hop objects.
#[derive(Debug, Default)]
pub(super) struct Installer {
    /// What a killed run had left was looked for.
    has_adopted: bool,
    lacks_objects: bool,
    /// Those that the kernel did not take, and nobody has removed since.
    refused: BTreeSet<u32>,
}

impl Installer {
    /// Takes over, once, what a killed run left, or removes it: nobody knows whether the routers that it leads to
    /// still forward.
    ///
    /// # Errors
    /// The kernel does not say what there is: to be called again.
    pub(super) fn adopt(
        &mut self,
        kernel: &mut impl Routing,
        slot: u8,
        learned: &mut Learned,
    ) -> io::Result<()> {
        if self.has_adopted {
            return Ok(());
        }
        let next_hops = kernel.next_hops(slot)?;
        let mut steps = learned.adopt(slot, kernel.learned_routes(slot)?);
        self.lacks_objects = next_hops.is_none();
        if self.lacks_objects {
            tracing::warn!(
                "this kernel has no next-hop objects: routes over links stay out of it; Linux 5.3 and later have them"
            );
        }
        steps.extend(next_hops.into_iter().flatten().map(Step::RemoveNextHop));
        self.run(kernel, &steps, 0)?;
        self.has_adopted = true;
        Ok(())
    }

    /// Carries steps out. What the kernel refuses is told of in the log: a next hop once, until it is taken or removed.
    ///
    /// Next hops are made before the routes by them, and removed after these: with an object that has routes, the
    /// kernel looks through all there are.
    ///
    /// # Errors
    /// What could not be removed, or netlink itself failed; all else is done.
    pub(super) fn run(&mut self, kernel: &mut impl Routing, steps: &[Step], device: u32) -> io::Result<()> {
        self.put_next_hops(kernel, steps);
        let changes = steps.iter().filter_map(|step| match step {
            Step::Put(route) if self.is_refused(route) => Some(Change::Remove(route)),
            Step::Put(route) => Some(Change::Put(route)),
            Step::Remove(route) => Some(Change::Remove(route)),
            Step::PutNextHop(..) | Step::RemoveNextHop(_) => None,
        });
        let mut result = change_routes(kernel, &changes.collect::<Vec<_>>(), device);
        for step in steps {
            if let Step::RemoveNextHop(id) = step
                && !self.refused.remove(id)
                && let Err(error) = kernel.remove_next_hop(*id)
            {
                result = Err(io::Error::other(format!("next hop {id} stays: {error}")));
            }
        }
        result
    }

    /// Makes next hops that went with their link, and the routes by them, again. One that is refused has none to be
    /// removed.
    ///
    /// # Errors
    /// Netlink itself failed.
    pub(super) fn renew(&mut self, kernel: &mut impl Routing, steps: &[Step], device: u32) -> io::Result<()> {
        self.put_next_hops(kernel, steps);
        let changes = steps.iter().filter_map(|step| match step {
            Step::Put(route) if !self.is_refused(route) => Some(Change::Put(route)),
            _ => None,
        });
        change_routes(kernel, &changes.collect::<Vec<_>>(), device)
    }

    fn put_next_hops(&mut self, kernel: &mut impl Routing, steps: &[Step]) {
        for step in steps {
            if let Step::PutNextHop(id, next_hop) = step {
                self.put_next_hop(kernel, *id, next_hop);
            }
        }
    }

    fn put_next_hop(&mut self, kernel: &mut impl Routing, id: u32, next_hop: &NextHop) {
        if self.lacks_objects {
            self.refused.insert(id);
            return;
        }
        let NextHop { gateway, interface } = next_hop;
        match kernel.put_next_hop(id, next_hop) {
            Ok(()) => drop(self.refused.remove(&id)),
            Err(error) => {
                if self.refused.insert(id) {
                    tracing::warn!("the kernel refuses {gateway} on {interface} as a next hop: {error}");
                }
            }
        }
    }

    fn is_refused(&self, route: &Route) -> bool {
        matches!(route.way, Way::NextHop(id) if self.refused.contains(&id))
    }
}

/// What the kernel refuses has nothing in its place, neither what was there before: a next hop may have gone with its
/// link a moment ago.
fn change_routes(kernel: &mut impl Routing, changes: &[Change<'_>], device: u32) -> io::Result<()> {
    let refused = kernel.change_routes(changes, device)?;
    tell_refused(&refused);
    let by_next_hops = refused.iter().filter(|(route, _)| matches!(route.way, Way::NextHop(_)));
    let gone: Vec<Change<'_>> = by_next_hops.map(|(route, _)| Change::Remove(route)).collect();
    if !gone.is_empty() {
        kernel.change_routes(&gone, device)?;
    }
    Ok(())
}

fn tell_refused(refused: &[(&Route, io::Error)]) {
    let Some((route, error)) = refused.first() else { return };
    let more = match refused.len() {
        1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    tracing::warn!("the kernel refuses a learned route to {}: {error}{more}", route.prefix);
}
