//! RFC 5880, 5881 and 5883, rule by rule.

mod datagrams;
mod receive;
mod timers;

use std::{num::NonZeroU32, time::Duration};

use braid_bfd::{Config, Nanos, Packet, Session, State};

pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1000 * MS;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// 50 ms x 3.
pub(crate) fn config() -> Config {
    Config::new(ms(50), 3).unwrap()
}

/// No jitter.
pub(crate) fn zero() -> impl FnMut() -> u32 {
    || 0
}

/// What a well-behaved peer with 50 ms x 3 sends.
pub(crate) fn packet(state: State) -> Packet {
    Packet {
        diagnostic: braid_bfd::Diagnostic::NONE,
        state,
        poll: false,
        r#final: false,
        control_plane_independent: true,
        authenticated: false,
        demand: false,
        multiplier: 3.try_into().unwrap(),
        my_discriminator: NonZeroU32::new(77).unwrap(),
        your_discriminator: 1,
        desired_min_tx: 50_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

pub(crate) fn session(config: Config) -> Session {
    Session::new(config, NonZeroU32::MIN)
}

/// All that is to be sent at this moment.
pub(crate) fn sent(session: &mut Session, now: Nanos) -> Vec<Packet> {
    let mut packets = Vec::new();
    while let Some(octets) = session.poll_transmit(now, &mut zero()) {
        packets.push(Packet::decode(&octets).unwrap());
        assert!(packets.len() < 10, "sends without end");
    }
    packets
}

/// A session that has just come up at `now`, its poll sequence answered and settled.
pub(crate) fn up(config: Config, now: Nanos) -> Session {
    let mut session = session(config);
    sent(&mut session, now);
    session.handle_packet(now, 255, &packet(State::Down)).unwrap();
    sent(&mut session, now);
    session.handle_packet(now, 255, &packet(State::Up)).unwrap();
    assert!(sent(&mut session, now)[0].poll, "slow start ends with a poll sequence");
    session.handle_packet(now, 255, &Packet { r#final: true, ..packet(State::Up) }).unwrap();
    session.handle_packet(now, 255, &packet(State::Up)).unwrap();
    assert_eq!(session.poll_event(), Some(braid_bfd::Event::Up));
    assert_eq!(session.state(), State::Up);
    session
}
