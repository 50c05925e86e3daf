//! The prefix table: longest-prefix match per family, changed in place.
//!
//! A route costs eight bytes beside the trie: its target, and the number of the synchronisation
//! that last put it, by which `Sweep` finds what a new control no longer wants. Readers see only
//! the target.

use std::net::IpAddr;

use braid_api::{GroupId, Target, TunnelId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// What a prefix leads to, packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    target: u32,
    pub(super) synced: u32,
}

const TO_TUNNEL: u32 = 1 << 31;

impl Route {
    /// Ids are below 2^31: the writer holds them below 65,536.
    pub(super) fn new(target: Target, synced: u32) -> Self {
        let target = match target {
            Target::Group(GroupId(id)) => id,
            Target::Tunnel(TunnelId(id)) => id | TO_TUNNEL,
        };
        Route { target, synced }
    }

    #[inline]
    pub(super) fn target(self) -> Target {
        if self.target & TO_TUNNEL == 0 {
            Target::Group(GroupId(self.target))
        } else {
            Target::Tunnel(TunnelId(self.target & !TO_TUNNEL))
        }
    }
}

/// Routes of both families.
#[derive(Default)]
pub(super) struct Fib {
    v4: PrefixMap<Ipv4Net, Route>,
    v6: PrefixMap<Ipv6Net, Route>,
}

impl Fib {
    #[inline]
    pub(super) fn lookup(&self, destination: IpAddr) -> Option<(IpNet, Target)> {
        match destination {
            IpAddr::V4(address) => {
                let (prefix, route) = self.v4.get_lpm(&Ipv4Net::from(address))?;
                Some((IpNet::V4(prefix), route.target()))
            }
            IpAddr::V6(address) => {
                let (prefix, route) = self.v6.get_lpm(&Ipv6Net::from(address))?;
                Some((IpNet::V6(prefix), route.target()))
            }
        }
    }

    pub(super) fn get(&self, prefix: IpNet) -> Option<Route> {
        match prefix {
            IpNet::V4(prefix) => self.v4.get(&prefix).copied(),
            IpNet::V6(prefix) => self.v6.get(&prefix).copied(),
        }
    }

    /// Puts or removes; returns what was there.
    pub(super) fn set(&mut self, prefix: IpNet, route: Option<Route>) -> Option<Route> {
        match (prefix, route) {
            (IpNet::V4(prefix), Some(route)) => self.v4.insert(prefix, route),
            (IpNet::V6(prefix), Some(route)) => self.v6.insert(prefix, route),
            (IpNet::V4(prefix), None) => self.v4.remove(&prefix),
            (IpNet::V6(prefix), None) => self.v6.remove(&prefix),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, Route)> + '_ {
        let v4 = self.v4.iter().map(|(prefix, route)| (IpNet::V4(prefix), *route));
        let v6 = self.v6.iter().map(|(prefix, route)| (IpNet::V6(prefix), *route));
        v4.chain(v6)
    }

    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_in_either_family() {
        let mut fib = Fib::default();
        let mut put = |prefix: &str, target| fib.set(prefix.parse().unwrap(), Some(Route::new(target, 0)));
        put("0.0.0.0/0", Target::Group(GroupId(0)));
        put("10.2.0.0/16", Target::Group(GroupId(1)));
        put("10.2.3.4/32", Target::Tunnel(TunnelId(65_535)));
        put("fd00::/8", Target::Group(GroupId(2)));
        let to = |fib: &Fib, address: &str| fib.lookup(address.parse().unwrap()).map(|found| found.1);
        assert_eq!(to(&fib, "192.0.2.1"), Some(Target::Group(GroupId(0))));
        assert_eq!(to(&fib, "10.2.3.5"), Some(Target::Group(GroupId(1))));
        assert_eq!(to(&fib, "10.2.3.4"), Some(Target::Tunnel(TunnelId(65_535))));
        assert_eq!(to(&fib, "fd00::1"), Some(Target::Group(GroupId(2))));
        assert_eq!(to(&fib, "2001:db8::1"), None);
        fib.set("10.2.3.4/32".parse().unwrap(), None);
        assert_eq!(to(&fib, "10.2.3.4"), Some(Target::Group(GroupId(1))));
        assert_eq!(fib.len(), 3);
    }
}
