//! `braid import` as a program: what it reads, writes and refuses.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Output},
};

const SITE: &str = "[Interface]\nPrivateKey = oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=\nAddress = 10.9.0.2/32\n\
                    DNS = 10.9.0.1\n[Peer]\nPublicKey = GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=\n\
                    AllowedIPs = 10.2.0.0/16\nEndpoint = 203.0.113.1:51820\n";

/// As AWS gives it, less what is not read.
const AWS: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<vpn_connection id=\"vpn-0123456789abcdef0\">\n\
                   <vpn_connection_attributes>NoBGPVPNConnection</vpn_connection_attributes>\n<ipsec_tunnel>\n\
                   <customer_gateway><tunnel_outside_address><ip_address>192.0.2.10</ip_address>\
                   </tunnel_outside_address><tunnel_inside_address><ip_address>169.254.10.2</ip_address>\
                   <network_cidr>30</network_cidr></tunnel_inside_address></customer_gateway>\n\
                   <vpn_gateway><tunnel_outside_address><ip_address>203.0.113.1</ip_address>\
                   </tunnel_outside_address></vpn_gateway>\n\
                   <ike><pre_shared_key>not.to_be_shown</pre_shared_key></ike>\n</ipsec_tunnel>\n</vpn_connection>\n";

fn braid(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_braid")).args(arguments).output().unwrap()
}

fn import(arguments: &[&str]) -> Output {
    braid(&[&["import", "wireguard"], arguments].concat())
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("braid-import-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn what_it_writes_only_its_owner_reads_and_what_is_left_out_is_said() {
    let directory = directory("writes");
    let (from, to) = (directory.join("office.conf"), directory.join("braid.toml"));
    fs::write(&from, SITE).unwrap();
    // One that was there, and that others could read.
    fs::write(&to, "old").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    let [from, to] = [&from, &to].map(|path| path.to_str().unwrap());
    let output = import(&[from, "-o", to]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with(&format!("{from}:4: DNS")), "{said}");
    assert_eq!(fs::metadata(to).unwrap().mode() & 0o777, 0o600);
    let text = fs::read_to_string(to).unwrap();
    assert!(text.contains("name = \"office\"") && !text.contains("old"), "{text}");
    assert_eq!(import(&[from]).stdout, text.as_bytes());
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_written() {
    let directory = directory("wrong");
    let (from, to) = (directory.join("wg0.conf"), directory.join("braid.toml"));
    fs::write(&from, SITE.replace("Endpoint", "Endpiont")).unwrap();
    let [from, to] = [&from, &to].map(|path| path.to_str().unwrap());
    let output = import(&[from, "-o", to]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with(&format!("{from}:8: unknown key")) && said.lines().count() == 1, "{said}");
    assert!(!fs::exists(to).unwrap());
    let output = import(&["/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_aws_says_becomes_a_file_that_is_right() {
    let directory = directory("aws");
    let (from, to) = (directory.join("vpn.xml"), directory.join("braid.toml"));
    fs::write(&from, AWS).unwrap();
    let [from, to] = [&from, &to].map(|path| path.to_str().unwrap());
    let output = braid(&["import", "aws", from, "-o", to, "--local", "192.0.2.10"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.lines().all(|line| line.starts_with(&format!("{from}:2: "))), "{said}");
    assert_eq!(fs::metadata(to).unwrap().mode() & 0o777, 0o600);
    let output = braid(&["check", "--config", to]);
    assert!(output.status.success(), "{output:?}");
    let right = "1 tunnel, 0 routes, device braid0\nno route leads through: aws-a\n";
    assert!(output.stdout.ends_with(right.as_bytes()), "{output:?}");
    // Each file has lines of its own.
    let cut = directory.join("cut.xml");
    fs::write(&cut, &AWS[..AWS.len() - 20]).unwrap();
    let output = braid(&["import", "aws", from, cut.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), said.lines().count()), (Some(2), 0, 1), "{said}");
    assert!(said.starts_with(&format!("{}:", cut.display())) && !said.contains("not.to_be_shown"), "{said}");
    assert_eq!(braid(&["import", "aws"]).status.code(), Some(2));
    fs::remove_dir_all(directory).unwrap();
}
