//! Makes the kernel like a plan, and undoes it.
//!
//! The device and the sockets are descriptors held here, so that they outlive the core. All else
//! is brought from what the kernel has to what the plan asks for ([`super::layout`]): first
//! everything new, then the removals, so that a reload leaves no gap. A failure undoes what this
//! plan did and leaves the one before in force.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use braid_api::launcher::{KernelPlan, RouteChanges};
use braid_dataplane::io::tun::{self, OpenError, OpenedTun};

use super::aside::Aside;
use super::error::PlanError;
use super::install::{Installer, Routing as _};
use super::layout::{Layout, SLOTS, Step, steps, table_of};
use super::learned::{self, Learned, MAX_NEXT_HOPS};
use super::netlink::{LinkSettings, Netlink};
use super::run_dir::{Record, RunDir};
use super::slot::{NamespaceLock, Slot};
use super::sockets::{self, Sockets};
use super::sysctl::{self, Changed};
use crate::config::unroutable;

/// Most forwarding threads, and descriptors in one message.
const MAX_WORKERS: u32 = 128;
/// The device's transmit queue, in packets: super-packets of 64 KiB, for the most part.
const QUEUE_LEN: u32 = 1000;
/// How long a device takes to go after its last descriptor, at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// The device of this run.
#[derive(Debug)]
pub(super) struct Device {
    /// As opened.
    pub(super) tun: OpenedTun,
    index: u32,
    /// Counts the devices of this run.
    pub(super) generation: u64,
}

/// The kernel's state that belongs to this gateway.
#[derive(Debug)]
pub(super) struct Kernel {
    netlink: Netlink,
    record: Record,
    slot: Option<Slot>,
    device: Option<Device>,
    generation: u64,
    sockets: Sockets,
    plan: Option<KernelPlan>,
    learned: Learned,
    installer: Installer,
    /// Generation of the device that the learned routes lead to.
    learned_on: u64,
}

/// What an attempt has done so far.
#[derive(Default)]
struct Attempt {
    steps: Vec<Step>,
    sysctls: Vec<Changed>,
    old_mtu: Option<u32>,
}

