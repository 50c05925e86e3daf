//! AUTH payloads: pre-shared keys, and certificates of every kind with every way to be wrong.

use std::time::Duration;

use braid_ike::SecretBytes;
use braid_ike::auth::{
    AuthError, CertificateCredential, ChainFault, Credential, CredentialError, PeerSignatureSupport,
    SIGNATURE_HASHES, SignedOctets, SignedOctetsInput, TrustStore, Verifier, dn,
};
use braid_ike::crypto::{CryptoError, Prf, sha1};
use braid_ike::wire::{AuthMethod, AuthPayload, CertPayload, IdPayload, Identity, Nonce};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
};

use crate::hex;

/// 1 June 2026.
const NOW: Duration = Duration::from_secs(1_780_272_000);

fn octets(message: &[u8]) -> SignedOctets {
    let nonce = Nonce::new((0x80..0x98).collect()).unwrap();
    SignedOctets::new(&SignedOctetsInput {
        prf: Prf::HmacSha256,
        message,
        peer_nonce: &nonce,
        sk_p: &SecretBytes::new(vec![1; 32]),
        id: &IdPayload::new(Identity::Fqdn("gw.example.org".to_owned())),
        int_auth: None,
    })
}

fn gw() -> Identity {
    Identity::Fqdn("gw.example.org".to_owned())
}

/// The value was computed in Python from the formula of RFC 7296 section 2.15.
#[test]
fn psk_mac_matches_an_independent_implementation() {
    let prf = Prf::HmacSha1;
    let sk_pi = hex("0102030405060708090a0b0c0d0e0f1011121314");
    let nonce = Nonce::new((0x80..0x98).collect()).unwrap();
    let octets = SignedOctets::new(&SignedOctetsInput {
        prf,
        message: b"message",
        peer_nonce: &nonce,
        sk_p: &SecretBytes::new(sk_pi),
        id: &IdPayload::new(gw()),
        int_auth: Some(b"intermediate"),
    });
    let psk = Credential::Psk(SecretBytes::from_slice(b"secret"));
    let auth = psk.authenticate(prf, &octets, &PeerSignatureSupport::default()).unwrap();
    assert_eq!(auth.method, AuthMethod::PSK);
    assert_eq!(auth.data, hex("f5036e240205e077f851c56651476a5cbf02be1b"));
}

