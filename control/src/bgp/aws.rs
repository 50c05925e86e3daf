//! How many routes AWS takes from a customer gateway. It says nothing before it ends the session, and from there its
//! gateways cannot be told from others: so everybody in a tunnel of whom nothing is configured counts.

use braid_bgp::RouteLimit;

/// Of a virtual private gateway, and of a transit gateway or Cloud WAN.
const TAKES: [u32; 2] = [100, 1000];

/// The higher one of these limits that so many routes come near to, or pass.
pub(super) fn reached(told: usize) -> Option<u32> {
    TAKES.into_iter().rfind(|most| told >= RouteLimit::new(*most).warn_at as usize)
}

/// What the log says of it.
pub(super) fn warning(name: &str, told: usize) -> String {
    let [virtual_private, transit] = TAKES;
    format!(
        "neighbor {name} is told {told} routes: if it is AWS's, it ends the session beyond {virtual_private} (virtual \
         private gateway) or {transit} (transit gateway); announce fewer, or set max-advertised to what it takes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_near_at_four_fifths() {
        let limits = [0, 79, 80, 100, 101, 799, 800, 5000].map(reached);
        let (low, high) = (Some(100), Some(1000));
        assert_eq!(limits, [None, None, low, low, low, low, high, high]);
    }
}
