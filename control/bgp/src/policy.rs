//! Which prefixes may pass: lists of rules as `"10.0.0.0/8 ge 16 le 24"`.

use std::{error::Error, fmt, str::FromStr};

use ipnet::IpNet;

/// Prefixes within a network, of certain lengths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixMatch {
    net: IpNet,
    ge: u8,
    le: u8,
}

impl PrefixMatch {
    /// The network alone.
    pub fn exactly(net: IpNet) -> Self {
        PrefixMatch { net: net.trunc(), ge: net.prefix_len(), le: net.prefix_len() }
    }

    /// The network and all within it.
    pub fn within(net: IpNet) -> Self {
        PrefixMatch { net: net.trunc(), ge: net.prefix_len(), le: net.max_prefix_len() }
    }

    /// Whether the prefix is one of them.
    pub fn matches(&self, prefix: &IpNet) -> bool {
        (self.ge..=self.le).contains(&prefix.prefix_len()) && self.net.contains(prefix)
    }
}

impl fmt::Display for PrefixMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        if self.ge > self.net.prefix_len() {
            write!(f, " ge {}", self.ge)?;
        }
        if self.le > self.ge || self.ge > self.net.prefix_len() {
            write!(f, " le {}", self.le)?;
        }
        Ok(())
    }
}

/// Why a rule cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ParseError {
    /// Not a prefix.
    Prefix(String),
    /// A word other than `ge` and `le`, or one of them twice or without number.
    Word(String),
    /// Lengths that no prefix of the network has.
    Lengths {
        /// The shortest.
        ge: u8,
        /// The longest.
        le: u8,
    },
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::Prefix(word) => write!(f, "`{word}` is not a prefix"),
            ParseError::Word(word) => write!(f, "`{word}` is not `ge` or `le` with a length"),
            ParseError::Lengths { ge, le } => {
                write!(f, "no prefix within is at least /{ge} and at most /{le}")
            }
        }
    }
}

impl Error for ParseError {}

impl FromStr for PrefixMatch {
    type Err = ParseError;

    /// `PREFIX [ge LENGTH] [le LENGTH]`; `ge` alone reaches to the longest prefix, `le` alone begins at the
    /// network's own length.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut words = text.split_whitespace();
        let first = words.next().unwrap_or("");
        let net: IpNet = first.parse().map_err(|_| ParseError::Prefix(first.to_string()))?;
        let (mut ge, mut le) = (None, None);
        while let Some(word) = words.next() {
            let bound = match word {
                "ge" => &mut ge,
                "le" => &mut le,
                _ => return Err(ParseError::Word(word.to_string())),
            };
            let length = words.next().and_then(|length| length.parse().ok());
            if bound.is_some() || length.is_none() {
                return Err(ParseError::Word(word.to_string()));
            }
            *bound = length;
        }
        let own = net.prefix_len();
        let longest = if ge.is_some() { net.max_prefix_len() } else { own };
        let (ge, le) = (ge.unwrap_or(own), le.unwrap_or(longest));
        if ge < own || le < ge || le > net.max_prefix_len() {
            return Err(ParseError::Lengths { ge, le });
        }
        Ok(PrefixMatch { net: net.trunc(), ge, le })
    }
}

/// Rules in order, of which the first that matches decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixFilter {
    rules: Vec<(PrefixMatch, bool)>,
    otherwise: bool,
}

impl PrefixFilter {
    /// Everything passes.
    pub fn all() -> Self {
        PrefixFilter { rules: Vec::new(), otherwise: true }
    }

    /// Only these pass.
    pub fn only(matches: impl IntoIterator<Item = PrefixMatch>) -> Self {
        PrefixFilter { rules: matches.into_iter().map(|rule| (rule, true)).collect(), otherwise: false }
    }

    /// The same, but never these.
    pub fn except(mut self, matches: impl IntoIterator<Item = PrefixMatch>) -> Self {
        let denied = matches.into_iter().map(|rule| (rule, false));
        self.rules.splice(0..0, denied);
        self
    }

    /// Whether the prefix passes.
    pub fn permits(&self, prefix: &IpNet) -> bool {
        let first = self.rules.iter().find(|(rule, _)| rule.matches(prefix));
        first.map_or(self.otherwise, |(_, permit)| *permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn rules_match_networks_and_lengths() {
        let cases = [
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.1.0.0/16", false),
            ("10.0.0.0/8 le 24", "10.0.0.0/8", true),
            ("10.0.0.0/8 le 24", "10.1.2.0/24", true),
            ("10.0.0.0/8 le 24", "10.1.2.0/25", false),
            ("10.0.0.0/8 le 24", "11.0.0.0/16", false),
            ("10.0.0.0/8 le 24", "0.0.0.0/0", false),
            ("10.0.0.0/8 ge 16", "10.0.0.0/8", false),
            ("10.0.0.0/8 ge 16", "10.1.2.3/32", true),
            ("10.0.0.0/8 ge 16 le 20", "10.16.0.0/20", true),
            ("10.0.0.0/8 le 20 ge 16", "10.16.0.0/21", false),
            ("0.0.0.0/0 le 32", "192.0.2.0/24", true),
            ("0.0.0.0/0 le 32", "fd00::/8", false),
            ("fd00::/8 le 64", "fd00:1::/64", true),
            // Host bits of the rule do not matter.
            ("10.1.2.3/8 le 16", "10.9.0.0/16", true),
        ];
        for (rule, prefix, expected) in cases {
            let rule: PrefixMatch = rule.parse().unwrap();
            assert_eq!(rule.matches(&net(prefix)), expected, "{rule} {prefix}");
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }

    #[test]
    fn what_is_no_rule_says_why() {
        let cases = [
            ("", "`` is not a prefix"),
            ("10.0.0.0", "`10.0.0.0` is not a prefix"),
            ("10.0.0.0/8 lt 24", "`lt` is not `ge` or `le` with a length"),
            ("10.0.0.0/8 le", "`le` is not `ge` or `le` with a length"),
            ("10.0.0.0/8 le 16 le 24", "`le` is not `ge` or `le` with a length"),
            ("10.0.0.0/8 le 33", "no prefix within is at least /8 and at most /33"),
            ("10.0.0.0/8 le 7", "no prefix within is at least /8 and at most /7"),
            ("10.0.0.0/8 ge 7", "no prefix within is at least /7 and at most /32"),
            ("10.0.0.0/8 ge 24 le 16", "no prefix within is at least /24 and at most /16"),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<PrefixMatch>().unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn exceptions_come_first() {
        let list = ["10.0.0.0/8 le 24".parse().unwrap()];
        let filter = PrefixFilter::only(list).except([PrefixMatch::within(net("10.1.0.0/16"))]);
        let passes = |prefix| filter.permits(&net(prefix));
        assert!(
            passes("10.2.0.0/16")
                && !passes("10.1.0.0/16")
                && !passes("10.1.2.0/24")
                && !passes("11.0.0.0/8")
        );
        let filter = PrefixFilter::all().except([PrefixMatch::exactly(net("10.1.0.0/16"))]);
        assert!(!filter.permits(&net("10.1.0.0/16")) && filter.permits(&net("10.1.2.0/24")));
    }
}
