//! `braid doctor`: for everything that keeps a tunnel from coming up, or from carrying anything, the step, the
//! key of the configuration, what either side offers, and the remedy.

use crate::authority::{Authority, KeyKind};
use crate::pair::{START, Side};
use braid_netns::fault;
use braid_netns::gateway::Gateway;
use braid_netns::runner::{Outcome, Scenario};
use braid_netns::strongswan::{Auth, Certificate, Connection, Strongswan};
use braid_netns::topology::{NET_A, NET_B, OuterPath};
use braid_netns::{Topology, retry_until};
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

pub(crate) const ALL: &[Scenario] = &[
    ("doctor::why_tunnels_do_not_come_up", why_tunnels_do_not_come_up),
    ("doctor::why_tunnels_carry_nothing", why_tunnels_carry_nothing),
    ("doctor::a_peer_that_deletes_at_once", a_peer_that_deletes_at_once),
];

/// Some attempts of each tunnel.
const PATIENCE: Duration = Duration::from_secs(40);
const SECRET: &str = "psk = \"correct horse battery staple\"\n";

/// One tunnel's settings: lines of `[tunnel.ike]` at A and at B, and lines of `[[tunnel]]` at both.
#[derive(Clone)]
struct Ends {
    name: &'static str,
    a: String,
    b: String,
    tunnel: [String; 2],
}

impl Ends {
    fn new(name: &'static str, a: &str, b: &str) -> Self {
        let tunnel = [String::new(), String::new()];
        Self { name, a: format!("{SECRET}{a}"), b: format!("{SECRET}{b}"), tunnel }
    }

    /// Both prove themselves with certificates.
    fn certified(name: &'static str, a: &Certificate, b: &Certificate) -> Self {
        let ike = |own: &Certificate, ids: [&str; 2]| {
            format!(
                "certificate = {:?}\nkey = {:?}\nca = {:?}\nlocal-id = \"{}\"\nremote-id = \"{}\"\n",
                own.certificate, own.key, own.ca, ids[0], ids[1]
            )
        };
        let tunnel = [String::new(), String::new()];
        Self { name, a: ike(a, ["a.example", "b.example"]), b: ike(b, ["b.example", "a.example"]), tunnel }
    }

    fn tunnel(self, a: &str, b: &str) -> Self {
        Self { tunnel: [a.to_owned(), b.to_owned()], ..self }
    }
}

/// What doctor has to say of a tunnel.
struct Expected {
    tunnel: &'static str,
    step: &'static str,
    key: &'static str,
    problem: &'static [&'static str],
    remedy: &'static [&'static str],
}

const fn expected(
    tunnel: &'static str,
    step: &'static str,
    key: &'static str,
    problem: &'static [&'static str],
    remedy: &'static [&'static str],
) -> Expected {
    Expected { tunnel, step, key, problem, remedy }
}

fn configuration(side: Side, paths: &[OuterPath], tunnels: &[Ends], probe: &str) -> String {
    let (name, role) = match side {
        Side::A => ("gateway-a", "initiate"),
        Side::B => ("gateway-b", "respond"),
    };
    let mut text = format!("[gateway]\nname = \"{name}\"\n");
    for (index, (ends, path)) in tunnels.iter().zip(paths).enumerate() {
        let (local, remote, host, lines, ike) = match side {
            Side::A => (path.a, path.b, 1, &ends.tunnel[0], &ends.a),
            Side::B => (path.b, path.a, 2, &ends.tunnel[1], &ends.b),
        };
        let inside = format!("169.254.{}.{host}/30", 10 + index);
        let defaults = [("local", local.to_string()), ("remote", remote.to_string()), ("inside", inside)];
        let missing = |(key, _): &&(&str, String)| !lines.contains(&format!("{key} = "));
        let missing = defaults.iter().filter(missing).map(|(key, value)| format!("{key} = \"{value}\"\n"));
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n[[tunnel]]\nname = \"{}\"\nrole = \"{role}\"\n{}probe = {probe}\n{lines}\n[tunnel.ike]\n{ike}",
            ends.name,
            missing.collect::<String>(),
        );
    }
    text
}

