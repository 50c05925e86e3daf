//! Configurations of two peers that fit together.

use std::sync::Arc;
use std::time::Duration;

use braid_ike::auth::{Credential, Verifier};
use braid_ike::wire::Identity;
use braid_ike::{Encapsulation, Lifetime, PeerConfig, Role, SecretBytes};

pub(crate) const A: &str = "192.0.2.1";
pub(crate) const B: &str = "198.51.100.2";

pub(crate) fn id(address: &str) -> Identity {
    Identity::Ipv4(address.parse().unwrap())
}

pub(crate) fn psk(key: &str) -> (Arc<Credential>, Arc<Verifier>) {
    let key = || SecretBytes::from_slice(key.as_bytes());
    (Arc::new(Credential::Psk(key())), Arc::new(Verifier::Psk(key())))
}

/// From `local` to `remote`, with a PSK.
pub(crate) fn peer(role: Role, local: &str, remote: &str) -> PeerConfig {
    let (credential, verifier) = psk("a key that both know");
    PeerConfig {
        name: format!("{local}-{remote}"),
        role,
        local: Some(local.parse().unwrap()),
        remote: Some(remote.parse().unwrap()),
        remote_is_name: false,
        local_id: id(local),
        remote_id: Some(id(remote)),
        credential,
        verifier,
        // The cheapest that is real: thousands of handshakes are made.
        ike_proposals: vec!["aes128gcm16-prfsha256-curve25519".parse().unwrap()],
        esp_proposals: vec!["aes128gcm16-curve25519".parse().unwrap()],
        ike_lifetime: Lifetime::of(Duration::from_secs(8 * 3600)),
        child_lifetime: Lifetime::of(Duration::from_secs(3600)),
        child_bytes: None,
        child_packets: None,
        dpd_interval: Duration::from_secs(10),
        dpd_timeout: Duration::from_secs(30),
        encapsulation: Encapsulation::Udp,
        local_ts: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        remote_ts: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        mobike: true,
        fragmentation: true,
        ppk: None,
        childless: false,
        initial_contact: true,
    }
}