#[test]
fn psks_must_be_equal() {
    let prf = Prf::HmacSha256;
    let octets = octets(b"message");
    let psk = |text: &[u8]| SecretBytes::from_slice(text);
    let auth =
        Credential::Psk(psk(b"right")).authenticate(prf, &octets, &PeerSignatureSupport::default()).unwrap();
    let check = |psk, auth: &AuthPayload, octets: &SignedOctets| {
        Verifier::Psk(psk).verify(prf, octets, auth, &gw(), &[], NOW)
    };
    assert_eq!(check(psk(b"right"), &auth, &octets), Ok(()));
    assert_eq!(check(psk(b"wrong"), &auth, &octets), Err(AuthError::WrongPsk));
    assert_eq!(check(psk(b"right"), &auth, &self::octets(b"another")), Err(AuthError::WrongPsk));
    for data in [Vec::new(), auth.data[..31].to_vec()] {
        let short = AuthPayload { method: AuthMethod::PSK, data };
        assert_eq!(check(psk(b"right"), &short, &octets), Err(AuthError::WrongPsk));
    }
    for method in [AuthMethod::SIGNATURE, AuthMethod::NULL, AuthMethod::RSA] {
        let other = AuthPayload { method, data: auth.data.clone() };
        let error = Err(AuthError::MethodMismatch { received: method.0 });
        assert_eq!(check(psk(b"right"), &other, &octets), error);
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: Vec<u8>,
}

fn authority(name: &str, parent: Option<&Authority>) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = match parent {
        None => params.self_signed(&key).unwrap(),
        Some(parent) => params.signed_by(&key, &parent.issuer).unwrap(),
    };
    let (pem, der) = (pem("CERTIFICATE", certificate.der()), certificate.der().to_vec());
    Authority { issuer: Issuer::new(params, key), pem, der }
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let mut bits = [0; 4];
            bits[1..=group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes(bits);
            for index in 0..4 {
                let digit = ALPHABET[(bits >> (18 - 6 * index) & 63) as usize];
                text.push(if index <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::CommonName, "Gateway");
    params.subject_alt_names = vec![
        SanType::DnsName("gw.example.org".try_into().unwrap()),
        SanType::Rfc822Name("vpn@example.org".try_into().unwrap()),
        SanType::IpAddress("192.0.2.1".parse().unwrap()),
        SanType::IpAddress("2001:db8::1".parse().unwrap()),
    ];
    params
}

fn issue(params: &CertificateParams, key: &KeyPair, by: &[&Authority]) -> CertificateCredential {
    let certificate = params.signed_by(key, &by[0].issuer).unwrap();
    let mut chain = pem("CERTIFICATE", certificate.der());
    by[..by.len() - 1].iter().for_each(|intermediate| chain.push_str(&intermediate.pem));
    let key = pem("PRIVATE KEY", key.serialized_der());
    CertificateCredential::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
}

fn trust(authorities: &[&Authority]) -> Verifier {
    let pem: String = authorities.iter().map(|it| it.pem.as_str()).collect();
    Verifier::Certificate(Box::new(TrustStore::from_pem(pem.as_bytes()).unwrap()))
}

fn known() -> PeerSignatureSupport {
    PeerSignatureSupport { hashes: Some(SIGNATURE_HASHES.to_vec()) }
}

struct Proof {
    auth: AuthPayload,
    certificates: Vec<CertPayload>,
}

fn prove(credential: CertificateCredential, peer: &PeerSignatureSupport) -> Proof {
    let credential = Credential::Certificate(Box::new(credential));
    let auth = credential.authenticate(Prf::HmacSha256, &octets(b"message"), peer).unwrap();
    Proof { auth, certificates: credential.certificates() }
}

impl Proof {
    fn check(&self, verifier: &Verifier, claimed: &Identity, now: Duration) -> Result<(), AuthError> {
        let octets = octets(b"message");
        verifier.verify(Prf::HmacSha256, &octets, &self.auth, claimed, &self.certificates, now)
    }
}

fn key_kinds() -> Vec<(&'static SignatureAlgorithm, Option<AuthMethod>)> {
    vec![
        (&rcgen::PKCS_ECDSA_P256_SHA256, Some(AuthMethod::ECDSA_256)),
        (&rcgen::PKCS_ECDSA_P384_SHA384, Some(AuthMethod::ECDSA_384)),
        (&rcgen::PKCS_ECDSA_P521_SHA512, Some(AuthMethod::ECDSA_521)),
        (&rcgen::PKCS_ED25519, None),
        (&rcgen::PKCS_RSA_SHA256, None),
    ]
}

#[test]
fn every_kind_of_key_signs_and_verifies() {
    let root = authority("Root", None);
    let verifier = trust(&[&root]);
    for (algorithm, old_method) in key_kinds() {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let proof = prove(issue(&params(), &key, &[&root]), &known());
        assert_eq!(proof.auth.method, AuthMethod::SIGNATURE, "{algorithm:?}");
        assert_eq!(proof.check(&verifier, &gw(), NOW), Ok(()), "{algorithm:?}");
        // Another message.
        let other = octets(b"other");
        let result = verifier.verify(Prf::HmacSha256, &other, &proof.auth, &gw(), &proof.certificates, NOW);
        assert_eq!(result, Err(AuthError::WrongSignature), "{algorithm:?}");
        // Without RFC 7427, ECDSA has methods of its own; RSA would need SHA-1.
        let credential = Credential::Certificate(Box::new(issue(&params(), &key, &[&root])));
        let octets = octets(b"message");
        let old = credential.authenticate(Prf::HmacSha256, &octets, &PeerSignatureSupport::default());
        match old_method {
            None => assert_eq!(old.err(), Some(CryptoError::NoCommonSignature)),
            Some(method) => {
                let proof = Proof { auth: old.unwrap(), certificates: credential.certificates() };
                assert_eq!(proof.auth.method, method);
                assert_eq!(proof.check(&verifier, &gw(), NOW), Ok(()));
                let mut changed = proof;
                changed.auth.data[9] ^= 1;
                assert_eq!(changed.check(&verifier, &gw(), NOW), Err(AuthError::WrongSignature));
            }
        }
    }
}

/// RFC 7427 appendix A and RFC 8420 appendix A: length and AlgorithmIdentifier before the signature.
#[test]
fn signatures_name_their_algorithm_as_the_rfcs_do() {
    let root = authority("Root", None);
    let expected = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "0c 300a 0608 2a8648ce3d040302"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "0c 300a 0608 2a8648ce3d040303"),
        (&rcgen::PKCS_ECDSA_P521_SHA512, "0c 300a 0608 2a8648ce3d040304"),
        (&rcgen::PKCS_ED25519, "07 3005 0603 2b6570"),
        (
            &rcgen::PKCS_RSA_SHA256,
            "43 3041 0609 2a864886f70d01010a 3034 a00f 300d 0609 608648016503040201 0500 \
             a11c 301a 0609 2a864886f70d010108 300d 0609 608648016503040201 0500 a203 020120",
        ),
    ];
    for (algorithm, expected) in expected {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let proof = prove(issue(&params(), &key, &[&root]), &known());
        let expected = hex(expected);
        assert_eq!(proof.auth.data[..expected.len()], expected, "{algorithm:?}");
    }
}

