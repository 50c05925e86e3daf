//! Why a WireGuard tunnel does not come up or carries nothing. The protocol answers nobody whose keys it does not
//! know, so that the core's counters, which are the gateway's as a whole, say more than the peer does.

use braid_api::{Stats, TunnelStats};

use super::{Finding, HEARD, ONE_WAY, finding, seconds};
use crate::{config, turn::TunnelView};

/// No session.
pub(super) fn no_session(
    view: &TunnelView<'_>,
    keys: &config::WireGuard,
    by_peer: bool,
    stats: Option<&Stats>,
) -> Finding {
    let dropped = |name: &str| {
        let drops = stats.iter().flat_map(|stats| &stats.drops);
        drops.filter(|(reason, _)| reason == name).map(|(_, count)| *count).sum::<u64>()
    };
    let ours = keys.private_key.public();
    let (refused, unknown) = (dropped("bad_handshake"), dropped("unknown_peer"));
    if refused > 0 {
        return finding(
            "handshake",
            format!("{refused} handshake messages were refused: they were not made with our keys"),
            "tunnel.wireguard",
            format!(
                "the peer must have our public key {ours} and the same preshared-key, or none as we; we take \
                 {} for its public key",
                keys.peer_public_key
            ),
        );
    }
    if unknown > 0 {
        return finding(
            "handshake",
            format!("somebody calls with a key that no tunnel names ({unknown} times)"),
            "tunnel.wireguard.peer-public-key",
            format!(
                "set it to what `wg show` or `braid pubkey` says at the peer; it is {} now",
                keys.peer_public_key
            ),
        );
    }
    let port = keys.listen_port;
    if by_peer {
        return finding(
            "handshake",
            "no peer has called yet",
            "role",
            format!(
                "let the peer begin, to UDP port {port} of ours and with our public key {ours}; or give remote and \
                 role = \"initiate\" here"
            ),
        );
    }
    let remote = view.outer.and_then(|outer| outer.remote);
    let remote = remote.map_or_else(|| "the peer".to_owned(), |remote| remote.to_string());
    finding(
        "handshake",
        format!("{remote}, port {}, has not answered for {}", keys.remote_port, seconds(view.since)),
        "remote",
        format!(
            "let UDP ports {} there and {port} here pass; and since WireGuard answers nobody whom it does not know, \
             see that the peer has our public key {ours}",
            keys.remote_port
        ),
    )
}

/// A session, and nothing comes out of it.
pub(super) fn traffic(after: &TunnelStats) -> Option<Finding> {
    let hears = after.heard_ago.is_some_and(|ago| ago < HEARD);
    if hears || (after.answered_ago.is_none() && (after.tx_packets < ONE_WAY || after.rx_packets > 0)) {
        return None;
    }
    let silent = match after.heard_ago {
        Some(ago) => format!("nothing has come back for {}", seconds(ago)),
        None => "nothing came back".to_owned(),
    };
    Some(finding(
        "traffic",
        format!("{} packets went out and {silent}", after.tx_packets),
        "allowed",
        "see whether the peer runs, its AllowedIPs hold our inside address and networks, and it has routes back",
    ))
}
