//! The launcher's netlink client: blocking, one request at a time.
//!
//! Nothing else runs in the launcher while it changes the kernel, so there is nothing to
//! interleave with. Dumps ask the kernel to filter (`NETLINK_GET_STRICT_CHK`), so that a table of
//! a million foreign routes is not copied.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use braid_api::launcher::{IntoDevice, NextHop};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::install::{Change, Routing};
use super::layout::{Action, Layout, PROTOCOL, Route, Rule, Step, Via, slot_of_metric};
use super::learned::{self, Way};
use super::next_hop::NextHopMessage;

/// Messages sent at once: the answers to as many that fail must fit a socket's buffer.
const AT_ONCE: usize = 96;
/// Longest answer that the kernel puts into one datagram is half of this.
const BUFFER_LEN: usize = 64 * 1024;
/// `FRA_SUPPRESS_PREFIXLEN` of a rule without it.
const NO_SUPPRESS: u32 = u32::MAX;

/// A socket to the kernel's routing family, in the network namespace of its thread.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A network device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// Its index.
    pub(super) index: u32,
    /// Its MTU, in bytes.
    pub(super) mtu: u32,
}

/// What the device is to be like. `None` leaves a setting alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkSettings {
    /// MTU, in bytes.
    pub(super) mtu: Option<u32>,
    /// Group.
    pub(super) group: Option<u32>,
    /// Length of the transmit queue, in packets.
    pub(super) queue_len: Option<u32>,
    /// Administratively up.
    pub(super) up: bool,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// The kernel refuses netlink.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it dumps are merely longer.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Finds a device by its name.
    ///
    /// # Errors
    /// What the kernel said, other than that there is none.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answer = match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answer) => answer,
            Err(error) if is(&error, rustix::io::Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(answer.into_iter().find_map(|message| {
            let RouteNetlinkMessage::NewLink(link) = message else { return None };
            let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
            Some(Link { index: link.header.index, mtu: mtu.unwrap_or(0) })
        }))
    }

    /// Changes a device.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn set_link(&mut self, index: u32, settings: LinkSettings) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if settings.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        let attributes = &mut message.attributes;
        attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
        attributes.extend(settings.group.map(LinkAttribute::Group));
        attributes.extend(settings.queue_len.map(LinkAttribute::TxQueueLen));
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// What the kernel has of a slot. `device` is the index of its device, if that exists.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn layout(&mut self, slot: u8, device: Option<u32>) -> io::Result<Layout> {
        let mut layout = Layout::default();
        for route in self.routes(PROTOCOL)? {
            let ours = match route.via {
                Some(Via::Unreachable) => slot_of_metric(route.route.metric) == Some(slot),
                Some(Via::Device) => route.oif.is_some() && route.oif == device,
                None => false,
            };
            if ours {
                layout.routes.insert(route.route);
            }
        }
        layout.rules = self.rules()?.into_iter().filter(|rule| rule.slot() == Some(slot)).collect();
        if let Some(index) = device {
            layout.addresses = self.addresses(index)?.into_iter().collect();
        }
        Ok(layout)
    }

    /// The prefixes of every slot's `unreachable` routes, whether its gateway lives or not.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn unreachable(&mut self) -> io::Result<Vec<(u8, IpNet)>> {
        let routes = self.routes(PROTOCOL)?.into_iter().filter(|found| found.via == Some(Via::Unreachable));
        Ok(routes.filter_map(|r| Some((slot_of_metric(r.route.metric)?, r.route.prefix))).collect())
    }

    /// Makes one change; one that is already made is no error. `device` is the device's index.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn execute(&mut self, step: &Step, device: u32) -> io::Result<()> {
        use RouteNetlinkMessage as Message;
        const NEW: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let (message, flags) = match step {
            Step::AddAddress(address) => (Message::NewAddress(address_message(*address, device)), NEW),
            Step::RemoveAddress(address) => {
                (Message::DelAddress(address_message(*address, device)), NLM_F_ACK)
            }
            Step::AddRoute(route) => (Message::NewRoute(route_message(route, device)), NEW),
            Step::ChangeRoute { to, .. } => {
                let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
                (Message::NewRoute(route_message(to, device)), flags)
            }
            Step::RemoveRoute(route) => (Message::DelRoute(route_message(route, device)), NLM_F_ACK),
            Step::AddRule(rule) => (Message::NewRule(rule_message(rule)), NEW),
            Step::RemoveRule(rule) => (Message::DelRule(rule_message(rule)), NLM_F_ACK),
        };
        use rustix::io::Errno;
        match self.request(message, flags) {
            Ok(_) => Ok(()),
            // Gone already: with its device, with its address, or by another hand.
            Err(e)
                if step.removes()
                    && [Errno::SRCH, Errno::NOENT, Errno::ADDRNOTAVAIL, Errno::NODEV]
                        .iter()
                        .any(|n| is(&e, *n)) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn routes(&mut self, protocol: u8) -> io::Result<Vec<FoundRoute>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::Other(protocol);
            for answer in self.dump(RouteNetlinkMessage::GetRoute(message))? {
                if let RouteNetlinkMessage::NewRoute(message) = answer
                    && message.header.protocol == RouteProtocol::Other(protocol)
                {
                    found.extend(parse_route(&message));
                }
            }
        }
        Ok(found)
    }

    fn append<M: NetlinkSerializable>(&mut self, bytes: &mut Vec<u8>, message: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let start = bytes.len();
        // Netlink aligns messages to four bytes.
        bytes.resize(start + request.buffer_len().next_multiple_of(4), 0);
        request.serialize(&mut bytes[start..]);
    }

    /// Errors of the messages from `first` to the last, which asked for an acknowledgement, by their place.
    fn outcomes(&mut self, first: u32) -> io::Result<Vec<(usize, io::Error)>> {
        let mut errors = Vec::new();
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER_LEN);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let len = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = rest.get(len.next_multiple_of(4).max(16)..).unwrap_or_default();
                let number = message.header.sequence_number;
                let NetlinkPayload::Error(error) = message.payload else { continue };
                if error.code.is_some() {
                    errors.push((number.wrapping_sub(first) as usize, error.to_io()));
                }
                if number == self.sequence {
                    return Ok(errors);
                }
            }
        }
    }

    fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            for answer in self.dump(RouteNetlinkMessage::GetRule(message))? {
                if let RouteNetlinkMessage::NewRule(message) = answer
                    && message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
                {
                    found.extend(parse_rule(&message));
                }
            }
        }
        Ok(found)
    }

    fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let mut found = Vec::new();
        for answer in self.dump(RouteNetlinkMessage::GetAddress(message))? {
            if let RouteNetlinkMessage::NewAddress(message) = answer
                && message.header.index == index
            {
                found.extend(parse_address(&message));
            }
        }
        Ok(found)
    }

    fn dump<M>(&mut self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        match self.request(message, NLM_F_DUMP) {
            // A kernel without this family has nothing of it.
            Err(e) if is(&e, rustix::io::Errno::AFNOSUPPORT) || is(&e, rustix::io::Errno::OPNOTSUPP) => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Sends one request and reads to the end of its answer: a `Done`, an error or
    /// acknowledgement, or, when neither is asked for, the one message.
    fn request<M>(&mut self, message: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, flags);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER_LEN);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.take(&buffer, flags, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Reads one datagram; true at the end of the answer.
    fn take<M: NetlinkDeserializable>(
        &self,
        mut rest: &[u8],
        flags: u16,
        answers: &mut Vec<M>,
    ) -> io::Result<bool> {
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let len = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(len.next_multiple_of(4).max(16)..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => {
                    answers.push(inner);
                    if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                        return Ok(true);
                    }
                }
                NetlinkPayload::Error(error) => {
                    return if error.code.is_none() { Ok(true) } else { Err(error.to_io()) };
                }
                NetlinkPayload::Done(_) => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }
}

impl Routing for Netlink {
    fn next_hops(&mut self, slot: u8) -> io::Result<Option<BTreeSet<u32>>> {
        match self.request(NextHopMessage::list(), NLM_F_DUMP) {
            Ok(found) => Ok(Some(found.iter().filter_map(|message| message.id_in(slot)).collect())),
            Err(error) if is(&error, rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn learned_routes(&mut self, slot: u8) -> io::Result<Vec<learned::Route>> {
        let found = self.routes(learned::PROTOCOL)?;
        Ok(found.iter().filter_map(|found| learned_route(found, slot)).collect())
    }

    fn put_next_hop(&mut self, id: u32, next_hop: &NextHop) -> io::Result<()> {
        let link = self.link(&next_hop.interface)?.ok_or(rustix::io::Errno::NODEV)?;
        let message = NextHopMessage::new(id, link.index, next_hop.gateway);
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    fn remove_next_hop(&mut self, id: u32) -> io::Result<()> {
        match self.request(NextHopMessage::remove(id), NLM_F_ACK) {
            Err(error) if is(&error, rustix::io::Errno::NOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    fn change_routes<'r>(
        &mut self,
        changes: &[Change<'r>],
        device: u32,
    ) -> io::Result<Vec<(&'r learned::Route, io::Error)>> {
        use rustix::io::Errno;
        let mut refused = Vec::new();
        for changes in changes.chunks(AT_ONCE) {
            let mut bytes = Vec::with_capacity(changes.len() * 80);
            let first = self.sequence.wrapping_add(1);
            for (at, change) in changes.iter().enumerate() {
                let (message, flags) = match change {
                    Change::Put(route) => {
                        let message = learned_message(route, Some(device));
                        (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
                    }
                    Change::Remove(route) => (RouteNetlinkMessage::DelRoute(learned_message(route, None)), 0),
                };
                let last = if at + 1 == changes.len() { NLM_F_ACK } else { 0 };
                self.append(&mut bytes, message, flags | last);
            }
            self.socket.send(&bytes, 0)?;
            for (at, error) in self.outcomes(first)? {
                let gone = [Errno::SRCH, Errno::NOENT, Errno::NODEV].iter().any(|n| is(&error, *n));
                match changes.get(at) {
                    Some(Change::Put(route)) => refused.push((*route, error)),
                    Some(Change::Remove(route)) if !gone => refused.push((*route, error)),
                    Some(Change::Remove(_)) | None => {}
                }
            }
        }
        Ok(refused)
    }
}

/// Whether an error is this one of the kernel's.
pub(super) fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

struct FoundRoute {
    route: Route,
    via: Option<Via>,
    oif: Option<u32>,
}

fn family(prefix: &IpNet) -> AddressFamily {
    match prefix {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn route_message(route: &Route, device: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (kind, scope) = match (route.via, route.prefix) {
        (Via::Unreachable, _) => (RouteType::Unreachable, RouteScope::Universe),
        (Via::Device, IpNet::V4(_)) => (RouteType::Unicast, RouteScope::Link),
        (Via::Device, IpNet::V6(_)) => (RouteType::Unicast, RouteScope::Universe),
    };
    message.header = RouteHeader {
        address_family: family(&route.prefix),
        destination_prefix_length: route.prefix.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::Other(PROTOCOL),
        scope,
        kind,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.prefix.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.prefix.addr())));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    if route.via == Via::Device {
        attributes.push(RouteAttribute::Oif(device));
    }
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
    message
}

/// With `device`, its index, the route to be put; without, as much of it as tells which one is to be removed.
fn learned_message(route: &learned::Route, device: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let kind = match route.way {
        Way::Unreachable => RouteType::Unreachable,
        Way::Device(_) | Way::NextHop(_) => RouteType::Unicast,
    };
    let scope = match (route.way, route.prefix) {
        (Way::Device(_), IpNet::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.header = RouteHeader {
        address_family: family(&route.prefix),
        destination_prefix_length: route.prefix.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
        protocol: RouteProtocol::Other(learned::PROTOCOL),
        scope,
        kind,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.prefix.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.prefix.addr())));
    }
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    match (route.way, device) {
        (Way::Device(IntoDevice { source }), Some(device)) => {
            attributes.push(RouteAttribute::Oif(device));
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))));
        }
        (Way::NextHop(id), Some(_)) => attributes.push(RouteAttribute::NhId(id)),
        // The metric tells ours from all others of the prefix.
        (Way::Unreachable, _) | (_, None) => {}
    }
    message
}

/// A route of a slot's earlier run that outlived its device.
fn learned_route(found: &FoundRoute, slot: u8) -> Option<learned::Route> {
    let Route { prefix, table, metric, .. } = found.route;
    let way = match found.via? {
        Via::Unreachable if learned::slot_of_metric(metric) == Some(slot) => Way::Unreachable,
        // By an object of whatever number, or by none, as versions before these made them.
        Via::Device if metric == learned::link_metric(slot) => Way::NextHop(0),
        Via::Unreachable | Via::Device => return None,
    };
    Some(learned::Route { prefix, table, metric, way })
}

fn parse_route(message: &RouteMessage) -> Option<FoundRoute> {
    let v6 = message.header.address_family == AddressFamily::Inet6;
    let len = message.header.destination_prefix_length;
    let any = if v6 { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
    let (mut address, mut source, mut oif) = (any, None, None);
    let (mut table, mut metric) = (u32::from(message.header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(found) => address = ip(found)?,
            RouteAttribute::PrefSource(found) => source = ip(found),
            RouteAttribute::Table(found) => table = *found,
            RouteAttribute::Priority(found) => metric = *found,
            RouteAttribute::Oif(found) => oif = Some(*found),
            _ => {}
        }
    }
    let via = match message.header.kind {
        RouteType::Unreachable => Some(Via::Unreachable),
        RouteType::Unicast => Some(Via::Device),
        _ => None,
    };
    let prefix = IpNet::new(address, len).ok()?;
    let route = Route { via: via.unwrap_or(Via::Device), prefix, table, metric, source };
    Some(FoundRoute { route, via, oif })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.extend(rule.mark.map(RuleAttribute::FwMark));
    attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    if let Some(prefix) = rule.to {
        header.dst_len = prefix.prefix_len();
        attributes.push(RuleAttribute::Destination(prefix.addr()));
    }
    match rule.action {
        Action::Nop => header.action = RuleAction::Nop,
        Action::Unreachable => header.action = RuleAction::Unreachable,
        Action::Goto(priority) => {
            header.action = RuleAction::Goto;
            attributes.push(RuleAttribute::Goto(priority));
        }
        Action::Lookup { table, suppress_len, suppress_group } => {
            header.action = RuleAction::ToTable;
            header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
            attributes.push(RuleAttribute::Table(table));
            attributes.extend(suppress_len.map(RuleAttribute::SuppressPrefixLen));
            attributes.extend(suppress_group.map(RuleAttribute::SuppressIfGroup));
        }
    }
    message
}

fn parse_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let v6 = header.family == AddressFamily::Inet6;
    let mut rule = Rule { v6, priority: 0, mark: None, iif: None, to: None, action: Action::Nop };
    let (mut table, mut goto) = (u32::from(header.table), 0);
    let (mut suppress_len, mut suppress_group) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => rule.priority = *found,
            RuleAttribute::FwMark(found) => rule.mark = Some(*found),
            RuleAttribute::Iifname(found) => rule.iif = Some(found.clone()),
            RuleAttribute::Destination(found) => rule.to = IpNet::new(*found, header.dst_len).ok(),
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Goto(found) => goto = *found,
            RuleAttribute::SuppressPrefixLen(found) => suppress_len = Some(*found),
            RuleAttribute::SuppressIfGroup(found) => suppress_group = Some(*found),
            _ => {}
        }
    }
    let suppress_len = suppress_len.filter(|len| *len != NO_SUPPRESS);
    let suppress_group = suppress_group.filter(|group| *group != NO_SUPPRESS);
    rule.action = match header.action {
        RuleAction::Nop => Action::Nop,
        RuleAction::Unreachable => Action::Unreachable,
        RuleAction::Goto => Action::Goto(goto),
        RuleAction::ToTable => Action::Lookup { table, suppress_len, suppress_group },
        _ => return None,
    };
    Some(rule)
}

fn address_message(address: IpNet, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(&address);
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    // There is no neighbour on the device to have the address already.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

fn parse_address(message: &AddressMessage) -> Option<IpNet> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => found = Some(*local),
            AddressAttribute::Address(address) if found.is_none() => found = Some(*address),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}
