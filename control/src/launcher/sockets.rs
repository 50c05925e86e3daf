//! The outer sockets: opened here, where the privileges are, and kept so that they outlive the core.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use braid_api::launcher::{KernelPlan, OUTER_MARK, PlannedSocket};

use super::error::PlanError;
use super::slot;

/// What a bound address holds.
#[derive(Debug)]
pub(super) struct OpenSocket {
    uplink: Option<String>,
    pub(super) wireguard: bool,
    /// One for each worker; one for raw ESP.
    pub(super) fds: Vec<OwnedFd>,
    /// Raw ESP: the claim that makes it ours alone.
    _claim: Option<OwnedFd>,
}

/// Open sockets by bound address; port 0 is raw ESP.
pub(super) type Sockets = BTreeMap<SocketAddr, OpenSocket>;

/// Opens what the plan names and is not open yet. Nothing stays open after an error.
///
/// # Errors
/// The first socket that cannot be had.
pub(super) fn open_missing(open: &Sockets, plan: &KernelPlan) -> Result<Sockets, PlanError> {
    let mut fresh = Sockets::new();
    for (wanted, is_raw) in planned(plan) {
        let local = wanted.local;
        if (local.port() == 0) != is_raw {
            return Err(PlanError::Invalid(format!(
                "{local}: port 0 is raw ESP's, and raw ESP has no other"
            )));
        }
        if let Some(held) = open.get(&local).or_else(|| fresh.get(&local)) {
            if held.uplink != wanted.uplink {
                let is = held.uplink.as_deref().unwrap_or("none");
                let message =
                    format!("local {local} has one uplink, and it is {is}: use another local or port");
                return Err(PlanError::Invalid(message));
            }
            if held.wireguard != wanted.wireguard {
                let message =
                    format!("local {local} is of another type of tunnel: use another port, or restart braid");
                return Err(PlanError::Invalid(message));
            }
            continue;
        }
        let opened = if is_raw { open_raw(wanted)? } else { open_udp(wanted, plan.workers)? };
        fresh.insert(local, opened);
    }
    Ok(fresh)
}

/// Whether the plan still names a socket.
pub(super) fn is_planned(plan: &KernelPlan, local: &SocketAddr) -> bool {
    planned(plan).any(|(wanted, _)| wanted.local == *local)
}

fn planned(plan: &KernelPlan) -> impl Iterator<Item = (&PlannedSocket, bool)> {
    plan.udp.iter().map(|s| (s, false)).chain(plan.raw_esp.iter().map(|s| (s, true)))
}

fn open_udp(wanted: &PlannedSocket, workers: u32) -> Result<OpenSocket, PlanError> {
    let uplink = wanted.uplink.clone();
    match braid_dataplane::io::udp::bind(wanted.local, uplink.as_deref(), OUTER_MARK, workers) {
        Ok(fds) => Ok(OpenSocket { uplink, wireguard: wanted.wireguard, fds, _claim: None }),
        Err(error) => Err(PlanError::Udp { local: wanted.local, uplink, error }),
    }
}

fn open_raw(wanted: &PlannedSocket) -> Result<OpenSocket, PlanError> {
    let (local, uplink) = (wanted.local.ip(), wanted.uplink.clone());
    let open = || {
        let claim = slot::claim_raw(local, uplink.as_deref())?;
        let fd = braid_dataplane::io::raw::bind(local, uplink.as_deref(), OUTER_MARK)?;
        Ok((claim, fd))
    };
    match open() {
        Ok((claim, fd)) => Ok(OpenSocket { uplink, wireguard: false, fds: vec![fd], _claim: Some(claim) }),
        Err(error) => Err(PlanError::Raw { local, uplink, error }),
    }
}
