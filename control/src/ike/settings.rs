//! From a tunnel's configuration to a peer's.

use std::sync::Arc;

use braid_ike::{
    Lifetime, PeerConfig, Ppk, SecretBytes,
    auth::{CertificateCredential, Credential, TrustStore, Verifier},
    wire::Identity,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    config::{self, Remote, Tunnel},
    outer::Outer,
};

/// The peer of a tunnel; `before` is what it was made of last. `None` as long as it is not known how we call
/// ourselves, or without IKE.
pub(super) fn peer_config(
    tunnel: &Tunnel,
    outer: Option<&Outer>,
    before: Option<(&Tunnel, &PeerConfig)>,
) -> Option<PeerConfig> {
    let ike = tunnel.ike()?;
    let local_id = ike.local_id.clone().or_else(|| outer?.local.map(address_identity))?;
    let same = before.filter(|(old, _)| old.ike().is_some_and(|old| old.credential == ike.credential));
    let (credential, verifier) = match same {
        // The endpoint compares them by pointer.
        Some((_, config)) => (config.credential.clone(), config.verifier.clone()),
        None => credentials(&ike.credential)?,
    };
    let remote = match &tunnel.remote {
        Some(Remote::Address(address)) => Some(*address),
        Some(Remote::Name(_)) | None => None,
    };
    Some(PeerConfig {
        name: tunnel.name.clone(),
        role: tunnel.role.into(),
        local: tunnel.local,
        remote,
        remote_is_name: matches!(tunnel.remote, Some(Remote::Name(_))),
        local_id,
        remote_id: ike.remote_id.clone(),
        credential,
        verifier,
        ike_proposals: ike.proposals.clone(),
        esp_proposals: ike.esp_proposals.clone(),
        ike_lifetime: Lifetime::of(ike.lifetime),
        child_lifetime: Lifetime::of(ike.child_lifetime),
        child_bytes: ike.child_bytes,
        child_packets: ike.child_packets,
        dpd_interval: ike.dpd_interval,
        dpd_timeout: ike.dpd_timeout,
        encapsulation: ike.encapsulation,
        local_ts: selectors(&tunnel.selectors.local),
        remote_ts: selectors(&tunnel.selectors.remote),
        mobike: ike.mobike,
        fragmentation: ike.fragmentation,
        ppk: ike.ppk.as_ref().map(|ppk| Ppk {
            id: ppk.id.clone().into_bytes(),
            secret: SecretBytes::from_slice(ppk.secret.expose()),
            required: ppk.required,
        }),
        childless: false,
        initial_contact: true,
    })
}

/// What was checked when the configuration was read.
fn credentials(credential: &config::Credential) -> Option<(Arc<Credential>, Arc<Verifier>)> {
    Some(match credential {
        config::Credential::Psk(psk) => {
            let psk = || SecretBytes::from_slice(psk.expose());
            (Arc::new(Credential::Psk(psk())), Arc::new(Verifier::Psk(psk())))
        }
        config::Credential::Certificate { chain, key, ca } => {
            let certificate = CertificateCredential::from_pem(chain, key.expose()).ok()?;
            let trust = TrustStore::from_pem(ca).ok()?;
            (
                Arc::new(Credential::Certificate(Box::new(certificate))),
                Arc::new(Verifier::Certificate(Box::new(trust))),
            )
        }
    })
}

/// No selector is any address of both families.
fn selectors(nets: &[IpNet]) -> Vec<IpNet> {
    if nets.is_empty() {
        return vec![Ipv4Net::default().into(), Ipv6Net::default().into()];
    }
    nets.to_vec()
}

fn address_identity(address: std::net::IpAddr) -> Identity {
    match address {
        std::net::IpAddr::V4(v4) => Identity::Ipv4(v4),
        std::net::IpAddr::V6(v6) => Identity::Ipv6(v6),
    }
}
