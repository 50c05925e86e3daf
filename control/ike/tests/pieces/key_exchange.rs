//! Key exchange methods: published vectors, agreement of both roles, refusal of bad values.

use braid_ike::crypto::{CryptoError, KeMethod};

use crate::{Counting, Given, digest, hex};

/// Private values and the public value of the other side in hexadecimal, the rest as digests.
struct Vector {
    method: KeMethod,
    ours: &'static str,
    our_public: &'static str,
    theirs: &'static str,
    their_public: &'static str,
    shared: &'static str,
}

/// RFC 5114 appendix A, RFC 5903 section 8, RFC 7748 section 6.1.
const VECTORS: [Vector; 7] = [
    Vector {
        method: KeMethod::Modp1024s160,
        ours: "b9a3b3ae8fefc1a2930496507086f8455d48943e",
        our_public: "33bc36bb57958663a8014d9830598b0de00c766f0aca7ec9d486bafe2e84b703",
        theirs: "9392c9f9eb6a7a6a9022f7d83e7223c6835bbdda",
        their_public: "717a6cb053371ff4a3b932941c1e5663f861a1d6ad34ae66576dfb98f6c6cbf9ddd5a56c7833f6bcfdff095582ad868e\
         440e8d09fd769e3ceccdc3d3b1e4cfa057776caaf9739b6a9fee8e7411f8d6dac09d6a4edb46cc2b5d5203090eae6126\
         311e53fd2c14b574e6a3109a3da1be41bdceaa186f5ce06716a2b6a07b3c33fe",
        shared: "efaf3f62d608cdbd9ccd679f8f3f010d0883e1fe436840b852be9e5571fe23f3",
    },
    Vector {
        method: KeMethod::Modp2048s224,
        ours: "22e62601dbffd06708a680f747f361f76d8f4f721a0548e483294b0c",
        our_public: "149588a0f8b466223d7f41bc948c3a158e5cef1669579d7d985b52dc7778f11e",
        theirs: "4ff3bc96c7fc6a6d71d3b363800a7cdfef6fc41b4417ea15353b7590",
        their_public: "4dcee992a9762a13f2f83844ad3d77ee0e31c9718b3db6c2035d3961182c3e0ba247ec4182d760cd48d99599970622a1\
         881bba2dc822939c78c3912c6661fa5438b20766222b75e24c2e3ad0c7287236129525ee15b5dd7998aa04c4a9696cac\
         d7172083a97a81664ead2c479e444e4c0654cc19e28d7703cee8dacd6126f5d665ec52c67255db92014b037eb621a2ac\
         8e365de071ffc1400acf077a12913dd8de89473437ab7ba346743c1b215dd9c12164a7e4053118d199bec8ef6fc56117\
         0c84c87d10ee9a674a1fa8ffe13bdfba1d44de48946d68dc0cdd777635a7ab5bfb1e4bb7b856f96827734c184138e915\
         d9c3002ebce53120546a7e2002142b6c",
        shared: "885bb5ebe4da0bd256299131a3f2ecfc683ba48652048c6bb21b7461f29cf49b",
    },
    Vector {
        method: KeMethod::Modp2048s256,
        ours: "0881382cdb87660c6dc13e614938d5b9c8b2f248581cc5e31b35454397fce50e",
        our_public: "ba101a638cd0382ded9814bbf575c26ac8bb2a7e0977ec68ac964ecc4b62a6c4",
        theirs: "7d62a7e3ef36de617b13d1afb82c780d83a23bd4ee6705645121f371f546a53d",
        their_public: "575f0351bd2b1b817448bdf87a6c362c1e289d3903a30b9832c5741fa250363e7acbc7f77f3dacbc1f131add8e03367e\
         ff8fbbb3e1c5784424809b25afe4d2262a1a6fd2fab64105ca30a674e07f7809852088632fc049233791ad4edd083a97\
         8b883ee618bc5e0dd047415f2d95e683cf14826b5fbe10d3ce41c6c120c78ab20008c698bf7f0bcab9d7f407bed0f43a\
         fb2970f57f8d12043963e66ddd320d599ad9936c8f44137c08b180ec5e985cebe186f3d549677e80607331ee17af3380\
         a725b0782317d7dd43f59d7af9568a9bb63a84d365f92244ed120988219302f42924c7ca90b89d24f71b0ab697823d7d\
         eb1aff5b0e8e4a45d49f7f53757e1913",
        shared: "01eb7b326b9093eea16968f04915ea1097194caee5bc657dba57bb69c6b7613d",
    },
    Vector {
        method: KeMethod::Ecp256,
        ours: "c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433",
        our_public: "293c9fbafaa2f0a1ee2c320e4bf43070db05750a46ad05fa4108365a851a3518",
        theirs: "c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53",
        their_public: "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf6356fbf3ca366cc23e8157854c13c58d6a\
         ac23f046ada30f8353e74f33039872ab",
        shared: "0519dc09b36efad1d00aef1d5b53b100202eb910b5de0dede75f190a357a367d",
    },
    Vector {
        method: KeMethod::Ecp384,
        ours: "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655e35b538041e649ee3faef896783ab194",
        our_public: "9e655dcef6e54906df1e785bf769e6912714ce2c3739cca4d1d1938c29db7b63",
        theirs: "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942e0308312916b8ed2960e4bd55a7448fc",
        their_public: "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d0d1ac43a0336def96fda41d0774a3571\
         dcfbec7aacf3196472169e838430367f66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c",
        shared: "a54975fc64aa0e1513ec7d41207c7c2338735226a4f1582d71b40e49a9785ee1",
    },
    Vector {
        method: KeMethod::Ecp521,
        ours: "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a095aa85a30fe1c2952c6771d937ba9777\
         f5957b2639bab072462f68c27a57382d4a52",
        our_public: "487f9c7e60de7f004a1622bce27b79f22a004c473a851e307d04328fae1c3d88",
        theirs: "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e9c677d600b343757a3bdbf2a3163e4c2\
         f869cca7458aa4a4effc311f5cb151685eb9",
        their_public: "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a219b97c356436adc6e95bb0352f6be64a6\
         c2912d4ef2d0433ced2b6171640012d9460f015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d985207\
         7b87220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd17f0fc56a",
        shared: "d26abc7eae12e6c1789c0a3850a987e3bfbdf0dd24588fdd774c3dca0c400404",
    },
    Vector {
        method: KeMethod::Curve25519,
        ours: "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        our_public: "300c9c9603b92a4b39ed3958bf9240114804db4fd373012c0ca47432d63425ae",
        theirs: "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        their_public: "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        shared: "dead45a1d43d6902aa9240b43c0d75a0b5fc750660590d6d45461cbfc4010684",
    },
];

