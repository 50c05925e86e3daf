//! What must agree across tables: names, SPIs, keys, inside networks, prefixes.

use core::net::IpAddr;
use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;

use super::{
    IKE_PORT, NAT_PORT, Remote, Route, Tunnel,
    error::{Fault, Report},
    route::Draft as RouteDraft,
    tunnel::Draft as TunnelDraft,
};

pub(super) fn cross_check(tunnels: &[TunnelDraft], routes: &[RouteDraft], report: &mut Report) {
    check_names(tunnels, report);
    check_spis(tunnels, report);
    check_keys(tunnels, report);
    check_sockets(tunnels, report);
    check_peers(tunnels, report);
    check_outer(tunnels, report);
    let inside = check_inside(tunnels, report);
    check_routes(routes, &inside, report);
}

fn conflict(problem: impl Into<String>, line: u32, remedy: impl Into<String>) -> Fault {
    Fault::Conflict { problem: problem.into(), line, remedy: remedy.into() }
}

fn read(tunnels: &[TunnelDraft]) -> impl Iterator<Item = &Tunnel> {
    tunnels.iter().filter_map(|draft| draft.tunnel.as_ref())
}

fn check_names(tunnels: &[TunnelDraft], report: &mut Report) {
    let mut seen = HashMap::new();
    for draft in tunnels.iter().filter(|draft| !draft.name.is_empty()) {
        if let Some(first) = seen.insert(draft.name.as_str(), draft.line) {
            let fault =
                conflict(format!("{:?} is taken", draft.name), first, "give each tunnel its own name");
            report.error_at_line(draft.line, "tunnel.name", fault);
        }
    }
}

fn check_spis(tunnels: &[TunnelDraft], report: &mut Report) {
    let mut seen = HashMap::new();
    for tunnel in read(tunnels) {
        let Some(manual) = tunnel.manual() else { continue };
        let spi = manual.spi_in;
        if let Some(first) = seen.insert(spi, tunnel.line) {
            let remedy = "packets from the peers are told apart by it; choose another on both sides";
            let fault = conflict(format!("{spi} is taken by the tunnel"), first, remedy);
            report.error_at_line(tunnel.line, "tunnel.manual.spi-in", fault);
        }
    }
}

/// With a counter mode, a key used for two SAs repeats nonces, and reflects packets otherwise.
fn check_keys(tunnels: &[TunnelDraft], report: &mut Report) {
    let mut seen = HashMap::new();
    for tunnel in read(tunnels) {
        let Some(manual) = tunnel.manual() else { continue };
        let keys = [("key-in", &manual.key_in), ("key-out", &manual.key_out)];
        for (name, key) in keys {
            if let Some(first) = seen.insert(key.expose(), tunnel.line) {
                let remedy = "each direction of each tunnel needs a key of its own";
                let fault = conflict("the key is used twice: also by the tunnel", first, remedy);
                report.error_at_line(tunnel.line, format_args!("tunnel.manual.{name}"), fault);
            }
        }
    }
}

/// Tunnels of one local address and port share a socket, which is bound to one interface or none.
fn check_sockets(tunnels: &[TunnelDraft], report: &mut Report) {
    let mut seen: HashMap<_, &Tunnel> = HashMap::new();
    for tunnel in read(tunnels) {
        let Some(local) = tunnel.local else { continue };
        // IKE has UDP sockets whatever ESP travels in.
        let port = if tunnel.ike().is_some() { NAT_PORT } else { tunnel.ports().0 };
        let first = *seen.entry((local, port)).or_insert(tunnel);
        if tunnel.ike().is_some() {
            seen.entry((local, IKE_PORT)).or_insert(tunnel);
        }
        if first.wireguard().is_some() != tunnel.wireguard().is_some() {
            let problem = format!("UDP port {port} of {local} is tunnel {:?}'s, of another type", first.name);
            let remedy = "give the WireGuard tunnel another listen-port";
            report.error_at_line(tunnel.line, "tunnel.wireguard", conflict(problem, first.line, remedy));
        }
        if first.uplink != tunnel.uplink {
            let problem = format!("{local} is used over another uplink by tunnel {:?}", first.name);
            let remedy = "give each uplink its own local address or port";
            report.error_at_line(tunnel.line, "tunnel.uplink", conflict(problem, first.line, remedy));
        }
    }
}

/// On one socket, whoever has a private key and calls ours is one tunnel.
fn check_peers(tunnels: &[TunnelDraft], report: &mut Report) {
    let mut seen = HashMap::new();
    for tunnel in read(tunnels) {
        let Some(wireguard) = tunnel.wireguard() else { continue };
        let ours = wireguard.private_key.public();
        let key = (tunnel.local, wireguard.listen_port, ours, wireguard.peer_public_key);
        if let Some(first) = seen.insert(key, tunnel.line) {
            let remedy = "each tunnel of one private key needs a peer, or a listen-port, of its own";
            let fault = conflict("the peer's key is taken by the tunnel", first, remedy);
            report.error_at_line(tunnel.line, "tunnel.wireguard.peer-public-key", fault);
        }
    }
}

