//! `braid client`: people on the road.
//!
//! The file that `[clients]` names holds them; a gateway that runs takes it by a reload. A client's private key is
//! made here, printed once within its configuration, and kept nowhere.

use std::{
    fs::File,
    io::{self, IsTerminal},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2, types::Color};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    FAILED, RunDir, WRONG_USAGE,
    file::Written,
    keys::{print_private, random},
};
use crate::{
    admin::{self, Request, Response},
    config::{self, Client, Clients, Config},
    status::Status,
    wireguard::Secret,
};

/// Adds, lists and removes people on the road, who connect with WireGuard.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
They are kept in the file that [clients] names. A running gateway takes changes without a restart, and the
sessions of the others go on.

Example: braid client add alice --config /etc/braid/braid.toml --png alice.png")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Add(Add),
    List(List),
    Remove(Remove),
}

/// Makes a client and prints its configuration: for wg-quick, and as a QR code for its app.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The configuration holds the client's private key, which is printed this once and kept nowhere. Where stdout is a
terminal, its QR code follows.

Example: umask 077; braid client add alice --config /etc/braid/braid.toml > alice.conf")]
struct Add {
    /// The client's name, in status as that of a tunnel
    name: String,
    #[command(flatten)]
    place: Place,
    /// Its inside address, instead of the lowest that is free; once for each family
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// Write the QR code to FILE
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Print the QR code wherever stdout goes
    #[arg(long, conflicts_with = "no_qr")]
    qr: bool,
    /// Print no QR code
    #[arg(long)]
    no_qr: bool,
}

/// Lists the clients, and whether they are connected.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: braid client list --config /etc/braid/braid.toml")]
struct List {
    #[command(flatten)]
    place: Place,
    /// Print one JSON document and nothing else
    #[arg(long)]
    json: bool,
}

/// Removes a client: its key opens nothing any more.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: braid client remove alice --config /etc/braid/braid.toml")]
struct Remove {
    /// The client's name
    name: String,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args, Debug)]
struct Place {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    run_dir: RunDir,
}

/// One line, and the exit status.
struct Failure(String, u8);

pub(super) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::Add(args) => add(args),
        Command::List(args) => list(args),
        Command::Remove(args) => remove(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(lines, status)) => {
            eprintln!("{lines}");
            ExitCode::from(status)
        }
    }
}

fn add(args: &Add) -> Result<(), Failure> {
    config::name(&args.name).map_err(|fault| usage(format!("{:?}: {fault}", args.name)))?;
    let _lock = lock(&args.place.config)?;
    let (config, mut clients) = load(&args.place)?;
    if config.tunnels.iter().any(|tunnel| tunnel.name == args.name) {
        return Err(usage(format!("{:?} is taken: give another name", args.name)));
    }
    let addresses =
        if args.address.is_empty() { clients.free_addresses() } else { Some(args.address.clone()) };
    let Some(addresses) = addresses else {
        return Err(usage(
            "no address is free: remove a client, or give [clients] a larger network".to_owned(),
        ));
    };
    let fail = |error: String| Failure(format!("braid: {error}"), FAILED);
    let private_key = Secret::private(random().map_err(fail)?);
    let client = Client {
        name: args.name.clone(),
        public_key: private_key.public(),
        preshared_key: Secret::new(random().map_err(fail)?),
        addresses,
    };
    let text = client_configuration(&clients, &client, &private_key);
    let code = QrCode::with_error_correction_level(text.as_bytes(), EcLevel::L);
    let code = code.map_err(|error| usage(format!("no QR code holds its configuration: {error}")))?;
    let out = if args.shows_qr(io::stdout().is_terminal()) { with_qr(&text, &code) } else { text };
    // Its private key is kept nowhere: whoever is in the list without having been told it is lost.
    let not_added = |what: String| fail(format!("{what}; {} was not added", args.name));
    let picture = args.png.as_deref().map(|path| {
        let written = png(&code).and_then(|bytes| Written::new(path, &bytes));
        written.map_err(|error| not_added(format!("cannot write {}: {error}", path.display())))
    });
    let picture = picture.transpose()?;
    clients.list.push(client);
    let done = store(&args.place, &clients).and_then(|written| {
        let Err(error) = print_private(&out) else { return Ok(()) };
        put_back(&args.place, &clients, written)?;
        Err(not_added(format!("stdout: {error}")))
    });
    if let (Err(_), Some(picture)) = (&done, picture) {
        // Why there is no client is worth more than that its picture stays.
        let _ = picture.undo();
    }
    done?;
    warn_if_alone(&args.place);
    Ok(())
}

