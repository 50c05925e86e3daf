//! UPDATE messages, in both directions: routes in our types, errors handled as RFC 7606 says.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustbgpd_wire::{
    Afi, DecodeError, ErrorDisposition, Ipv4NlriEntry, Ipv4Prefix, Ipv4UnicastMode, Ipv6Prefix,
    MAX_MESSAGE_LEN, Message, MpReachNlri, MpUnreachNlri, NlriEntry, NotificationCode, PathAttribute, Prefix,
    Safi, UpdateMessage,
    attribute::MalformedAttribute,
    encode_message,
    validate::{UpdateValidationOptions, validate_update_attributes_with_context},
};

use crate::attributes::Attributes;

/// Header, and the two lengths of an UPDATE.
const FIXED: usize = 19 + 4;
/// MP_REACH_NLRI without its prefixes: attribute header, family, lengths, two next hops, reserved.
const MP_REACH: usize = 4 + 3 + 1 + 32 + 1;
/// MP_UNREACH_NLRI without its prefixes.
const MP_UNREACH: usize = 4 + 3;
const NLRI_V4: usize = 1 + 4;
const NLRI_V6: usize = 1 + 16;

/// An address family; unicast is meant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of a prefix.
    pub fn of(prefix: &IpNet) -> Family {
        match prefix {
            IpNet::V4(_) => Family::Ipv4,
            IpNet::V6(_) => Family::Ipv6,
        }
    }

    pub(crate) fn to_wire(self) -> (Afi, Safi) {
        match self {
            Family::Ipv4 => (Afi::Ipv4, Safi::Unicast),
            Family::Ipv6 => (Afi::Ipv6, Safi::Unicast),
        }
    }

    pub(crate) fn from_wire(family: (Afi, Safi)) -> Option<Family> {
        match family {
            (Afi::Ipv4, Safi::Unicast) => Some(Family::Ipv4),
            (Afi::Ipv6, Safi::Unicast) => Some(Family::Ipv6),
            _ => None,
        }
    }
}

/// A prefix, and which of a neighbor's paths to it (RFC 7911; zero without add-path).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nlri {
    /// The prefix; host bits are zero.
    pub prefix: IpNet,
    /// The path's identifier.
    pub path_id: u32,
}

/// Routes with the same attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Their attributes.
    pub attributes: Arc<Attributes>,
    /// Their prefixes.
    pub nlri: Vec<Nlri>,
}

/// A received UPDATE. What is withdrawn goes before what is announced.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Update {
    /// Routes that are gone, or whose announcement was malformed.
    pub withdrawn: Vec<Nlri>,
    /// Routes that have come or changed.
    pub announced: Vec<Announcement>,
}

/// What is done about a malformed attribute, short of ending the session (RFC 7606 section 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Handling {
    /// The attribute is left out.
    AttributeDiscarded,
    /// All routes of the message count as withdrawn.
    TreatedAsWithdrawn,
}

/// Routes to send.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outgoing {
    /// Prefixes that are no longer announced.
    pub withdrawn: Vec<IpNet>,
    /// Prefixes by their attributes.
    pub announced: Vec<(Arc<Attributes>, Vec<IpNet>)>,
}

/// What decides how an UPDATE is read.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) four_octet_as: bool,
    pub(crate) remote_as: u32,
    pub(crate) external: bool,
    pub(crate) families: Vec<Family>,
    pub(crate) add_path: Vec<Family>,
}

/// Why an UPDATE ends the session.
#[derive(Debug)]
pub(crate) enum Fatal {
    Decode(DecodeError),
    /// Subcode and data of an UPDATE Message Error.
    Invalid(u8, Vec<u8>),
}

/// One malformed attribute: type code, handling, what was wrong.
pub(crate) type Malformed = (u8, Handling, String);

/// An UPDATE that does not end the session.
#[derive(Default, Debug)]
pub(crate) struct Parsed {
    pub(crate) update: Update,
    pub(crate) end_of_rib: Option<Family>,
    pub(crate) malformed: Vec<Malformed>,
}