/// RFC 7427 section 4: no hash that the peer did not announce.
#[test]
fn only_announced_hashes_sign() {
    let root = authority("Root", None);
    let sign = |algorithm, hashes: &[u16]| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let credential = Credential::Certificate(Box::new(issue(&params(), &key, &[&root])));
        let peer = PeerSignatureSupport { hashes: Some(hashes.to_vec()) };
        credential.authenticate(Prf::HmacSha256, &octets(b"message"), &peer)
    };
    // SHA-1 alone; SHA2-512 alone, which names RSASSA-PSS with SHA-512 and its salt of 64 octets.
    assert_eq!(sign(&rcgen::PKCS_RSA_SHA256, &[1]).err(), Some(CryptoError::NoCommonSignature));
    let auth = sign(&rcgen::PKCS_RSA_SHA256, &[4]).unwrap();
    assert!(auth.data[..68].ends_with(&hex("a203 020140")), "{:02x?}", &auth.data[..68]);
    // P-384 with SHA-256 announced only: RFC 4754's method, which fixes the hash itself.
    assert_eq!(sign(&rcgen::PKCS_ECDSA_P384_SHA384, &[2]).unwrap().method, AuthMethod::ECDSA_384);
    assert_eq!(sign(&rcgen::PKCS_ED25519, &[2]).err(), Some(CryptoError::NoCommonSignature));
}

#[test]
fn an_identity_must_stand_in_the_certificate() {
    let root = authority("Root", None);
    let verifier = trust(&[&root]);
    let credential = issue(&params(), &KeyPair::generate().unwrap(), &[&root]);
    let borne = credential.identities();
    let proof = prove(credential, &known());
    let good = [
        Identity::Fqdn("GW.example.ORG".to_owned()),
        Identity::Email("vpn@EXAMPLE.org".to_owned()),
        Identity::Ipv4("192.0.2.1".parse().unwrap()),
        Identity::Ipv6("2001:db8::1".parse().unwrap()),
        Identity::Dn(dn::from_text("C=DE, CN=gateway").unwrap()),
    ];
    for claimed in good {
        assert_eq!(proof.check(&verifier, &claimed, NOW), Ok(()), "{claimed}");
        assert!(borne.iter().any(|identity| identity.matches(&claimed)), "{claimed}");
    }
    let bad = [
        Identity::Fqdn("example.org".to_owned()),
        // The common name stands for nothing.
        Identity::Fqdn("Gateway".to_owned()),
        Identity::Email("gw.example.org".to_owned()),
        Identity::Email("VPN@example.org".to_owned()),
        Identity::Ipv4("192.0.2.2".parse().unwrap()),
        Identity::Dn(dn::from_text("CN=Gateway").unwrap()),
        Identity::KeyId(b"gw.example.org".to_vec()),
        Identity::Other { kind: 2, data: b"gw.example.org".to_vec() },
    ];
    for claimed in bad {
        let error = AuthError::IdentityNotInCertificate { claimed: claimed.clone(), borne: borne.clone() };
        assert_eq!(proof.check(&verifier, &claimed, NOW), Err(error), "{claimed}");
    }
}

