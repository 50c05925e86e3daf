//! `[clients]` and the file beside it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use super::*;

const GOOD: &str = "\
[clients]
network = \"10.8.0.0/24\"
local = \"192.0.2.10\"
private-key = \"oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=\"
reach = [\"10.1.0.0/16\"]
";
const KEY: &str = "GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=";

/// A directory of its own for each test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("braid-clients-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Files(path)
    }

    fn read(&self, config: &str, list: &str, mode: u32) -> Result<Config, Vec<String>> {
        let clients = self.0.join("clients.toml");
        fs::write(&clients, list).unwrap();
        fs::set_permissions(&clients, fs::Permissions::from_mode(mode)).unwrap();
        let read = parse(config, &self.0.join("braid.toml"), 0o100600);
        read.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn client(name: &str, address: &str, key: &str) -> String {
    format!(
        "[[client]]\nname = \"{name}\"\naddress = \"{address}\"\npublic-key = \"{key}\"\npreshared-key = \"{KEY}\"\n"
    )
}

#[test]
fn every_client_is_a_tunnel_that_reaches_what_it_may() {
    let files = Files::new("good");
    let other = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";
    let list = client("alice", "10.8.0.2", KEY) + &client("bob", "10.8.0.3", other);
    let config = files.read(GOOD, &list, 0o600).unwrap();
    let [alice, bob] = &config.tunnels[..] else { panic!("two tunnels") };
    assert_eq!((alice.name.as_str(), bob.name.as_str()), ("alice", "bob"));
    assert_eq!(alice.role, Role::Respond);
    assert_eq!(alice.reach, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(alice.allowed, Some(vec!["10.8.0.2/32".parse().unwrap()]));
    assert_eq!(alice.inside, ["10.8.0.1/24".parse().unwrap()]);
    // What is written is what is read.
    let clients = config.clients.unwrap();
    let again = files.read(GOOD, &Clients::file_text(&clients.list), 0o600).unwrap();
    assert_eq!(again.clients.unwrap(), clients);
    // Without a file there is nobody.
    fs::remove_file(&clients.file).unwrap();
    assert_eq!(parse(GOOD, &files.0.join("braid.toml"), 0o100600).unwrap().tunnels, []);
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_line() {
    let files = Files::new("bad");
    let alice = client("alice", "10.8.0.2", KEY);
    let route = "[[tunnel]]\nname = \"site\"\nremote = \"192.0.2.20\"\n[tunnel.ike]\npsk = \"x\"\n\
                 [[route]]\nprefix = \"10.1.2.0/24\"\nvia = [\"site\"]\n";
    let cases = [
        (
            GOOD.to_owned(),
            alice.replace("10.8.0.2", "10.9.0.2"),
            0o600,
            "clients.toml:3: client.address: 10.9.0.2 is not within",
        ),
        (GOOD.to_owned(), alice.replace("10.8.0.2", "10.8.0.1"), 0o600, "an address that is taken"),
        (
            GOOD.to_owned(),
            alice.replace("\"10.8.0.2\"", "[\"10.8.0.2\", \"10.8.0.3\"]"),
            0o600,
            "two addresses of one family",
        ),
        (
            GOOD.to_owned(),
            alice.replace("name =", "nmae ="),
            0o600,
            "clients.toml:2: client.nmae: unknown key",
        ),
        (
            GOOD.to_owned(),
            alice.clone(),
            0o644,
            "clients.toml:5: client.preshared-key: the file holds a secret",
        ),
        (GOOD.to_owned(), "[[client".to_owned(), 0o600, "clients.toml:1:"),
        (GOOD.replace("10.8.0.0/24", "10.8.0.0/31"), alice.clone(), 0o600, "has no room for clients"),
        (GOOD.replace("reach", "raech"), alice.clone(), 0o600, "did you mean `reach`?"),
        (
            GOOD.to_owned() + "endpoint = \"a b\"\n",
            alice.clone(),
            0o600,
            "clients.endpoint: \"a b\" is neither",
        ),
        (GOOD.to_owned() + route, alice.clone(), 0o600, "set transit = true in [gateway]"),
        (GOOD.to_owned() + &route.replace("site", "alice"), alice.clone(), 0o600, "\"alice\" is taken"),
    ];
    for (config, list, mode, expected) in cases {
        let errors = files.read(&config, &list, mode).unwrap_err().join("\n");
        assert!(errors.contains(expected), "{expected}: {errors}");
        assert!(!errors.contains(KEY), "keys are not printed");
    }
    assert!(files.read(&(GOOD.to_owned() + route + "[gateway]\ntransit = true\n"), &alice, 0o600).is_ok());
}