/// Reads an UPDATE.
pub(crate) fn parse(message: &UpdateMessage, context: &Context) -> Result<Parsed, Fatal> {
    // RFC 4724 section 2: an empty UPDATE is the End-of-RIB of IPv4 unicast.
    if message.withdrawn_routes.is_empty() && message.path_attributes.is_empty() && message.nlri.is_empty() {
        return Ok(Parsed { end_of_rib: Some(Family::Ipv4), ..Parsed::default() });
    }
    let add_path: Vec<_> = context.add_path.iter().map(|family| family.to_wire()).collect();
    let add_path_v4 = context.add_path.contains(&Family::Ipv4);
    let revised = message
        .parse_revised(context.four_octet_as, !context.external, add_path_v4, &add_path)
        .map_err(Fatal::Decode)?;
    let mut malformed = Vec::new();
    for attribute in &revised.malformed {
        let handling = handling(attribute.disposition).ok_or(Fatal::Decode(attribute.error.clone()))?;
        malformed.push((attribute.type_code, handling, attribute.error.to_string()));
    }
    let attributes = &revised.update.attributes;
    let reach = attributes.iter().find_map(|attribute| match attribute {
        PathAttribute::MpReachNlri(reach) => Some(&**reach),
        _ => None,
    });
    let unreach = attributes.iter().find_map(|attribute| match attribute {
        PathAttribute::MpUnreachNlri(unreach) => Some(&**unreach),
        _ => None,
    });
    // RFC 7606 section 5.2: where attributes are malformed and no reachable route was found, it may be that the routes
    // were missed, and what is to count as withdrawn is unknown. Routes of families that are not known here are not
    // seen, nor are they ever taken.
    let has_reachable = !revised.update.announced.is_empty()
        || reach.is_some_and(|reach| {
            Family::from_wire((reach.afi, reach.safi)).is_none() || !reach.announced.is_empty()
        });
    let is_withdrawing = |attribute: &&MalformedAttribute| {
        handling(attribute.disposition) == Some(Handling::TreatedAsWithdrawn)
    };
    if let (false, Some(attribute)) = (has_reachable, revised.malformed.iter().find(is_withdrawing)) {
        return Err(Fatal::Decode(attribute.error.clone()));
    }
    if let (Some(unreach), 1) = (unreach, attributes.len())
        && message.withdrawn_routes.is_empty()
        && message.nlri.is_empty()
        && unreach.withdrawn.is_empty()
        && malformed.is_empty()
    {
        return Ok(Parsed {
            end_of_rib: Family::from_wire((unreach.afi, unreach.safi)),
            ..Parsed::default()
        });
    }

    let body: Vec<Nlri> = wanted(context, Family::Ipv4, revised.update.announced.iter().map(from_body));
    let multiprotocol: Vec<Nlri> = match reach.map(|reach| (reach, (reach.afi, reach.safi))) {
        Some((reach, family)) => {
            wanted(context, Family::from_wire(family), reach.announced.iter().map(from_mp))
        }
        None => Vec::new(),
    };
    let mut withdrawn = wanted(context, Family::Ipv4, revised.update.withdrawn.iter().map(from_body));
    if let Some(unreach) = unreach {
        let family = Family::from_wire((unreach.afi, unreach.safi));
        withdrawn.extend(wanted(context, family, unreach.withdrawn.iter().map(from_mp)));
    }
    if !body.is_empty() || !multiprotocol.is_empty() {
        check(attributes, !revised.update.announced.is_empty(), context, &mut malformed)?;
    }
    // RFC 7606 section 3 (h): the strongest handling counts.
    if malformed.iter().any(|(_, handling, _)| *handling == Handling::TreatedAsWithdrawn) {
        withdrawn.extend(body);
        withdrawn.extend(multiprotocol);
        return Ok(Parsed {
            update: Update { withdrawn, announced: Vec::new() },
            end_of_rib: None,
            malformed,
        });
    }
    let mut announced = Vec::new();
    let next_hop = attributes.iter().find_map(|attribute| match attribute {
        PathAttribute::NextHop(address) => Some(IpAddr::V4(*address)),
        _ => None,
    });
    if let (Some(next_hop), false) = (next_hop, body.is_empty()) {
        let attributes = Arc::new(Attributes::from_wire(attributes, next_hop, None, context.external));
        announced.push(Announcement { attributes, nlri: body });
    }
    if let (Some(reach), false) = (reach, multiprotocol.is_empty()) {
        let attributes =
            Attributes::from_wire(attributes, reach.next_hop, reach.link_local_next_hop, context.external);
        announced.push(Announcement { attributes: Arc::new(attributes), nlri: multiprotocol });
    }
    Ok(Parsed { update: Update { withdrawn, announced }, end_of_rib: None, malformed })
}