#[test]
fn published_vectors() {
    for vector in &VECTORS {
        let method = vector.method;
        let ours = method.initiate(&mut Given(hex(vector.ours))).unwrap();
        assert_eq!(ours.method(), method);
        assert_eq!(digest(ours.public()), vector.our_public, "{method:?}");
        let (their_public, their_secret) =
            method.respond(&mut Given(hex(vector.theirs)), ours.public()).unwrap();
        assert_eq!(their_public, hex(vector.their_public), "{method:?}");
        assert_eq!(digest(their_secret.expose()), vector.shared, "{method:?}");
        assert_eq!(ours.finish(&their_public).unwrap(), their_secret, "{method:?}");
    }
}

/// Digests of both public values and the secret for exponents counting up from 1, computed with Python's
/// integers from primes recomputed from pi.
const MODP: [(KeMethod, [&str; 3]); 7] = [
    (
        KeMethod::Modp1024,
        [
            "3e5e53f04e5eeec9a4732ead2dc7f2ffad5d7f6aab19395b4a8130e8ec660251",
            "d35f9b55b9be4187bc14f4956f8e5bf21f1e5703c7240b720733189185db91bd",
            "acd15b77189f3d4817393a5cc6198e988d1de0ba61293bb4d737cfe7c73d8bc5",
        ],
    ),
    (
        KeMethod::Modp1536,
        [
            "9a5ea5c17387a96223486d00a3d3437a4622bc0c790f48f01a1cebca6ce67221",
            "5f9028d4dcfaa772a66b67b2f6c859976950446dc0ecaf5eea2a065b8efe2c19",
            "5ce671c57406a33c73a5e91a3795f55e5029f020be6642afaf7b5923df85310d",
        ],
    ),
    (
        KeMethod::Modp2048,
        [
            "3ae26e14ac54744ba175a8b2c76205eebfc4fdb8314c4c40ae2ea47b3c0e28a3",
            "f004201373749bb4a11ac168dee9ca58fd4d4a95fe374add29941d9e44fc1a9f",
            "af739a3e7cffbe8f8dd9700308b04c2182c5feee6afcdab8d1803a093991bd57",
        ],
    ),
    (
        KeMethod::Modp3072,
        [
            "2a9f2a20bd56167b364eac425220fa443f9ffe3381398ac1f5d0d3e1cd83aa0a",
            "c58ccff671f347e2c280ebccd62d452b2f397cb03c8a5e664ab9f9961108fbfb",
            "6ae9901375de233793963cadfbac6be254bcc9b09621dd773b6592fdc2b6820a",
        ],
    ),
    (
        KeMethod::Modp4096,
        [
            "0439872574dafc9b300359ea0dd742c3976ccf9fa56883bdb8268462adedf8cf",
            "e2e6f55227afee57cb5e944947ddbf5852dac1ccd9305a9096f490db3febdb81",
            "87b605a4430a403eb2e6163f874e2ee1bbac77357ca172d106f757a96cea5857",
        ],
    ),
    (
        KeMethod::Modp6144,
        [
            "f5207b51a2edccb0b3fcbc46ca5becf032b78b2e47057db0aac5f3db5a75b791",
            "573ce14d2c19ffac1a2e13004744ae4d835f03405e2b037f24d4107b13c52af7",
            "960094deaef7acd141017840a557ff7f7d0f4b992325c995b5223825092362d4",
        ],
    ),
    (
        KeMethod::Modp8192,
        [
            "59fded6f715538d4c103ada4f338f8413542ba0d305e55807fa28c3955d0d96e",
            "6da51135d364a7ff40bec39937c428c63def651093947ba3709e373c66c6848b",
            "9aeed1377f59cf2e3f1f738a9b70d15bcbaaa2ddad98783efe04a9ef03613a73",
        ],
    ),
];

