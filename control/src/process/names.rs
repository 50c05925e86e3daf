//! DNS names of peers: asked at the start, and again while a tunnel by that name is not up.
//!
//! The system's resolver does the work, in a thread of its own. An answer once had is kept when the
//! resolver fails later.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{config::Remote, outer::Outer, watch::Lookup};

/// How long the start waits for the resolver.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// A question that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

type Resolution = (String, Result<IpAddr, String>);

/// The resolver's answers.
#[derive(Debug)]
pub(super) struct Names {
    resolved: BTreeMap<String, Result<IpAddr, String>>,
    asked: BTreeSet<String>,
    answers: mpsc::UnboundedSender<Resolution>,
    incoming: mpsc::UnboundedReceiver<Resolution>,
}

impl Names {
    pub(super) fn new() -> Self {
        let (answers, incoming) = mpsc::unbounded_channel();
        Names { resolved: BTreeMap::new(), asked: BTreeSet::new(), answers, incoming }
    }

    pub(super) fn resolved(&self) -> &BTreeMap<String, Result<IpAddr, String>> {
        &self.resolved
    }

    /// Takes over what an earlier life knew, asks for every name, and waits a moment.
    pub(super) async fn resolve_first(
        &mut self,
        lookups: &BTreeMap<String, Lookup>,
        known: &BTreeMap<String, Outer>,
    ) {
        for (tunnel, lookup) in lookups {
            if let Some(Remote::Name(name)) = &lookup.remote {
                if let Some(address) = known.get(tunnel).and_then(|outer| outer.remote) {
                    self.resolved.insert(name.clone(), Ok(address));
                }
                self.ask(name, lookup.local);
            }
        }
        let all = async {
            while !self.asked.is_empty() {
                self.changed().await;
            }
        };
        // Those that answer later come as changes.
        let _ = tokio::time::timeout(FIRST_PATIENCE, all).await;
    }

    /// Asks for a name, unless that is under way.
    pub(super) fn ask(&mut self, name: &str, local: Option<IpAddr>) {
        if !self.asked.insert(name.to_owned()) {
            return;
        }
        let answers = self.answers.clone();
        let name = name.to_owned();
        tokio::spawn(async move {
            let result = match tokio::time::timeout(PATIENCE, lookup(&name, local)).await {
                Ok(result) => result,
                Err(_) => Err("no answer in time".to_owned()),
            };
            // Nobody listens any more when control ends.
            let _ = answers.send((name, result));
        });
    }

    /// Waits until an answer has changed what is known, or a question has ended.
    pub(super) async fn changed(&mut self) {
        let Some((name, result)) = self.incoming.recv().await else {
            return core::future::pending().await;
        };
        self.asked.remove(&name);
        match (&result, self.resolved.get(&name)) {
            (Err(_), Some(Ok(_))) => {}
            (Ok(_) | Err(_), _) => {
                self.resolved.insert(name, result);
            }
        }
    }
}

/// The first address of the family that ours has.
async fn lookup(name: &str, local: Option<IpAddr>) -> Result<IpAddr, String> {
    let mut addresses = tokio::net::lookup_host((name, 0)).await.map_err(|error| error.to_string())?;
    let fits = |address: &IpAddr| local.is_none_or(|local| local.is_ipv4() == address.is_ipv4());
    addresses
        .by_ref()
        .map(|address| address.ip())
        .find(fits)
        .ok_or_else(|| "it has no address of our family".to_owned())
}
