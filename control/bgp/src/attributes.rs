//! The attributes of a route, once for all prefixes that came with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use rustbgpd_wire::{
    Aggregator, AsPath, AsPathSegment, ExtendedCommunity, LargeCommunity, PathAttribute, RawAttribute,
};

/// RFC 1997: not to be advertised to any peer.
pub const NO_ADVERTISE: u32 = 0xffff_ff02;
/// RFC 1997: not to be advertised outside the AS.
pub const NO_EXPORT: u32 = 0xffff_ff01;
/// RFC 1997: not to be advertised to external peers.
pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
/// RFC 8326: about to go; to be preferred least.
pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const PARTIAL: u8 = 0x20;
/// AS numbers that one segment of an AS_PATH can hold.
const SEGMENT: usize = 255;

/// RFC 4271 section 5.1.1; the lower is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp,
    /// Learned by EGP.
    Egp,
    /// By some other means.
    Incomplete,
}

/// An attribute that is passed on without being understood (RFC 4271 section 9).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Opaque {
    /// Type code.
    pub code: u8,
    /// Flags, with the partial bit.
    pub flags: u8,
    /// Value.
    pub value: Bytes,
}

/// The attributes of a route. A missing MED or LOCAL_PREF is `None`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Attributes {
    /// How the route came into BGP.
    pub origin: Origin,
    /// The AS numbers, nearest first.
    pub as_path: Vec<u32>,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The link-local next hop that accompanies it (RFC 2545 section 3).
    pub link_local: Option<Ipv6Addr>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR: AS number and identifier.
    pub aggregator: Option<(u32, Ipv4Addr)>,
    /// Communities (RFC 1997).
    pub communities: Vec<u32>,
    /// Extended communities (RFC 4360).
    pub extended_communities: Vec<u64>,
    /// Large communities (RFC 8092).
    pub large_communities: Vec<[u32; 3]>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
    /// Transitive attributes that are passed on without being understood.
    pub opaque: Vec<Opaque>,
}

impl Attributes {
    /// A route that begins here.
    pub fn originated(next_hop: IpAddr) -> Self {
        Attributes {
            origin: Origin::Igp,
            as_path: Vec::new(),
            next_hop,
            link_local: None,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            originator: None,
            cluster_list: Vec::new(),
            opaque: Vec::new(),
        }
    }

    /// The AS from which the route came here, if from another one.
    pub fn neighbor_as(&self) -> Option<u32> {
        self.as_path.first().copied()
    }

    /// The sum of what link-bandwidth communities say, in bytes per second (draft-ietf-idr-link-bandwidth:
    /// extended community types 0x0004 and 0x4004); what is no positive number does not count.
    pub fn link_bandwidth(&self) -> Option<f32> {
        let values = self.extended_communities.iter().filter_map(|community| {
            let (_, bandwidth) = ExtendedCommunity::new(*community).as_link_bandwidth()?;
            (bandwidth.is_finite() && bandwidth > 0.0).then_some(bandwidth)
        });
        values.reduce(|sum, bandwidth| sum + bandwidth).filter(|sum| sum.is_finite())
    }

