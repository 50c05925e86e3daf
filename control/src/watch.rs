//! Looks at the outer paths: which interface leads to a peer, from which address, with which MTU,
//! and whether it is up. Asks the kernel by netlink and is told by it when something changes.
//!
//! Asks with the outer sockets' mark, so that a route into the tunnels is never the answer.
//! Changes nothing and needs no privilege.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use braid_api::launcher::OUTER_MARK;
use braid_dataplane::io::netlink;
use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
        },
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{io::Interest, net::UnixDatagram, time::timeout_at};

use crate::{
    config::{Remote, Tunnel},
    launcher::{LEARNED_PROTOCOL, PROTOCOL},
    outer::{Addresses, Blocked, Links, Outer},
};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, and next-hop objects,
/// with which routes go that nobody is told of (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 31;
/// Between two looks when changes come in a row; more when a look takes long.
const MIN_GAP: Duration = Duration::from_millis(20);
/// Share of the time that looks may take.
const LOOK_SHARE: u32 = 10;
/// In which the kernel tells how long it believes what a path takes (USER_HZ).
const TICK: Duration = Duration::from_millis(10);
/// After that time, so that it has forgotten.
const FORGETTING: Duration = Duration::from_millis(100);

/// What to look at for one tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// As configured.
    pub local: Option<IpAddr>,
    /// As configured.
    pub remote: Option<Remote>,
    /// As configured.
    pub uplink: Option<String>,
}

impl Lookup {
    /// What a tunnel asks for.
    pub fn of(tunnel: &Tunnel) -> Self {
        Lookup { local: tunnel.local, remote: tunnel.remote.clone(), uplink: tunnel.uplink.clone() }
    }
}

/// The kernel's answers, and its notices.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    sequence: u32,
    /// A netlink socket; tokio has no type for it, but waits for any socket alike.
    notices: UnixDatagram,
    receiver: netlink::Receiver,
    /// The device, whose own changes say nothing about outer paths.
    device: String,
    next_look: Instant,
    changed: bool,
    /// When the kernel forgets that a path is narrower than its link, of which it gives no notice.
    narrow_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Link {
    name: String,
    mtu: u32,
    is_up: bool,
}

