//! Published packets and test cases. Their IVs are not ours, so these tests reach below the public interface.

use braid_api::Suite;

use super::cbc::Mac;
use super::engine::{Aead, Engine};
use super::suite::{AeadCipher, MacHash};
use super::{Layout, OpenError, Opened, Opener, Sealer, write_trailer};

const ENGINES: [Engine; 2] = [Engine::Ring, Engine::AwsLc];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    assert_eq!(digits.len() % 2, 0);
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// One published ESP packet. `text` is the payload with its trailer, `packet` runs from SPI to ICV.
struct Published {
    suite: Suite,
    key: &'static str,
    seq: u64,
    esn: bool,
    text: &'static str,
    packet: &'static str,
}

impl Published {
    fn run(&self) {
        let key = hex(self.key);
        let text = hex(self.text);
        let packet = hex(self.packet);
        let layout = Layout::of(self.suite);
        let [.., pad, next_header] = text[..] else { panic!("no trailer") };
        let payload = text.len() - 2 - usize::from(pad);
        for engine in ENGINES {
            let opener = Opener::new(self.suite, &key, self.esn, engine).unwrap();
            let expected =
                Opened { start: layout.header_len(), end: layout.header_len() + payload, next_header };
            let mut opened = packet.clone();
            assert_eq!(opener.open(&mut opened, self.seq), Ok(expected));
            assert_eq!(opened[layout.header_len()..][..text.len()], text);

            let sealer = Sealer::new(self.suite, &key, self.esn, &[0; 16], engine).unwrap();
            let mut sealed = vec![0; packet.len()];
            sealed[..4].copy_from_slice(&packet[..4]);
            sealed[layout.header_len()..][..text.len()].copy_from_slice(&text);
            let iv = &packet[8..layout.header_len()];
            sealer.seal_with_iv(&mut sealed, self.seq, iv);
            assert_eq!(sealed, packet);

            if self.esn {
                let mut other = packet.clone();
                let wrong = self.seq ^ 1 << 32;
                assert_eq!(opener.open(&mut other, wrong), Err(OpenError::BadIcv));
            }
        }
    }
}