/// Asks until every finding is as expected; all others would be wrong as well.
fn finds(gateway: &Gateway, all: &[Expected]) -> Outcome {
    retry_until("the findings", PATIENCE, || {
        let ran = gateway.braid(&["doctor", "--json"]).map_err(|error| error.to_string())?;
        let report: Value =
            serde_json::from_str(&ran.stdout).map_err(|error| format!("{error}: {}", ran.stderr))?;
        let wrong: Vec<String> = all.iter().filter_map(|expected| expected.differs(&report)).collect();
        if wrong.is_empty() && ran.status.code() == Some(1) {
            return Ok(());
        }
        Err(format!("{}\n{}", wrong.join("\n"), ran.status))
    })?;
    Ok(())
}

impl Expected {
    /// How the report differs.
    fn differs(&self, report: &Value) -> Option<String> {
        let tunnel = report["tunnels"].as_array()?.iter().find(|tunnel| tunnel["name"] == self.tunnel)?;
        let finding = &tunnel["findings"][0];
        let text = |field: &str| finding[field].as_str().unwrap_or_default();
        let has = |field: &str, parts: &[&str]| parts.iter().all(|part| text(field).contains(part));
        let same = text("step").starts_with(self.step)
            && text("key") == self.key
            && has("problem", self.problem)
            && has("remedy", self.remedy);
        (!same).then(|| {
            format!(
                "{}: {:?} {:?} {:?} {:?}; {tunnel}",
                self.tunnel, self.step, self.key, self.problem, self.remedy
            )
        })
    }
}

