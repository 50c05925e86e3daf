//! `braid genkey`, `braid pubkey` and `braid genpsk`: what `wg` does under these names.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    process::ExitCode,
};

use zeroize::Zeroizing;

use super::FAILED;
use crate::wireguard::{BASE64_LEN, Secret};

/// Prints a new WireGuard private key.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: umask 077; braid genkey > wg.key; braid pubkey < wg.key")]
pub(super) struct Genkey {}

/// Reads a WireGuard private key and prints its public key.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: braid pubkey < wg.key")]
pub(super) struct Pubkey {}

/// Prints a new WireGuard preshared key.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: umask 077; braid genpsk > wg.psk")]
pub(super) struct Genpsk {}

pub(super) fn genkey() -> ExitCode {
    end(random().and_then(|bytes| print_secret(&Secret::private(bytes))))
}

pub(super) fn genpsk() -> ExitCode {
    end(random().and_then(|bytes| print_secret(&Secret::new(bytes))))
}

pub(super) fn pubkey() -> ExitCode {
    end(unbuffered(&io::stdin()).map_err(|error| format!("stdin: {error}")).and_then(|mut input| {
        let key = read_key(&mut input)?;
        let mut output = unbuffered(&io::stdout()).map_err(|error| format!("stdout: {error}"))?;
        writeln!(output, "{}", key.public()).map_err(|error| format!("stdout: {error}"))
    }))
}

fn end(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("braid: {error}");
            ExitCode::from(FAILED)
        }
    }
}

pub(super) fn random() -> Result<Zeroizing<[u8; 32]>, String> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| format!("no randomness: {error}"))?;
    Ok(bytes)
}

fn print_secret(secret: &Secret) -> Result<(), String> {
    let mut line = secret.to_base64();
    // The line has room for it, so no copy is left behind.
    line.push('\n');
    print_private(&line).map_err(|error| format!("stdout: {error}"))
}

/// A secret is about to be written there.
fn warn_of_readers(output: &File) -> io::Result<()> {
    let metadata = output.metadata()?;
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        eprintln!("braid: warning: writing to a file that others may read; umask 077 prevents that");
    }
    Ok(())
}

/// Writes text with a secret in it to stdout, with a word where others may read it.
pub(super) fn print_private(text: &str) -> io::Result<()> {
    let mut output = unbuffered(&io::stdout())?;
    warn_of_readers(&output)?;
    output.write_all(text.as_bytes())
}

/// One key, and nothing after it but white space.
fn read_key(input: &mut impl Read) -> Result<Secret, String> {
    const NO_KEY: &str = "Key is not the correct length or format";
    let mut text = Zeroizing::new([0; BASE64_LEN]);
    input.read_exact(&mut *text).map_err(|_| NO_KEY)?;
    // Vertical tabs and zeros, too, are white space to `wg`.
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b);
    let mut rest = [0; 256];
    loop {
        let len = input.read(&mut rest).map_err(|error| format!("stdin: {error}"))?;
        if len == 0 {
            break;
        }
        if !rest[..len].iter().all(is_blank) {
            return Err("Trailing characters found after key".to_owned());
        }
    }
    let text = core::str::from_utf8(&*text).map_err(|_| NO_KEY)?;
    text.parse().map_err(|_| NO_KEY.to_owned())
}

/// The standard library's own buffers would keep a copy of a key.
fn unbuffered(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_key_is_read_with_white_space_behind_it_and_nothing_else() {
        for right in [KEY.to_owned(), format!("{KEY}\n"), format!("{KEY} \t\r\n\0\n")] {
            let read = read_key(&mut right.as_bytes()).unwrap();
            assert_eq!(*read.to_base64(), KEY);
        }
        for (wrong, said) in [
            (String::new(), "Key is not"),
            (KEY[..43].to_owned(), "Key is not"),
            (format!(" {KEY}"), "Trailing characters"),
            (format!(" {}", &KEY[1..]), "Key is not"),
            (format!("{KEY}\n{KEY}"), "Trailing characters"),
            ("\u{e4}".repeat(22), "Key is not"),
        ] {
            let error = read_key(&mut wrong.as_bytes()).unwrap_err();
            assert!(error.starts_with(said), "{wrong:?}: {error}");
            assert!(!error.contains(KEY));
        }
    }
}