impl Watch {
    /// Opens both sockets.
    ///
    /// # Errors
    /// The kernel refuses netlink.
    pub fn new(device: String) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let notices = netlink::subscribe(GROUPS)?;
        netlink::ignore_device_routes(notices.as_fd(), LEARNED_PROTOCOL)?;
        let notices = UnixDatagram::from_std(notices.into())?;
        let receiver = netlink::Receiver::default();
        Ok(Watch {
            socket,
            sequence: 0,
            notices,
            receiver,
            device,
            next_look: Instant::now(),
            changed: false,
            narrow_until: None,
        })
    }

    /// Somebody else has heard of a change.
    pub fn note_change(&mut self) {
        self.changed = true;
    }

    /// Waits until something may have changed.
    pub async fn changed(&mut self) {
        loop {
            if self.changed {
                tokio::time::sleep_until(self.next_look.into()).await;
                return;
            }
            // The buffer is made once there is something to read: this is called for every event of any kind.
            let ready = match self.narrow_until {
                None => self.notices.readable().await,
                Some(until) => match timeout_at(until.into(), self.notices.readable()).await {
                    Ok(ready) => ready,
                    Err(_) => {
                        self.changed = true;
                        continue;
                    }
                },
            };
            let mut buffer = vec![0; netlink::BUFFER_LEN];
            let (notices, receiver) = (&self.notices, &mut self.receiver);
            let receive = || receiver.receive(notices.as_fd(), &mut buffer);
            let received = ready.and_then(|()| notices.try_io(Interest::READABLE, receive));
            self.changed = match received {
                Ok(Some(len)) => concerns_outer_paths(buffer.get(..len).unwrap_or_default(), &self.device),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                // Notices were lost: look.
                Ok(None) | Err(_) => true,
            };
        }
    }

    /// Looks at the outer paths of these tunnels now. `resolved` are addresses of names.
    pub fn look(
        &mut self,
        lookups: &BTreeMap<String, Lookup>,
        resolved: &BTreeMap<String, Result<IpAddr, String>>,
    ) -> BTreeMap<String, Outer> {
        let begin = Instant::now();
        self.drain();
        self.changed = false;
        self.narrow_until = None;
        let mut links = HashMap::new();
        let look =
            |(name, lookup): (&String, &Lookup)| (name.clone(), self.look_at(lookup, resolved, &mut links));
        let outer = lookups.iter().map(look).collect();
        self.next_look = Instant::now() + MIN_GAP.max(begin.elapsed() * LOOK_SHARE);
        outer
    }

    /// Which of these links exist and are up.
    ///
    /// # Errors
    /// The kernel does not tell addresses.
    pub fn links_up(&mut self, names: &BTreeSet<String>) -> io::Result<Links> {
        let mut links = Links::new();
        let mut addresses = None;
        for name in names {
            let Some((index, _)) = self.link_by_name(name).filter(|(_, link)| link.is_up) else { continue };
            let known = match &mut addresses {
                Some(known) => known,
                None => addresses.insert(self.addresses()?),
            };
            links.insert(name.clone(), known.remove(&index).unwrap_or_default());
        }
        Ok(links)
    }

    /// Notices that came before a look are answered by it.
    fn drain(&mut self) {
        /// Notices keep coming on a machine whose routes change all the time.
        const MAX_DRAINED: usize = 10_000;
        let mut buffer = vec![0; netlink::BUFFER_LEN];
        for _ in 0..MAX_DRAINED {
            match self.receiver.receive(self.notices.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn look_at(
        &mut self,
        lookup: &Lookup,
        resolved: &BTreeMap<String, Result<IpAddr, String>>,
        links: &mut HashMap<u32, Option<Link>>,
    ) -> Outer {
        let mut outer = Outer { local: lookup.local, ..Outer::default() };
        let remote = match &lookup.remote {
            None => None,
            Some(Remote::Address(address)) => Some(*address),
            Some(Remote::Name(name)) => match resolved.get(name) {
                Some(Ok(address)) => Some(*address),
                Some(Err(cause)) => {
                    outer.blocked = Some(Blocked::Unresolved { name: name.clone(), cause: cause.clone() });
                    return outer;
                }
                None => {
                    let cause = "not asked yet".to_owned();
                    outer.blocked = Some(Blocked::Unresolved { name: name.clone(), cause });
                    return outer;
                }
            },
        };
        outer.remote = remote;
        let uplink = match &lookup.uplink {
            None => None,
            Some(name) => match self.link_by_name(name) {
                Some((index, link)) => {
                    self.note_link(&mut outer, &link);
                    Some(index)
                }
                None => {
                    outer.blocked = Some(Blocked::NoInterface { name: name.clone() });
                    return outer;
                }
            },
        };
        let Some(remote) = remote.filter(|_| outer.blocked.is_none()) else { return outer };
        match self.route(remote, lookup.local, uplink) {
            Ok(route) => {
                outer.local = lookup.local.or(route.source);
                let link = links.entry(route.interface).or_insert_with(|| self.link(route.interface));
                if let Some(link) = link.clone() {
                    self.note_link(&mut outer, &link);
                }
                if let (Some(mtu), Some(learned)) = (&mut outer.mtu, route.mtu) {
                    *mtu = (*mtu).min(u16::try_from(learned).unwrap_or(u16::MAX));
                    let until = route.expires.map(|expires| Instant::now() + expires + FORGETTING);
                    self.narrow_until = self.narrow_until.into_iter().chain(until).min();
                }
            }
            Err(_) => outer.blocked = Some(Blocked::NoRoute { remote }),
        }
        outer
    }

    fn note_link(&self, outer: &mut Outer, link: &Link) {
        outer.interface = Some(link.name.clone());
        outer.mtu = Some(u16::try_from(link.mtu).unwrap_or(u16::MAX));
        if !link.is_up {
            outer.blocked = Some(Blocked::LinkDown { name: link.name.clone() });
        }
    }

    fn route(&mut self, remote: IpAddr, local: Option<IpAddr>, uplink: Option<u32>) -> io::Result<Route> {
        let address = |address: IpAddr| match address {
            IpAddr::V4(v4) => RouteAddress::Inet(v4),
            IpAddr::V6(v6) => RouteAddress::Inet6(v6),
        };
        let mut message = RouteMessage::default();
        let len = if remote.is_ipv4() { 32 } else { 128 };
        message.header.address_family =
            if remote.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = len;
        message.attributes.push(RouteAttribute::Destination(address(remote)));
        message.attributes.push(RouteAttribute::Mark(OUTER_MARK));
        if let Some(local) = local {
            message.header.source_prefix_length = len;
            message.attributes.push(RouteAttribute::Source(address(local)));
        }
        message.attributes.extend(uplink.map(RouteAttribute::Oif));
        let RouteNetlinkMessage::NewRoute(route) = self.ask(RouteNetlinkMessage::GetRoute(message))? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local) {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        let mut found = Route { interface: 0, source: None, mtu: None, expires: None };
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = index,
                RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => found.source = Some(v4.into()),
                RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => found.source = Some(v6.into()),
                RouteAttribute::Metrics(metrics) => {
                    found.mtu = metrics.into_iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if mtu > 0 => Some(mtu),
                        _ => None,
                    });
                }
                RouteAttribute::CacheInfo(info) if info.expires > 0 => {
                    found.expires = Some(TICK * info.expires);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn link(&mut self, index: u32) -> Option<Link> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask_link(message).map(|(_, link)| link)
    }

    fn link_by_name(&mut self, name: &str) -> Option<(u32, Link)> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.ask_link(message)
    }

    fn ask_link(&mut self, message: LinkMessage) -> Option<(u32, Link)> {
        let Ok(RouteNetlinkMessage::NewLink(link)) = self.ask(RouteNetlinkMessage::GetLink(message)) else {
            return None;
        };
        Some((link.header.index, read_link(&link)))
    }

    /// Of every interface, by its index.
    fn addresses(&mut self) -> io::Result<HashMap<u32, Addresses>> {
        self.send(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found: HashMap<u32, Addresses> = HashMap::new();
        let mut buffer: Vec<u8> = Vec::with_capacity(netlink::BUFFER_LEN);
        loop {
            self.receive(&mut buffer)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
                rest = behind(rest);
                // Addresses of protocols that are none of ours need not be understood.
                let Ok(answer) = answer else { continue };
                if answer.header.sequence_number != self.sequence {
                    continue; // of a question that was given up
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                        note_address(found.entry(address.header.index).or_default(), &address);
                    }
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
                    NetlinkPayload::Done(done) => {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            match self.socket.recv(buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received.map(drop),
            }
        }
    }

    fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(message, NLM_F_REQUEST)?;
        let mut buffer: Vec<u8> = Vec::with_capacity(netlink::BUFFER_LEN);
        loop {
            self.receive(&mut buffer)?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer)
                .map_err(|_| io::ErrorKind::InvalidData)?;
            if answer.header.sequence_number != self.sequence {
                continue; // of a question that was given up
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(message),
                NetlinkPayload::Error(error) => Err(error.to_io()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

/// rtnetlink(7): what the address puts on the link is IFA_ADDRESS, the other end's on a point-to-point link, where ours
/// is IFA_LOCAL.
fn note_address(addresses: &mut Addresses, message: &AddressMessage) {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => own = Some(*local),
            AddressAttribute::Address(address) => {
                own = own.or(Some(*address));
                let network = IpNet::new(*address, message.header.prefix_len);
                addresses.networks.extend(network.map(|network| network.trunc()));
            }
            _ => {}
        }
    }
    addresses.own.extend(own);
}

struct Route {
    interface: u32,
    source: Option<IpAddr>,
    mtu: Option<u32>,
    /// After this time the kernel will say otherwise.
    expires: Option<Duration>,
}

fn read_link(link: &LinkMessage) -> Link {
    let mut read = Link {
        name: String::new(),
        mtu: 0,
        is_up: link.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => name.clone_into(&mut read.name),
            LinkAttribute::Mtu(mtu) => read.mtu = *mtu,
            _ => {}
        }
    }
    read
}

/// Whether a datagram of notices is about anything but our own device and routes.
fn concerns_outer_paths(mut bytes: &[u8], device: &str) -> bool {
    while !bytes.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            return true; // not understood, so better look
        };
        let concerns = match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => read_link(link).name != device,
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => !is_ours(&route.header),
            _ => true,
        };
        if concerns {
            return true;
        }
        bytes = behind(bytes);
    }
    false
}

/// What follows the first message. RFC 3549 section 2.2: its length comes first, and messages are aligned to four bytes.
fn behind(bytes: &[u8]) -> &[u8] {
    let length = bytes.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
    bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default()
}

fn is_ours(header: &RouteHeader) -> bool {
    header.protocol == RouteProtocol::from(PROTOCOL)
}
