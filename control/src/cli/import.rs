//! `braid import`: configurations of others, turned into Braid's.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use zeroize::Zeroizing;

use super::{FAILED, WRONG_USAGE};
use crate::wireguard::import::import;

/// Turns a configuration of another program into one of Braid's.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: braid import wireguard /etc/wireguard/wg0.conf -o /etc/braid/braid.toml")]
pub(super) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand, Debug)]
enum Kind {
    Wireguard(Wireguard),
}

/// Reads a configuration of wg-quick.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each peer becomes a tunnel, its allowed IPs become routes. What cannot be carried over is said on stderr,
one line each. The result holds keys: the file of -o is readable by its owner only.

Example: braid import wireguard /etc/wireguard/wg0.conf -o /etc/braid/braid.toml")]
struct Wireguard {
    /// The configuration of wg-quick
    file: PathBuf,
    /// Write to FILE instead of stdout
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Our outer address, needed for peers without an Endpoint
    #[arg(long, value_name = "ADDRESS")]
    local: Option<IpAddr>,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match &args.kind {
        Kind::Wireguard(args) => wireguard(args),
    }
}

fn wireguard(args: &Wireguard) -> ExitCode {
    let shown = args.file.display();
    let text = match read(&args.file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{shown}: cannot be read: {error}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let name = args.file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let imported = match import(&text, name, args.local) {
        Ok(imported) => imported,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("{shown}:{error}"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    imported.notes.iter().for_each(|note| eprintln!("{shown}:{note}"));
    match write(args.output.as_deref(), imported.text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let output = args.output.as_deref().unwrap_or(Path::new("stdout"));
            eprintln!("braid: cannot write {}: {error}", output.display());
            ExitCode::from(FAILED)
        }
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    /// Longer than any that a person keeps.
    const MAX_LEN: u64 = 64 * 1024 * 1024;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > MAX_LEN {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Sized first: a growing buffer would leave copies of keys in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(len as usize + 1));
    Read::by_ref(&mut file).take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}

fn write(path: Option<&Path>, bytes: &[u8]) -> io::Result<()> {
    let Some(path) = path else { return io::stdout().write_all(bytes) };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // One that was there keeps its mode otherwise.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    file.write_all(bytes)
}