impl Add {
    fn shows_qr(&self, terminal: bool) -> bool {
        self.qr || (terminal && !self.no_qr)
    }
}

fn remove(args: &Remove) -> Result<(), Failure> {
    let _lock = lock(&args.place.config)?;
    let (_, mut clients) = load(&args.place)?;
    let before = clients.list.len();
    clients.list.retain(|client| client.name != args.name);
    if clients.list.len() == before {
        let known: Vec<&str> = clients.list.iter().take(12).map(|client| client.name.as_str()).collect();
        let known = if known.is_empty() {
            "there is none".to_owned()
        } else {
            format!("known: {}", known.join(", "))
        };
        return Err(Failure(format!("braid: no client is named {:?}; {known}", args.name), FAILED));
    }
    store(&args.place, &clients)?;
    warn_if_alone(&args.place);
    Ok(())
}

/// A client as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    address: Vec<String>,
    public_key: String,
    /// As in `braid status`; nothing where no gateway answers.
    state: Option<String>,
    last_handshake_s: Option<f64>,
}

fn list(args: &List) -> Result<(), Failure> {
    let (_, clients) = load(&args.place)?;
    let status = match admin::request(&args.place.run_dir.path, &Request::Status) {
        Ok(Response::Ok(value)) => serde_json::from_value::<Status>(value).ok(),
        Ok(Response::Failed { .. }) | Err(_) => None,
    };
    let listed: Vec<Listed<'_>> = clients
        .list
        .iter()
        .map(|client| {
            let tunnels = status.iter().flat_map(|status| &status.tunnels);
            let tunnel = tunnels.into_iter().find(|tunnel| tunnel.name == client.name);
            Listed {
                name: &client.name,
                address: client.addresses.iter().map(ToString::to_string).collect(),
                public_key: client.public_key.to_string(),
                state: tunnel.map(|tunnel| tunnel.state.clone()),
                last_handshake_s: tunnel.and_then(|tunnel| tunnel.wireguard.as_ref()?.last_handshake_s),
            }
        })
        .collect();
    let text = if args.json {
        // Strings and numbers only: this cannot fail.
        format!("{}\n", serde_json::to_string(&listed).unwrap_or_default())
    } else {
        let line = |client: &Listed<'_>| {
            let shaken =
                client.last_handshake_s.map_or(String::new(), |ago| format!(", handshake {ago:.0} s ago"));
            format!(
                "{}  {}  {}  {}{shaken}\n",
                client.name,
                client.address.join(", "),
                client.public_key,
                client.state.as_deref().unwrap_or("no gateway runs")
            )
        };
        listed.iter().map(line).collect()
    };
    super::ask::print(&text);
    Ok(())
}

