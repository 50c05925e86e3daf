//! `[[route]]`.

use std::{collections::HashMap, sync::Arc};

use ipnet::IpNet;

use super::{
    Link, MAX_ROUTES, Route,
    error::{Fault, Report},
    section::{Item, Schema, Section},
    tunnel::Draft as TunnelDraft,
    value,
};

pub(super) static ROUTE: Schema = Schema { path: "route", keys: &["prefix", "via", "distance"] };
static LINK: Schema = Schema { path: "route.via", keys: &["interface", "gateway"] };

/// Most members of a group (the core's limit).
const MAX_MEMBERS: usize = 256;
/// Below BGP's 20: a static route wins.
const DEFAULT_DISTANCE: u8 = 1;

/// A route with its line.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) route: Route,
    pub(super) line: u32,
}

pub(super) fn read_all(root: Section<'_>, tunnels: &[TunnelDraft], report: &mut Report) -> Vec<Draft> {
    let Some(item) = root.get("route") else {
        return Vec::new();
    };
    let by_name: HashMap<&str, u32> = tunnels
        .iter()
        .enumerate()
        .filter(|(_, tunnel)| !tunnel.name.is_empty())
        .map(|(index, tunnel)| (tunnel.name.as_str(), index as u32))
        .collect();
    let mut known: Vec<String> = by_name.keys().map(|name| (*name).to_owned()).collect();
    known.sort_unstable();
    let names = Names { by_name, known: known.into() };
    let sections = item.sections(&ROUTE, MAX_ROUTES, report);
    sections.into_iter().filter_map(|section| read(section, &names, report)).collect()
}

/// The tunnels that a route may name.
struct Names<'t> {
    by_name: HashMap<&'t str, u32>,
    known: Arc<[String]>,
}

fn read(section: Section<'_>, names: &Names<'_>, report: &mut Report) -> Option<Draft> {
    let prefix = section
        .require("prefix", "prefix = \"10.2.0.0/16\"", report)
        .and_then(|item| item.parse(routable, report));
    let distance = section.get("distance").and_then(|item| item.integer(1, 255, report));
    let mut via: Vec<u32> = Vec::new();
    let list = section.require("via", "via = [\"aws-a\", \"aws-b\"]", report)?;
    let single = list.is_string() || list.is_table();
    let items = if single { vec![list] } else { list.list(MAX_MEMBERS, report) };
    if items.is_empty() && list.is_empty_list() {
        list.invalid(report, "an empty list", "name at least one tunnel");
    }
    let mut link = None;
    let many = items.len() > 1;
    for item in items {
        if item.is_table() {
            if many {
                let remedy = "give each interface a [[route]] of its own with the same prefix, and each of these \
                              another distance: the lowest whose link is up wins";
                item.invalid(report, "a path over an interface shares with no other", remedy);
            } else {
                link = read_link(item, prefix, report);
            }
            continue;
        }
        let Some(name) = item.string(report) else { continue };
        match names.by_name.get(name) {
            Some(index) if via.contains(index) => {
                item.invalid(
                    report,
                    format!("{name:?} stands there twice"),
                    "weight = 2 in its [[tunnel]] doubles its share",
                );
            }
            Some(index) => via.push(*index),
            None => {
                let known = names.known.clone();
                item.fault(report, Fault::UnknownName { kind: "tunnel", name: name.to_owned(), known });
            }
        }
    }
    via.sort_unstable();
    let route = Route {
        prefix: prefix?,
        via,
        link,
        distance: distance.map_or(DEFAULT_DISTANCE, |distance| distance as u8),
    };
    Some(Draft { route, line: report.line_of(section.start()) })
}

/// A prefix that packets in tunnels may be for.
fn routable(text: &str) -> Result<IpNet, Fault> {
    let prefix = value::prefix(text)?;
    match value::unroutable(&prefix) {
        Some(what) => Err(Fault::Invalid {
            problem: format!("{text:?} is {what}"),
            remedy: "which does not leave by a tunnel; remove the route".to_owned(),
        }),
        None => Ok(prefix),
    }
}

/// A router on a link.
fn read_link(item: Item<'_>, prefix: Option<IpNet>, report: &mut Report) -> Option<Link> {
    let section = item.section(&LINK, report)?;
    let interface = section
        .require("interface", "interface = \"eth1\"", report)
        .and_then(|item| item.parse(value::interface, report));
    let gateway = section.require("gateway", "gateway = \"10.9.0.1\"", report)?;
    let address = gateway.parse(value::host_address, report)?;
    if prefix.is_some_and(|prefix| prefix.addr().is_ipv4() != address.is_ipv4()) {
        gateway.invalid(report, "another family than the prefix's", "name a router of its family");
    }
    Some(Link { gateway: address, interface: interface? })
}