/// The kernel would send what goes to a peer outside into the tunnels, by the route of an inside network.
fn check_outer(tunnels: &[TunnelDraft], report: &mut Report) {
    let remote = |tunnel: &Tunnel| match tunnel.remote {
        Some(Remote::Address(remote)) => Some(remote),
        Some(Remote::Name(_)) | None => None,
    };
    let outer: BTreeSet<IpAddr> =
        read(tunnels).flat_map(|tunnel| tunnel.local.into_iter().chain(remote(tunnel))).collect();
    for tunnel in read(tunnels) {
        for net in &tunnel.inside {
            let Some(address) = outer.range(net.network()..=net.broadcast()).next() else { continue };
            let fault = Fault::Invalid {
                problem: format!("{net} holds {address}, which is an address outside the tunnels"),
                remedy: "inside is a network within the tunnel, such as \"169.254.10.2/30\"".to_owned(),
            };
            report.error_at_line(tunnel.line, "tunnel.inside", fault);
        }
    }
}

/// Disjoint inside networks; returns whose peer an address is.
fn check_inside<'t>(tunnels: &'t [TunnelDraft], report: &mut Report) -> HashMap<IpAddr, &'t Tunnel> {
    let mut nets: Vec<(IpNet, &Tunnel)> = Vec::new();
    let mut interfaces: HashSet<IpNet> = HashSet::new();
    for tunnel in read(tunnels) {
        // Peers of one WireGuard interface share its inside network.
        let is_new = |net: &&IpNet| tunnel.wireguard().is_none() || interfaces.insert(**net);
        nets.extend(tunnel.inside.iter().filter(is_new).map(|net| (*net, tunnel)));
        let outside =
            tunnel.peer_inside.iter().filter(|peer| !tunnel.inside.iter().any(|net| net.contains(*peer)));
        nets.extend(outside.map(|peer| (IpNet::from(*peer), tunnel)));
    }
    // By first address, the widest first: then a net overlaps its predecessors exactly if it
    // begins before the furthest end seen.
    nets.sort_by_key(|(net, tunnel)| (net.network(), net.prefix_len(), tunnel.line));
    let mut widest: Option<(IpNet, &Tunnel)> = None;
    for (net, tunnel) in &nets {
        match widest {
            Some((open, other)) if open.contains(&net.network()) => {
                report_overlap((*net, tunnel), (open, other), report);
            }
            _ => widest = Some((*net, tunnel)),
        }
    }
    let mut peers: HashMap<IpAddr, &Tunnel> = HashMap::new();
    for (peer, tunnel) in
        read(tunnels).flat_map(|tunnel| tunnel.peer_inside.iter().map(move |peer| (*peer, tunnel)))
    {
        if let Some(first) = peers.insert(peer, tunnel).filter(|_| tunnel.wireguard().is_some()) {
            let problem = format!("{peer} is the inside peer of {:?}", first.name);
            let fault = conflict(problem, first.line, "give each peer an address of its own");
            report.error_at_line(tunnel.line, "tunnel.peer-inside", fault);
        }
    }
    peers
}

fn report_overlap(a: (IpNet, &Tunnel), b: (IpNet, &Tunnel), report: &mut Report) {
    // The later one in the file is at fault.
    let ((net, tunnel), (other_net, other)) = if a.1.line >= b.1.line { (a, b) } else { (b, a) };
    let link_local = |net: IpNet| matches!(net, IpNet::V4(v4) if v4.addr().is_link_local());
    let remedy = if link_local(net) {
        "give each tunnel its own network; on AWS, set another TunnelInsideCidr for one of the two"
    } else {
        "give each tunnel its own network"
    };
    let fault =
        conflict(format!("{net} overlaps {other_net} of tunnel {:?}", other.name), other.line, remedy);
    report.error_at_line(tunnel.line, "tunnel.inside", fault);
}

fn check_routes(routes: &[RouteDraft], peers: &HashMap<IpAddr, &Tunnel>, report: &mut Report) {
    let mut by_tunnels = HashMap::with_capacity(routes.len());
    let mut by_distance = HashMap::with_capacity(routes.len());
    for draft in routes {
        let Route { prefix, link, distance, .. } = &draft.route;
        let tunnels = if link.is_none() { by_tunnels.insert(*prefix, draft.line) } else { None };
        let alike = by_distance.insert((*prefix, *distance), draft.line);
        let remedy = match (tunnels, alike) {
            (Some(first), _) => Some((first, "name all its tunnels in one via")),
            (None, Some(first)) => Some((first, "give each of its routes another distance: the lower wins")),
            (None, None) => None,
        };
        if let Some((first, remedy)) = remedy {
            let fault = conflict(format!("{prefix} is routed already"), first, remedy);
            report.error_at_line(draft.line, "route.prefix", fault);
        }
        let host = prefix.prefix_len() == prefix.max_prefix_len();
        if let Some(tunnel) = peers.get(&prefix.addr()).filter(|_| host) {
            let remedy = "leave the route out: an inside peer is always reached through its own tunnel";
            report.error_at_line(
                draft.line,
                "route.prefix",
                conflict(
                    format!("{} is the inside peer of {:?}", prefix.addr(), tunnel.name),
                    tunnel.line,
                    remedy,
                ),
            );
        }
    }
}