#[test]
fn a_chain_needs_its_intermediates_and_a_trusted_end() {
    let root = authority("Root", None);
    let middle = authority("Middle", Some(&root));
    let low = authority("Low", Some(&middle));
    let key = KeyPair::generate().unwrap();
    let mut proof = prove(issue(&params(), &key, &[&low, &middle, &root]), &known());
    assert_eq!(proof.certificates.len(), 3);
    assert_eq!(proof.check(&trust(&[&root]), &gw(), NOW), Ok(()));
    assert_eq!(proof.check(&trust(&[&middle]), &gw(), NOW), Ok(()));
    let other = authority("Root", None);
    let untrusted = Err(AuthError::UntrustedCa { issuer: "O=Test, CN=Low".to_owned() });
    assert_eq!(proof.check(&trust(&[&authority("Other", None)]), &gw(), NOW), untrusted);
    // A CA of the same name with another key.
    assert!(proof.check(&trust(&[&other]), &gw(), NOW).is_err());
    assert_eq!(proof.check(&trust(&[&other, &root]), &gw(), NOW), Ok(()));
    // The order of intermediates does not matter, their presence does.
    proof.certificates.swap(1, 2);
    assert_eq!(proof.check(&trust(&[&root]), &gw(), NOW), Ok(()));
    proof.certificates.truncate(2);
    assert_eq!(proof.check(&trust(&[&root]), &gw(), NOW), untrusted);
    proof.certificates.clear();
    assert_eq!(proof.check(&trust(&[&root]), &gw(), NOW), Err(AuthError::NoCertificate));
}

#[test]
fn validity_is_judged_by_the_callers_clock() {
    let root = authority("Root", None);
    let mut params = params();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 12, 31);
    let proof = prove(issue(&params, &KeyPair::generate().unwrap(), &[&root]), &known());
    let verifier = trust(&[&root]);
    assert_eq!(proof.check(&verifier, &gw(), NOW), Ok(()));
    let (year, not_before, not_after) = (Duration::from_secs(365 * 86_400), 1_767_225_600, 1_798_675_200);
    assert_eq!(proof.check(&verifier, &gw(), NOW + year), Err(AuthError::CertificateExpired { not_after }));
    assert_eq!(
        proof.check(&verifier, &gw(), NOW - year),
        Err(AuthError::CertificateNotYetValid { not_before })
    );
}

#[test]
fn extended_key_usage_must_fit() {
    let root = authority("Root", None);
    let verifier = trust(&[&root]);
    let with = |usages: Vec<ExtendedKeyUsagePurpose>| {
        let mut params = params();
        params.extended_key_usages = usages;
        prove(issue(&params, &KeyPair::generate().unwrap(), &[&root]), &known()).check(&verifier, &gw(), NOW)
    };
    let ike = ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    let other = ExtendedKeyUsagePurpose::CodeSigning;
    assert_eq!(with(vec![ike.clone()]), Ok(()));
    assert_eq!(with(vec![other.clone(), ike]), Ok(()));
    assert_eq!(with(vec![ExtendedKeyUsagePurpose::ServerAuth]), Ok(()));
    assert_eq!(with(vec![ExtendedKeyUsagePurpose::Any]), Ok(()));
    assert_eq!(with(vec![other]), Err(AuthError::InvalidChain(ChainFault::ExtendedKeyUsage)));
}

