//! The control packet (RFC 5880 section 4.1), and every reason to discard one (section 6.8.6).

use std::{
    error::Error,
    fmt,
    num::{NonZeroU8, NonZeroU32},
};

use crate::state::State;

/// Octets of a control packet without authentication section.
pub const LENGTH: usize = 24;
/// The least length of a packet with one: type and length of the section follow.
const LENGTH_AUTHENTICATED: usize = 26;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATED: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// Why the sender's state last changed (RFC 5880 section 4.1); five bits, of which some are unassigned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Diagnostic(u8);

impl Diagnostic {
    /// Nothing to report.
    pub const NONE: Self = Diagnostic(0);
    /// Nothing was received for the detection time.
    pub const DETECTION_TIME_EXPIRED: Self = Diagnostic(1);
    /// Echo packets did not come back.
    pub const ECHO_FAILED: Self = Diagnostic(2);
    /// The other end said that the session is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Diagnostic(3);
    /// The forwarding plane was reset.
    pub const FORWARDING_PLANE_RESET: Self = Diagnostic(4);
    /// The path is known to be down.
    pub const PATH_DOWN: Self = Diagnostic(5);
    /// A path joined to this one is down.
    pub const CONCATENATED_PATH_DOWN: Self = Diagnostic(6);
    /// The user disabled the session.
    pub const ADMINISTRATIVELY_DOWN: Self = Diagnostic(7);
    /// The same, in the other direction.
    pub const REVERSE_CONCATENATED_PATH_DOWN: Self = Diagnostic(8);

    /// The one with this number, of which the lower five bits count.
    pub fn from_code(code: u8) -> Self {
        Diagnostic(code & 0x1f)
    }

    /// The number in the packet, 0 to 31.
    pub fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            other => return write!(f, "diagnostic {other}"),
        })
    }
}

impl fmt::Debug for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a received packet was discarded, in the order in which the checks are made, which is that of RFC 5880
/// section 6.8.6. Path and TTL are checked once the session is known, which says what they should be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Discard {
    /// Too few octets for the fields that say more.
    Truncated,
    /// Another version than 1.
    Version,
    /// Its length field is below the minimum.
    LengthTooSmall,
    /// Its length field is beyond the payload.
    LengthBeyondPayload,
    /// A detect multiplier of zero.
    ZeroMultiplier,
    /// The multipoint bit is set.
    Multipoint,
    /// The sender's own discriminator is zero.
    ZeroMyDiscriminator,
    /// No session has the discriminator that it names.
    UnknownDiscriminator,
    /// It names no discriminator, but a state in which the sender must know it.
    ZeroYourDiscriminator,
    /// It names no discriminator, and no session belongs to where it came from.
    UnknownPeer,
    /// It names the session of another path than the one on which it came.
    WrongPath,
    /// Its TTL or hop limit says that it came from too far away.
    Ttl,
    /// It is authenticated, and no authentication is in use.
    Authenticated,
    /// The session is held down by its user.
    AdminDown,
}

impl Discard {
    /// All of them, in order.
    pub const ALL: [Discard; 14] = [
        Discard::Truncated,
        Discard::Version,
        Discard::LengthTooSmall,
        Discard::LengthBeyondPayload,
        Discard::ZeroMultiplier,
        Discard::Multipoint,
        Discard::ZeroMyDiscriminator,
        Discard::UnknownDiscriminator,
        Discard::ZeroYourDiscriminator,
        Discard::UnknownPeer,
        Discard::WrongPath,
        Discard::Ttl,
        Discard::Authenticated,
        Discard::AdminDown,
    ];

    /// A name for counters.
    pub fn name(self) -> &'static str {
        match self {
            Discard::Truncated => "truncated",
            Discard::Version => "version",
            Discard::LengthTooSmall => "length_too_small",
            Discard::LengthBeyondPayload => "length_beyond_payload",
            Discard::ZeroMultiplier => "zero_multiplier",
            Discard::Multipoint => "multipoint",
            Discard::ZeroMyDiscriminator => "zero_my_discriminator",
            Discard::UnknownDiscriminator => "unknown_discriminator",
            Discard::ZeroYourDiscriminator => "zero_your_discriminator",
            Discard::UnknownPeer => "unknown_peer",
            Discard::WrongPath => "wrong_path",
            Discard::Ttl => "ttl",
            Discard::Authenticated => "authenticated",
            Discard::AdminDown => "admin_down",
        }
    }
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Error for Discard {}

