//! What a session is told by its user: intervals, multiplier, how far away the peer is.

use std::{error::Error, fmt, num::NonZeroU8, time::Duration};

/// The shortest interval: 10 ms.
pub const SHORTEST: Duration = Duration::from_millis(10);
/// The longest interval that the packet's 32 bits of microseconds hold.
pub const LONGEST: Duration = Duration::from_micros(u32::MAX as u64);

/// How far away the peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hops {
    /// In the tunnel or on the link (RFC 5881): only a TTL or hop limit of 255 is accepted (RFC 5082).
    Single,
    /// Some routers away (RFC 5883).
    Multi {
        /// The lowest TTL or hop limit accepted.
        min_ttl: u8,
    },
}

impl Hops {
    /// Whether a packet that arrives with this TTL or hop limit may have come from the peer.
    pub(crate) fn admit(self, ttl: u8) -> bool {
        match self {
            // RFC 5881 section 5: without authentication, any other TTL MUST be discarded.
            Hops::Single => ttl == 255,
            Hops::Multi { min_ttl } => ttl >= min_ttl,
        }
    }
}

/// Who speaks first (RFC 5880 section 6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Sends from the beginning.
    Active,
    /// Is silent until the peer was heard.
    Passive,
}

/// A session's settings, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    min_tx: u32,
    min_rx: u32,
    multiplier: NonZeroU8,
    hops: Hops,
    role: Role,
}

/// Why settings are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// An interval outside [`SHORTEST`] to [`LONGEST`].
    Interval(Duration),
    /// A detect multiplier of zero.
    Multiplier,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Interval(interval) => {
                write!(f, "interval {interval:?} is not between {SHORTEST:?} and {LONGEST:?}")
            }
            ConfigError::Multiplier => f.write_str("the multiplier is at least 1"),
        }
    }
}

impl Error for ConfigError {}

impl Config {
    /// Packets every `interval` in both directions, an active single-hop session. Fractions of a microsecond
    /// are cut off.
    pub fn new(interval: Duration, multiplier: u8) -> Result<Self, ConfigError> {
        let micros = micros(interval)?;
        let multiplier = NonZeroU8::new(multiplier).ok_or(ConfigError::Multiplier)?;
        Ok(Config { min_tx: micros, min_rx: micros, multiplier, hops: Hops::Single, role: Role::Active })
    }

    /// Another shortest interval at which packets are sent.
    pub fn with_min_tx(self, interval: Duration) -> Result<Self, ConfigError> {
        Ok(Config { min_tx: micros(interval)?, ..self })
    }

    /// Another shortest interval at which packets are accepted.
    pub fn with_min_rx(self, interval: Duration) -> Result<Self, ConfigError> {
        Ok(Config { min_rx: micros(interval)?, ..self })
    }

    /// Another distance.
    pub fn with_hops(self, hops: Hops) -> Self {
        Config { hops, ..self }
    }

    /// Another role.
    pub fn with_role(self, role: Role) -> Self {
        Config { role, ..self }
    }

    /// The shortest interval at which packets are sent, in microseconds.
    pub fn min_tx_micros(&self) -> u32 {
        self.min_tx
    }

    /// The shortest interval at which packets are accepted, in microseconds.
    pub fn min_rx_micros(&self) -> u32 {
        self.min_rx
    }

    /// The detect multiplier.
    pub fn multiplier(&self) -> NonZeroU8 {
        self.multiplier
    }

    /// How far away the peer is.
    pub fn hops(&self) -> Hops {
        self.hops
    }

    /// Who speaks first.
    pub fn role(&self) -> Role {
        self.role
    }
}

fn micros(interval: Duration) -> Result<u32, ConfigError> {
    let micros = u32::try_from(interval.as_micros()).ok().filter(|_| interval >= SHORTEST);
    micros.ok_or(ConfigError::Interval(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_what_is_supported_are_refused() {
        let ms = Duration::from_millis;
        assert_eq!(Config::new(ms(9), 3), Err(ConfigError::Interval(ms(9))));
        assert_eq!(Config::new(LONGEST + ms(1), 3), Err(ConfigError::Interval(LONGEST + ms(1))));
        assert_eq!(Config::new(ms(10), 0), Err(ConfigError::Multiplier));
        let config = Config::new(ms(10), 3).unwrap();
        assert_eq!((config.min_tx_micros(), config.min_rx_micros()), (10_000, 10_000));
        assert_eq!(config.with_min_rx(ms(5)), Err(ConfigError::Interval(ms(5))));
        assert_eq!(config.with_min_tx(LONGEST).unwrap().min_tx_micros(), u32::MAX);
    }
}