/// What wg-quick and the apps read.
fn client_configuration(clients: &Clients, client: &Client, private_key: &Secret) -> Zeroizing<String> {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let host = |address: &IpAddr| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let dns = match clients.dns.is_empty() {
        true => String::new(),
        false => format!("DNS = {}\n", list(&mut clients.dns.iter().map(ToString::to_string))),
    };
    let ours = clients.network.iter().map(ipnet::IpNet::addr);
    let covered = |ours: &IpAddr| clients.reach.iter().any(|prefix| prefix.contains(ours));
    let reach = clients.reach.iter().map(ToString::to_string);
    let allowed = list(&mut reach.chain(ours.filter(|ours| !covered(ours)).map(|ours| host(&ours))));
    let keepalive =
        clients.keepalive.map_or(String::new(), |every| format!("PersistentKeepalive = {every}\n"));
    // Sized first: a growing string would leave copies of keys in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(1024 + allowed.len() + dns.len()));
    for part in [
        "[Interface]\nPrivateKey = ",
        &private_key.to_base64(),
        "\nAddress = ",
        &list(&mut client.addresses.iter().map(host)),
        "\n",
        &dns,
        "\n[Peer]\nPublicKey = ",
        &clients.private_key.public().to_string(),
        "\nPresharedKey = ",
        &client.preshared_key.to_base64(),
        "\nEndpoint = ",
        &clients.endpoint,
        "\nAllowedIPs = ",
        &allowed,
        "\n",
        &keepalive,
    ] {
        text.push_str(part);
    }
    text
}

fn usage(line: String) -> Failure {
    Failure(format!("braid: {line}"), WRONG_USAGE)
}

/// Two at once would lose one of the clients.
fn lock(config: &Path) -> Result<File, Failure> {
    let locked = File::open(config).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| usage(format!("{}: {error}", config.display())))
}

fn load(place: &Place) -> Result<(Config, Clients), Failure> {
    let config = config::load(&place.config).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure(lines.join("\n"), WRONG_USAGE)
    })?;
    let Some(clients) = config.clients.clone() else {
        let line = format!(
            "{}: there is no [clients]: add one, with network, local, reach and a key",
            place.config.display()
        );
        return Err(usage(line));
    };
    Ok((config, clients))
}

/// Writes the file, sees whether the configuration is right with it, and has a gateway that runs take it; where it
/// does not, all is as before.
fn store<'c>(place: &Place, clients: &'c Clients) -> Result<Written<'c>, Failure> {
    let text = Clients::file_text(&clients.list);
    let written = Written::new(&clients.file, text.as_bytes()).map_err(|error| unwritten(clients, &error))?;
    let taken = load(place).map(drop).and_then(|()| reload(&place.run_dir.path));
    if let Err(failure) = taken {
        put_back(place, clients, written)?;
        return Err(failure);
    }
    Ok(written)
}

/// All is as before [`store`].
fn put_back(place: &Place, clients: &Clients, written: Written<'_>) -> Result<(), Failure> {
    written.undo().map_err(|error| unwritten(clients, &error))?;
    // It may have taken the change all the same, as where another tunnel was refused.
    let _ = reload(&place.run_dir.path);
    Ok(())
}

fn unwritten(clients: &Clients, error: &io::Error) -> Failure {
    Failure(format!("braid: {}: {error}", clients.file.display()), FAILED)
}

fn reload(run_dir: &Path) -> Result<(), Failure> {
    if !admin::is_there(run_dir) {
        return Ok(());
    }
    match admin::request(run_dir, &Request::Reload) {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Failed { lines, status }) => Err(Failure(lines.join("\n"), status)),
        Err(line) => Err(Failure(line, FAILED)),
    }
}

fn warn_if_alone(place: &Place) {
    let run_dir = &place.run_dir.path;
    if !admin::is_there(run_dir) {
        eprintln!("braid: no gateway runs in {}: the change counts from its start on", run_dir.display());
    }
}

/// For a terminal that is light on dark, as most are.
fn with_qr(text: &str, code: &QrCode) -> Zeroizing<String> {
    let picture = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
    let picture = Zeroizing::new(picture);
    // Sized first: a growing string would leave copies of keys in freed memory.
    let mut out = Zeroizing::new(String::with_capacity(text.len() + picture.len() + 2));
    for part in [text, "\n", &picture, "\n"] {
        out.push_str(part);
    }
    out
}

