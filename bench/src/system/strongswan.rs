//! Debian's strongSwan with ESP in user space (plugin kernel-libipsec).

use super::{Running, System, Wire, random_hex, run_beside, spawn_isolated};
use braid_netns::guard::{TempDir, temp_dir};
use braid_netns::topology::{NET_A, NET_B};
use braid_netns::{Error, Netns, Process, Result, Topology, retry_until};
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

const CHARON: &str = "/usr/lib/ipsec/charon";
const START: Duration = Duration::from_secs(10);
/// kernel-libipsec does ESP, kernel-netlink addresses and routes only.
const PLUGINS: &str = "random nonce openssl kdf aes sha1 sha2 hmac gcm curve25519 pem pkcs1 x509 \
                       pubkey kernel-libipsec kernel-netlink socket-default vici updown";

/// IKEv2 with a shared key, ESP AES-128-GCM in UDP.
#[derive(Debug)]
pub(super) struct Strongswan;

impl System for Strongswan {
    fn name(&self) -> String {
        "strongswan".to_owned()
    }

    fn title(&self) -> String {
        "strongSwan, userspace ESP AES-128-GCM".to_owned()
    }

    fn wire(&self) -> Wire {
        Wire::EspInUdp
    }

    fn start(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let directory = temp_dir("swan")?;
        let secret = random_hex(32)?;
        let path = &topology.paths[0];
        // The responder first: the initiator's first message must find it.
        let b = gateway(&topology.gateway_b, &directory, &secret, (path.b, path.a), (NET_B, NET_A))?;
        let a = gateway(&topology.gateway_a, &directory, &secret, (path.a, path.b), (NET_A, NET_B))?;
        run_beside(&topology.gateway_a, &a, &["swanctl", "--initiate", "--child", "net", "--timeout", "10"])?;
        Ok(Box::new(Charons { daemons: [a, b], _directory: directory }))
    }
}

fn gateway(
    netns: &Netns,
    directory: &TempDir,
    secret: &str,
    (local, remote): (Ipv4Addr, Ipv4Addr),
    (local_net, remote_net): (&str, &str),
) -> Result<Process> {
    let settings = directory.path().join(format!("{}-strongswan.conf", netns.label()));
    let text = format!(
        "charon {{\n load = {PLUGINS}\n install_virtual_ip = no\n \
         filelog {{ stderr {{ default = 1 }} }}\n}}\nswanctl {{\n load = pem pkcs1 x509 pubkey openssl\n}}\n"
    );
    write(&settings, &text)?;
    let connection = directory.path().join(format!("{}-swanctl.conf", netns.label()));
    let text = format!(
        "connections {{ peer {{
            version = 2
            local_addrs = {local}
            remote_addrs = {remote}
            encap = yes
            proposals = aes128-sha256-ecp256
            local {{ auth = psk; id = {local} }}
            remote {{ auth = psk; id = {remote} }}
            children {{ net {{
                local_ts = {local_net}
                remote_ts = {remote_net}
                esp_proposals = aes128gcm16
            }} }}
        }} }}
        secrets {{ ike {{ secret = {secret} }} }}\n"
    )
    .replace("; ", "\n");
    write(&connection, &text)?;
    let settings = settings.to_string_lossy().into_owned();
    let connection = connection.to_string_lossy().into_owned();
    let charon = spawn_isolated(netns, &[CHARON], &[("STRONGSWAN_CONF", &settings)])?;
    let conf = format!("STRONGSWAN_CONF={settings}");
    let load = ["env", &conf, "swanctl", "--load-all", "--file", &connection];
    retry_until("charon", START, || run_beside(netns, &charon, &load))?;
    Ok(charon)
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))
}

#[derive(Debug)]
struct Charons {
    daemons: [Process; 2],
    _directory: TempDir,
}

impl Running for Charons {
    fn diagnosis(&mut self) -> String {
        self.daemons.each_mut().map(|daemon| daemon.failure().to_string()).join("\n")
    }
}
