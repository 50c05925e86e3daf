//! One TCP connection of a neighbor: framing, and the states of RFC 4271 section 8 by rustbgpd-fsm.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustbgpd_fsm as fsm;
use rustbgpd_wire::{
    Capability, EXTENDED_MAX_MESSAGE_LEN, MAX_MESSAGE_LEN, Message, NotificationMessage, OpenMessage,
    decode_message, encode_message, peek_message_length,
};

use crate::{
    config::NeighborConfig,
    effect::{ConnectionId, Notification, SessionState},
    update::Context,
};

/// Timers, by what rustbgpd-fsm calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timer {
    ConnectRetry,
    Hold,
    Keepalive,
}

const TIMERS: [Timer; 3] = [Timer::ConnectRetry, Timer::Hold, Timer::Keepalive];

/// What the state machine wants, apart from timers.
#[derive(Debug)]
pub(crate) enum Output {
    Connect,
    Transmit(Bytes),
    /// This is also transmitted.
    Notified(Notification),
    Close,
    Established(Box<fsm::NegotiatedSession>),
    /// It was established and is no longer.
    Down,
}

/// What we say of our own restart (RFC 4724 section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnRestart {
    /// We have restarted and want to hear the peer's routes before we choose.
    pub(crate) restarting: bool,
    /// Packets were forwarded all along.
    pub(crate) forwarding_preserved: bool,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    /// We connected, or try to.
    pub(crate) initiated: bool,
    /// When TCP had connected.
    pub(crate) made: Option<Instant>,
    fsm: fsm::Session,
    received: BytesMut,
    deadlines: [Option<Instant>; 3],
    /// How UPDATEs are read, once established.
    pub(crate) context: Option<Context>,
    max_length: u16,
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, initiated: bool, config: &fsm::PeerConfig) -> Self {
        Connection {
            id,
            initiated,
            made: None,
            fsm: fsm::Session::new(config.clone()),
            received: BytesMut::new(),
            deadlines: [None; 3],
            context: None,
            max_length: MAX_MESSAGE_LEN,
        }
    }

    pub(crate) fn state(&self) -> SessionState {
        match self.fsm.state() {
            fsm::SessionState::Idle => SessionState::Idle,
            fsm::SessionState::Connect => SessionState::Connect,
            fsm::SessionState::Active => SessionState::Active,
            fsm::SessionState::OpenSent => SessionState::OpenSent,
            fsm::SessionState::OpenConfirm => SessionState::OpenConfirm,
            fsm::SessionState::Established => SessionState::Established,
        }
    }

    pub(crate) fn negotiated(&self) -> Option<&fsm::NegotiatedSession> {
        self.fsm.negotiated()
    }

    /// The next deadline.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.deadlines.into_iter().flatten().min()
    }

    /// A deadline that has passed, which is then stopped.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Timer> {
        let timer =
            TIMERS.into_iter().find(|timer| self.deadlines[*timer as usize].is_some_and(|at| at <= now))?;
        self.deadlines[timer as usize] = None;
        Some(timer)
    }

    /// The larger messages that both ends have agreed to (RFC 8654).
    pub(crate) fn extend(&mut self) {
        self.max_length = EXTENDED_MAX_MESSAGE_LEN;
    }

    pub(crate) fn receive(&mut self, octets: &[u8]) {
        self.received.extend_from_slice(octets);
    }

    /// The next whole message, or the error with which the session ends. What is buffered never exceeds one
    /// message and what was handed in at once.
    pub(crate) fn next_message(&mut self) -> Option<Result<Message, rustbgpd_wire::DecodeError>> {
        match peek_message_length(&self.received, self.max_length) {
            Ok(Some(length)) if self.received.len() >= usize::from(length) => {
                let mut message = self.received.split_to(usize::from(length)).freeze();
                Some(decode_message(&mut message, self.max_length))
            }
            Ok(_) => None,
            Err(error) => {
                self.received.clear();
                Some(Err(error))
            }
        }
    }

    /// Drives the state machine. `jitter` makes a fraction of a duration, as RFC 4271 section 10 wants it.
    pub(crate) fn drive(
        &mut self,
        now: Instant,
        event: fsm::Event,
        config: &NeighborConfig,
        own: OwnRestart,
        jitter: &mut dyn FnMut(Duration) -> Duration,
    ) -> Vec<Output> {
        let mut out = Vec::new();
        for action in self.fsm.handle_event(event) {
            match action {
                fsm::Action::SendOpen(open) => out.extend(transmit(Message::Open(offer(open, own)))),
                fsm::Action::SendKeepalive => out.extend(transmit(Message::Keepalive)),
                fsm::Action::SendNotification(notification) => {
                    let told = describe(&notification);
                    out.extend(transmit(Message::Notification(notification)));
                    out.push(Output::Notified(told));
                }
                fsm::Action::StartTimer(timer, seconds) => {
                    let time = Duration::from_secs(u64::from(seconds));
                    match timer {
                        fsm::TimerType::ConnectRetry => {
                            let time = jitter(time.min(LONGEST_RETRY).max(config.connect_retry));
                            self.deadlines[Timer::ConnectRetry as usize] = Some(now + time);
                        }
                        // The hold timer has no jitter.
                        fsm::TimerType::Hold => self.deadlines[Timer::Hold as usize] = Some(now + time),
                        fsm::TimerType::Keepalive => {
                            self.deadlines[Timer::Keepalive as usize] = Some(now + jitter(time));
                        }
                        _ => {}
                    }
                }
                fsm::Action::StopTimer(timer) => match timer {
                    fsm::TimerType::ConnectRetry => self.deadlines[Timer::ConnectRetry as usize] = None,
                    fsm::TimerType::Hold => self.deadlines[Timer::Hold as usize] = None,
                    fsm::TimerType::Keepalive => self.deadlines[Timer::Keepalive as usize] = None,
                    _ => {}
                },
                fsm::Action::InitiateTcpConnection => out.push(Output::Connect),
                fsm::Action::CloseTcpConnection => {
                    self.received.clear();
                    out.push(Output::Close);
                }
                fsm::Action::SessionEstablished(negotiated) => out.push(Output::Established(negotiated)),
                fsm::Action::SessionDown => out.push(Output::Down),
                _ => {}
            }
        }
        out
    }
}

