//! IKE datagrams between the core, which owns the UDP sockets, and control, which speaks IKE.
//!
//! `punt.sock` is `SOCK_SEQPACKET`: one message is one packet, in postcard's format, without the
//! length of the stream frames. Control speaks first with [`ToPunt::Hello`]; another version, or a
//! message that does not decode, ends the connection. A newer connection takes the place of an
//! older one, after everything that the older one had sent is done.
//!
//! What control sends here before a frame on `tables.sock` is done before that frame.
//!
//! Both directions lose rather than wait, as UDP does: what does not fit into the socket's buffer
//! is dropped, and counted by the core.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{DecodeError, FRAME_HEADER_LEN, encode, op::StashValue};

/// Longest message on `punt.sock`, in bytes: a datagram and a stash value.
pub const MAX_PUNT_LEN: usize = 65_536 + crate::MAX_STASH_LEN + 256;

/// The UDP port on which every datagram is IKE (RFC 7296 section 2). On all others the non-ESP
/// marker tells IKE from ESP (RFC 3948 section 2.2).
pub const IKE_PORT: u16 = 500;

/// Four zero bytes where ESP has its SPI (RFC 3948 section 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// From control to the core.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToPunt {
    /// The first message of a connection.
    Hello {
        /// Control's [`crate::VERSION`].
        version: u32,
    },
    /// A datagram to be sent.
    Send(PuntOut),
}

/// A datagram for the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PuntOut {
    /// Names the socket that it leaves by.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// As on the wire: the non-ESP marker, where one belongs, included. Empty: only the stash is kept.
    #[serde(with = "crate::octets")]
    pub bytes: Vec<u8>,
    /// Stored before the datagram is sent. When it cannot be stored, nothing is sent.
    pub stash: Option<(u64, StashValue)>,
}

/// From the core to control.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromPunt {
    /// A datagram has come.
    Received(PuntIn),
}

/// An IKE datagram from the wire; nothing about it is authenticated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PuntIn {
    /// Address of the socket that it came to.
    pub local: SocketAddr,
    /// The sender's.
    pub remote: SocketAddr,
    /// The IKE message, without the non-ESP marker.
    #[serde(with = "crate::octets")]
    pub bytes: Vec<u8>,
}

/// One packet for `punt.sock`, in memory that is zeroized when dropped since a stash holds keys;
/// [`crate::decode`] reads it.
///
/// # Errors
/// [`DecodeError::TooLong`] above [`MAX_PUNT_LEN`].
pub fn encode_punt<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, DecodeError> {
    let mut packet = encode(message)?;
    let len = packet.len() - FRAME_HEADER_LEN;
    if len > MAX_PUNT_LEN {
        return Err(DecodeError::TooLong);
    }
    packet.copy_within(FRAME_HEADER_LEN.., 0);
    // The bytes that are cut off are a copy of the last ones.
    packet[len..].fill(0);
    packet.truncate(len);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    #[test]
    fn a_datagram_survives_the_socket() {
        let message = ToPunt::Send(PuntOut {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "[2001:db8::1]:4500".parse().unwrap(),
            bytes: vec![7; 300],
            stash: Some((9, StashValue(vec![1; 40]))),
        });
        let packet = encode_punt(&message).unwrap();
        assert_eq!(decode::<ToPunt>(&packet), Ok(message));
        for len in 0..packet.len() {
            assert!(decode::<ToPunt>(&packet[..len]).is_err());
        }
    }

    #[test]
    fn the_largest_datagram_with_the_largest_stash_fits_and_a_larger_one_is_refused() {
        let message = |stash: usize| {
            ToPunt::Send(PuntOut {
                local: "[2001:db8::2]:4500".parse().unwrap(),
                remote: "[2001:db8::1]:4500".parse().unwrap(),
                bytes: vec![7; 65_507],
                stash: Some((u64::MAX, StashValue(vec![1; stash]))),
            })
        };
        assert!(encode_punt(&message(crate::MAX_STASH_LEN)).unwrap().len() <= MAX_PUNT_LEN);
        assert_eq!(encode_punt(&message(crate::MAX_STASH_LEN + 1024)).err(), Some(DecodeError::TooLong));
    }
}