/// draft-mcgrew-gcm-test-01 section 2; its one case with a 192-bit key is left out.
#[test]
fn gcm_packets() {
    const CASES: [Published; 13] = [
        Published {
            suite: Suite::Aes128Gcm16,
            key: "4c80cdefbb5d10da906ac73c3613a634 2e443b68",
            seq: 0x8765_4321_0000_0000,
            esn: true,
            text: "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
                   00000000045f736970045f756470037369700963796265726369747902646b00
                   0021000101020201",
            packet: "00004321000000004956ed7e3b244cfefecf537e729d5b07dc30df528dd22b76
                     8d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d
                     15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732459018148f6cbe72
                     2fd04796562dfdb4",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "feffe9928665731c6d6a8f9467308308 cafebabe",
            seq: 0x0a,
            esn: false,
            text: "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d00100
                   0001000000000000037369700963796265726369747902646b00000100010001",
            packet: "0000a5f80000000afacedbaddecaf888deb22cd9b07c72c16e3a65beeb8df304
                     a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642
                     cfbb85a5b47e48a4ec3b9ba95d918bd183b70d3aa8bc6ee4c309e9d85a41ad4a",
        },
        Published {
            suite: Suite::Aes256Gcm16,
            key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab 11223344",
            seq: 0x02,
            esn: false,
            text: "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee000000000
                   7002400020bf0000020405b40101040201020201",
            packet: "4a2cbfe3000000020102030405060708ff425c9b724599df7a3bcd510194e00d
                     6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99d
                     ef842d8eb335f4eecfdbf831824b4c4915956c96",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "00000000000000000000000000000000 00000000",
            seq: 0x01,
            esn: false,
            text: "4500003c99c500008001cb7a40679318010101010800075c0200440061626364
                   65666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
            packet: "000000000000000100000000000000004688daf2f973a392732909c331d56d60
                     f694abaa414b5e7ff5fdcdfff5e9a284456476492719ffb64de7d9dca1e1d894
                     bc3bd57873ed4d181d19d4d5c8c18af3f821d496eeb096e98ad2b69e4799c71d",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "3de09874b388e6491988d0c3607eae1f 57690e43",
            seq: 0x1010_1010_1010_1010,
            esn: true,
            text: "4500003c99c300008001cb7c40679318010101010800085c0200430061626364
                   65666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
            packet: "42f67e3f101010104e280000a2fca1a3fba2caa4853cf9f0f22cb10d86dd83b0
                     fec75691cf1a04b00d1138ec9c35791765acbd8701ad79845bf9fe3fba487bc9
                     1755e6662b4c8d0d1f5e22739530320ae0d731cc978ecafaeae88f00e80d6e48",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "3de09874b388e6491988d0c3607eae1f 57690e43",
            seq: 0x1010_1010_1010_1010,
            esn: true,
            text: "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
            packet: "42f67e3f101010104e280000a2fca1a3fba2ca845e5df9f0f22c3e6e86dd831e
                     1fc65792cd1af9130e1379ed369f071f35e034be95f112e4e7d05d35",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "abbccddef00112233445566778899aab decaf888",
            seq: 0x01,
            esn: true,
            text: "4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d5
                   00004e20001e8c18d75b81dc91baa0476b91b924b280389d92c963bac046ec95
                   9b6266c04722b14923010101",
            packet: "0000010000000001cafedebaceface7418a6fd42f72cbf4ab2a2ea901f73d814
                     e3e7f243d95412e1c349c1d2fbec168f9190feebaf2cb01984e65863965d7472
                     b79da345e0e780191f0d2f0e0f496c226f2127b27db35724e7845d68651f57e6
                     5f354f75ff17015769623436",
        },
        Published {
            suite: Suite::Aes256Gcm16,
            key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab 73616c74",
            seq: 0x156f_3126_dd0d_b99b,
            esn: true,
            text: "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb712602
                   50101f646d540001",
            packet: "17405e67dd0db99b616e640169766563f2d69ecdbd5a0d5b8d5ef38bad4da58d
                     1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e451626c2415771e3
                     b7eebca614c89b35",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "3de09874b388e6491988d0c3607eae1f 57690e43",
            seq: 0x1010_1010_1010_1010,
            esn: true,
            text: "45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b
                   000001e0001e8c18d65759d52284a0352c71475c8880391c764d6e5ee0496b32
                   5ae270c03899493915010101",
            packet: "42f67e3f101010104e280000a2fca1a3fba2cad12fc1f9f00d3cebf305410db8
                     3d7784b607323d220f24b0a97d54182800cadb0f68d99ef0e0c0c89ae9bea888
                     4e52d65bc1afd0740f742444747b5b39ab533163aad4550ee5160975cdb608c5
                     769189609763b8e18caa81e2",
        },
        Published {
            suite: Suite::Aes256Gcm16,
            key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab 73616c74",
            seq: 0x156f_3126_dd0d_b99b,
            esn: true,
            text: "636973636f0172756c657301746865016e6574776501646566696e6501746865
                   746563686e6f6c6f67696573017468617477696c6c01646566696e65746f6d6f
                   72726f7701020201",
            packet: "17405e67dd0db99b616e640169766563d4b7ed86a1777f2ea13d6973d324c69e
                     7b43f826fb56831226508bebd2dceb18d0a6df10e5487df074113e14c641024e
                     3e6773d91a62ee429b043a10e3efe6b012a49363412364f8c0cac587f249e56b
                     11e24f30e44ccc76",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "7d773d00c144c525ac619d18c84a3f47 d9664267",
            seq: 0xffff_ffff,
            esn: false,
            text: "01020201",
            packet: "335467aeffffffff43457e9182443bc6437f866bcb3f699fe9b0822bac961c45
                     04bef270",
        },
        Published {
            suite: Suite::Aes128Gcm16,
            key: "abbccddef00112233445566778899aab decaf888",
            seq: 0x01,
            esn: true,
            text: "746f016265016f72016e6f7401746f0162650001",
            packet: "0000010000000001cafedebaceface7429c9fc69a197d038ccdd14e2ddfcaa05
                     43332164412503524303ed3c6c5f283843af8c3e",
        },
        Published {
            suite: Suite::Aes256Gcm16,
            key: "6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961 7475726e",
            seq: 0xffff_ffff_ffff_ffff,
            esn: true,
            text: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364
                   65666768696a6b6c6d6e6f707172737401020201",
            packet: "796b6963ffffffff333021696765746df97ab2aa356d8edce17644ac8c78e25d
                     d24dedbb29ebf1b64a274b39b49c3a864cd3d78ca4ae68a32b42458fb57dbe82
                     1dcc63b9d0937ba2945f669368661a329fb4c053",
        },
    ];
    for case in &CASES {
        case.run();
    }
}