/// Between attempts to connect at most.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

fn transmit(message: Message) -> Option<Output> {
    encode_message(&message).ok().map(|octets| Output::Transmit(octets.freeze()))
}

/// Our OPEN, without capabilities that we do not have, and with the truth about our restart.
fn offer(mut open: OpenMessage, own: OwnRestart) -> OpenMessage {
    open.capabilities.retain_mut(|capability| match capability {
        Capability::EnhancedRouteRefresh | Capability::ExtendedNextHop(_) => false,
        Capability::GracefulRestart { restart_state, notification, families, .. } => {
            *restart_state = own.restarting;
            // RFC 8538's meaning of a NOTIFICATION is not offered: after one, routes go.
            *notification = false;
            for family in families {
                family.forwarding_preserved = own.forwarding_preserved;
            }
            true
        }
        _ => true,
    });
    open
}

pub(crate) fn describe(notification: &NotificationMessage) -> Notification {
    let text = rustbgpd_wire::notification::description(notification.code, notification.subcode);
    let said = rustbgpd_wire::notification::extract_shutdown_communication(notification).ok().flatten();
    Notification {
        code: notification.code.as_u8(),
        subcode: notification.subcode,
        text: match said {
            // What a peer says (RFC 9003) neither begins a line of the log nor moves the cursor of who reads it.
            Some(said) => format!("{text}: {}", said.replace(char::is_control, " ")),
            None => text.to_string(),
        },
    }
}
