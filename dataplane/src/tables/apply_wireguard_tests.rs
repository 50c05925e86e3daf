//! WireGuard's keys in transactions.

use super::*;

fn of_wireguard(id: u32) -> braid_api::Tunnel {
    braid_api::Tunnel { encapsulation: Encapsulation::WireGuard, ..tunnel(id) }
}

fn wireguard(id: u32, private: u8, peer: u8) -> Op {
    Op::PutWireGuard(WireGuard {
        tunnel: TunnelId(id),
        private_key: SecretKey::new(vec![private; 32]),
        peer_public_key: [peer; 32],
        preshared_key: None,
        keepalive: None,
        initiate: false,
        begin: false,
    })
}

fn peer_index(writer: &Writer, id: u32) -> Option<u32> {
    let mut reader = writer.reader();
    let tables = reader.enter();
    let tunnel = tables.tunnel(TunnelId(id))?;
    let peer = tunnel.outbound.as_ref().and_then(Carrier::wireguard)?;
    assert!(tables.peer(peer.index).is_some_and(|other| Arc::ptr_eq(other, peer)));
    Some(peer.index)
}

#[test]
fn wireguards_keys_that_are_put_again_change_nothing_and_others_end_the_session() {
    let mut writer = writer();
    let mut epoch = 0;
    let mut apply = |writer: &mut Writer, ops: Vec<Op>| {
        epoch += 1;
        writer.apply(Transaction { epoch: Epoch(epoch), ops }, 0).map_err(|rejected| rejected.reason)
    };
    assert_eq!(apply(&mut writer, vec![wireguard(0, 1, 2)]).unwrap_err(), RejectReason::UnknownTunnel);
    apply(&mut writer, vec![Op::PutTunnel(of_wireguard(0)), wireguard(0, 1, 2)]).unwrap();
    let first = peer_index(&writer, 0).unwrap();
    // The thread of the handshakes is told all the same: control does not know how the tunnel stands.
    let again = apply(&mut writer, vec![Op::PutTunnel(of_wireguard(0)), wireguard(0, 1, 2)]).unwrap();
    assert_eq!((peer_index(&writer, 0), again.tunnels), (Some(first), vec![TunnelId(0)]));
    apply(&mut writer, vec![wireguard(0, 1, 3)]).unwrap();
    let second = peer_index(&writer, 0).unwrap();
    assert_ne!(first, second);
    assert!(writer.reader().enter().peer(first).is_none());
    // A change of the settings is none of the keys.
    let slower = braid_api::Tunnel { clamp_mtu: 1200, ..of_wireguard(0) };
    apply(&mut writer, vec![Op::PutTunnel(slower)]).unwrap();
    assert_eq!(peer_index(&writer, 0), Some(second));
    // Nothing of a transaction that fails is in force.
    let wrong = vec![wireguard(0, 1, 4), wireguard(0, 1, 0)];
    assert_eq!(apply(&mut writer, wrong).unwrap_err(), RejectReason::BadKey);
    assert_eq!(peer_index(&writer, 0), Some(second));
    apply(&mut writer, vec![Op::RemoveTunnel(TunnelId(0))]).unwrap();
    assert!(writer.reader().enter().peer(second).is_none());
}

#[test]
fn keys_and_tunnels_are_of_one_protocol_and_a_peer_is_one_tunnels() {
    let mut writer = writer();
    let mut epoch = 0;
    let mut apply = |writer: &mut Writer, ops: Vec<Op>| {
        epoch += 1;
        writer.apply(Transaction { epoch: Epoch(epoch), ops }, 0).map_err(|rejected| rejected.reason)
    };
    let both = [Op::PutTunnel(tunnel(0)), Op::PutTunnel(of_wireguard(1)), Op::PutTunnel(of_wireguard(2))];
    apply(&mut writer, both.into()).unwrap();
    assert_eq!(apply(&mut writer, vec![wireguard(0, 1, 2)]).unwrap_err(), RejectReason::OtherProtocol);
    apply(&mut writer, vec![wireguard(1, 1, 2)]).unwrap();
    let same_socket = braid_api::Tunnel { local: of_wireguard(1).local, ..of_wireguard(2) };
    apply(&mut writer, vec![Op::PutTunnel(same_socket)]).unwrap();
    assert_eq!(apply(&mut writer, vec![wireguard(2, 1, 2)]).unwrap_err(), RejectReason::PeerTaken);
    apply(&mut writer, vec![wireguard(2, 1, 3)]).unwrap();
    // Another protocol, and back: the keys have gone.
    apply(&mut writer, vec![Op::PutTunnel(tunnel(1))]).unwrap();
    assert_eq!(peer_index(&writer, 1), None);
    apply(&mut writer, vec![Op::PutTunnel(of_wireguard(1))]).unwrap();
    assert_eq!(peer_index(&writer, 1), None);
}