impl Kernel {
    /// Starts with nothing; `record` is of an earlier run that was killed.
    ///
    /// # Errors
    /// The kernel refuses netlink.
    pub(super) fn new(record: Record) -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::open()?,
            record,
            slot: None,
            device: None,
            generation: 0,
            sockets: Sockets::new(),
            plan: None,
            learned: Learned::default(),
            installer: Installer::default(),
            learned_on: 0,
        })
    }

    /// The plan in force.
    pub(super) fn plan(&self) -> Option<&KernelPlan> {
        self.plan.as_ref()
    }

    /// The device.
    pub(super) fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Open sockets.
    pub(super) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// A second descriptor of the slot's socket; readable when another gateway handed over.
    pub(super) fn slot_socket(&self) -> Option<OwnedFd> {
        self.slot.as_ref()?.as_fd().try_clone_to_owned().ok()
    }

    /// Puts a plan in force.
    ///
    /// # Errors
    /// The plan before, if any, is still in force.
    pub(super) fn apply(&mut self, dir: &RunDir, plan: KernelPlan) -> Result<(), PlanError> {
        check(&plan)?;
        if let Some(current) = &self.plan {
            check_fixed(current, &plan)?;
        }
        let fresh = sockets::open_missing(&self.sockets, &plan)?;
        let had_device = self.find_device()?;
        if !had_device {
            self.open_device(&plan)?;
        }
        let mut attempt = Attempt::default();
        match self.change(dir, &plan, &mut attempt) {
            Ok(()) => {
                self.sockets.extend(fresh);
                self.sockets.retain(|local, _| sockets::is_planned(&plan, local));
                self.plan = Some(plan);
                Ok(())
            }
            Err(error) => {
                self.roll_back(dir, attempt, had_device);
                self.relocate_back();
                Err(error)
            }
        }
    }

    /// Learned routes are where the plan in force wants them, wherever a failed one has left them.
    fn relocate_back(&mut self) {
        let (Some(plan), Some(slot)) = (&self.plan, self.slot.as_ref().map(Slot::number)) else { return };
        let (before, after) = self.learned.relocate(slot, plan);
        self.run_learned(&before);
        self.run_learned(&after);
    }

    /// Another life of control: it will say what it has learned.
    pub(super) fn handle_new_control(&mut self) {
        self.learned.handle_new_control();
    }

    /// Learned routes come and go. Those that the kernel does not take are told of in the log.
    ///
    /// # Errors
    /// As [`Self::apply`], where rules have to follow.
    pub(super) fn change_routes(&mut self, dir: &RunDir, changes: RouteChanges) -> Result<(), PlanError> {
        let Some(plan) = self.plan.clone() else { return Ok(()) };
        // What stands behind a next hop that has failed is there, and so are its rules.
        let withdrawn = self.learned.withdraw(&changes.withdraw);
        self.run_learned(&withdrawn);
        let known = self.learned.known_to_layout();
        let had_too_many = self.learned.had_too_many();
        let (add, remove) = self.learned.change(changes);
        if self.learned.had_too_many() && !had_too_many {
            tracing::warn!(
                "BGP names more than {MAX_NEXT_HOPS} next hops on links: routes by others stay out of the kernel or go \
                 by tunnels; look at what the neighbors there announce"
            );
        }
        self.run_learned(&add);
        // Rules follow what is captured, and what is protected within a learned prefix is routed there.
        let result = match self.learned.known_to_layout() == known {
            true => Ok(()),
            false => self.apply(dir, plan),
        };
        self.run_learned(&remove);
        result
    }

    /// A link is up, or, with `None`, any may be. With a link that was down the kernel has removed its next hops and
    /// their routes, of which control need not have heard.
    pub(super) fn renew_next_hops(&mut self, interface: Option<&str>) {
        let Some(slot) = self.slot.as_ref().map(Slot::number) else { return };
        if !self.learned.has_next_hops(interface) {
            return;
        }
        match self.netlink.next_hops(slot) {
            Ok(None) => {}
            Ok(Some(there)) => {
                let again = self.learned.next_hops_again(interface, &there);
                let index = self.device_index();
                let _aside = Aside::step();
                tell(self.installer.renew(&mut self.netlink, &again, index));
            }
            Err(error) => tracing::error!("cannot read next hops: {error}"),
        }
    }

    /// 0 before there is one.
    fn device_index(&self) -> u32 {
        self.device.as_ref().map_or(0, |device| device.index)
    }

    fn run_learned(&mut self, steps: &[learned::Step]) {
        let index = self.device_index();
        let _aside = Aside::step();
        tell(self.installer.run(&mut self.netlink, steps, index));
    }

    /// Makes the plan in force good again where the kernel lost parts of it, such as a device
    /// that somebody deleted.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(super) fn repair(&mut self, dir: &RunDir) -> Result<(), PlanError> {
        self.plan.clone().map_or(Ok(()), |plan| self.apply(dir, plan))
    }

    /// Takes over the sysctls that a leaving gateway changed.
    pub(super) fn inherit(&mut self, dir: &RunDir) {
        let Some(slot) = &self.slot else { return };
        for change in slot.inherited() {
            let known = |mine: &Changed| mine.path == change.path;
            if !self.record.sysctls.iter().any(known) {
                self.record.sysctls.push(change);
            }
        }
        if let Err(error) = dir.write_record(&self.record) {
            tracing::warn!("{}: {error}", dir.record_path().display());
        }
    }

    /// Undoes everything. The core must have ended: it holds descriptors of the device. What a
    /// killed earlier run left stays when no plan ever came into force, since it protects.
    pub(super) fn undo(&mut self, dir: &RunDir) {
        self.sockets.clear();
        let gone = self.device.take().map(|device| device.tun.name.clone());
        let Some(number) = self.slot.as_ref().map(Slot::number) else { return };
        let lock = NamespaceLock::acquire();
        if let Err(error) = &lock {
            tracing::warn!("another gateway of this network namespace does not finish: {error}");
        }
        if let Some(name) = gone {
            self.await_removal(&name);
        }
        if self.plan.take().is_some() {
            self.inherit(dir);
            let sysctls = std::mem::take(&mut self.record.sysctls);
            let handed = !sysctls.is_empty() && self.slot.as_ref().is_some_and(|s| s.hand_over(&sysctls));
            if !handed {
                sysctl::restore(&sysctls);
            }
            self.remove_all(number);
            let learned = self.learned.clear();
            self.run_learned(&learned);
        }
        let left = self.netlink.layout(number, None).unwrap_or_default();
        if left == Layout::default() && self.record.sysctls.is_empty() {
            dir.remove_record();
        }
        // The slot before the lock: whoever comes next must find it free or us complete.
        self.slot = None;
        drop(lock);
    }

    fn remove_all(&mut self, slot: u8) {
        let removals = match self.netlink.layout(slot, None) {
            Ok(layout) => steps(&layout, &Layout::default()),
            Err(error) => {
                tracing::error!("cannot list routes to remove: {error}");
                return;
            }
        };
        for step in removals {
            if let Err(error) = self.netlink.execute(&step, 0) {
                tracing::error!("{}", PlanError::Step { step: Box::new(step), error });
            }
        }
    }

    fn await_removal(&mut self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.netlink.link(name), Ok(Some(_))) {
            if Instant::now() >= deadline {
                tracing::warn!("device {name} is still there: another process holds it");
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the device is there; forgets one that somebody deleted.
    fn find_device(&mut self) -> Result<bool, PlanError> {
        let Some(device) = &self.device else { return Ok(false) };
        let found = self.netlink.link(&device.tun.name).map_err(kernel("looking for the device"))?;
        if found.is_some_and(|link| link.index == device.index) {
            return Ok(true);
        }
        tracing::warn!("device {} was deleted: making it again", device.tun.name);
        self.device = None;
        Ok(false)
    }

    fn open_device(&mut self, plan: &KernelPlan) -> Result<(), PlanError> {
        let failed = |error| PlanError::Device { name: plan.device.clone(), error };
        // Without offload the driver would join an existing TUN device instead of refusing it.
        if self.netlink.link(&plan.device).map_err(kernel("looking for the device"))?.is_some() {
            return Err(failed(OpenError::Exists));
        }
        let tun = tun::open(&plan.device, plan.workers, plan.offload).map_err(failed)?;
        let link = self.netlink.link(&tun.name).map_err(kernel("looking for the device"))?;
        let Some(link) = link else {
            return Err(failed(OpenError::Other(io::ErrorKind::NotFound.into())));
        };
        self.generation += 1;
        self.device = Some(Device { tun, index: link.index, generation: self.generation });
        Ok(())
    }

    fn change(&mut self, dir: &RunDir, plan: &KernelPlan, attempt: &mut Attempt) -> Result<(), PlanError> {
        let ipv6 = sysctl::has_ipv6();
        let slot = self.claim_and_set_sysctls(dir, plan, attempt)?;
        let aside = Aside::step();
        let adopted = self.installer.adopt(&mut self.netlink, slot, &mut self.learned);
        drop(aside);
        adopted.map_err(kernel("taking over learned routes"))?;
        let (before, after) = self.learned.relocate(slot, plan);
        let index = self.device_index();
        self.set_up_device(plan, slot, index, attempt)?;
        self.run_learned(&before);
        let wanted = Layout::with(plan, slot, ipv6, &self.learned.known_to_layout());
        let found = self.netlink.layout(slot, Some(index)).map_err(kernel("reading routes and rules"))?;
        let steps = steps(&found, &wanted);
        if self.plan.as_ref() == Some(plan) && !steps.is_empty() {
            tracing::warn!("{} routes, rules or addresses were changed by others: put back", steps.len());
        }
        for step in steps {
            match self.netlink.execute(&step, index) {
                Ok(()) => attempt.steps.push(step),
                // The new plan is complete without it; what is left over goes at the next chance.
                Err(error) if step.removes() => {
                    tracing::warn!("{}", PlanError::Step { step: Box::new(step), error });
                }
                Err(error) => return Err(PlanError::Step { step: Box::new(step), error }),
            }
        }
        self.run_learned(&after);
        // Those on the device went with it.
        if std::mem::replace(&mut self.learned_on, self.generation) != self.generation {
            let again = self.learned.again();
            self.run_learned(&again);
        }
        Ok(())
    }

    /// Both under the namespace's lock, so that no other gateway turns forwarding off in between.
    fn claim_and_set_sysctls(
        &mut self,
        dir: &RunDir,
        plan: &KernelPlan,
        attempt: &mut Attempt,
    ) -> Result<u8, PlanError> {
        let _lock = NamespaceLock::acquire().map_err(kernel("waiting for another gateway"))?;
        let slot = match &self.slot {
            Some(slot) => slot.number(),
            None => self.claim_slot(plan)?,
        };
        self.record.slot = Some(slot);
        let before = self.record.sysctls.len();
        let mut changes = sysctl::needed(plan);
        let known = |change: &Changed| self.record.sysctls.iter().any(|c| c.path == change.path);
        let (again, new): (Vec<Changed>, Vec<Changed>) = changes.drain(..).partition(known);
        self.record.sysctls.extend(new);
        dir.write_record(&self.record)
            .map_err(|error| PlanError::Record { path: dir.record_path(), error })?;
        attempt.sysctls = self.record.sysctls[before..].to_vec();
        for change in again.iter().chain(&attempt.sysctls) {
            sysctl::set(change)?;
        }
        Ok(slot)
    }

    /// Takes the slot of our earlier life, or else one whose left-over `unreachable` routes, if
    /// any, are all wanted by this plan as well: those of others protect others.
    fn claim_slot(&mut self, plan: &KernelPlan) -> Result<u8, PlanError> {
        let found = self.netlink.unreachable().map_err(kernel("reading routes"))?;
        let wanted: BTreeSet<_> = Layout::of(plan, 0, true).unreachable().collect();
        let fits = |slot: u8| found.iter().all(|(s, prefix)| *s != slot || wanted.contains(prefix));
        let candidates = self.record.slot.into_iter().chain((0..SLOTS).filter(|slot| fits(*slot)));
        let slot = Slot::claim(candidates).map_err(kernel("taking a slot"))?.ok_or(PlanError::TooMany)?;
        let number = slot.number();
        self.slot = Some(slot);
        let mut left: Vec<u8> = found.iter().map(|(s, _)| *s).filter(|s| *s != number).collect();
        left.dedup();
        for other in left {
            if matches!(Slot::claim([other]), Ok(Some(_))) {
                let metric = super::layout::unreachable_metric(other);
                tracing::warn!(
                    "unreachable routes of metric {metric} are left of a braid that was killed; start it again with its --run-dir to remove them"
                );
            }
        }
        Ok(number)
    }

    fn set_up_device(
        &mut self,
        plan: &KernelPlan,
        slot: u8,
        index: u32,
        attempt: &mut Attempt,
    ) -> Result<(), PlanError> {
        let failed = |what| move |error| PlanError::DeviceSetting { name: plan.device.clone(), what, error };
        let mtu = u32::from(plan.mtu);
        let link = self.netlink.link(&plan.device).map_err(kernel("looking for the device"))?;
        let current = link.map_or(0, |link| link.mtu);
        let settings = LinkSettings {
            mtu: (mtu != current).then_some(mtu),
            group: Some(table_of(slot)),
            queue_len: Some(QUEUE_LEN),
            up: false,
        };
        self.netlink.set_link(index, settings).map_err(failed("MTU, group and queue"))?;
        attempt.old_mtu = settings.mtu.map(|_| current);
        sysctl::prepare_device(&plan.device)?;
        let up = LinkSettings { up: true, ..LinkSettings::default() };
        self.netlink.set_link(index, up).map_err(failed("up"))
    }

    fn roll_back(&mut self, dir: &RunDir, attempt: Attempt, had_device: bool) {
        let index = self.device_index();
        for step in attempt.steps.into_iter().rev() {
            if let Err(error) = self.netlink.execute(&step.clone().inverse(), index) {
                tracing::warn!("not undone: {}", PlanError::Step { step: Box::new(step), error });
            }
        }
        if let Some(mtu) = attempt.old_mtu.filter(|_| had_device) {
            let settings = LinkSettings { mtu: Some(mtu), ..LinkSettings::default() };
            let _ = self.netlink.set_link(index, settings);
        }
        sysctl::restore(&attempt.sysctls);
        self.record.sysctls.retain(|change| !attempt.sysctls.contains(change));
        if self.slot.is_some()
            && let Err(error) = dir.write_record(&self.record)
        {
            tracing::warn!("{}: {error}", dir.record_path().display());
        }
        if !had_device {
            self.device = None;
        }
    }
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> PlanError {
    move |error| PlanError::Kernel { what, error }
}

fn check(plan: &KernelPlan) -> Result<(), PlanError> {
    if !(1..=MAX_WORKERS).contains(&plan.workers) {
        return Err(PlanError::Invalid(format!("workers: from 1 to {MAX_WORKERS}, not {}", plan.workers)));
    }
    if plan.mtu < 68 {
        return Err(PlanError::Invalid(format!("MTU {} is below the 68 bytes of RFC 791", plan.mtu)));
    }
    for prefix in plan.routes.iter().map(|route| &route.prefix).chain(&plan.protect) {
        if let Some(kind) = unroutable(prefix) {
            return Err(PlanError::Invalid(format!("{prefix} is {kind} and cannot be routed into a tunnel")));
        }
    }
    Ok(())
}

fn check_fixed(current: &KernelPlan, plan: &KernelPlan) -> Result<(), PlanError> {
    let fixed = |key, is: String| Err(PlanError::Fixed { key, is });
    if current.device != plan.device {
        return fixed("[core] device", current.device.clone());
    }
    if current.workers != plan.workers {
        return fixed("[core] workers", current.workers.to_string());
    }
    if current.offload != plan.offload {
        return fixed("[core] offload", (if current.offload { "auto" } else { "off" }).to_owned());
    }
    Ok(())
}

fn tell(changed: io::Result<()>) {
    if let Err(error) = changed {
        tracing::error!("cannot change learned routes: {error}");
    }
}
