//! `braid client` as a program: what it prints, writes and keeps, and that a client is there exactly if whoever
//! asked for it was told its key. The gateway, where there is one, is played.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use braid_control::{
    admin::{ADMIN_SOCKET, Request, Response},
    config::{self, Client},
};
use qrcode::{EcLevel, QrCode, types::Color};
use serde_json::json;

const BOTH: &str = "[\"10.8.0.0/24\", \"fd00:8::/64\"]";

/// A configuration with its clients, in a directory that is the run directory too.
struct World(PathBuf);

impl World {
    fn new(name: &str, network: &str, local: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("braid-client-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "[clients]\nnetwork = {network}\nlocal = \"{local}\"\nreach = [\"10.1.0.0/16\", \"fd00:1::/48\"]\n\
             private-key = \"oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=\"\n"
        );
        let world = World(directory);
        fs::write(world.config(), text).unwrap();
        fs::set_permissions(world.config(), Permissions::from_mode(0o600)).unwrap();
        world
    }

    fn config(&self) -> PathBuf {
        self.0.join("braid.toml")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
        command.arg("client").args(args).arg("--config").arg(self.config()).arg("--run-dir").arg(&self.0);
        command.stdin(Stdio::null());
        command
    }

    fn braid(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What it prints where it succeeds.
    fn told(&self, args: &[&str]) -> String {
        let output = self.braid(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says where it does not, in one line.
    fn refused(&self, args: &[&str], status: i32) -> String {
        one_line(self.braid(args), status)
    }

    fn clients(&self) -> Vec<Client> {
        config::load(&self.config()).unwrap().clients.unwrap().list
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A gateway that answers as it is told; what it was asked comes back.
    fn gateway(&self, answer: impl Fn(&Request) -> Response + Send + 'static) -> Receiver<Request> {
        let listener = UnixListener::bind(self.0.join(ADMIN_SOCKET)).unwrap();
        let (asked, questions) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                // Whoever only looks whether there is one asks nothing.
                let Ok(request) = serde_json::from_str(&line) else { continue };
                let answer = serde_json::to_string(&answer(&request)).unwrap() + "\n";
                // One that nobody waits for is the end of the test.
                let _ = asked.send(request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        questions
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn one_line(output: Output, status: i32) -> String {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn addresses(client: &Client) -> Vec<String> {
    client.addresses.iter().map(IpAddr::to_string).collect()
}

#[test]
fn a_client_is_added_only_if_its_key_is_told() {
    let world = World::new("told", "\"10.8.0.0/24\"", "192.0.2.10");
    let unwritable = "braid: cannot write /nonexistent/x.png: No such file or directory (os error 2); alice was \
                      not added\n";
    assert_eq!(world.refused(&["add", "alice", "--png", "/nonexistent/x.png"], 1), unwritable);
    assert_eq!(world.files(), ["braid.toml"]);
    // Nor where stdout takes nothing; its picture goes as well, and one that was there stays.
    world.told(&["add", "bob"]);
    let before = fs::read(world.0.join("clients.toml")).unwrap();
    let old = world.0.join("old.png");
    fs::write(&old, "old").unwrap();
    for picture in [world.0.join("new.png"), old.clone()] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let args = ["add", "alice", "--png", picture.to_str().unwrap()];
        let said = one_line(world.command(&args).stdout(full).output().unwrap(), 1);
        assert!(said.starts_with("braid: stdout: ") && said.ends_with("; alice was not added\n"), "{said}");
    }
    assert_eq!(world.files(), ["braid.toml", "clients.toml", "old.png"]);
    assert_eq!(fs::read(world.0.join("clients.toml")).unwrap(), before);
    assert_eq!(fs::read(old).unwrap(), b"old");
}

#[test]
fn a_gateway_that_refuses_leaves_all_as_it_was() {
    let world = World::new("refuses", "\"10.8.0.0/24\"", "192.0.2.10");
    let questions = world.gateway(|_| Response::Failed { lines: vec!["no room".to_owned()], status: 1 });
    let picture = world.0.join("alice.png");
    let add = ["add", "alice", "--png", picture.to_str().unwrap()];
    assert_eq!(world.refused(&add, 1), "no room\n");
    assert_eq!(world.files(), [ADMIN_SOCKET, "braid.toml"]);
    // It may have taken the change all the same, so that it is told of the old file too.
    assert_eq!(questions.try_iter().collect::<Vec<_>>(), [Request::Reload, Request::Reload]);
    let taken = "# mine\n[[client]]\nname = \"bob\"\naddress = \"10.8.0.2\"\n\
                 public-key = \"GtL7fZc/bLnqZldpVofMCD6hDjrK28SsdLxevJ+qtKU=\"\n\
                 preshared-key = \"/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=\"\n";
    let file = world.0.join("clients.toml");
    fs::write(&file, taken).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    for args in [&add[..], &["remove", "bob"]] {
        assert_eq!(world.refused(args, 1), "no room\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), taken);
    }
    assert_eq!(world.files(), [ADMIN_SOCKET, "braid.toml", "clients.toml"]);
}

/// The dark modules of a picture, with its margin.
fn modules_of_png(path: &Path) -> Vec<Vec<bool>> {
    const SCALE: usize = 6;
    let mut reader = png::Decoder::new(BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let side = info.width as usize;
    assert_eq!((info.height as usize, info.line_size), (side, side), "a byte a pixel");
    for at in 0..side * side {
        let corner = at / side / SCALE * SCALE * side + at % side / SCALE * SCALE;
        assert_eq!(pixels[at], pixels[corner], "modules are squares");
    }
    let rows = pixels.chunks(side).step_by(SCALE);
    rows.map(|row| row.iter().step_by(SCALE).map(|pixel| *pixel == 0).collect()).collect()
}

/// The dark modules of what a terminal shows: half a character each, and lit where they are light.
fn modules_of_text(text: &str) -> Vec<Vec<bool>> {
    let mut rows = Vec::new();
    for line in text.lines() {
        let halves = line.chars().map(|c| match c {
            ' ' => (true, true),
            '▀' => (false, true),
            '▄' => (true, false),
            '█' => (false, false),
            other => panic!("{other:?} in a QR code"),
        });
        let (upper, lower) = halves.unzip();
        rows.extend::<[Vec<bool>; 2]>([upper, lower]);
    }
    // The last of an odd number has no other half.
    rows.truncate(rows[0].len());
    rows
}

#[test]
fn both_qr_codes_hold_the_configuration_that_is_printed() {
    let world = World::new("qr", BOTH, "192.0.2.10");
    let picture = world.0.join("alice.png");
    let out = world.told(&["add", "alice", "--qr", "--png", picture.to_str().unwrap()]);
    let (text, code) = out.split_at(out.find('█').unwrap());
    let text = text.strip_suffix("\n\n").map(|text| text.to_owned() + "\n").unwrap();
    assert_eq!(fs::metadata(&picture).unwrap().permissions().mode() & 0o777, 0o600);
    let modules = modules_of_png(&picture);
    assert_eq!(modules_of_text(code), modules);
    // ISO/IEC 18004: four light modules around it.
    const MARGIN: usize = 4;
    let expected = QrCode::with_error_correction_level(&text, EcLevel::L).unwrap();
    let width = expected.width();
    assert_eq!(modules.len(), width + 2 * MARGIN);
    for (y, row) in modules.iter().enumerate() {
        for (x, dark) in row.iter().enumerate() {
            let within = |at: usize| at.checked_sub(MARGIN).filter(|at| *at < width);
            let module = within(x).zip(within(y)).map(|(x, y)| expected[(x, y)]);
            assert_eq!(*dark, module == Some(Color::Dark), "{x}, {y}");
        }
    }
    // Nobody asked for one where stdout is no terminal.
    for args in [&["add", "bob"][..], &["add", "carol", "--no-qr"]] {
        let out = world.told(args);
        assert!(out.starts_with("[Interface]\n") && out.is_ascii(), "{out}");
    }
    world.refused(&["add", "dave", "--qr", "--no-qr"], 2);
}

#[test]
fn the_list_says_who_is_connected() {
    let world = World::new("list", BOTH, "192.0.2.10");
    assert_eq!(world.told(&["list"]), "");
    world.told(&["add", "alice"]);
    world.told(&["add", "bob"]);
    let keys: Vec<String> = world.clients().iter().map(|client| client.public_key.to_string()).collect();
    let expected = format!(
        "alice  10.8.0.2, fd00:8::2  {}  no gateway runs\nbob  10.8.0.3, fd00:8::3  {}  no gateway runs\n",
        keys[0], keys[1]
    );
    assert_eq!(world.told(&["list"]), expected);
    let key = keys[0].clone();
    let _questions = world.gateway(move |request| {
        assert_eq!(*request, Request::Status);
        let tunnel = |name: &str, state: &str, shaken: Option<f64>| {
            json!({
                "name": name, "type": "wireguard", "state": state, "reason": "", "since_s": 1.0, "local": null,
                "remote": null, "inside": "10.8.0.1/24", "mtu": 1420, "uplink": null, "tx_packets": 0,
                "tx_bytes": 0, "rx_packets": 0, "rx_bytes": 0, "latency_ms": null, "latency_p99_ms": null,
                "probes_sent": 0, "probes_answered": 0, "ike": null, "child": null, "bfd": null, "bgp": null,
                "wireguard": { "last_handshake_s": shaken, "handshakes": 1, "public_key": "", "peer_public_key": key },
                "weight": 1, "priority": 0, "buckets": 0, "failovers": 0, "failover_causes": {},
                "last_failure": null
            })
        };
        Response::Ok(json!({
            "gateway": "here", "uptime_s": 1.0, "routes": [], "routes_left_out": 0, "neighbors": [], "drops": {},
            "core": true, "tunnels": [tunnel("alice", "up", Some(12.4)), tunnel("bob", "connecting", None)]
        }))
    });
    let expected = format!(
        "alice  10.8.0.2, fd00:8::2  {}  up, handshake 12 s ago\nbob  10.8.0.3, fd00:8::3  {}  connecting\n",
        keys[0], keys[1]
    );
    assert_eq!(world.told(&["list"]), expected);
}

#[test]
fn addresses_are_those_asked_for_or_the_lowest_that_are_free() {
    let world = World::new("address", BOTH, "192.0.2.10");
    let out = world.told(&["add", "alice", "--address", "10.8.0.77", "--address", "fd00:8::77"]);
    assert!(out.contains("\nAddress = 10.8.0.77/32, fd00:8::77/128\n"), "{out}");
    let out = world.told(&["add", "bob", "--address", "10.8.0.2"]);
    assert!(out.contains("\nAddress = 10.8.0.2/32\n"), "{out}");
    let out = world.told(&["add", "carol"]);
    assert!(out.contains("\nAddress = 10.8.0.3/32, fd00:8::2/128\n"), "{out}");
    let before = fs::read(world.0.join("clients.toml")).unwrap();
    for (wrong, said) in [
        (&["10.9.0.2"][..], "10.9.0.2 is not within [clients] network"),
        (&["10.8.0.77"], "an address that is taken"),
        (&["10.8.0.1"], "an address that is taken"),
        (&["10.8.0.8", "10.8.0.9"], "two addresses of one family"),
        (&["10.8.0"], "invalid value '10.8.0'"),
    ] {
        let flags = wrong.iter().flat_map(|address| ["--address", address]);
        let args: Vec<&str> = ["add", "dave"].into_iter().chain(flags).collect();
        let line = world.refused(&args, 2);
        assert!(line.contains(said), "{line}");
    }
    assert_eq!(fs::read(world.0.join("clients.toml")).unwrap(), before);
    // The lowest are given again.
    world.told(&["remove", "bob"]);
    world.told(&["add", "erin"]);
    assert_eq!(addresses(world.clients().last().unwrap()), ["10.8.0.2", "fd00:8::3"]);
}

#[test]
fn clients_may_have_ipv6_alone() {
    let world = World::new("v6", "\"fd00:8::/64\"", "2001:db8::10");
    let out = world.told(&["add", "alice"]);
    assert!(out.contains("\nAddress = fd00:8::2/128\n"), "{out}");
    assert!(out.contains("\nEndpoint = [2001:db8::10]:51820\n"), "{out}");
    assert!(out.contains("\nAllowedIPs = 10.1.0.0/16, fd00:1::/48, fd00:8::1/128\n"), "{out}");
    let [alice] = &world.clients()[..] else { panic!("one client") };
    assert_eq!(addresses(alice), ["fd00:8::2"]);
}

#[test]
fn clients_that_are_added_at_once_are_all_there() {
    const MANY: usize = 8;
    let world = World::new("lock", "\"10.8.0.0/24\"", "192.0.2.10");
    let lock = File::open(world.config()).unwrap();
    lock.lock().unwrap();
    let add = |number: usize| {
        let mut command = world.command(&["add", &format!("c{number}")]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..MANY).map(add).collect();
    assert_eq!(world.files(), ["braid.toml"], "they wait");
    lock.unlock().unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut clients: Vec<_> = world.clients().iter().map(addresses).collect();
    clients.sort();
    let expected: Vec<_> = (2..2 + MANY).map(|host| vec![format!("10.8.0.{host}")]).collect();
    assert_eq!(clients, expected);
}
