//! Distinguished names: text of the configuration, DER on the wire (ID_DER_ASN1_DN, RFC 7296 section 3.5).
//!
//! Text is written in the DER's order, "C=DE, O=Example, CN=gw.example.org", as strongSwan prints it. Commas,
//! plus signs and backslashes inside a value are escaped by a backslash. Values compare without regard to
//! case, runs of spaces and string type (RFC 5280 section 7.1, without Unicode normalization).

use super::der::{OID, SEQUENCE, SET, element, oid_content, oid_text, read};

struct Attribute {
    oid: Vec<u8>,
    tag: u8,
    value: Vec<u8>,
}

/// Relative distinguished names in order, each a set of attributes; `None` if the DER is not a name.
fn parse(der: &[u8]) -> Option<Vec<Vec<Attribute>>> {
    let (SEQUENCE, mut rest, []) = read(der)? else { return None };
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (SET, mut set, after) = read(rest)? else { return None };
        rest = after;
        let mut attributes = Vec::new();
        while !set.is_empty() {
            let (SEQUENCE, pair, after) = read(set)? else { return None };
            set = after;
            let (OID, oid, value) = read(pair)? else { return None };
            let (tag, value, []) = read(value)? else { return None };
            attributes.push(Attribute { oid: oid.to_vec(), tag, value: value.to_vec() });
        }
        names.push(attributes);
    }
    Some(names)
}

impl Attribute {
    fn text(&self) -> Option<String> {
        match self.tag {
            UTF8_STRING | PRINTABLE_STRING | IA5_STRING => String::from_utf8(self.value.clone()).ok(),
            // A TeletexString is read as Latin-1, as everybody does.
            TELETEX_STRING => Some(self.value.iter().map(|octet| char::from(*octet)).collect()),
            BMP_STRING => {
                let (pairs, rest) = self.value.as_chunks::<2>();
                let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
                String::from_utf16(&units).ok().filter(|_| rest.is_empty())
            }
            _ => None,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        if self.oid != other.oid {
            return false;
        }
        match (self.text(), other.text()) {
            (Some(a), Some(b)) => fold(&a) == fold(&b),
            _ => self.tag == other.tag && self.value == other.value,
        }
    }
}

fn fold(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ")
}

/// Whether two DER names are equal. What is no name equals nothing but itself.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    let (Some(a), Some(b)) = (parse(a), parse(b)) else { return a == b };
    a.len() == b.len()
        && a.iter()
            .zip(&b)
            .all(|(a, b)| a.len() == b.len() && a.iter().all(|left| b.iter().any(|right| left.equals(right))))
}

/// A DER name as text; what is no name as hexadecimal.
pub fn to_text(der: &[u8]) -> String {
    let hex = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let Some(names) = parse(der) else { return format!("#{}", hex(der)) };
    let attribute = |it: &Attribute| {
        let oid = oid_text(&it.oid).unwrap_or_else(|| hex(&it.oid));
        let name = NAMES.iter().find(|(_, known)| *known == oid).map_or(oid.as_str(), |(name, _)| name);
        let value = it.text().map_or_else(|| format!("#{}", hex(&it.value)), |text| escape(&text));
        format!("{name}={value}")
    };
    let names: Vec<String> =
        names.iter().map(|set| set.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    names.join(", ")
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if matches!(character, ',' | '+' | '\\') {
            out.push('\\');
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// The DER of a name written as text; `None` if it is not one.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for set in split(text, ',') {
        let mut attributes = Vec::new();
        for pair in split(&set, '+') {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (name.trim(), unescape(value.trim())?);
            let dotted =
                NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, oid)| *oid);
            let oid = oid_content(dotted.unwrap_or(name))?;
            // RFC 5280 section 4.1.2.4 and appendix A: country and serial number are printable strings,
            // e-mail and domain components are ASCII, the rest is UTF-8.
            let tag = match dotted {
                Some(OID_COUNTRY | OID_SERIAL) => PRINTABLE_STRING,
                Some(OID_EMAIL | OID_DOMAIN) => IA5_STRING,
                _ => UTF8_STRING,
            };
            if value.is_empty() {
                return None;
            }
            let content = [element(OID, &oid), element(tag, value.as_bytes())].concat();
            attributes.push(element(SEQUENCE, &content));
        }
        // DER sorts the members of a set.
        attributes.sort();
        names.push(element(SET, &attributes.concat()));
    }
    Some(element(SEQUENCE, &names.concat()))
}

/// Splits at a separator that no backslash precedes; escapes stay in.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        if character == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = character == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(character);
        }
    }
    parts
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        out.push(if character == '\\' { characters.next()? } else { character });
    }
    Some(out)
}

const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;

const OID_COUNTRY: &str = "2.5.4.6";
const OID_SERIAL: &str = "2.5.4.5";
const OID_EMAIL: &str = "1.2.840.113549.1.9.1";
const OID_DOMAIN: &str = "0.9.2342.19200300.100.1.25";

/// The short names that strongSwan and OpenSSL use.
const NAMES: [(&str, &str); 17] = [
    ("CN", "2.5.4.3"),
    ("SN", "2.5.4.4"),
    ("serialNumber", OID_SERIAL),
    ("C", OID_COUNTRY),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("street", "2.5.4.9"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("T", "2.5.4.12"),
    ("G", "2.5.4.42"),
    ("I", "2.5.4.43"),
    ("dnQualifier", "2.5.4.46"),
    ("E", OID_EMAIL),
    ("emailAddress", OID_EMAIL),
    ("DC", OID_DOMAIN),
    ("UID", "0.9.2342.19200300.100.1.1"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back() {
        for text in [
            "C=DE, O=Example, CN=gw.example.org",
            "DC=org, DC=example, UID=7",
            "O=Smith\\, Jones \\+ Co\\\\, CN=a",
            "CN=a+OU=b",
            "E=vpn@example.org",
            "1.3.6.1.4.1.99999.1=own",
        ] {
            let der = from_text(text).unwrap();
            assert_eq!(from_text(&to_text(&der)), Some(der));
        }
        assert_eq!(to_text(&from_text("c=DE,o=Example , cn=gw").unwrap()), "C=DE, O=Example, CN=gw");
    }

    #[test]
    fn the_der_is_what_openssl_writes() {
        // openssl req -subj "/C=DE/CN=gw" with utf8only, as `openssl asn1parse` shows it.
        let expected = [
            0x30, 0x1a, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, b'D', b'E', 0x31,
            0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x02, b'g', b'w',
        ];
        assert_eq!(from_text("C=DE, CN=gw").unwrap(), expected);
    }

    #[test]
    fn comparison_folds_case_spaces_and_string_type() {
        let name = |text: &str| from_text(text).unwrap();
        assert!(equal(&name("C=DE, O=Example  Org"), &name("C=de, O=example org")));
        assert!(!equal(&name("C=DE, O=Example"), &name("O=Example, C=DE")));
        assert!(!equal(&name("C=DE, O=Example"), &name("C=DE")));
        assert!(!equal(&name("CN=a"), &name("OU=a")));
        let mut printable = name("CN=gw");
        let tag = printable.iter().position(|octet| *octet == UTF8_STRING).unwrap();
        printable[tag] = PRINTABLE_STRING;
        assert!(equal(&printable, &name("CN=gw")));
        assert!(equal(&[1], &[1]));
        assert!(!equal(&[1], &name("CN=gw")));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "CN", "CN=", "XX=1", "C=DE,,CN=a", "CN=a\\"] {
            assert_eq!(from_text(text), None, "{text}");
        }
        assert_eq!(to_text(&[0xff]), "#ff");
    }
}