/// Prefixes of a family, unless that was not negotiated (RFC 4760 section 7: then they are ignored).
fn wanted(
    context: &Context,
    family: impl Into<Option<Family>>,
    nlri: impl Iterator<Item = Nlri>,
) -> Vec<Nlri> {
    let wanted = family.into().is_some_and(|family| context.families.contains(&family));
    if wanted { nlri.collect() } else { Vec::new() }
}

/// The checks of RFC 4271 section 6.3 on attributes that could be read.
fn check(
    attributes: &[PathAttribute],
    body: bool,
    context: &Context,
    malformed: &mut Vec<Malformed>,
) -> Result<(), Fatal> {
    let options = UpdateValidationOptions::default();
    // RFC 7606 section 3 (d): routes in the body need a NEXT_HOP (RFC 4271 section 5.1.3), whoever sends them. It is
    // all that the library asks of external peers only.
    let checked = validate_update_attributes_with_context(attributes, true, body, true, options);
    if let Err(invalid) = checked {
        let handling = handling(invalid.error.disposition)
            .ok_or_else(|| Fatal::Invalid(invalid.error.subcode, invalid.error.data.clone()))?;
        // What could not be read is missing too: once is enough.
        if !malformed.iter().any(|(code, _, _)| *code == invalid.type_code) {
            let text = rustbgpd_wire::notification::description(
                NotificationCode::UpdateMessage,
                invalid.error.subcode,
            );
            malformed.push((invalid.type_code, handling, text.to_string()));
        }
    }
    // RFC 4271 section 6.3: a leftmost AS that is not the peer's is a malformed AS_PATH.
    let path = attributes.iter().find_map(|attribute| match attribute {
        PathAttribute::AsPath(path) => Some(path),
        _ => None,
    });
    if let (Some(path), true) = (path, context.external)
        && path.asns().next() != Some(context.remote_as)
    {
        let text = format!("AS_PATH does not begin with {}", context.remote_as);
        malformed.push((2, Handling::TreatedAsWithdrawn, text));
    }
    Ok(())
}

fn handling(disposition: ErrorDisposition) -> Option<Handling> {
    match disposition {
        ErrorDisposition::AttributeDiscard => Some(Handling::AttributeDiscarded),
        ErrorDisposition::TreatAsWithdraw => Some(Handling::TreatedAsWithdrawn),
        ErrorDisposition::SessionReset => None,
    }
}

fn from_body(entry: &Ipv4NlriEntry) -> Nlri {
    Nlri { prefix: v4(entry.prefix), path_id: entry.path_id }
}

fn from_mp(entry: &NlriEntry) -> Nlri {
    let prefix = match entry.prefix {
        Prefix::V4(prefix) => v4(prefix),
        Prefix::V6(prefix) => IpNet::V6(Ipv6Net::new_assert(prefix.addr, prefix.len.min(128)).trunc()),
    };
    Nlri { prefix, path_id: entry.path_id }
}

fn v4(prefix: Ipv4Prefix) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(prefix.addr, prefix.len.min(32)).trunc())
}

/// Writes UPDATEs of at most 4096 octets. Routes whose attributes leave no room, or whose next hop is of the
/// other family, cannot be sent; their number comes back.
pub(crate) fn encode(outgoing: &Outgoing, four_octet_as: bool) -> (Vec<Bytes>, usize) {
    let mut writer = Writer { four_octet_as, messages: Vec::new(), unsendable: 0 };
    let (v4, v6) = split(&outgoing.withdrawn);
    let most = usize::from(MAX_MESSAGE_LEN) - FIXED;
    for piece in v4.chunks(most / NLRI_V4) {
        writer.push(&[], piece, &[], piece.len());
    }
    for piece in v6.chunks((most - MP_UNREACH) / NLRI_V6) {
        writer.push(&[], &[], &[unreach(piece.to_vec())], piece.len());
    }
    for (attributes, prefixes) in &outgoing.announced {
        writer.announce(attributes, prefixes);
    }
    (writer.messages, writer.unsendable)
}

/// The End-of-RIB of a family (RFC 4724 section 2).
pub(crate) fn end_of_rib(family: Family) -> Option<Bytes> {
    let attributes = match family {
        Family::Ipv4 => Vec::new(),
        Family::Ipv6 => vec![unreach(Vec::new())],
    };
    let message = UpdateMessage::try_build(&[], &[], &attributes, true, false, Ipv4UnicastMode::Body).ok()?;
    encode_message(&Message::Update(message)).ok().map(|octets| octets.freeze())
}