#[test]
fn modp_groups_match_an_independent_implementation() {
    for (method, [ours, theirs, shared]) in MODP {
        let mut rng = Counting(1);
        let private = method.initiate(&mut rng).unwrap();
        assert_eq!(digest(private.public()), ours, "{method:?}");
        let (public, secret) = method.respond(&mut rng, private.public()).unwrap();
        assert_eq!(digest(&public), theirs, "{method:?}");
        assert_eq!(digest(secret.expose()), shared, "{method:?}");
        assert_eq!(private.finish(&public).unwrap(), secret, "{method:?}");
    }
}

/// Octets of the initiator's value, of the responder's value, and of the secret (RFC 7296 section 3.4,
/// RFC 5903 section 7, RFC 8031 section 3.1, FIPS 203 table 3).
fn lengths(method: KeMethod) -> (usize, usize, usize) {
    let same = |length| (length, length, length);
    match method {
        KeMethod::Modp1024 | KeMethod::Modp1024s160 => same(128),
        KeMethod::Modp1536 => same(192),
        KeMethod::Modp2048 | KeMethod::Modp2048s224 | KeMethod::Modp2048s256 => same(256),
        KeMethod::Modp3072 => same(384),
        KeMethod::Modp4096 => same(512),
        KeMethod::Modp6144 => same(768),
        KeMethod::Modp8192 => same(1024),
        KeMethod::Ecp256 => (64, 64, 32),
        KeMethod::Ecp384 => (96, 96, 48),
        KeMethod::Ecp521 => (132, 132, 66),
        KeMethod::Curve25519 => same(32),
        KeMethod::MlKem512 => (800, 768, 32),
        KeMethod::MlKem768 => (1184, 1088, 32),
        KeMethod::MlKem1024 => (1568, 1568, 32),
    }
}