/// Every case has a tunnel and an outer path of its own.
fn why_tunnels_do_not_come_up() -> Outcome {
    let ours = Authority::new(KeyKind::Ecdsa, 0)?;
    let theirs = Authority::of("Other", KeyKind::Ecdsa, 0)?;
    let (a, b) = (ours.issue("a.example")?, ours.issue("b.example")?);
    let old = Authority::new(KeyKind::Ecdsa, 0)?;
    let young = Authority::new(KeyKind::Ecdsa, 0)?;
    let expired = old.issue_for("a.example", "20200101000000Z", "20200201000000Z")?;
    // As it looks to a clock that is years late.
    let early = young.issue_for("a.example", "21000301000000Z", "21010301000000Z")?;
    let trusting = |other: &Authority| -> braid_netns::Result<Certificate> {
        Ok(Certificate { ca: other.issue("b.example")?.ca, ..b.clone() })
    };
    let with = |own: &Certificate| Certificate { ca: b.ca.clone(), ..own.clone() };
    let tunnels = [
        Ends::new("blocked", "", ""),
        Ends::new(
            "ike-proposal",
            "proposals = [\"aes256gcm16-prfsha384-ecp384\"]\n",
            "proposals = [\"aes128-sha256-modp2048\"]\n",
        ),
        Ends::new(
            "esp-proposal",
            "esp-proposals = [\"aes256gcm16\"]\n",
            "esp-proposals = [\"aes128-sha256\"]\n",
        ),
        Ends { b: "psk = \"another\"\n".to_owned(), ..Ends::new("psk", "", "") },
        Ends::new("identity", "local-id = \"a.example\"\n", "remote-id = \"c.example\"\n"),
        Ends::certified("expired", &with(&expired), &trusting(&old)?),
        Ends::certified("clock", &with(&early), &trusting(&young)?),
        Ends::certified("authority", &a, &Certificate { ca: theirs.issue("b.example")?.ca, ..b.clone() }),
        Ends::new("selectors", "", "")
            .tunnel("local-ts = [\"10.99.0.0/16\"]\n", "remote-ts = [\"10.1.0.0/24\"]\n"),
        Ends::new("stranger", "", "").tunnel("", "remote = \"198.51.100.99\"\n"),
        Ends::new("nat", "", "").tunnel("local = \"172.31.0.1\"\n", ""),
    ];
    let topology = Topology::builder().paths(tunnels.len()).build()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let _blocked = fault::drop_matching(internet, &["a0"], "udp dport { 500, 4500 }")?;
    translate(&topology, tunnels.len() - 1)?;
    let started =
        |side, netns| Gateway::start(netns, &configuration(side, &topology.paths, &tunnels, "\"off\""));
    let b = started(Side::B, &topology.gateway_b)?;
    let a = started(Side::A, &topology.gateway_a)?;
    finds(
        &a,
        &[
            expected(
                "blocked",
                "IKE_SA_INIT",
                "remote",
                &["answer"],
                &["UDP 500 and 4500", "security groups"],
            ),
            expected(
                "ike-proposal",
                "IKE_SA_INIT",
                "proposals",
                &["ecp384"],
                &["proposals", "Phase 1 DH group numbers"],
            ),
            expected(
                "esp-proposal",
                "IKE_AUTH",
                "esp-proposals",
                &["aes256gcm16"],
                &["Phase 2 encryption algorithms"],
            ),
            expected(
                "psk",
                "IKE_AUTH",
                "psk",
                &["AUTHENTICATION_FAILED"],
                &["psk", "local-id", "Pre-shared key"],
            ),
            expected(
                "identity",
                "IKE_AUTH",
                "psk",
                &["AUTHENTICATION_FAILED"],
                &["local-id", "customer gateway"],
            ),
            expected(
                "expired",
                "IKE_AUTH",
                "certificate",
                &["our certificate", "AUTHENTICATION_FAILED"],
                &["within its time", "the CA", "bears local-id"],
            ),
            expected(
                "authority",
                "IKE_AUTH",
                "certificate",
                &["our certificate", "AUTHENTICATION_FAILED"],
                &["trusts the CA of our certificate"],
            ),
            expected(
                "selectors",
                "IKE_AUTH",
                "local-ts",
                &["10.99.0.0/16"],
                &["remote-ts", "IPv4 network CIDR"],
            ),
            expected(
                "stranger",
                "IKE_SA_INIT",
                "proposals",
                &["does not say what it wants"],
                &["the peer has no tunnel for our address"],
            ),
            expected(
                "nat",
                "IKE_AUTH",
                "local-id",
                &["172.31.0.1", "private"],
                &["public address", "customer gateway"],
            ),
        ],
    )?;
    finds(
        &b,
        &[
            expected(
                "blocked",
                "IKE_SA_INIT",
                "role",
                &["no peer has called"],
                &["initiate", "Startup action"],
            ),
            expected(
                "ike-proposal",
                "IKE_SA_INIT",
                "proposals",
                &["ecp384", "modp2048"],
                &["Phase 1 DH group numbers"],
            ),
            expected(
                "esp-proposal",
                "IKE_AUTH",
                "esp-proposals",
                &["aes256gcm16", "aes128-sha256"],
                &["Phase 2"],
            ),
            expected("psk", "IKE_AUTH", "psk", &["another pre-shared key"], &["same psk", "Pre-shared key"]),
            expected("identity", "IKE_AUTH", "remote-id", &["a.example", "c.example"], &["a.example"]),
            expected("expired", "IKE_AUTH", "ca", &["expired on 2020-02-01 00:00 UTC"], &["renew"]),
            expected("clock", "IKE_AUTH", "ca", &["not valid before 2100-03-01 00:00 UTC"], &["clock"]),
            expected("authority", "IKE_AUTH", "ca", &["CN=ca0"], &["ca"]),
            expected(
                "selectors",
                "IKE_AUTH",
                "local-ts",
                &["10.99.0.0/16", "10.1.0.0/24"],
                &["the other way round"],
            ),
            expected("nat", "IKE_AUTH", "remote-id", &["172.31.0.1", "NAT"], &["local-id"]),
        ],
    )?;
    let report: Value = serde_json::from_str(&b.braid(&["doctor", "--json"])?.stdout)?;
    let others = report["others"].as_array().cloned().unwrap_or_default();
    assert_eq!(others.len(), 1, "every other caller belongs to a tunnel: {others:?}");
    let stranger = topology.paths[tunnels.len() - 2].a.to_string();
    assert!(others[0]["step"].as_str().unwrap_or_default().contains(&stranger), "{others:?}");
    assert_eq!(others[0]["key"], "remote");
    let text = b.braid(&["doctor", "psk"])?.stdout;
    for line in ["psk: down", "step", "found", "key", "remedy"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    Ok(())
}

/// Gateway A has a private address on this path, and one to one behind it the one that B knows.
fn translate(topology: &Topology, path: usize) -> Outcome {
    let OuterPath { a, b, device, .. } = &topology.paths[path];
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    topology.gateway_a.ip(&format!("addr del {a}/30 dev {device}"))?;
    topology.gateway_a.address(device, "172.31.0.1/30")?;
    topology.gateway_a.ip(&format!("route replace {b}/32 via 172.31.0.2 dev {device}"))?;
    internet.address(&format!("a{path}"), "172.31.0.2/30")?;
    internet.nft(&format!(
        "table ip one {{ chain out {{ type nat hook postrouting priority srcnat; ip saddr 172.31.0.1 snat to {a}; }}\n\
         chain in {{ type nat hook prerouting priority dstnat; ip daddr {a} dnat to 172.31.0.1; }}\n}}"
    ))?;
    Ok(())
}

/// Tunnels that come up by IKE, and then lose what goes through them.
fn why_tunnels_carry_nothing() -> Outcome {
    let mut tunnels = ["one-way", "black-hole", "healthy"].map(|name| Ends::new(name, "", "")).to_vec();
    tunnels.push(Ends::new("unanswered", "", "").tunnel("", "inside = \"169.254.99.2/30\"\n"));
    let topology = Topology::builder().paths(tunnels.len()).build()?;
    let internet = topology.internet.as_ref().ok_or("no internet")?;
    let probe = "{ interval = \"100ms\", multiplier = 5 }";
    let started = |side, netns| Gateway::start(netns, &configuration(side, &topology.paths, &tunnels, probe));
    let mut b = started(Side::B, &topology.gateway_b)?;
    let mut a = started(Side::A, &topology.gateway_a)?;
    a.wait_up(START)?;
    b.wait_up(START)?;
    for gateway in [&a, &b] {
        // An answer has come through every tunnel.
        retry_until("answers", START, || {
            let status = gateway.status().map_err(|error| error.to_string())?;
            let tunnels = status["tunnels"].as_array().ok_or("no tunnels")?;
            let mut to_answer = tunnels.iter().filter(|tunnel| tunnel["name"] != "unanswered");
            let answered = to_answer.all(|tunnel| tunnel["latency_ms"].is_number());
            if answered { Ok(()) } else { Err(status.to_string()) }
        })?;
    }
    // IKE passes: four zero octets stand in front of it (RFC 3948 section 2.2).
    let _one_way = fault::drop_matching(internet, &["b0"], "ip protocol udp udp dport 4500 @th,64,32 != 0")?;
    let _black_hole = fault::drop_matching(internet, &["a1", "b1"], "ip length > 1300")?;
    finds(
        &a,
        &[
            expected(
                "one-way",
                "traffic",
                "encapsulation",
                &["answers IKE", "does not reach us"],
                &["UDP 4500"],
            ),
            expected(
                "black-hole",
                "traffic",
                "uplink",
                &["up to 1200 bytes", "1280 bytes"],
                &["fragmentation needed"],
            ),
        ],
    )?;
    let unanswered = || {
        expected("unanswered", "traffic", "inside", &["none of", "not their peers'"], &["inside", "pings"])
    };
    finds(&a, &[unanswered()])?;
    finds(&b, &[unanswered()])?;
    finds(
        &b,
        &[
            expected(
                "one-way",
                "traffic",
                "encapsulation",
                &["ESP arrives", "does not reach it"],
                &["UDP 4500"],
            ),
            expected("black-hole", "traffic", "uplink", &["MTU black hole"], &["ip route change"]),
        ],
    )?;
    let healthy = a.braid(&["doctor", "healthy"])?;
    assert!(healthy.status.success() && healthy.stdout.contains("nothing found"), "{}", healthy.stdout);
    Ok(())
}

fn a_peer_that_deletes_at_once() -> Outcome {
    let topology = Topology::builder().build()?;
    let (path, suite) = (&topology.paths[0], "aes128-sha256-ecp256");
    let swan = Strongswan::start(
        &topology.gateway_b,
        &Connection {
            local: path.b.to_string(),
            remote: path.a.to_string(),
            local_id: path.b.to_string(),
            remote_id: path.a.to_string(),
            auth: Auth::Psk("correct horse battery staple".to_owned()),
            proposals: suite.to_owned(),
            esp_proposals: "aes128gcm16".to_owned(),
            local_ts: NET_B.to_owned(),
            remote_ts: NET_A.to_owned(),
            connection: String::new(),
            child: String::new(),
            routes: None,
        },
    )?;
    let ike = format!("proposals = [\"{suite}\"]\nesp-proposals = [\"aes128gcm16\"]\n");
    let ends = [Ends::new("swan", &ike, "")];
    let text = configuration(Side::A, &topology.paths, &ends, "\"off\"");
    let mut braid = Gateway::start(&topology.gateway_a, &text)?;
    braid.wait_up(START)?;
    swan.swanctl(&["--terminate", "--ike", "peer"])?;
    // Whether it is up again or not.
    finds(&braid, &[expected("swan", "", "local-id", &["deleted the SA right after"], &["local-id"])])
}