/// Black on white, four modules of margin (ISO/IEC 18004).
fn png(code: &QrCode) -> io::Result<Zeroizing<Vec<u8>>> {
    const SCALE: usize = 6;
    const MARGIN: usize = 4;
    let modules = code.width() + 2 * MARGIN;
    let side = modules * SCALE;
    let is_dark = |x: usize, y: usize| {
        let within = |at: usize| (at / SCALE).checked_sub(MARGIN).filter(|at| *at < code.width());
        within(x).zip(within(y)).is_some_and(|(x, y)| code[(x, y)] == Color::Dark)
    };
    let pixels: Zeroizing<Vec<u8>> = Zeroizing::new(
        (0..side * side).map(|at| if is_dark(at % side, at / side) { 0 } else { 255 }).collect(),
    );
    let mut bytes = Zeroizing::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut *bytes, side as u32, side as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&pixels).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
[clients]
network = [\"10.8.0.0/29\", \"fd00:8::/64\"]
local = \"192.0.2.10\"
endpoint = \"vpn.example.com\"
private-key = \"oK56DE9Ue9zK76rAc8pBl6opph+1v36lm7cXXsQKrQM=\"
reach = [\"10.1.0.0/16\", \"10.8.0.0/24\"]
dns = \"10.1.0.53\"
";

    fn clients() -> Clients {
        config::parse(CONFIG, Path::new("/nowhere/braid.toml"), 0o100600).unwrap().clients.unwrap()
    }

    fn client(name: &str, addresses: Vec<IpAddr>) -> Client {
        let key = Secret::private(Zeroizing::new([7; 32]));
        Client { name: name.to_owned(), public_key: key.public(), preshared_key: key, addresses }
    }

    #[test]
    fn a_qr_code_is_for_terminals_unless_it_is_asked_for() {
        let shows = |flags: &[&str], terminal| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                add: Add,
            }
            let words = ["add", "alice", "--config", "x"].iter().chain(flags);
            clap::Parser::try_parse_from(words).map(|line: Line| line.add.shows_qr(terminal)).ok()
        };
        for (flags, on_terminal, elsewhere) in [
            (&[][..], Some(true), Some(false)),
            (&["--no-qr"], Some(false), Some(false)),
            (&["--qr"], Some(true), Some(true)),
            (&["--qr", "--no-qr"], None, None),
        ] {
            assert_eq!((shows(flags, true), shows(flags, false)), (on_terminal, elsewhere), "{flags:?}");
        }
    }

    #[test]
    fn a_clients_configuration_is_read_by_wg_quicks_readers() {
        let clients = clients();
        let alice = client("alice", clients.free_addresses().unwrap());
        let private_key = Secret::private(Zeroizing::new([9; 32]));
        let text = client_configuration(&clients, &alice, &private_key);
        assert!(text.contains("\nAddress = 10.8.0.2/32, fd00:8::2/128\nDNS = 10.1.0.53\n"), "{}", *text);
        assert!(text.contains("\nEndpoint = vpn.example.com:51820\n"));
        // Our own inside address, unless what is reached covers it.
        assert!(text.contains("\nAllowedIPs = 10.1.0.0/16, 10.8.0.0/24, fd00:8::1/128\n"));
        assert!(text.ends_with("PersistentKeepalive = 25\n"));
        let imported = crate::import::wireguard::import(&text, "alice", None).unwrap();
        assert!(imported.text.contains(&clients.private_key.public().to_string()));
    }

    #[test]
    fn addresses_are_given_until_none_is_left() {
        let mut clients = clients();
        clients.network.truncate(1);
        for host in 2..=6_u8 {
            let addresses = clients.free_addresses().unwrap();
            assert_eq!(addresses, [IpAddr::from([10, 8, 0, host])]);
            clients.list.push(client(&format!("c{host}"), addresses));
        }
        assert_eq!(clients.free_addresses(), None);
        clients.list.remove(1);
        assert_eq!(clients.free_addresses().unwrap(), [IpAddr::from([10, 8, 0, 3])]);
    }
}