/// RFC 7634 appendix A.
#[test]
fn chacha20_poly1305_packet() {
    Published {
        suite: Suite::ChaCha20Poly1305,
        key: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f a0a1a2a3",
        seq: 5,
        esn: false,
        text: "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
               0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
               2425262728292a2b2c2d2e2f303132333435363701020204",
        packet: "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b
                 67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7
                 2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da
                 9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43",
    }
    .run();
}

/// RFC 3602 section 4, cases 5 to 8: key, payload, pad length, next header, packet without ICV. The RFC has no
/// integrity; the ICV is checked to be a HMAC of that very packet.
#[test]
fn cbc_packets() {
    let cases = [
        (
            "90d382b410eeba7ad938c46cec1a82bf",
            "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f1011121314151617
             18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637",
            14,
            1,
            "0000432100000001e96e8c08ab465763fd098d45dd3ff893f663c25d325c18c6
             a9453e194e120849a4870b66cc6b9965330013b4898dc856a4699e523a55db08
             0b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874aa269add047ad2d59
             13ac19b7cfbad4a6",
        ),
        (
            "90d382b410eeba7ad938c46cec1a82bf",
            "0800b5e8a80a0500a69c083d0b660e00777777777777777777777777",
            2,
            1,
            "000043210000000869d08df7d203329db093fc4924e5bd80f51995881ec4e0c4
             488987ce742e8109689bb379d2d750c0d915dca346a89f75",
        ),
        (
            "0123456789abcdef0123456789abcdef",
            "45000054090400004001f988c0a87b03c0a87bc808009f76a90a0100b49c083d
             02a2040008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
             2425262728292a2b2c2d2e2f3031323334353637",
            10,
            4,
            "0000876500000002f4e765244f6407adf13dc1380f673f37773b5241a4c44922
             5e4f3ce5ed611b0c237ca96cf74a93013c1b0ea1a0cf70f8e4ecaec78ac53aad
             7a0f022b859243c647752e94a859352b8a4d4d2decd136e5c177f132ad3fbfb2
             201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d",
        ),
        (
            "0123456789abcdef0123456789abcdef",
            "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083d
             a3de0300ffffffffffffffffffffffffffffffffffffffffffffffffffffffff
             ffffffff",
            10,
            4,
            "000087650000000585d47224b5f3dd5d2101d4ea8dffab2215b92683819596a8
             047232cc00f7048fe45318e11f8a0f62ede3c3fc61203bb50f980a08c9843fd3
             a1b06d5c07ff9639b7eb7dfb3512e5de435e7207ed971ef3d2726d9b5ef6affc
             6d17a0decbb13892",
        ),
    ];
    for (key, payload, pad, next_header, packet) in cases {
        let (payload, packet) = (hex(payload), hex(packet));
        for (suite, hash) in [
            (Suite::Aes128CbcSha1, MacHash::Sha1),
            (Suite::Aes128CbcSha256, MacHash::Sha256),
            (Suite::Aes128CbcSha384, MacHash::Sha384),
            (Suite::Aes128CbcSha512, MacHash::Sha512),
        ] {
            for esn in [false, true] {
                let integrity = vec![0xa5; suite.integrity_key_len()];
                let key = [hex(key), integrity.clone()].concat();
                let layout = Layout::of(suite);
                assert_eq!(layout.pad_len(payload.len()), pad);
                assert_eq!(layout.sealed_len(payload.len()), packet.len() + layout.icv_len);

                let sealer = Sealer::new(suite, &key, esn, &[7; 16], Engine::Ring).unwrap();
                let low = u32::from_be_bytes(packet[4..8].try_into().unwrap());
                let seq = u64::from(esn) * (3 << 32) + u64::from(low);
                let mut esp = vec![0; packet.len() + layout.icv_len];
                esp[..4].copy_from_slice(&packet[..4]);
                let (body, end) = esp[layout.header_len()..].split_at_mut(payload.len());
                body.copy_from_slice(&payload);
                write_trailer(end, pad, next_header);
                sealer.seal_with_iv(&mut esp, seq, &packet[8..24]);
                assert_eq!(esp[..packet.len()], packet);

                // RFC 4303 section 2.2.1: the high half stands behind the packet.
                let mut covered = packet.clone();
                if esn {
                    covered.extend([0, 0, 0, 3]);
                }
                let mac = Mac::new(hash, &integrity).tag(&covered, None);
                assert_eq!(esp[packet.len()..], mac.as_ref()[..layout.icv_len]);

                let opener = Opener::new(suite, &key, esn, Engine::Ring).unwrap();
                let opened = opener.open(&mut esp, seq).unwrap();
                assert_eq!(opened.next_header, next_header);
                assert_eq!(esp[opened.range()], payload);
            }
        }
    }
}

