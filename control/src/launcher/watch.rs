//! Notices when others remove what is ours: network managers flush routing rules that they do not
//! know when they start, and people delete devices.
//!
//! A thread reads the kernel's notifications and only decides whether they might concern us; the
//! launcher then compares everything with the plan. One notice is under way at a time, however
//! many routes change.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use braid_dataplane::io::netlink;

use super::{layout::PROTOCOL, learned};

/// Multicast groups by their bits: links; addresses, routes and rules of IPv4, then of IPv6.
const GROUPS: u32 = 1 | (1 << 4) | (1 << 6) | (1 << 7) | (1 << 8) | (1 << 10) | (1 << 18);
/// A removal seldom comes alone.
const SETTLE: Duration = Duration::from_millis(50);

const HEADER_LEN: usize = 16;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const ARPHRD_NONE: u16 = 0xfffe;
const IFF_UP: u32 = 1;

/// Whether a notice is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<AtomicBool>);

impl Pending {
    /// To be called before looking: what happens from now on gives another notice.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Starts watching; `notice` is called when something of ours may be missing, and not again until
/// the [`Pending`] is cleared. It returns false to end the watch.
///
/// # Errors
/// The kernel refuses the subscription.
pub(super) fn start(mut notice: impl FnMut() -> bool + Send + 'static) -> io::Result<Pending> {
    let socket = netlink::subscribe(GROUPS)?;
    netlink::ignore_device_routes(socket.as_fd(), learned::PROTOCOL)?;
    let pending = Pending::default();
    let flag = Arc::clone(&pending.0);
    thread::Builder::new().name("kernel-watch".to_owned()).spawn(move || {
        if let Err(error) = watch(&socket, &flag, &mut notice) {
            tracing::warn!("cannot watch routes and rules any more: {error}");
        }
    })?;
    Ok(pending)
}

fn watch(socket: &OwnedFd, flag: &AtomicBool, notice: &mut impl FnMut() -> bool) -> io::Result<()> {
    let mut buffer = vec![0; netlink::BUFFER_LEN];
    let mut receiver = netlink::Receiver::default();
    loop {
        let concerns = match receiver.receive(socket.as_fd(), &mut buffer) {
            Ok(Some(len)) => may_concern_us(&buffer[..len]),
            // What was lost may have been about us.
            Ok(None) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                netlink::wait(socket, None);
                false
            }
            Err(error) => return Err(error),
        };
        if concerns && !flag.swap(true, Ordering::SeqCst) {
            thread::sleep(SETTLE);
            if !notice() {
                return Ok(());
            }
        }
    }
}

/// Whether a datagram of notifications tells of a removal that may be ours.
fn may_concern_us(mut rest: &[u8]) -> bool {
    while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let kind = u16::from_ne_bytes([t0, t1]);
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let body = rest.get(HEADER_LEN..len).unwrap_or_default();
        let concerns = match kind {
            RTM_DELLINK | RTM_DELADDR | RTM_DELRULE => true,
            // struct rtmsg: the protocol is its sixth byte.
            RTM_DELROUTE => body.get(5) == Some(&PROTOCOL),
            RTM_NEWLINK => is_tun_down(body),
            _ => false,
        };
        if concerns {
            return true;
        }
        rest = rest.get(len.max(HEADER_LEN).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// `struct ifinfomsg`: the device's type at offset 2, its flags at 8.
fn is_tun_down(body: &[u8]) -> bool {
    let Some(&[_, _, t0, t1, _, _, _, _, f0, f1, f2, f3]) = body.first_chunk::<12>() else {
        return false;
    };
    u16::from_ne_bytes([t0, t1]) == ARPHRD_NONE && u32::from_ne_bytes([f0, f1, f2, f3]) & IFF_UP == 0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn notices_that_were_lost_are_told_of() {
        use rustix::net::{SendFlags, netlink::SocketAddrNetlink, sendto};
        let socket = netlink::subscribe(GROUPS).unwrap();
        // The kernel refuses each, and refusals fill the socket as notices do.
        let mut question = message(u16::MAX, &[]);
        question[6] = 1; // NLM_F_REQUEST
        for _ in 0..10_000 {
            sendto(&socket, &question, SendFlags::DONTWAIT, &SocketAddrNetlink::new(0, 0)).unwrap();
        }
        let (tell, told) = mpsc::channel();
        thread::spawn(move || watch(&socket, &AtomicBool::new(false), &mut || tell.send(()).is_err()));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn only_removals_that_may_be_ours_are_told() {
        let route = |protocol| message(RTM_DELROUTE, &[2, 24, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0]);
        let mut link = [0; 16];
        link[2..4].copy_from_slice(&ARPHRD_NONE.to_ne_bytes());
        assert!(may_concern_us(&route(PROTOCOL)));
        assert!(!may_concern_us(&route(4)));
        assert!(may_concern_us(&[route(4), route(PROTOCOL)].concat()));
        assert!(may_concern_us(&message(RTM_DELRULE, &[0; 12])));
        assert!(may_concern_us(&message(RTM_DELADDR, &[0; 8])));
        assert!(may_concern_us(&message(RTM_NEWLINK, &link)));
        link[8] = 1;
        assert!(!may_concern_us(&message(RTM_NEWLINK, &link)));
        assert!(!may_concern_us(&message(24, &[0; 12])));
    }

    #[test]
    fn nonsense_is_not_told_and_ends() {
        for len in 0..40 {
            assert!(!may_concern_us(&vec![0; len]));
            let _ = may_concern_us(&vec![0xff; len]);
        }
        assert!(!may_concern_us(&message(RTM_DELROUTE, &[2])));
    }
}