#[test]
fn a_ca_is_no_peer_and_a_peer_no_ca() {
    let root = authority("Root", None);
    let verifier = trust(&[&root]);
    let mut ca = params();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let proof = prove(issue(&ca, &KeyPair::generate().unwrap(), &[&root]), &known());
    let fault = Err(AuthError::InvalidChain(ChainFault::NotACa));
    assert_eq!(proof.check(&verifier, &gw(), NOW), fault);
    // An end entity that issues certificates.
    let key = KeyPair::generate().unwrap();
    let certificate = params().signed_by(&key, &root.issuer).unwrap();
    let (pem, der) = (pem("CERTIFICATE", certificate.der()), certificate.der().to_vec());
    let rogue = Authority { issuer: Issuer::new(params(), key), pem, der };
    let proof = prove(issue(&params(), &KeyPair::generate().unwrap(), &[&rogue, &root]), &known());
    assert!(matches!(
        proof.check(&verifier, &gw(), NOW),
        Err(AuthError::InvalidChain(_) | AuthError::UntrustedCa { .. })
    ));
}

#[test]
fn other_methods_and_garbage_are_refused() {
    let root = authority("Root", None);
    let verifier = trust(&[&root]);
    let good = prove(issue(&params(), &KeyPair::generate().unwrap(), &[&root]), &known());
    let with = |method: AuthMethod, data: &[u8]| {
        let auth = AuthPayload { method, data: data.to_vec() };
        Proof { auth, certificates: good.certificates.clone() }.check(&verifier, &gw(), NOW)
    };
    for method in [AuthMethod::PSK, AuthMethod::NULL, AuthMethod(3)] {
        assert_eq!(with(method, &good.auth.data), Err(AuthError::MethodMismatch { received: method.0 }));
    }
    assert_eq!(with(AuthMethod::RSA, &[0; 256]), Err(AuthError::UnsupportedAlgorithm));
    for data in [&[][..], &[5], &[2, 0x30, 0], &[0, 1, 2]] {
        assert_eq!(with(AuthMethod::SIGNATURE, data), Err(AuthError::UnsupportedAlgorithm));
    }
    // sha1WithRSAEncryption.
    let sha1_rsa = hex("0f 300d 0609 2a864886f70d010105 0500 00");
    assert_eq!(with(AuthMethod::SIGNATURE, &sha1_rsa), Err(AuthError::UnsupportedAlgorithm));
    let mut mangled = good;
    mangled.certificates[0].data.truncate(40);
    assert_eq!(mangled.check(&verifier, &gw(), NOW), Err(AuthError::MalformedCertificate));
}

/// RFC 7296 section 3.7: SHA-1 over the SubjectPublicKeyInfo of each trusted CA.
#[test]
fn a_certificate_request_names_the_cas_by_key() {
    let (one, two) = (authority("One", None), authority("Two", None));
    let request = trust(&[&one, &two]).certificate_request().unwrap();
    let hash = |authority: &Authority| {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, parsed) = X509Certificate::from_der(&authority.der).unwrap();
        sha1(parsed.public_key().raw)
    };
    assert_eq!(request.authorities, [hash(&one), hash(&two)].concat());
    assert!(Verifier::Psk(SecretBytes::default()).certificate_request().is_none());
}

#[test]
fn wrong_files_are_named() {
    let root = authority("Root", None);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = pem("CERTIFICATE", params().signed_by(&key, &root.issuer).unwrap().der());
    let (key, other) = (pem("PRIVATE KEY", key.serialized_der()), pem("PRIVATE KEY", other.serialized_der()));
    let load = |certificate: &str, key: &str| {
        CertificateCredential::from_pem(certificate.as_bytes(), key.as_bytes()).err()
    };
    assert_eq!(load(&certificate, &key), None);
    assert_eq!(load(&certificate, &other), Some(CredentialError::KeyMismatch));
    assert_eq!(load(&key, &key), Some(CredentialError::NoCertificate));
    assert_eq!(load(&certificate, &certificate), Some(CredentialError::NoKey));
    assert_eq!(load(&pem("CERTIFICATE", b"x"), &key), Some(CredentialError::MalformedCertificate));
    assert_eq!(load(&certificate, &pem("PRIVATE KEY", b"x")), Some(CredentialError::UnsupportedKey));
    assert_eq!(TrustStore::from_pem(b"").err(), Some(CredentialError::NoCertificate));
    assert_eq!(TrustStore::from_pem(key.as_bytes()).err(), Some(CredentialError::NoCertificate));
}