/// RFC 2202 section 3, RFC 4231 section 4 and RFC 4868 section 2.7.2; the truncated ones as published.
#[test]
fn hmacs() {
    let cases: [(MacHash, &[u8], &[u8], &str); 13] = [
        (MacHash::Sha1, &[0x0b; 20], b"Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
        (MacHash::Sha1, b"Jefe", b"what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        (MacHash::Sha1, &[0x0c; 20], b"Test With Truncation", "4c1a03424b55e07fe7f27be1"),
        (
            MacHash::Sha1,
            &[0xaa; 80],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "aa4ae5e15272d00e95705637ce8a3b55ed402112",
        ),
        (
            MacHash::Sha256,
            &[0x0b; 20],
            b"Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            MacHash::Sha384,
            &[0x0b; 20],
            b"Hi There",
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c
             faea9ea9076ede7f4af152e8b2fa9cb6",
        ),
        (
            MacHash::Sha512,
            &[0x0b; 20],
            b"Hi There",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde
             daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        ),
        (MacHash::Sha256, &[0x0c; 20], b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
        (MacHash::Sha384, &[0x0c; 20], b"Test With Truncation", "3abf34c3503b2a23a46efc619baef897"),
        (MacHash::Sha512, &[0x0c; 20], b"Test With Truncation", "415fad6271580a531d4179bc891d87a6"),
        (MacHash::Sha256, &[0x0b; 32], b"Hi There", "198a607eb44bfbc69903a0f1cf2bbdc5"),
        (MacHash::Sha384, &[0x0b; 48], b"Hi There", "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"),
        (
            MacHash::Sha512,
            &[0x0b; 64],
            b"Hi There",
            "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8",
        ),
    ];
    for (hash, key, message, published) in cases {
        let published = hex(published);
        let tag = Mac::new(hash, key).tag(message, None);
        assert_eq!(tag.as_ref()[..published.len()], published, "{hash:?}");
    }
}

/// The GCM specification's test cases 4 and 16, and RFC 8439 section 2.8.2.
#[test]
fn bare_aeads() {
    let sunscreen = "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
         sunscreen would be it.";
    let gcm_text = hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
    let gcm_aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let cases = [
        (
            AeadCipher::Aes128Gcm,
            "feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            gcm_aad.clone(),
            gcm_text.clone(),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        ),
        (
            AeadCipher::Aes256Gcm,
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            gcm_aad,
            gcm_text,
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
        (
            AeadCipher::ChaCha20Poly1305,
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            "070000004041424344454647",
            hex("50515253c0c1c2c3c4c5c6c7"),
            sunscreen.as_bytes().to_vec(),
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
             3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
             92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
             3ff4def08e4b7a9de576d26586cec64b6116",
            "1ae10b594f09e26a7e902ecbd0600691",
        ),
    ];
    for (cipher, key, nonce, aad, text, sealed, tag) in cases {
        let nonce: [u8; 12] = hex(nonce).try_into().unwrap();
        for engine in ENGINES {
            let aead = Aead::new(cipher, &hex(key), engine).unwrap();
            let mut buffer = text.clone();
            let mut computed = [0; 16];
            aead.seal(nonce, &aad, &mut buffer, &mut computed);
            assert_eq!((&buffer, computed.to_vec()), (&hex(sealed), hex(tag)));
            aead.open(nonce, &aad, &mut buffer, &computed).unwrap();
            assert_eq!(buffer, text);
        }
    }
}