/// Whether a message has room for a route with these attributes.
pub(crate) fn fits(attributes: &Attributes, four_octet_as: bool) -> bool {
    room(&attributes.to_wire(), four_octet_as).is_some()
}

/// The octets that attributes, next hop aside, leave in a message beside a route of either family.
fn room(wire: &[PathAttribute], four_octet_as: bool) -> Option<usize> {
    let mut size = Vec::new();
    rustbgpd_wire::attribute::encode_path_attributes(wire, &mut size, four_octet_as, false).ok()?;
    (usize::from(MAX_MESSAGE_LEN) - FIXED).checked_sub(size.len() + MP_REACH + NLRI_V6)
}

struct Writer {
    four_octet_as: bool,
    messages: Vec<Bytes>,
    unsendable: usize,
}

impl Writer {
    fn announce(&mut self, attributes: &Attributes, prefixes: &[IpNet]) {
        let (v4, v6) = split(prefixes);
        let mut wire = attributes.to_wire();
        let Some(room) = room(&wire, self.four_octet_as) else {
            self.unsendable += prefixes.len();
            return;
        };
        match attributes.next_hop {
            IpAddr::V4(next_hop) => {
                self.unsendable += v6.len();
                // After ORIGIN and AS_PATH (RFC 4271 section 5: ascending).
                wire.insert(2.min(wire.len()), PathAttribute::NextHop(next_hop));
                for piece in v4.chunks(room / NLRI_V4 + 1) {
                    self.push(piece, &[], &wire, piece.len());
                }
            }
            IpAddr::V6(_) => {
                self.unsendable += v4.len();
                // RFC 7606 section 5.1: MP_REACH_NLRI comes first.
                wire.insert(0, reach(attributes, Vec::new()));
                for piece in v6.chunks(room / NLRI_V6 + 1) {
                    wire[0] = reach(attributes, piece.to_vec());
                    self.push(&[], &[], &wire, piece.len());
                }
            }
        }
    }

    fn push(
        &mut self,
        announced: &[Ipv4NlriEntry],
        withdrawn: &[Ipv4NlriEntry],
        attributes: &[PathAttribute],
        routes: usize,
    ) {
        let mode = Ipv4UnicastMode::Body;
        let built =
            UpdateMessage::try_build(announced, withdrawn, attributes, self.four_octet_as, false, mode);
        match built.and_then(|message| encode_message(&Message::Update(message))) {
            Ok(octets) => self.messages.push(octets.freeze()),
            Err(_) => self.unsendable += routes,
        }
    }
}

fn split(prefixes: &[IpNet]) -> (Vec<Ipv4NlriEntry>, Vec<NlriEntry>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            IpNet::V4(prefix) => v4.push(Ipv4NlriEntry {
                path_id: 0,
                prefix: Ipv4Prefix::new(prefix.network(), prefix.prefix_len()),
            }),
            IpNet::V6(prefix) => v6.push(NlriEntry {
                path_id: 0,
                prefix: Prefix::V6(Ipv6Prefix::new(prefix.network(), prefix.prefix_len())),
            }),
        }
    }
    (v4, v6)
}

fn reach(attributes: &Attributes, announced: Vec<NlriEntry>) -> PathAttribute {
    PathAttribute::MpReachNlri(Box::new(MpReachNlri {
        afi: Afi::Ipv6,
        safi: Safi::Unicast,
        next_hop: attributes.next_hop,
        link_local_next_hop: attributes.link_local,
        announced,
        flowspec_announced: Vec::new(),
        evpn_announced: Vec::new(),
        bgpls_announced: Vec::new(),
        vpn_announced: Vec::new(),
        labeled_announced: Vec::new(),
        rtc_announced: Vec::new(),
    }))
}

fn unreach(withdrawn: Vec<NlriEntry>) -> PathAttribute {
    PathAttribute::MpUnreachNlri(Box::new(MpUnreachNlri {
        afi: Afi::Ipv6,
        safi: Safi::Unicast,
        withdrawn,
        flowspec_withdrawn: Vec::new(),
        evpn_withdrawn: Vec::new(),
        bgpls_withdrawn: Vec::new(),
        vpn_withdrawn: Vec::new(),
        labeled_withdrawn: Vec::new(),
        rtc_withdrawn: Vec::new(),
    }))
}
