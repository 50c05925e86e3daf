//! strongSwan as the AWS end of a tunnel: everything offered at once, selectors of all addresses, one
//! child SA, lifetimes of eight hours and of one, and either end begins.

use crate::swan::{Both, Braid, START, swan};
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::strongswan::Connection;
use braid_netns::topology::NET_A;
use braid_netns::{Topology, retry_until};

pub(crate) const ALL: &[Scenario] = &[
    ("aws::braid_begins", braid_begins),
    ("aws::aws_begins", aws_begins),
    ("aws::the_weakest_that_is_offered", the_weakest_that_is_offered),
];

/// What a tunnel is configured with, and the child's group in strongSwan's words. From the weakest to the
/// strongest: every encryption, integrity and group of AWS's lists of both phases occurs.
const MATRIX: [(&str, &str, &str); 12] = [
    ("aes128-sha1-modp1024", "aes128-sha1-modp1024", "MODP_1024"),
    ("aes128-sha256-modp2048", "aes128-sha256-modp1536", "MODP_1536"),
    ("aes256-sha1-modp3072", "aes256-sha1-modp2048", "MODP_2048"),
    ("aes256-sha384-modp4096", "aes256-sha384-modp3072", "MODP_3072"),
    ("aes128-sha512-modp6144", "aes128-sha512-modp4096", "MODP_4096"),
    ("aes256-sha256-modp8192", "aes256-sha256-modp6144", "MODP_6144"),
    ("aes128gcm16-prfsha256-ecp256", "aes128gcm16-ecp256", "ECP_256"),
    ("aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384", "ECP_384"),
    ("aes256-sha512-ecp521", "aes256-sha512-ecp521", "ECP_521"),
    ("aes128gcm16-prfsha256-modp1024s160", "aes128gcm16-modp1024s160", "MODP_1024_160"),
    ("aes256gcm16-prfsha384-modp2048s224", "aes256gcm16-modp2048s224", "MODP_2048_224"),
    ("aes256gcm16-prfsha512-modp2048s256", "aes256gcm16-modp2048s256", "MODP_2048_256"),
];
/// Rekeyed 270 s before the end at the latest, and up to as much earlier still.
const IKE_REKEY_S: std::ops::RangeInclusive<u64> = 28_200..=28_530;
const CHILD_REKEY_S: std::ops::RangeInclusive<u64> = 3_000..=3_330;

/// Startup action "add".
fn braid_begins() -> Outcome {
    every_suite("initiate")
}

/// Startup action "start".
fn aws_begins() -> Outcome {
    every_suite("respond")
}

/// Braid names one suite at a time and gets that one, whatever else the other end has.
fn every_suite(role: &'static str) -> Outcome {
    let mut both: Option<Both> = None;
    for (number, (ike, esp, group)) in MATRIX.into_iter().enumerate() {
        let braid = gateway(role, &[ike], &[esp]);
        let both = match &mut both {
            None => both.insert(start(&braid)?),
            Some(both) => {
                // A peer that is gone and comes back with another configuration.
                both.swan.swanctl(&["--terminate", "--force", "--ike", "peer"])?;
                both.restart_braid(&braid)?;
                both
            }
        };
        let what = format!("{role}, {ike}, {esp}");
        if role == "respond" {
            both.swan.initiate().map_err(|error| both.failure(&format!("{what}: {error}")))?;
        }
        both.wait_up().map_err(|error| format!("{what}: {error}"))?;
        let tunnel = both.tunnel()?;
        let suite = tunnel["child"]["suite"].as_str().unwrap_or_default();
        assert!(
            tunnel["ike"]["suite"] == ike && esp.starts_with(suite) && !suite.is_empty(),
            "{what}: {tunnel}"
        );
        let left = |sa: &str| tunnel[sa]["rekey_in_s"].as_u64().unwrap_or_default();
        assert!(
            IKE_REKEY_S.contains(&left("ike")) && CHILD_REKEY_S.contains(&left("child")),
            "{what}: {tunnel}"
        );

        // With an accelerated VPN all rekeys are for us to begin; else AWS begins them as well.
        if number % 2 == 0 {
            both.braid.rekey("swan", false)?
        } else {
            both.swan.rekey(false)?
        }
        both.wait_settled(|_, child| child["spi_in"] != tunnel["child"]["spi_in"])
            .map_err(|error| format!("{what}: {error}"))?;
        let child = both.swan.sas()?.children.into_iter().find(|child| child.state == "INSTALLED");
        let forward_secret = child.as_ref().is_some_and(|child| child.suite.split('/').any(|it| it == group));
        assert!(forward_secret, "{what}: {child:?}");
        retry_until("an answer from inside", START, || {
            let latency = both.tunnel().map_err(|error| error.to_string())?["latency_ms"].clone();
            if latency.is_number() { Ok(()) } else { Err(both.failure("no probe was answered")) }
        })?;
        both.carries(200_000).map_err(|error| format!("{what}: {error}"))?;
    }
    Ok(())
}

/// Whoever offers all gets the first that the other end has: so name one.
fn the_weakest_that_is_offered() -> Outcome {
    let offers = |of: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        MATRIX.iter().rev().map(of).collect::<Vec<_>>()
    };
    let braid = gateway("initiate", &offers(|row| row.0), &offers(|row| row.1));
    let mut both = start(&braid)?;
    both.wait_up()?;
    let tunnel = both.tunnel()?;
    assert_eq!(
        (&tunnel["ike"]["suite"], &tunnel["child"]["suite"]),
        (&MATRIX[0].0.into(), &"aes128-sha1".into())
    );
    both.carries(200_000)
}

fn gateway(role: &'static str, proposals: &[&str], esp_proposals: &[&str]) -> Braid {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut braid = Braid {
        role,
        tunnel: "probe = { interval = \"500ms\", multiplier = 6 }\ndf = \"clear\"\n".to_owned(),
        proposals: owned(proposals),
        esp_proposals: owned(esp_proposals),
        ..Braid::default()
    };
    braid.ike += "lifetime = \"8h\"\nchild-lifetime = \"1h\"\npeer-replay-window = 1024\n";
    braid
}

fn start(braid: &Braid) -> Result<Both, Box<dyn std::error::Error>> {
    let topology = Topology::builder().build()?;
    topology.gateway_b.ip("addr add 169.254.10.1/32 dev lo")?;
    let list = |of: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        MATRIX.iter().map(of).collect::<Vec<_>>().join(",")
    };
    let connection = Connection {
        proposals: list(|row| row.0),
        esp_proposals: list(|row| row.1),
        local_ts: "0.0.0.0/0".to_owned(),
        remote_ts: "0.0.0.0/0".to_owned(),
        connection: "  dpd_delay = 10s\n  rekey_time = 8h\n".to_owned(),
        child: "    rekey_time = 1h\n    replay_window = 1024\n".to_owned(),
        routes: Some(vec!["169.254.10.2/32 src 169.254.10.1".to_owned(), NET_A.to_owned()]),
        ..swan(&topology)
    };
    Ok(Both::start(topology, braid, &connection)?)
}
