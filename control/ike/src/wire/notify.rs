//! Notify payloads (RFC 7296 section 3.10 and the IANA registry "IKEv2 Notify Message Types").

use std::fmt;

/// A notify message type. Below 16384 it is an error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotifyType(pub u16);

macro_rules! notify_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl NotifyType {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// Its registered name, where this crate knows the type.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

notify_types! {
    /// RFC 7296 section 2.5.
    UNSUPPORTED_CRITICAL_PAYLOAD = 1;
    /// RFC 7296 section 2.21.
    INVALID_IKE_SPI = 4;
    /// RFC 7296 section 2.5.
    INVALID_MAJOR_VERSION = 5;
    /// RFC 7296 section 2.21.3.
    INVALID_SYNTAX = 7;
    /// RFC 7296 section 2.3.
    INVALID_MESSAGE_ID = 9;
    /// RFC 7296 section 1.5.
    INVALID_SPI = 11;
    /// RFC 7296 section 2.7.
    NO_PROPOSAL_CHOSEN = 14;
    /// RFC 7296 section 1.3.
    INVALID_KE_PAYLOAD = 17;
    /// RFC 7296 section 2.21.2.
    AUTHENTICATION_FAILED = 24;
    /// RFC 7296 section 3.10.1.
    SINGLE_PAIR_REQUIRED = 34;
    /// RFC 7296 section 1.3.
    NO_ADDITIONAL_SAS = 35;
    /// RFC 7296 section 3.15.4.
    INTERNAL_ADDRESS_FAILURE = 36;
    /// RFC 7296 section 3.15.4.
    FAILED_CP_REQUIRED = 37;
    /// RFC 7296 section 2.9.
    TS_UNACCEPTABLE = 38;
    /// RFC 7296 section 2.9.
    INVALID_SELECTORS = 39;
    /// RFC 4555 section 3.5.
    UNACCEPTABLE_ADDRESSES = 40;
    /// RFC 4555 section 3.9.
    UNEXPECTED_NAT_DETECTED = 41;
    /// RFC 7296 section 2.25.
    TEMPORARY_FAILURE = 43;
    /// RFC 7296 section 2.25.
    CHILD_SA_NOT_FOUND = 44;
    /// RFC 9370 section 2.2.4.
    STATE_NOT_FOUND = 47;

    /// RFC 7296 section 2.4.
    INITIAL_CONTACT = 16384;
    /// RFC 7296 section 3.10.1.
    SET_WINDOW_SIZE = 16385;
    /// RFC 7296 section 2.9.
    ADDITIONAL_TS_POSSIBLE = 16386;
    /// RFC 7296 section 2.22.
    IPCOMP_SUPPORTED = 16387;
    /// RFC 7296 section 2.23.
    NAT_DETECTION_SOURCE_IP = 16388;
    /// RFC 7296 section 2.23.
    NAT_DETECTION_DESTINATION_IP = 16389;
    /// RFC 7296 section 2.6.
    COOKIE = 16390;
    /// RFC 7296 section 1.3.1.
    USE_TRANSPORT_MODE = 16391;
    /// RFC 7296 section 3.6.
    HTTP_CERT_LOOKUP_SUPPORTED = 16392;
    /// RFC 7296 section 1.3.3.
    REKEY_SA = 16393;
    /// RFC 7296 section 1.3.1.
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394;
    /// RFC 7296 section 1.3.1.
    NON_FIRST_FRAGMENTS_ALSO = 16395;
    /// RFC 4555.
    MOBIKE_SUPPORTED = 16396;
    /// RFC 4555.
    ADDITIONAL_IP4_ADDRESS = 16397;
    /// RFC 4555.
    ADDITIONAL_IP6_ADDRESS = 16398;
    /// RFC 4555.
    NO_ADDITIONAL_ADDRESSES = 16399;
    /// RFC 4555.
    UPDATE_SA_ADDRESSES = 16400;
    /// RFC 4555.
    COOKIE2 = 16401;
    /// RFC 4555.
    NO_NATS_ALLOWED = 16402;
    /// RFC 4478.
    AUTH_LIFETIME = 16403;
    /// RFC 4739.
    MULTIPLE_AUTH_SUPPORTED = 16404;
    /// RFC 5685.
    REDIRECT_SUPPORTED = 16406;
    /// RFC 5685.
    REDIRECT = 16407;
    /// RFC 5685.
    REDIRECTED_FROM = 16408;
    /// RFC 5723.
    TICKET_REQUEST = 16412;
    /// RFC 5998.
    EAP_ONLY_AUTHENTICATION = 16417;
    /// RFC 6023.
    CHILDLESS_IKEV2_SUPPORTED = 16418;
    /// RFC 6290.
    QUICK_CRASH_DETECTION = 16419;
    /// RFC 6311.
    IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420;
    /// RFC 7383.
    IKEV2_FRAGMENTATION_SUPPORTED = 16430;
    /// RFC 7427.
    SIGNATURE_HASH_ALGORITHMS = 16431;
    /// RFC 8784.
    USE_PPK = 16435;
    /// RFC 8784.
    PPK_IDENTITY = 16436;
    /// RFC 8784.
    NO_PPK_AUTH = 16437;
    /// RFC 9242.
    INTERMEDIATE_EXCHANGE_SUPPORTED = 16438;
    /// RFC 9370.
    ADDITIONAL_KEY_EXCHANGE = 16441;
}

impl NotifyType {
    /// RFC 7296 section 3.10.1: types below 16384 report errors; an unknown one in a response fails the
    /// request, an unknown status is ignored.
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "notify {}", self.0),
        }
    }
}

impl fmt::Debug for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a notification concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotifySubject {
    /// The IKE SA, or nothing in particular; no SPI.
    Ike,
    /// An ESP SA, by the SPI that the *sender* of the notification receives on.
    Esp(u32),
    /// Another protocol, or an SPI of another size: kept as sent.
    Other {
        /// Protocol ID.
        protocol: u8,
        /// SPI, at most 255 octets.
        spi: Vec<u8>,
    },
}

/// A Notify payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// What it concerns.
    pub subject: NotifySubject,
    /// Its type.
    pub kind: NotifyType,
    /// Its data.
    pub data: Vec<u8>,
}

impl Notify {
    /// One about the IKE SA, with data.
    pub fn new(kind: NotifyType, data: Vec<u8>) -> Self {
        Self { subject: NotifySubject::Ike, kind, data }
    }

    /// One without data.
    pub fn bare(kind: NotifyType) -> Self {
        Self::new(kind, Vec::new())
    }

    /// One about an ESP SA: REKEY_SA, CHILD_SA_NOT_FOUND.
    pub fn about_esp(kind: NotifyType, spi: u32) -> Self {
        Self { subject: NotifySubject::Esp(spi), kind, data: Vec::new() }
    }

    /// INVALID_KE_PAYLOAD naming the group wanted (RFC 7296 section 1.3).
    pub fn invalid_ke(group: u16) -> Self {
        Self::new(NotifyType::INVALID_KE_PAYLOAD, group.to_be_bytes().to_vec())
    }

    /// The `u16` that INVALID_KE_PAYLOAD carries.
    pub fn wanted_group(&self) -> Option<u16> {
        self.data.as_slice().try_into().ok().map(u16::from_be_bytes)
    }

    /// SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 4).
    pub fn signature_hashes(hashes: &[u16]) -> Self {
        let data = hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
        Self::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, data)
    }

    /// The list of `u16` that SIGNATURE_HASH_ALGORITHMS carries.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        self.data.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair))
    }
}
