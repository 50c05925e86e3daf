//! The state machine of RFC 5880 section 6.2, apart from timers and packets.

use crate::packet::Diagnostic;

/// A session's state (RFC 5880 section 4.1); the numbers are those of the packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// Held down by its user: no verdict on the path.
    AdminDown = 0,
    /// The peer is not heard, or says that it does not hear us.
    Down = 1,
    /// The peer is heard, but has not yet said that it hears us.
    Init = 2,
    /// Both ends hear each other.
    Up = 3,
}

impl State {
    pub(crate) fn from_bits(bits: u8) -> State {
        match bits & 3 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

/// What moves a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Input {
    /// A packet with this state in it.
    Received(State),
    /// The detection time has passed in silence.
    Expired,
    /// The user disables the session.
    Disable,
    /// The user enables it again.
    Enable,
}

/// The next state, and the diagnostic to set with it.
///
/// A diagnostic tells why the state last changed for the worse; going up clears it.
pub(crate) fn next(state: State, input: Input) -> (State, Option<Diagnostic>) {
    use Input::{Disable, Enable, Expired, Received};
    use State::{AdminDown, Down, Init, Up};
    match (state, input) {
        // RFC 5880 section 6.8.16.
        (Down | Init | Up, Disable) => (AdminDown, Some(Diagnostic::ADMINISTRATIVELY_DOWN)),
        (AdminDown, Disable) => (AdminDown, None),
        (AdminDown, Enable) => (Down, None),
        (Down | Init | Up, Enable) => (state, None),

        // RFC 5880 section 6.8.6: "If bfd.SessionState is AdminDown: discard the packet".
        (AdminDown, Received(AdminDown | Down | Init | Up)) => (AdminDown, None),

        (Init | Up, Received(AdminDown)) => (Down, Some(Diagnostic::NEIGHBOR_SIGNALED_DOWN)),
        (Down, Received(AdminDown)) => (Down, None),

        (Down, Received(Down)) => (Init, None),
        (Down, Received(Init)) => (Up, Some(Diagnostic::NONE)),
        (Down, Received(Up)) => (Down, None),

        (Init, Received(Init | Up)) => (Up, Some(Diagnostic::NONE)),
        (Init, Received(Down)) => (Init, None),

        (Up, Received(Down)) => (Down, Some(Diagnostic::NEIGHBOR_SIGNALED_DOWN)),
        (Up, Received(Init | Up)) => (Up, None),

        // RFC 5880 section 6.8.4.
        (Init | Up, Expired) => (Down, Some(Diagnostic::DETECTION_TIME_EXPIRED)),
        (AdminDown | Down, Expired) => (state, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5880 section 6.2's figure, arrow by arrow, and what it leaves out.
    #[test]
    fn every_pair_of_state_and_input() {
        use Input::{Disable, Enable, Expired, Received};
        use State::{AdminDown, Down, Init, Up};
        let none = None;
        let (no, expired, signaled, admin) = (
            Some(Diagnostic::NONE),
            Some(Diagnostic::DETECTION_TIME_EXPIRED),
            Some(Diagnostic::NEIGHBOR_SIGNALED_DOWN),
            Some(Diagnostic::ADMINISTRATIVELY_DOWN),
        );
        let table = [
            (AdminDown, Received(AdminDown), AdminDown, none),
            (AdminDown, Received(Down), AdminDown, none),
            (AdminDown, Received(Init), AdminDown, none),
            (AdminDown, Received(Up), AdminDown, none),
            (AdminDown, Expired, AdminDown, none),
            (AdminDown, Disable, AdminDown, none),
            (AdminDown, Enable, Down, none),
            (Down, Received(AdminDown), Down, none),
            (Down, Received(Down), Init, none),
            (Down, Received(Init), Up, no),
            (Down, Received(Up), Down, none),
            (Down, Expired, Down, none),
            (Down, Disable, AdminDown, admin),
            (Down, Enable, Down, none),
            (Init, Received(AdminDown), Down, signaled),
            (Init, Received(Down), Init, none),
            (Init, Received(Init), Up, no),
            (Init, Received(Up), Up, no),
            (Init, Expired, Down, expired),
            (Init, Disable, AdminDown, admin),
            (Init, Enable, Init, none),
            (Up, Received(AdminDown), Down, signaled),
            (Up, Received(Down), Down, signaled),
            (Up, Received(Init), Up, none),
            (Up, Received(Up), Up, none),
            (Up, Expired, Down, expired),
            (Up, Disable, AdminDown, admin),
            (Up, Enable, Up, none),
        ];
        assert_eq!(table.len(), 4 * 7);
        for (from, input, to, diagnostic) in table {
            assert_eq!(next(from, input), (to, diagnostic), "{from:?} {input:?}");
        }
    }
}
