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
        BootId, Direction, Epoch, Op, Sa, SaId, SecretKey, Selectors, Spi, Suite, ToCore, Transaction,
        TunnelId,
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

    #[test]
    fn keys_are_not_printed() {
        let text = format!("{:?}", transaction());
        assert!(text.contains("SecretKey(20 bytes)"), "{text}");
        assert!(!text.contains("171"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = decode::<ToCore>(&bytes);
            let _ = decode::<crate::FromCore>(&bytes);
        }
    }
}