    /// What was received. From an external peer LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST do not count
    /// (RFC 4271 section 5.1.5, RFC 7606 sections 7.5, 7.9 and 7.10).
    pub(crate) fn from_wire(
        received: &[PathAttribute],
        next_hop: IpAddr,
        link_local: Option<Ipv6Addr>,
        external: bool,
    ) -> Self {
        let mut out = Attributes { origin: Origin::Incomplete, link_local, ..Self::originated(next_hop) };
        for attribute in received {
            match attribute {
                PathAttribute::Origin(origin) => {
                    out.origin = match origin {
                        rustbgpd_wire::Origin::Igp => Origin::Igp,
                        rustbgpd_wire::Origin::Egp => Origin::Egp,
                        rustbgpd_wire::Origin::Incomplete => Origin::Incomplete,
                    }
                }
                PathAttribute::AsPath(path) => out.as_path = path.asns().collect(),
                PathAttribute::Aggregator(by) => out.aggregator = Some((by.asn, by.router_id)),
                PathAttribute::AtomicAggregate => out.atomic_aggregate = true,
                PathAttribute::Med(med) => out.med = Some(*med),
                PathAttribute::LocalPref(preference) if !external => out.local_pref = Some(*preference),
                PathAttribute::OriginatorId(id) if !external => out.originator = Some(*id),
                PathAttribute::ClusterList(list) if !external => out.cluster_list.clone_from(list),
                PathAttribute::Communities(list) | PathAttribute::CommunitiesPartial(list) => {
                    out.communities.clone_from(list);
                }
                PathAttribute::ExtendedCommunities(list)
                | PathAttribute::ExtendedCommunitiesPartial(list) => {
                    out.extended_communities = list.iter().map(|community| community.as_u64()).collect();
                }
                PathAttribute::LargeCommunities(list) | PathAttribute::LargeCommunitiesPartial(list) => {
                    let parts = |c: &LargeCommunity| [c.global_admin, c.local_data1, c.local_data2];
                    out.large_communities = list.iter().map(parts).collect();
                }
                // RFC 4271 section 5: what is optional, unknown and not transitive is ignored; what is transitive
                // is passed on with the partial bit.
                PathAttribute::Unknown(raw)
                    if raw.flags & (OPTIONAL | TRANSITIVE) == OPTIONAL | TRANSITIVE =>
                {
                    out.opaque.push(Opaque {
                        code: raw.type_code,
                        flags: OPTIONAL | TRANSITIVE | PARTIAL,
                        value: raw.data.clone(),
                    });
                }
                _ => {}
            }
        }
        out
    }

    /// What is sent, save next hop and NLRI. RFC 4271 section 5: in ascending order of type.
    pub(crate) fn to_wire(&self) -> Vec<PathAttribute> {
        let origin = match self.origin {
            Origin::Igp => rustbgpd_wire::Origin::Igp,
            Origin::Egp => rustbgpd_wire::Origin::Egp,
            Origin::Incomplete => rustbgpd_wire::Origin::Incomplete,
        };
        let segments =
            self.as_path.chunks(SEGMENT).map(|piece| AsPathSegment::AsSequence(piece.to_vec())).collect();
        let mut out = vec![PathAttribute::Origin(origin), PathAttribute::AsPath(AsPath { segments })];
        out.extend(self.med.map(PathAttribute::Med));
        out.extend(self.local_pref.map(PathAttribute::LocalPref));
        if self.atomic_aggregate {
            out.push(PathAttribute::AtomicAggregate);
        }
        out.extend(self.aggregator.map(|(asn, router_id)| {
            PathAttribute::Aggregator(Aggregator { asn, router_id, partial: false })
        }));
        if !self.communities.is_empty() {
            out.push(PathAttribute::Communities(self.communities.clone()));
        }
        out.extend(self.originator.map(PathAttribute::OriginatorId));
        if !self.cluster_list.is_empty() {
            out.push(PathAttribute::ClusterList(self.cluster_list.clone()));
        }
        if !self.extended_communities.is_empty() {
            let list = self.extended_communities.iter().map(|c| ExtendedCommunity::new(*c)).collect();
            out.push(PathAttribute::ExtendedCommunities(list));
        }
        if !self.large_communities.is_empty() {
            let list = self.large_communities.iter().map(|[a, b, c]| LargeCommunity::new(*a, *b, *c));
            out.push(PathAttribute::LargeCommunities(list.collect()));
        }
        out.extend(self.opaque.iter().map(|opaque| {
            PathAttribute::Unknown(RawAttribute {
                flags: opaque.flags,
                type_code: opaque.code,
                data: opaque.value.clone(),
            })
        }));
        out
    }
}
