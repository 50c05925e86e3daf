//! Frames on a stream socket: a 32-bit little-endian length, then the message in postcard's format.

use serde::{Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

/// Bytes before each message.
pub const FRAME_HEADER_LEN: usize = 4;
/// Longest message, in bytes: [`crate::MAX_OPS`] operations of usual size fit.
pub const MAX_FRAME_LEN: usize = 16 * 1024 * 1024;

/// Why bytes are no message. All of these end the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The length is above [`MAX_FRAME_LEN`].
    TooLong,
    /// The message does not parse, or leaves bytes over.
    Malformed,
}

/// A frame, header included, in memory that is zeroized when dropped since it may hold keys.
///
/// # Errors
/// [`DecodeError::TooLong`] when the message does not fit a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, DecodeError> {
    struct Counter(usize);
    impl postcard::ser_flavors::Flavor for Counter {
        type Output = usize;
        fn try_push(&mut self, _: u8) -> postcard::Result<()> {
            self.0 += 1;
            Ok(())
        }
        fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
            self.0 += data.len();
            Ok(())
        }
        fn finalize(self) -> postcard::Result<usize> {
            Ok(self.0)
        }
    }
    // Sized first: a growing vector would leave copies of keys in freed memory.
    let len = postcard::serialize_with_flavor(message, Counter(0)).map_err(|_| DecodeError::Malformed)?;
    if len > MAX_FRAME_LEN {
        return Err(DecodeError::TooLong);
    }
    let mut frame = Zeroizing::new(vec![0; FRAME_HEADER_LEN + len]);
    frame[..FRAME_HEADER_LEN].copy_from_slice(&(len as u32).to_le_bytes());
    if postcard::to_slice(message, &mut frame[FRAME_HEADER_LEN..]).is_err() {
        frame.zeroize();
        return Err(DecodeError::Malformed);
    }
    Ok(frame)
}

/// Length of the message that a frame's header announces, in bytes.
///
/// # Errors
/// [`DecodeError::TooLong`].
pub fn frame_len(header: [u8; FRAME_HEADER_LEN]) -> Result<usize, DecodeError> {
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_FRAME_LEN { Err(DecodeError::TooLong) } else { Ok(len) }
}

/// The message in a frame without its header.
///
/// # Errors
/// [`DecodeError::Malformed`].
pub fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(message) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(DecodeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BootId, Direction, Epoch, Op, Sa, SaId, SecretKey, Selectors, Spi, StashValue, Suite, ToCore,
        Transaction, TunnelId,
        launcher::{FromClient, KernelPlan, PlannedRoute, PlannedSocket, ToControl, ToCoreProcess},
        punt::{FromPunt, PuntOut, ToPunt},
    };

    fn transaction() -> ToCore {
        ToCore::Apply(Transaction {
            epoch: Epoch(7),
            ops: vec![
                Op::Mask(TunnelId(3)),
                Op::PutSa(Sa {
                    id: SaId(1),
                    boot: BootId([9; 16]),
                    tunnel: TunnelId(3),
                    direction: Direction::Out,
                    spi: Spi(0x1001),
                    suite: Suite::Aes128Gcm16,
                    key: SecretKey::new(vec![0xAB; 20]),
                    esn: true,
                    replay_window: 2048,
                    selectors: Selectors::default(),
                }),
            ],
        })
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let frame = encode(&transaction()).unwrap();
        let (header, body) = frame.split_at(FRAME_HEADER_LEN);
        assert_eq!(frame_len(header.try_into().unwrap()), Ok(body.len()));
        let ToCore::Apply(back) = decode(body).unwrap() else { panic!("another message") };
        assert_eq!(back.epoch, Epoch(7));
        let Op::PutSa(sa) = &back.ops[1] else { panic!("another operation") };
        assert_eq!(sa.key.expose(), [0xAB; 20]);
    }

    #[test]
    fn truncated_and_overlong_messages_are_refused() {
        let frame = encode(&transaction()).unwrap();
        let body = &frame[FRAME_HEADER_LEN..];
        for len in 0..body.len() {
            assert_eq!(decode::<ToCore>(&body[..len]).err(), Some(DecodeError::Malformed));
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(decode::<ToCore>(&longer).err(), Some(DecodeError::Malformed));
        assert_eq!(frame_len((MAX_FRAME_LEN as u32 + 1).to_le_bytes()), Err(DecodeError::TooLong));
    }

    /// What is read of any of our sockets, by all that reads one.
    fn read_as_anything(bytes: &[u8]) {
        let _ = decode::<ToCore>(bytes);
        let _ = decode::<crate::FromCore>(bytes);
        let _ = decode::<FromClient>(bytes);
        let _ = decode::<ToControl>(bytes);
        let _ = decode::<ToCoreProcess>(bytes);
        let _ = decode::<KernelPlan>(bytes);
        let _ = decode::<ToPunt>(bytes);
        let _ = decode::<FromPunt>(bytes);
    }

    fn messages() -> [Vec<u8>; 4] {
        let ends = ["192.0.2.1:4500", "[2001:db8::1]:4500"].map(|end| end.parse().unwrap());
        let [local, remote] = ends;
        let source = Some("10.1.0.1".parse().unwrap());
        let plan = KernelPlan {
            device: "braid0".to_owned(),
            addresses: vec!["169.254.10.2/30".parse().unwrap()],
            routes: vec![PlannedRoute { prefix: "10.2.0.0/16".parse().unwrap(), source }],
            protect: vec!["fd00::/8".parse().unwrap()],
            udp: vec![PlannedSocket { local, uplink: Some("eth1".to_owned()), wireguard: false }],
            peers: vec![remote.ip()],
            ..KernelPlan::default()
        };
        let stash = Some((9, StashValue(vec![1; 40])));
        [
            encode(&transaction()).unwrap().to_vec(),
            encode(&FromClient::Plan(plan)).unwrap().to_vec(),
            encode(&ToPunt::Send(PuntOut { local, remote, bytes: vec![7; 60], stash })).unwrap().to_vec(),
            encode(&ToControl::Failed { message: "no".to_owned() }).unwrap().to_vec(),
        ]
    }

    #[test]
    fn keys_are_not_printed() {
        let text = format!("{:?}", transaction());
        assert!(text.contains("SecretKey(20 bytes)"), "{text}");
        assert!(!text.contains("171"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            read_as_anything(&bytes);
        }

        /// As the last one, with bytes that begin as a message does.
        #[test]
        fn no_message_with_wrong_bytes_panics(
            which in 0_usize..4,
            wrong in proptest::collection::vec((0_usize..400, proptest::prelude::any::<u8>()), 1..6),
            cut in 0_usize..400,
        ) {
            let mut bytes = messages()[which][FRAME_HEADER_LEN..].to_vec();
            for (at, value) in wrong {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            read_as_anything(&bytes);
            read_as_anything(&bytes[..cut % (bytes.len() + 1)]);
        }
    }
}