#[test]
fn both_roles_agree_in_every_method() {
    for method in KeMethod::ALL {
        let mut rng = Counting(7);
        let private = method.initiate(&mut rng).unwrap();
        let (public, secret) = method.respond(&mut rng, private.public()).unwrap();
        let actual = (private.public().len(), public.len(), secret.len());
        assert_eq!(actual, lengths(method), "{method:?}");
        assert_eq!(private.finish(&public).unwrap(), secret, "{method:?}");
        assert_eq!(KeMethod::from_number(method.number()), Some(method));
    }
}

/// Refused by both roles.
fn refused(method: KeMethod, to_responder: &[u8], to_initiator: &[u8]) {
    let error = Some(CryptoError::InvalidPublicValue);
    assert_eq!(method.respond(&mut Counting(7), to_responder).err(), error, "{method:?}");
    assert_eq!(method.initiate(&mut Counting(7)).unwrap().finish(to_initiator).err(), error, "{method:?}");
}

#[test]
fn values_of_another_length_are_refused() {
    for method in KeMethod::ALL {
        let (initiator, responder, _) = lengths(method);
        for change in [-1_isize, 1] {
            let value = |length: usize| vec![2; length.saturating_add_signed(change)];
            refused(method, &value(initiator), &value(responder));
        }
        refused(method, &[], &[]);
    }
}

#[test]
fn degenerate_modp_values_are_refused() {
    let groups = [KeMethod::Modp1024, KeMethod::Modp2048, KeMethod::Modp8192, KeMethod::Modp2048s256];
    for method in groups {
        let (length, ..) = lengths(method);
        let small = |value: u8| {
            let mut octets = vec![0; length];
            octets[length - 1] = value;
            octets
        };
        for value in [small(0), small(1), vec![0xff; length]] {
            refused(method, &value, &value);
        }
    }
    // RFC 3526: p ends in 64 ones, so p - 1 ends in ...fe; and p itself.
    for last in [0xfe, 0xff] {
        let mut p = hex(
            "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd\
             ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed\
             ee386bfb5a899fa5ae9f24117c4b1fe649286651ece65381ffffffffffffffff",
        );
        p[127] = last;
        refused(KeMethod::Modp1024, &p, &p);
    }
}

/// RFC 6989 section 2.2: 2 generates the whole group or half of it, never the small subgroup.
#[test]
fn values_outside_the_small_subgroup_are_refused() {
    for method in [KeMethod::Modp1024s160, KeMethod::Modp2048s224, KeMethod::Modp2048s256] {
        let (length, ..) = lengths(method);
        let mut two = vec![0; length];
        two[length - 1] = 2;
        refused(method, &two, &two);
    }
}

#[test]
fn points_off_the_curve_and_of_low_order_are_refused() {
    for method in [KeMethod::Ecp256, KeMethod::Ecp384, KeMethod::Ecp521] {
        let mut public = method.initiate(&mut Counting(1)).unwrap().public().to_vec();
        let last = public.len() - 1;
        public[last] ^= 1;
        refused(method, &public, &public);
        refused(method, &vec![0; last + 1], &vec![0; last + 1]);
    }
    let mut one = [0; 32];
    one[0] = 1;
    refused(KeMethod::Curve25519, &[0; 32], &one);
}

#[test]
fn an_encapsulation_key_with_unreduced_coefficients_is_refused() {
    for method in [KeMethod::MlKem512, KeMethod::MlKem768, KeMethod::MlKem1024] {
        let (length, ..) = lengths(method);
        let error = Some(CryptoError::InvalidPublicValue);
        assert_eq!(method.respond(&mut Counting(1), &vec![0xff; length]).err(), error, "{method:?}");
    }
}

/// FIPS 203 section 7.3: a wrong ciphertext gives another secret, not an error.
#[test]
fn a_changed_ciphertext_gives_another_secret() {
    let private = KeMethod::MlKem768.initiate(&mut Counting(1)).unwrap();
    let (mut ciphertext, secret) = KeMethod::MlKem768.respond(&mut Counting(1), private.public()).unwrap();
    ciphertext[0] ^= 1;
    assert_ne!(private.finish(&ciphertext).unwrap(), secret);
}
