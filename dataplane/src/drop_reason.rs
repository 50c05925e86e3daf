//! Every reason for which a packet is not delivered. Each such packet adds one to exactly one.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// The name in status and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(DropReason::$name => $text,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// From the LAN: no IPv4 or IPv6 packet, or shorter than its headers say.
    InnerMalformed = "inner_malformed",
    /// From the LAN: no route of the prefix table covers the destination.
    NoRoute = "no_route",
    /// From the LAN: a route, but no tunnel of its group carries traffic.
    NoTunnel = "no_tunnel",
    /// From the LAN: the tunnel has no outbound SA or the peer's address is not known.
    NoSa = "no_sa",
    /// From the LAN: the WireGuard peer has no session yet; one is asked for.
    NoSession = "no_session",
    /// From the LAN: the outbound SA has used up its sequence numbers.
    Exhausted = "sequence_exhausted",
    /// From the LAN: outside the SA's traffic selectors.
    SelectorOut = "selector_out",
    /// From the LAN: too big, with DF; its sender was told.
    TooBig = "too_big",
    /// From the LAN: multicast, broadcast or link-local traffic, which no tunnel carries.
    NotRoutable = "not_routable",
    /// To the wire: the kernel's socket buffer was full.
    SocketFull = "socket_full",
    /// To the wire: the kernel refused to send.
    SendFailed = "send_failed",
    /// To the wire: larger than the outer path now takes.
    PathMtu = "path_mtu",
    /// From the wire: shorter than the smallest packet of the protocol, or cut by the buffer.
    Truncated = "truncated",
    /// From the wire: no inbound SA has this SPI.
    UnknownSpi = "unknown_spi",
    /// From the wire: not a message of WireGuard, on a socket of WireGuard.
    NotWireGuard = "not_wireguard",
    /// From the wire: a WireGuard packet of no session that we have.
    UnknownSession = "unknown_session",
    /// A WireGuard counter past what the protocol allows (whitepaper section 6.1).
    CounterLimit = "counter_limit",
    /// From the wire: a WireGuard handshake message that is not authentic, or that nobody has asked for.
    BadHandshake = "bad_handshake",
    /// From the wire: an authentic WireGuard initiation of somebody whom no tunnel names.
    UnknownPeer = "unknown_peer",
    /// From the wire: a WireGuard initiation that is not newer than the last one.
    ReplayedHandshake = "replayed_handshake",
    /// From the wire: a WireGuard handshake message under load, whose sender has to prove its address first, or
    /// while those before it have not been looked at.
    HandshakeLoad = "handshake_load",
    /// From the wire: the sequence number was seen before.
    Replayed = "replayed",
    /// From the wire: the sequence number is left of the window.
    TooOld = "too_old",
    /// From the wire: the integrity check failed.
    BadIcv = "bad_icv",
    /// From the wire: authentic, but padding or next header are not as RFC 4303 has them.
    BadTrailer = "bad_trailer",
    /// From the wire: authentic, but no IP packet inside.
    DecryptedMalformed = "decrypted_malformed",
    /// From the wire: inner addresses outside the SA's traffic selectors.
    SelectorIn = "selector_in",
    /// From the wire: an inner source that this tunnel may not send.
    SourceNotAllowed = "source_not_allowed",
    /// From the wire: an inner destination that this tunnel's peer may not reach.
    DestinationNotAllowed = "destination_not_allowed",
    /// From the wire: an IKE datagram, for which nobody listens.
    NobodyListens = "nobody_listens",
    /// From the wire: an IKE datagram, while control has not read those before it.
    PuntFull = "punt_full",
    /// From the wire: a packet for one of our BFD sessions that is not as RFC 5880 section 6.8.6 and RFC 5881
    /// section 5 want it.
    BfdDiscarded = "bfd_discarded",
    /// From the wire: BFD or a probe's reply, while the liveness thread has not taken those before it.
    LivenessFull = "liveness_full",
    /// From the wire: a ping of our inside address, whose answer found no room among what waits to be sent.
    EchoFull = "echo_full",
    /// From the wire: CE marked outside a tunnel whose inner packet is not ECN-capable (RFC 6040 section 4.2).
    EcnIllegal = "ecn_illegal",
    /// To the LAN: shed in overload so that probes and control traffic live.
    Overload = "overload",
    /// To the LAN: the device did not take it.
    DeviceFull = "device_full",
}

impl DropReason {
    /// How many there are.
    pub const COUNT: usize = DropReason::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_numbers_dense() {
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(DropReason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
    }
}
