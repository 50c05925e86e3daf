//! Octets that are wiped when dropped, never printed, and compared in constant time.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret octets: zeroized on drop, `Debug` shows only their number.
///
/// Deliberately not `Clone`: a copy is made by [`SecretBytes::duplicate`], so that it can be searched for.
#[derive(Default)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }

    /// The octets themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in octets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no octets.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A second copy, wiped on its own.
    pub fn duplicate(&self) -> Self {
        Self::from_slice(&self.0)
    }

    /// Hands the octets out, to be moved into another zeroizing type.
    pub fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} octets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_octet() {
        assert_eq!(format!("{:?}", SecretBytes::from_slice(&[0xab, 0xcd])), "SecretBytes(2 octets)");
    }

    #[test]
    fn equality_is_by_content() {
        assert_eq!(SecretBytes::from_slice(b"k"), SecretBytes::from_slice(b"k"));
        assert_ne!(SecretBytes::from_slice(b"k"), SecretBytes::from_slice(b"kk"));
    }
}
