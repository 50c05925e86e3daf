//! What BFD sessions outside the tunnels must be like.

use std::collections::BTreeSet;

use braid_api::{BfdLink, MAX_BFD_LINKS, RejectReason};

/// Longest name of an interface, in bytes (linux/if.h: `IFNAMSIZ` less the end).
const MAX_INTERFACE_LEN: usize = 15;

pub(super) fn check(links: &[BfdLink]) -> Result<(), RejectReason> {
    let mut pairs = BTreeSet::new();
    let usable = |link: &BfdLink| {
        let bfd = &link.bfd;
        let ends = bfd.local.is_ipv6() == bfd.remote.is_ipv6()
            && ![bfd.local, bfd.remote].iter().any(|end| end.is_unspecified() || end.is_multicast());
        let interface =
            link.interface.as_ref().is_none_or(|name| (1..=MAX_INTERFACE_LEN).contains(&name.len()));
        ends && interface && braid_bfd::Config::new(bfd.interval, bfd.multiplier).is_ok()
    };
    let fits = links.len() <= MAX_BFD_LINKS && links.iter().all(usable);
    let alone = links.iter().all(|link| pairs.insert((link.bfd.local, link.bfd.remote)));
    if fits && alone { Ok(()) } else { Err(RejectReason::BadBfd) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use braid_api::Bfd;

    use super::*;

    fn link(local: &str, remote: &str) -> BfdLink {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        let bfd = Bfd { local, remote, interval: Duration::from_millis(50), multiplier: 3 };
        BfdLink { bfd, multihop: false, interface: Some("dx0".to_owned()) }
    }

    #[test]
    fn sessions_that_cannot_be_are_refused() {
        let good = link("10.9.0.1", "10.9.0.2");
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[good.clone(), link("10.9.0.1", "10.9.0.3")]), Ok(()));
        let with = |change: fn(&mut BfdLink)| {
            let mut link = good.clone();
            change(&mut link);
            link
        };
        for bad in [
            vec![good.clone(), good.clone()],
            vec![link("10.9.0.1", "fd00::2")],
            vec![link("0.0.0.0", "10.9.0.2")],
            vec![link("10.9.0.1", "224.0.0.1")],
            vec![with(|link| link.bfd.multiplier = 0)],
            vec![with(|link| link.bfd.interval = Duration::from_millis(9))],
            vec![with(|link| link.interface = Some(String::new()))],
            vec![with(|link| link.interface = Some("a-name-far-too-long".to_owned()))],
            (0..=MAX_BFD_LINKS)
                .map(|host| link("10.9.0.1", &format!("10.8.{}.{}", host / 250, host % 250 + 1)))
                .collect(),
        ] {
            assert_eq!(check(&bad), Err(RejectReason::BadBfd), "{:?}", bad.first());
        }
    }
}
