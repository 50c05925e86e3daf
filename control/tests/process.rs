//! The control process as it ships, between a launcher and a core that are played here over the real
//! sockets. The core's tables are the shipped ones. Needs no privilege.

#![allow(clippy::unwrap_used)] // A test ends where something is not as it should be.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use braid_api::{
    Answer, BootId, FRAME_HEADER_LEN, FromCore, GroupSummary, Hello, Op, Query, SaSummary, ToCore,
    TunnelState, TunnelSummary, decode, encode, frame_len,
    launcher::{FromClient, KernelPlan, LAUNCHER_SOCKET, TABLES_SOCKET, ToControl},
};
use braid_dataplane::{esp::Engine, tables::Writer};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Nothing here takes long; a machine under load may.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the played core has seen.
struct Core {
    writer: Writer,
    boots: u8,
    /// SAs installed, over all lives.
    installed: usize,
    connection: Option<UnixStream>,
}

/// Empty tables of another life.
fn new_life(boots: u8) -> Writer {
    Writer::new(1, BootId([boots; 16]), Engine::Ring, &[boots; 32])
}

struct World {
    dir: PathBuf,
    config: PathBuf,
    core: Arc<Mutex<Core>>,
    plans: Arc<Mutex<Vec<KernelPlan>>>,
    control: Option<Child>,
}

