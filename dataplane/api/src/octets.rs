//! Octets in one piece: serde takes a `Vec<u8>` one by one, and for every IKE message and its stash
//! value. What is written is the same.

use serde::{Deserializer, Serializer, de};

pub(crate) fn serialize<S: Serializer>(octets: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(octets)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Octets;

    impl de::Visitor<'_> for Octets {
        type Value = Vec<u8>;

        fn expecting(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            formatter.write_str("octets")
        }

        fn visit_bytes<E: de::Error>(self, octets: &[u8]) -> Result<Vec<u8>, E> {
            Ok(octets.to_vec())
        }
    }

    deserializer.deserialize_bytes(Octets)
}

#[cfg(test)]
mod tests {
    use crate::{FRAME_HEADER_LEN, StashValue, decode, encode};

    #[test]
    fn what_is_written_is_what_a_list_of_octets_is() {
        for length in [0, 1, 127, 128, 5000] {
            let octets: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let whole = encode(&StashValue(octets.clone())).unwrap();
            assert_eq!(*whole, *encode(&octets).unwrap());
            assert_eq!(decode::<StashValue>(&whole[FRAME_HEADER_LEN..]).unwrap().0, octets);
            assert!(length == 0 || decode::<StashValue>(&whole[FRAME_HEADER_LEN..whole.len() - 1]).is_err());
        }
    }
}
