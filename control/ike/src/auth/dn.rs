//! Distinguished names (to be filled).

/// Whether two DER names are equal.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a == b
}

/// A DER name as text.
pub fn to_text(der: &[u8]) -> String {
    let _ = der;
    todo!()
}

/// The DER of a name written as text.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let _ = text;
    todo!()
}