impl World {
    /// `plan` is what the launcher answers.
    fn new(name: &str, plan: ToControl) -> Self {
        let dir = std::env::temp_dir().join(format!("braid-process-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let core = Core { writer: new_life(1), boots: 1, installed: 0, connection: None };
        let world = World {
            config: dir.join("braid.toml"),
            core: Arc::new(Mutex::new(core)),
            plans: Arc::default(),
            control: None,
            dir,
        };
        world.write_config(&configuration(1));
        serve_launcher(&world.dir, plan, Arc::clone(&world.plans));
        serve_core(&world.dir, Arc::clone(&world.core));
        world
    }

    fn write_config(&self, text: &str) {
        fs::write(&self.config, text).unwrap();
        fs::set_permissions(&self.config, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_braid-control"));
        command.arg("--config").arg(&self.config).arg("--run-dir").arg(&self.dir);
        command
    }

    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = self.command().arg("--insecure-manual-keys").stderr(log).spawn().unwrap();
        self.control = Some(child);
    }

    fn kill(&mut self) {
        let mut child = self.control.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The core dies: its counters are lost, and another takes its place.
    fn restart_core(&self) {
        let mut core = self.core();
        core.boots += 1;
        core.writer = new_life(core.boots);
        if let Some(connection) = core.connection.take() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap()
    }

    fn braid(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_braid"))
            .args(args)
            .arg("--run-dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn status(&self) -> Option<Value> {
        let output = self.braid(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until every tunnel is in this state; returns the whole status.
    fn await_states(&self, state: &str) -> Value {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            last = self.status();
            if let Some(status) = &last
                && status["tunnels"].as_array().unwrap().iter().all(|tunnel| tunnel["state"] == state)
            {
                return status.clone();
            }
            thread::yield_now();
        }
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        panic!("not {state}: {last:#?}\n{log}");
    }

    fn summary(&self) -> (Vec<TunnelSummary>, Vec<SaSummary>, Vec<GroupSummary>) {
        self.core().writer.summary()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.control.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn configuration(weight: u32) -> String {
    let mut text = "[gateway]\nname = \"here\"\n".to_owned();
    for (name, last) in [("a", 1), ("b", 2)] {
        let key = |side: u32| format!("{:02x}", 16 * last + side).repeat(20);
        text.push_str(&format!(
            "[[tunnel]]\nname = \"{name}\"\nlocal = \"127.0.0.1\"\nremote = \"127.0.1.{last}\"\n\
             inside = \"169.254.{last}.2/30\"\nweight = {weight}\n[tunnel.manual]\nsuite = \"aes128gcm16\"\n\
             spi-in = 0x100{last}\nspi-out = 0x200{last}\nkey-in = \"{}\"\nkey-out = \"{}\"\n",
            key(0),
            key(1),
        ));
    }
    text + "[[route]]\nprefix = \"10.2.0.0/16\"\nvia = [\"a\", \"b\"]\n"
}

/// Answers every plan alike.
fn serve_launcher(dir: &Path, answer: ToControl, plans: Arc<Mutex<Vec<KernelPlan>>>) {
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(dir.join(LAUNCHER_SOCKET)).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    thread::spawn(move || {
        while let Ok(connection) = rustix::net::accept(&listener) {
            answer_plans(&connection, &answer, &plans);
        }
    });
}

fn answer_plans(connection: &OwnedFd, answer: &ToControl, plans: &Mutex<Vec<KernelPlan>>) {
    let mut buffer = vec![0; 1 << 17];
    loop {
        let Ok((len, _)) = rustix::net::recv(connection.as_fd(), &mut buffer[..], RecvFlags::empty()) else {
            return;
        };
        if len == 0 {
            return;
        }
        if let FromClient::Plan(plan) = decode(&buffer[..len]).unwrap() {
            plans.lock().unwrap().push(plan);
            let frame = encode(answer).unwrap();
            if rustix::net::send(connection, &frame[FRAME_HEADER_LEN..], SendFlags::NOSIGNAL).is_err() {
                return;
            }
        }
    }
}

fn serve_core(dir: &Path, core: Arc<Mutex<Core>>) {
    let listener = UnixListener::bind(dir.join(TABLES_SOCKET)).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(connection) = connection else { return };
            core.lock().unwrap().connection = Some(connection.try_clone().unwrap());
            let _ = answer_control(connection, &core);
        }
    });
}

fn answer_control(mut connection: UnixStream, core: &Mutex<Core>) -> std::io::Result<()> {
    loop {
        let mut header = [0; FRAME_HEADER_LEN];
        connection.read_exact(&mut header)?;
        let mut body = vec![0; frame_len(header).unwrap()];
        connection.read_exact(&mut body)?;
        let answer = answer(decode(&body).unwrap(), &mut core.lock().unwrap());
        connection.write_all(&encode(&answer).unwrap())?;
    }
}

fn answer(message: ToCore, core: &mut Core) -> FromCore {
    match message {
        ToCore::Hello { version } => {
            FromCore::Hello(Hello { version, ..core.writer.hello(Duration::ZERO, 1, true) })
        }
        ToCore::Apply(transaction) => {
            let sas = transaction.ops.iter().filter(|op| matches!(op, Op::PutSa(_))).count();
            match core.writer.apply(transaction, 0) {
                Ok(applied) => {
                    core.installed += sas;
                    FromCore::Applied { epoch: applied.epoch }
                }
                Err(rejected) => FromCore::Rejected(rejected),
            }
        }
        ToCore::Query { number, query } => {
            let answer = match query {
                Query::Stats => Answer::Stats(core.writer.stats(0)),
                Query::Echo { .. } => Answer::Echo,
                other => panic!("nobody asked for {other:?}"),
            };
            FromCore::Answer { number, answer }
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn it_brings_tunnels_up_and_obeys() {
    let mut world = World::new("obeys", ToControl::Done);
    world.start();
    let status = world.await_states("up");
    assert_eq!(status["gateway"], "here");
    let tunnel = &status["tunnels"][0];
    assert_eq!(tunnel["local"], "127.0.0.1:4500");
    assert_eq!(tunnel["remote"], "127.0.1.1:4500");
    assert_eq!(tunnel["uplink"], "lo");
    assert_eq!(tunnel["child"]["spi_in"], "0x00001001");
    let fields = [
        "name",
        "type",
        "state",
        "reason",
        "since_s",
        "local",
        "remote",
        "inside",
        "mtu",
        "uplink",
        "tx_packets",
        "tx_bytes",
        "rx_packets",
        "rx_bytes",
        "latency_ms",
        "ike",
        "child",
        "bfd",
        "wireguard",
        "bgp",
    ];
    let found: BTreeSet<&str> = tunnel.as_object().unwrap().keys().map(String::as_str).collect();
    for field in fields {
        assert!(found.contains(field), "{field} is part of the contract");
    }
    for field in ["gateway", "uptime_s", "tunnels", "routes", "neighbors", "drops"] {
        assert!(status.get(field).is_some(), "{field} is part of the contract");
    }

    assert!(world.braid(&["drain", "a"]).status.success());
    assert_eq!(world.status().unwrap()["tunnels"][0]["state"], "draining");
    assert!(world.braid(&["undrain", "a"]).status.success());
    assert_eq!(world.status().unwrap()["tunnels"][0]["state"], "up");
    let unknown = world.braid(&["drain", "x"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(stderr(&unknown), "no tunnel is named \"x\"; known: a, b\n");
}

#[test]
fn a_reload_changes_what_it_says_or_nothing() {
    let mut world = World::new("reload", ToControl::Done);
    world.start();
    world.await_states("up");
    let before = world.summary();

    world.write_config(&configuration(0));
    let refused = world.braid(&["reload"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("tunnel.weight: 0 is out of range"), "{}", stderr(&refused));
    assert_eq!(world.summary(), before);

    world.write_config(&configuration(7));
    assert!(world.braid(&["reload"]).status.success());
    let (tunnels, sas, groups) = world.summary();
    assert_eq!((tunnels, sas), (before.0, before.1));
    assert!(groups[0].members.iter().all(|member| member.weight == 7));
    assert_eq!(world.core().installed, 4);
}

/// Waits until this is so.
fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_signal_reloads_as_the_command_does() {
    let mut world = World::new("hangup", ToControl::Done);
    world.start();
    world.await_states("up");
    let before = world.summary();
    let log = || fs::read_to_string(world.dir.join("log")).unwrap();
    world.write_config(&configuration(0));
    signal(world.control.as_ref().unwrap(), Signal::HUP);
    until("the log says what is wrong", || log().contains("tunnel.weight: 0 is out of range"));
    assert_eq!(world.summary(), before);
    world.write_config(&configuration(7));
    signal(world.control.as_ref().unwrap(), Signal::HUP);
    let weights =
        || world.summary().2.into_iter().flat_map(|group| group.members).map(|member| member.weight);
    until("the new weights", || weights().all(|weight| weight == 7));
    assert_eq!((world.summary().0, world.summary().1), (before.0, before.1));
    world.await_states("up");
}

#[test]
fn status_is_drawn_again_and_again_until_somebody_interrupts() {
    let mut world = World::new("watch", ToControl::Done);
    world.start();
    world.await_states("up");
    for leave in [Signal::INT, Signal::TERM] {
        let shown = world.dir.join("shown");
        let file = fs::File::create(&shown).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
        command.args(["status", "--watch", "--run-dir"]).arg(&world.dir).stdin(Stdio::null()).stdout(file);
        let mut watching = command.spawn().unwrap();
        let pages = || fs::read_to_string(&shown).unwrap().matches("here: 2 of 2 tunnels up").count();
        until("two pages", || pages() >= 2);
        signal(&watching, leave);
        assert_eq!(watching.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn metrics_follow_the_configuration() {
    let mut world = World::new("metrics", ToControl::Done);
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let listen = taken.local_addr().unwrap();
    let section = format!("[metrics]\nlisten = \"{listen}\"\n");
    world.write_config(&(section + &configuration(1)));
    world.start();
    // A port that somebody has keeps no tunnel down.
    let status = world.await_states("up");
    assert_eq!(status["metrics"]["listen"], listen.to_string());
    let found = world.braid(&["doctor"]);
    let problem = format!("cannot listen on {listen}: Address already in use");
    let told = String::from_utf8(found.stdout).unwrap();
    assert!(told.contains(&problem) && told.contains("key     metrics.listen"), "{told}");
    assert!(String::from_utf8(world.braid(&["status"]).stdout).unwrap().contains(&problem));

    drop(taken);
    let text = scrape(listen);
    for series in [
        "braid_tunnel_up{tunnel=\"a\"} 1",
        "braid_tunnel_tx_bytes_total{tunnel=\"b\"} 0",
        "braid_rekeys_total{tunnel=\"a\"} 0",
    ] {
        assert!(text.lines().any(|line| line == series), "{series}: {text}");
    }
    assert_eq!(world.status().unwrap()["metrics"]["problem"], Value::Null);

    world.restart_core();
    world.await_states("down");
    let text = scrape(listen);
    assert!(text.contains("\nbraid_tunnel_up{tunnel=\"a\"} 0\n"), "{text}");
    assert!(text.contains("\nbraid_failovers_total{tunnel=\"a\",cause=\"core\"} 1\n"), "{text}");

    world.write_config(&configuration(2));
    assert!(world.braid(&["reload"]).status.success());
    assert_eq!(world.status().unwrap()["metrics"], Value::Null);
    await_deaf(listen);
}

/// What is answered at /metrics, once somebody listens.
fn scrape(listen: SocketAddr) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // From a port to itself TCP connects without anybody who listens.
        let connected = TcpStream::connect(listen);
        if let Ok(mut stream) = connected
            && stream.local_addr().unwrap() != listen
        {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            return answer;
        }
        assert!(Instant::now() < deadline, "nobody listens on {listen}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until nobody listens any more.
fn await_deaf(listen: SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(listen).is_ok() {
        assert!(Instant::now() < deadline, "it still listens on {listen}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn killed_it_adopts_what_runs() {
    let mut world = World::new("adopts", ToControl::Done);
    world.start();
    world.await_states("up");
    let before = world.summary();
    for _ in 0..3 {
        world.kill();
        world.start();
        world.await_states("up");
        assert_eq!(world.summary(), before);
    }
    assert_eq!(world.core().installed, 4, "no SA was installed again");
}

#[test]
fn no_sequence_of_deaths_installs_a_manual_key_again() {
    let mut world = World::new("deaths", ToControl::Done);
    world.start();
    world.await_states("up");
    world.restart_core();
    let status = world.await_states("down");
    let reason = status["tunnels"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("manual keys are not reused after the forwarding core restarted"), "{reason}");
    world.kill();
    world.restart_core();
    world.start();
    world.await_states("down");
    let (tunnels, sas, _) = world.summary();
    assert!(sas.is_empty());
    assert!(tunnels.iter().all(|tunnel| tunnel.state == TunnelState::Masked));
    assert_eq!(world.core().installed, 4);
}

#[test]
fn it_asks_the_launcher_for_all_that_the_kernel_must_have() {
    let mut world = World::new("plan", ToControl::Done);
    let protect = "[gateway]\nprotect = [\"10.0.0.0/8\", \"fd00::/8\"]\n";
    world.write_config(&configuration(1).replacen("[gateway]\n", protect, 1));
    world.start();
    world.await_states("up");
    let plans = world.plans.lock().unwrap();
    let plan = plans.last().unwrap();
    assert_eq!(plan.device, "braid0");
    assert_eq!(plan.udp.len(), 1, "both tunnels share a socket");
    assert_eq!(plan.peers.len(), 2);
    assert_eq!(plan.addresses.len(), 2);
    assert_eq!(plan.routes[0].prefix.to_string(), "10.2.0.0/16");
    assert_eq!(plan.protect.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn a_wrong_start_is_one_line_and_status_2() {
    let world = World::new("wrong", ToControl::Failed { message: "no such device".to_owned() });
    let output = world.command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("start with --insecure-manual-keys"), "{}", stderr(&output));

    let output = world.command().arg("--insecure-manual-keys").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().next_back(), Some("braid: no such device"));

    world.write_config("[gateway]\nnmae = \"x\"\n");
    let output = world.command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("{}:2: gateway.nmae: unknown key; did you mean `name`?\n", world.config.display());
    assert_eq!(stderr(&output), expected);
}

#[test]
fn nothing_that_was_in_force_is_no_hindrance_to_right_files_and_no_help_to_wrong_ones() {
    let mut world = World::new("in-force", ToControl::Done);
    let mut command = world.command();
    command.args(["--insecure-manual-keys", "--in-force"]).stdin(Stdio::null());
    world.control = Some(command.spawn().unwrap());
    world.await_states("up");
    world.kill();
    world.write_config("[gateway");
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(
        said.contains("braid.toml:1:") && said.contains("what was in force cannot be read again"),
        "{said}"
    );
}

#[test]
fn without_a_gateway_the_commands_say_so() {
    let world = World::new("nobody", ToControl::Done);
    for args in [&["status"][..], &["reload"], &["drain", "a"], &["path", "10.2.0.1"]] {
        let output = world.braid(args);
        assert_eq!(output.status.code(), Some(1));
        let line = stderr(&output);
        assert!(line.starts_with("braid: no gateway runs in ") && line.lines().count() == 1, "{line}");
    }
}