/// A control packet. Intervals are microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Why the sender's state last changed.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for a packet with `r#final`.
    pub poll: bool,
    /// The answer to a poll.
    pub r#final: bool,
    /// The sender's BFD survives the death of its control plane.
    pub control_plane_independent: bool,
    /// An authentication section follows.
    pub authenticated: bool,
    /// The sender wants periodic packets to cease while the session is up.
    pub demand: bool,
    /// After how many intervals of silence the receiver is to take the session down.
    pub multiplier: NonZeroU8,
    /// The sender's name for the session.
    pub my_discriminator: NonZeroU32,
    /// The receiver's name for it; zero if the sender does not know it.
    pub your_discriminator: u32,
    /// The shortest interval at which the sender wants to send.
    pub desired_min_tx: u32,
    /// The shortest interval that the sender can receive; zero: it wants no periodic packets.
    pub required_min_rx: u32,
    /// The same for echo packets; zero: it takes none.
    pub required_min_echo_rx: u32,
}

impl Packet {
    /// Reads a UDP payload, with those checks of RFC 5880 section 6.8.6 that need no session, in its order.
    pub fn decode(payload: &[u8]) -> Result<Packet, Discard> {
        let &[first, flags, multiplier, length, ..] = payload else { return Err(Discard::Truncated) };
        // "If the version number is not correct (1), the packet MUST be discarded."
        if first >> 5 != VERSION {
            return Err(Discard::Version);
        }
        // "If the Length field is less than the minimum correct value (24 if the A bit is clear, or 26 if the
        // A bit is set), the packet MUST be discarded."
        let authenticated = flags & AUTHENTICATED != 0;
        let length = usize::from(length);
        if length < if authenticated { LENGTH_AUTHENTICATED } else { LENGTH } {
            return Err(Discard::LengthTooSmall);
        }
        // "If the Length field is greater than the payload of the encapsulating protocol, the packet MUST be
        // discarded."
        let Some((fixed, _)) = payload.get(..length).and_then(|packet| packet.split_first_chunk::<LENGTH>())
        else {
            return Err(Discard::LengthBeyondPayload);
        };
        // "If the Detect Mult field is zero, the packet MUST be discarded."
        let multiplier = NonZeroU8::new(multiplier).ok_or(Discard::ZeroMultiplier)?;
        // "If the Multipoint (M) bit is nonzero, the packet MUST be discarded."
        if flags & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        // "If the My Discriminator field is zero, the packet MUST be discarded."
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(Discard::ZeroMyDiscriminator)?;
        Ok(Packet {
            diagnostic: Diagnostic::from_code(first),
            state: State::from_bits(flags >> 6),
            poll: flags & POLL != 0,
            r#final: flags & FINAL != 0,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            authenticated,
            demand: flags & DEMAND != 0,
            multiplier,
            my_discriminator,
            your_discriminator: word(8),
            desired_min_tx: word(12),
            required_min_rx: word(16),
            required_min_echo_rx: word(20),
        })
    }

    /// The octets of a packet without authentication section.
    pub fn encode(&self) -> [u8; LENGTH] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut out = [0; LENGTH];
        out[0] = VERSION << 5 | self.diagnostic.0;
        out[1] = (self.state as u8) << 6
            | flag(self.poll, POLL)
            | flag(self.r#final, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, DEMAND);
        out[2] = self.multiplier.get();
        out[3] = LENGTH as u8;
        out[4..8].copy_from_slice(&self.my_discriminator.get().to_be_bytes());
        out[8..12].copy_from_slice(&self.your_discriminator.to_be_bytes());
        out[12..16].copy_from_slice(&self.desired_min_tx.to_be_bytes());
        out[16..20].copy_from_slice(&self.required_min_rx.to_be_bytes());
        out[20..24].copy_from_slice(&self.required_min_echo_rx.to_be_bytes());
        out
    }
}
