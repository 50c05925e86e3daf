//! Certificates end to end: chains, fragments, and a CA that the other side does not know.

use std::sync::Arc;
use std::time::Duration;

use braid_ike::auth::{AuthError, CertificateCredential, Credential, TrustStore, Verifier};
use braid_ike::{EndpointSettings, Fault, PeerConfig, Role};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use crate::config::{A, B, peer};
use crate::exchanges::{run_with_traffic, up};
use crate::net::Net;

/// A CA: its issuer, and its certificate as PEM.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::new();
    for group in der.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, index| bits << 8 | u32::from(*group.get(index).unwrap_or(&0)));
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            body.push(if index <= group.len() { char::from(digit) } else { '=' });
        }
        if body.len() % 65 == 64 {
            body.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn authority(name: &str, parent: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = match parent {
        None => params.self_signed(&key).unwrap(),
        Some(parent) => params.signed_by(&key, &parent.issuer).unwrap(),
    };
    let pem = pem("CERTIFICATE", certificate.der());
    Authority { issuer: Issuer::new(params, key), pem }
}

/// A certificate for an address, with its intermediate.
fn credential(address: &str, by: &Authority) -> Arc<Credential> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::IpAddress(address.parse().unwrap())];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &by.issuer).unwrap();
    let chain = pem("CERTIFICATE", certificate.der()) + &by.pem;
    let key = pem("PRIVATE KEY", key.serialized_der());
    let credential = CertificateCredential::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    Arc::new(Credential::Certificate(Box::new(credential)))
}

fn trust(authority: &Authority) -> Arc<Verifier> {
    let store = TrustStore::from_pem(authority.pem.as_bytes()).unwrap();
    Arc::new(Verifier::Certificate(Box::new(store)))
}

fn config(role: Role, local: &str, remote: &str, by: &Authority, trusted: &Authority) -> PeerConfig {
    PeerConfig { credential: credential(local, by), verifier: trust(trusted), ..peer(role, local, remote) }
}

#[test]
fn chains_go_in_fragments_over_a_lossy_network() {
    let root = authority("root", None);
    let middle = authority("middle", Some(&root));
    let settings = EndpointSettings { fragment_size: 500, ..EndpointSettings::default() };
    let mut net = Net::with_settings(31, &[A, B], settings);
    net.weather.loss = 20;
    net.put_peer(1, 0, config(Role::Respond, B, A, &middle, &root));
    net.put_peer(0, 1, config(Role::Initiate, A, B, &middle, &root));
    up(&mut net);
    assert!(net.nodes[0].datagrams >= 4 && net.nodes[1].datagrams >= 4, "both sides sent fragments");
    net.weather.loss = 0;
    run_with_traffic(&mut net, Duration::from_secs(1));
}

#[test]
fn another_ca_is_named() {
    let (root, other) = (authority("root", None), authority("other", None));
    let mut net = Net::new(32, &[A, B]);
    net.put_peer(1, 0, config(Role::Respond, B, A, &root, &other));
    net.put_peer(0, 1, config(Role::Initiate, A, B, &root, &root));
    net.run(Duration::from_secs(5));
    assert!(!net.is_up(0, 1) && !net.is_up(1, 0));
    let untrusted = |fault: &&Fault| matches!(fault, Fault::Certificate(AuthError::UntrustedCa { .. }));
    assert!(net.failures(1).iter().any(untrusted), "{:?}", net.failures(1));
    assert!(
        net.failures(0).iter().any(|fault| matches!(fault, Fault::PeerRejectedUs { by_certificate: true }))
    );
}
