//! The little DER that names and signatures need: writing, and reading one element at a time.

/// One element: tag, length, content.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let significant =
        length.iter().position(|octet| *octet != 0).map_or(&length[length.len() - 1..], |at| &length[at..]);
    match significant {
        [short] if *short < 0x80 => out.push(*short),
        long => {
            out.push(0x80 | long.len() as u8);
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
    out
}

/// Tag and content of the first element, and what follows it. Tags of more than one octet and indefinite
/// lengths are refused.
pub(super) fn read(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (octets.iter().fold(0, |length, octet| (length << 8) | usize::from(*octet)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The dotted form of an OID's content.
pub(super) fn oid_text(content: &[u8]) -> Option<String> {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc: u64 = 0;
    for octet in content {
        arc = arc.checked_mul(128)?.checked_add(u64::from(octet & 0x7f))?;
        if octet & 0x80 == 0 {
            arcs.push(arc);
            arc = 0;
        }
    }
    let (&first, rest) = arcs.split_first()?;
    let root = (first / 40).min(2);
    let texts: Vec<String> = [root, first - 40 * root].iter().chain(rest).map(u64::to_string).collect();
    Some(texts.join("."))
}

/// The content of a dotted OID.
pub(super) fn oid_content(text: &str) -> Option<Vec<u8>> {
    let arcs: Vec<u64> = text.split('.').map(|arc| arc.parse().ok()).collect::<Option<_>>()?;
    let (&[root, second], rest) = arcs.split_first_chunk::<2>()?;
    if root > 2 || (root < 2 && second >= 40) {
        return None;
    }
    let mut out = Vec::new();
    for arc in [root.checked_mul(40)?.checked_add(second)?].iter().chain(rest) {
        let groups = (64 - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group == 0 { 0 } else { 0x80 };
            out.push(((arc >> (7 * group)) & 0x7f) as u8 | more);
        }
    }
    Some(out)
}

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const OID: u8 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_every_length_read_back() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let mut der = element(SEQUENCE, &content);
            der.push(9);
            assert_eq!(read(&der), Some((SEQUENCE, content.as_slice(), [9].as_slice())));
        }
        assert_eq!(read(&[0x30, 0x80, 0, 0]), None);
        assert_eq!(read(&[0x30, 2, 0]), None);
        assert_eq!(read(&[0x30, 0x85, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn oids_read_back() {
        for text in ["2.5.4.3", "1.2.840.113549.1.9.1", "0.9.2342.19200300.100.1.25", "2.999.1"] {
            assert_eq!(oid_text(&oid_content(text).unwrap()).as_deref(), Some(text));
        }
        assert_eq!(oid_content("2.5.4.3").unwrap(), [0x55, 4, 3]);
        assert_eq!(oid_content("1.40"), None);
        assert_eq!(oid_content("1"), None);
    }
}
