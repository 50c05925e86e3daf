//! PRFs and key derivation.

use braid_ike::SecretBytes;
use braid_ike::auth::IntAuth;
use braid_ike::crypto::{
    Cipher, Contribution, EspSuite, IkeKeys, IkeSuite, Integrity, KeMethod, Prf, nat_detection_hash,
};
use braid_ike::wire::{IkeSpi, Nonce};

use crate::{digest, hex};

#[test]
fn prfs_match_rfc_2202_and_rfc_4231() {
    let expected = [
        (Prf::HmacSha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        (Prf::HmacSha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        (
            Prf::HmacSha384,
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
        (
            Prf::HmacSha512,
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554\
             9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ];
    for (prf, expected) in expected {
        let parts: [&[u8]; 2] = [b"what do ya want ", b"for nothing?"];
        assert_eq!(*prf.compute(b"Jefe", &parts), hex(expected));
        assert_eq!(prf.output_len(), hex(expected).len());
    }
}

/// NIST CAVP, IKEv2 with HMAC-SHA1 (SP 800-135): its nonces are shorter than RFC 7296 allows, hence by hand.
#[test]
fn derivation_matches_nist_cavp() {
    let prf = Prf::HmacSha1;
    let (ni, nr) = (hex("32b50d5f4a3763f3"), hex("9206a04b26564cb1"));
    let (spi_i, spi_r) = (hex("34c9e7c188868785"), hex("3ff77d760d2b2199"));
    let shared = hex("4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52");
    let new = hex("863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330");
    let seed = prf.compute(&[ni.as_slice(), &nr].concat(), &[&shared]);
    assert_eq!(*seed, hex("a9a7b222b59f8f48645f28a1db5b5f5d7479cba7"));
    let stream = prf.expand(&seed, &[&ni, &nr, &spi_i, &spi_r], 132).unwrap();
    let expected = "a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062768b76606f9f\
                    a5e992204fc5a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed41efa9c5\
                    49fd11198af1670b143d384bd275c5f594cf266b05ebadca855e4249520a441a81157435a7a56cc4";
    assert_eq!(*stream, hex(expected));
    let sk_d = &stream[..20];
    let child = prf.expand(sk_d, &[&new, &ni, &nr], 132).unwrap();
    let expected = "bb43244c1860ad65ee1e211ffe8bb3661750c8f89cb9f547df7f4fa61d37301628190e38c66232eab4b3ab14c400\
                    a5197dd3730ed4820a8a10394d51e1c0400052f63ebd36b0e7ef53aaed31eba4a5080d7d4b5666023a8bbb5ffb78\
                    57240f9a05884d1b7d2f933708450b7b3288f1fc863ab49fa901227cffc06e27899c7054d56fd74c";
    assert_eq!(*child, hex(expected));
    assert_eq!(*prf.compute(sk_d, &[&new, &ni, &nr]), hex("63e81194946ebd05df7df5ebf5d8750056bf1f1d"));
}

#[test]
fn prf_plus_ends_at_255_blocks() {
    assert_eq!(Prf::HmacSha256.expand(b"k", &[b"s"], 255 * 32).unwrap().len(), 255 * 32);
    assert!(Prf::HmacSha256.expand(b"k", &[b"s"], 255 * 32 + 1).is_err());
}

fn range(start: u8, length: u8) -> Vec<u8> {
    (start..start + length).collect()
}

struct Material {
    ni: Nonce,
    nr: Nonce,
    first: SecretBytes,
    second: SecretBytes,
    third: SecretBytes,
}

impl Material {
    fn new() -> Self {
        Self {
            ni: Nonce::new(range(0x10, 32)).unwrap(),
            nr: Nonce::new(range(0x80, 24)).unwrap(),
            first: SecretBytes::new(range(0, 64)),
            second: SecretBytes::new(range(100, 50)),
            third: SecretBytes::new(vec![0x5a; 32]),
        }
    }

    fn with(&self, swapped: bool) -> Contribution<'_> {
        let (a, b) = (IkeSpi([1, 2, 3, 4, 5, 6, 7, 8]), IkeSpi([17, 18, 19, 20, 21, 22, 23, 24]));
        let (initiator_spi, responder_spi) = if swapped { (b, a) } else { (a, b) };
        Contribution { initiator_nonce: &self.ni, responder_nonce: &self.nr, initiator_spi, responder_spi }
    }
}

fn suites() -> [(IkeSuite, EspSuite); 2] {
    let ike = |cipher, integrity, prf| IkeSuite {
        cipher,
        integrity,
        prf,
        ke: KeMethod::Ecp256,
        additional: Vec::new(),
    };
    let esp =
        |cipher, integrity| EspSuite { cipher, integrity, ke: None, additional: Vec::new(), esn: false };
    let sha1 = Some(Integrity::HmacSha1_96);
    [
        (ike(Cipher::Aes128Cbc, sha1, Prf::HmacSha1), esp(Cipher::Aes128Cbc, sha1)),
        (ike(Cipher::Aes256Gcm16, None, Prf::HmacSha384), esp(Cipher::Aes256Gcm16, None)),
    ]
}

/// Digests of the derived keys, computed by an implementation of RFC 7296 sections 2.13 to 2.18, RFC 9370 and
/// RFC 8784 in Python: initial, rekeyed, rekeyed with a second secret, after IKE_INTERMEDIATE, with a PPK;
/// then the child without PFS, with it, with a second secret; then IntAuth of two exchanges.
const EXPECTED: [[&str; 9]; 2] = [
    [
        "c865153e5f46e271296e603c4df7f7e3376be4863565570de42f03a25f458b9a",
        "210fe03f25ea96b9bc0f19e01b06eb985c528487dfd24ab091b5243e62ec02a5",
        "dece6f260bb672517d88e8161dc629dfde0fbc054309d0d92b694344639fc9cd",
        "e7aab452230e3ee91dc056611668ce3ef09faba92670fec4b4c56ab6fdfeeac6",
        "f8e828fb67bd622ea44434df1c364f565b52468a6820eb46fa96c03bb6f06ce6",
        "f874dcd2c973ff17475137df7a16a4ec84a07d2792c33a11134227d224cb9cae",
        "18bcc852a88c4e7e6af1a6e3d667f6db9f9810e368b452d29752457b409bded3",
        "414c4981197f084b2824817abad744f0febad4898cddb21cba5e238fd3ea52d7",
        "b29b3da7760c0fd0d708636493f5eae41a791ad5f8f5b007dea02ac7861d443b",
    ],
    [
        "c6b4509e951bb1fd1b54a47285a4d95373c60d65dcc0d41434127b2bfa224e68",
        "e2f10c83c52b4e75ad5fdc4e184e18e9b94880af8d50fc810f5b2c24f6290f02",
        "65bf4b9c276dfc6505eaa20080ca6c01cd4390c3382d246785a48b07811e332a",
        "cfbfbf3e4add33052ecadec35eca9a3f3840c988d1cdd4f4b397e542fa30bae6",
        "b5fb1059213a7cb76b2e5f6e488b59fb64ed2295bd4a0ffab5168eebe86aebfb",
        "81113f3aa550904ae80d2d79a693c893d12ad68b0df194d381db2610590234d3",
        "354ad2ed9b10c70288a8cb21bd1b6180b9e2bd99ea4b09807b62c1505fb468f5",
        "f1799c8f9afea2e0c9185fa241e4fa0aacbcf29477ee571b55e01d5227fc71d1",
        "c24973b7ef8e0e10a6cf6878baf7521518ae6f084f454917d5d8c6b095112b18",
    ],
];

#[test]
fn keys_match_an_independent_implementation() {
    let material = Material::new();
    let Material { ni, nr, first, second, third } = &material;
    for ((ike, esp), expected) in suites().into_iter().zip(EXPECTED) {
        let keys = IkeKeys::initial(&ike, first, material.with(false)).unwrap();
        let rekeyed = keys.rekeyed(&ike, &[second], material.with(true)).unwrap();
        let hybrid = keys.rekeyed(&ike, &[second, third], material.with(true)).unwrap();
        let intermediate = keys.intermediate(third, material.with(false)).unwrap();
        let ppk = keys.with_ppk(&SecretBytes::from_slice(b"correct horse battery staple 123")).unwrap();
        let child = |shared: &[&SecretBytes]| {
            let keys = keys.child(&esp, shared, ni, nr).unwrap();
            assert_eq!(keys.initiator.len(), esp.key_len());
            [keys.initiator.expose(), keys.responder.expose()].concat()
        };
        let mut int_auth = IntAuth::new();
        assert!(int_auth.is_empty());
        int_auth.add(&keys, true, b"first request");
        int_auth.add(&keys, false, b"first response");
        int_auth.add(&intermediate, true, b"second request");
        int_auth.add(&intermediate, false, b"second response");
        let actual = [
            digest(keys.export().expose()),
            digest(rekeyed.export().expose()),
            digest(hybrid.export().expose()),
            digest(intermediate.export().expose()),
            digest(ppk.export().expose()),
            digest(&child(&[])),
            digest(&child(&[second])),
            digest(&child(&[second, third])),
            digest(&int_auth.finish(3)),
        ];
        assert_eq!(actual, expected);
    }
}

#[test]
fn exported_keys_come_back() {
    let material = Material::new();
    for (ike, _) in suites() {
        let keys = IkeKeys::initial(&ike, &material.first, material.with(false)).unwrap();
        let back = IkeKeys::import(&ike, &keys.export()).unwrap();
        assert_eq!(back.export(), keys.export());
        let short = SecretBytes::from_slice(&keys.export().expose()[1..]);
        assert!(IkeKeys::import(&ike, &short).is_err());
    }
}

#[test]
fn keys_are_not_printed() {
    let material = Material::new();
    let (ike, _) = &suites()[1];
    let keys = IkeKeys::initial(ike, &material.first, material.with(false)).unwrap();
    let printed = format!("{keys:?}");
    assert!(printed.contains("SecretBytes(48 octets)"), "{printed}");
    let octets = format!("{:?}", &keys.auth_key(true).expose()[..4]);
    assert!(!printed.contains(octets.trim_matches(['[', ']'])), "{printed}");
}

#[test]
fn nat_detection_hashes_match_an_independent_implementation() {
    let material = Material::new();
    let with = material.with(false);
    let v4 = nat_detection_hash(with.initiator_spi, with.responder_spi, "192.0.2.1:4500".parse().unwrap());
    assert_eq!(v4.to_vec(), hex("5184f43875ff7d9e3dfdc92bd1dee1a08204de3e"));
    let v6 = nat_detection_hash(with.initiator_spi, IkeSpi::ZERO, "[2001:db8::1]:500".parse().unwrap());
    assert_eq!(v6.to_vec(), hex("7fa12a60a3a27ef1b3fed26cc6d5b8fbf553292f"));
}
