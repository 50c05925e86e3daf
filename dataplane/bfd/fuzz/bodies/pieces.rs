//! What the fuzz targets do with their input. `cargo test` runs the same over the committed corpus.

use std::time::Duration;

use braid_bfd::{Config, Packet, Sessions, Watch, datagram::Datagram};

/// An IP packet from the tunnel.
pub(crate) fn packet(input: &[u8]) {
    let Ok(datagram) = Datagram::parse(input) else { return };
    if let Ok(packet) = Packet::decode(datagram.payload) {
        let plain = Packet { authenticated: false, ..packet };
        assert_eq!(Packet::decode(&plain.encode()), Ok(plain), "what is written is read");
    }
}

/// A life: pieces of a millisecond step, a TTL, a length and so many octets of a payload.
pub(crate) fn session(input: &[u8]) {
    let Ok(config) = Config::new(Duration::from_millis(10), 3) else { return };
    let mut sessions = Sessions::new(1);
    let _ = sessions.insert(0u8, config, &mut || 1);
    let (mut now, mut rest) = (0, input);
    while let [step, ttl, length, tail @ ..] = rest {
        now += u64::from(*step) * 1_000_000;
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        match length {
            254 => drop(sessions.disable(&0)),
            255 => drop(sessions.enable(&0)),
            _ => drop(sessions.handle_payload(now, &0, *ttl, payload)),
        }
        sessions.handle_timeout(now, |_| Watch::default());
        let mut sent = 0;
        while sessions.poll_transmit(now, &mut || 0).is_some() {
            sent += 1;
            assert!(sent <= 3, "one input, a bounded output");
        }
        let events = std::iter::from_fn(|| sessions.poll_event()).count();
        assert!(events <= 2, "a packet and a deadline, an event each");
        assert!(sessions.poll_timeout().is_none_or(|at| at > now), "time goes on");
    }
}
