//! What the public-key work of a handshake costs `braid-control`: key exchanges and signatures.
//!
//! Finite-field groups are computed on a thread beside the loop, everything else in it: what stands here for a
//! curve or a signature is how long the loop is blocked. `verify` includes a chain of one certificate.
//! Keys are made by the program `openssl`.

use std::{hint::black_box, process::Command, time::Duration};

use braid_ike::{
    SecretBytes,
    auth::{
        CertificateCredential, Credential, PeerSignatureSupport, SIGNATURE_HASHES, SignedOctets,
        SignedOctetsInput, TrustStore, Verifier,
    },
    crypto::{KeMethod, Prf},
    random::Random,
    wire::{IdPayload, Identity, Nonce},
};
use criterion::Criterion;

const NAME: &str = "gw.example.org";

struct System(ring::rand::SystemRandom);

impl Random for System {
    fn fill(&mut self, out: &mut [u8]) {
        ring::rand::SecureRandom::fill(&self.0, out).expect("the system has randomness");
    }
}

fn key_exchanges(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key exchange");
    let mut rng = System(ring::rand::SystemRandom::new());
    // By the numbers of IANA's registry.
    for number in [19, 20, 21, 31, 14, 15, 16, 18, 35, 36, 37] {
        let Some(method) = KeMethod::from_number(number) else { continue };
        let name = method.name();
        group.bench_function(format!("{name}/initiate"), |bencher| {
            bencher.iter(|| method.initiate(&mut rng).expect("a key"));
        });
        let initiator = method.initiate(&mut rng).expect("a key");
        group.bench_function(format!("{name}/respond"), |bencher| {
            bencher.iter(|| method.respond(&mut rng, initiator.public()).expect("a secret"));
        });
        let (public, _) = method.respond(&mut rng, initiator.public()).expect("a secret");
        group.bench_function(format!("{name}/finish"), |bencher| {
            bencher.iter(|| initiator.finish(black_box(&public)).expect("the same secret"));
        });
    }
}

/// A key and a certificate of its own, in PEM.
fn identity(algorithm: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let directory = std::env::temp_dir().join(format!("braid-bench-ike-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for temporary files");
    let [key, certificate] = ["key.pem", "certificate.pem"].map(|name| directory.join(name));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "30", "-subj", &format!("/CN={NAME}"), "-newkey"])
        .args(algorithm)
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", &format!("subjectAltName=DNS:{NAME}")])
        .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .output()
        .expect("the program openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |path| std::fs::read(path).expect("what openssl has written");
    let identity = (read(key), read(certificate));
    std::fs::remove_dir_all(directory).expect("a directory of our own");
    identity
}

fn signatures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("signature");
    let nonce = Nonce::new(vec![7; 32]).expect("a nonce");
    let id = Identity::Fqdn(NAME.to_owned());
    let octets = SignedOctets::new(&SignedOctetsInput {
        prf: Prf::HmacSha256,
        message: &[7; 400],
        peer_nonce: &nonce,
        sk_p: &SecretBytes::new(vec![1; 32]),
        id: &IdPayload::new(id.clone()),
        int_auth: None,
    });
    let peer = PeerSignatureSupport { hashes: Some(SIGNATURE_HASHES.to_vec()) };
    let now =
        std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970") + Duration::from_secs(60);
    for (name, algorithm) in [
        ("rsa-2048", &["rsa:2048"][..]),
        ("rsa-3072", &["rsa:3072"]),
        ("rsa-4096", &["rsa:4096"]),
        ("ecdsa-p256", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("ecdsa-p384", &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("ed25519", &["ed25519"]),
    ] {
        let (key, certificate) = identity(algorithm);
        let credential = CertificateCredential::from_pem(&certificate, &key).expect("a credential");
        let credential = Credential::Certificate(Box::new(credential));
        let trust = TrustStore::from_pem(&certificate).expect("a trust anchor");
        let verifier = Verifier::Certificate(Box::new(trust));
        let sign = || credential.authenticate(Prf::HmacSha256, &octets, &peer).expect("a signature");
        group.bench_function(format!("{name}/sign"), |bencher| bencher.iter(sign));
        let (auth, certificates) = (sign(), credential.certificates());
        group.bench_function(format!("{name}/verify"), |bencher| {
            bencher.iter(|| {
                verifier
                    .verify(Prf::HmacSha256, &octets, &auth, &id, &certificates, now)
                    .expect("our own signature");
            });
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    key_exchanges(&mut criterion);
    signatures(&mut criterion);
    criterion.final_summary();
}
