//! One thread that computes IKE's slow key exchanges beside the loop, at a lower priority: a finite-field
//! exchange of the largest group takes 77 ms, and neither packets nor other handshakes wait for it.
//!
//! The endpoint bounds what is under way; should the thread be lost, the loop computes by itself.

use std::{
    io,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

use braid_ike::{Computation, Computed};
use tokio::sync::mpsc;

use crate::ike::Life;

/// Far more than one endpoint has under way: those of lives before may still be there.
const QUEUE: usize = 64;
/// Of the thread; the loop has 0.
const NICENESS: i32 = 5;

/// The thread, and the way back.
pub(super) struct Worker {
    tasks: SyncSender<(Life, Computation)>,
    results: mpsc::UnboundedReceiver<(Life, Computed)>,
    /// What had to be computed here.
    own: mpsc::UnboundedSender<(Life, Computed)>,
}

impl Worker {
    /// Starts it.
    pub(super) fn start() -> io::Result<Self> {
        let (tasks, waiting) = sync_channel::<(Life, Computation)>(QUEUE);
        let (own, results) = mpsc::unbounded_channel();
        let done = own.clone();
        thread::Builder::new().name("ike-keys".to_owned()).spawn(move || {
            // Without it there is less order, and no harm.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            for (life, computation) in waiting {
                if done.send((life, computation.run())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { tasks, results, own })
    }

    /// Has it computed.
    pub(super) fn compute(&self, (life, computation): (Life, Computation)) {
        let sent = self.tasks.try_send((life, computation));
        if let Err(TrySendError::Full((life, task)) | TrySendError::Disconnected((life, task))) = sent {
            // The receiver is ours.
            let _ = self.own.send((life, task.run()));
        }
    }

    /// The next result. Safe to cancel.
    pub(super) async fn next(&mut self) -> (Life, Computed) {
        match self.results.recv().await {
            Some(result) => result,
            // One sender is ours.
            None => core::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use braid_ike::{
        Effect, Encapsulation, Endpoint, EndpointSettings, Lifetime, PeerConfig, PeerId, Role, SecretBytes,
        auth::{Credential, Verifier},
        wire::Identity,
    };

    use super::*;
    use crate::ike::SystemRandom;

    fn peer() -> PeerConfig {
        let psk = || SecretBytes::from_slice(b"known to both");
        let (local, remote) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        PeerConfig {
            name: "a".to_owned(),
            role: Role::Initiate,
            local: Some(local),
            remote: Some(remote),
            remote_is_name: false,
            local_id: Identity::Fqdn("a.example.com".to_owned()),
            remote_id: None,
            credential: Arc::new(Credential::Psk(psk())),
            verifier: Arc::new(Verifier::Psk(psk())),
            ike_proposals: vec!["aes256gcm16-prfsha256-modp2048".parse().unwrap()],
            esp_proposals: vec!["aes256gcm16".parse().unwrap()],
            ike_lifetime: Lifetime::of(Duration::from_secs(3600)),
            child_lifetime: Lifetime::of(Duration::from_secs(3600)),
            child_bytes: None,
            child_packets: None,
            dpd_interval: Duration::from_secs(10),
            dpd_timeout: Duration::from_secs(30),
            encapsulation: Encapsulation::Udp,
            local_ts: vec!["0.0.0.0/0".parse().unwrap()],
            remote_ts: vec!["0.0.0.0/0".parse().unwrap()],
            mobike: true,
            fragmentation: true,
            ppk: None,
            childless: false,
            initial_contact: true,
        }
    }

    #[test]
    fn a_first_message_leaves_once_its_key_pair_was_made_beside() {
        let (now, mut random) = (Instant::now(), SystemRandom);
        let mut endpoint = Endpoint::new(now, Duration::ZERO, EndpointSettings::default(), &mut random);
        endpoint.put_peer(now, &mut random, PeerId(1), Arc::new(peer()));
        endpoint.handle_timeout(now, &mut random);
        let Some(Effect::Compute(task)) = endpoint.poll_effect() else { panic!("nothing to compute") };
        assert!(endpoint.poll_effect().is_none(), "nothing leaves before");
        let mut worker = Worker::start().unwrap();
        worker.compute((Life::default(), task));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (life, computed) = runtime.block_on(worker.next());
        assert_eq!(life, Life::default());
        endpoint.handle_computed(now, &mut random, computed);
        let effect = endpoint.poll_effect();
        assert!(matches!(&effect, Some(Effect::Transmit { bytes, .. }) if bytes.len() > 256), "{effect:?}");
    }
}
