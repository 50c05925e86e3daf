//! `braid genkey`, `pubkey` and `genpsk` as programs: what they read, write, warn of and refuse.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    process::{Command, Output, Stdio},
};

use braid_control::wireguard::{PublicKey, Secret};

fn braid(command: &str, input: &[u8], output: impl Into<Stdio>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_braid"))
        .arg(command)
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn line(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn keys_are_new_each_time_clamped_and_belong_together() {
    let private = line(&braid("genkey", b"", Stdio::piped()));
    assert_ne!(private, line(&braid("genkey", b"", Stdio::piped())));
    let secret: Secret = private.parse().unwrap();
    let bytes = secret.expose();
    // RFC 7748 section 5.
    assert_eq!((bytes[0] & 7, bytes[31] & 0xc0), (0, 0x40));
    let public = line(&braid("pubkey", format!("{private}\n").as_bytes(), Stdio::piped()));
    assert_eq!(public.parse::<PublicKey>().unwrap(), secret.public());
    let preshared = line(&braid("genpsk", b"", Stdio::piped()));
    assert!(preshared.parse::<Secret>().is_ok());
    assert_ne!(preshared, line(&braid("genpsk", b"", Stdio::piped())));
}

#[test]
fn what_is_no_key_is_refused_in_one_line() {
    for wrong in ["", "no key\n", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= and more\n"] {
        let output = braid("pubkey", wrong.as_bytes(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("braid: ") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_file_that_others_may_read_is_warned_about() {
    let path = std::env::temp_dir().join(format!("braid-keys-{}", std::process::id()));
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true)] {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).unwrap();
        // Whatever the umask is.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let output = braid("genkey", b"", file);
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("warning"), warned, "{mode:o}");
        assert!(fs::read_to_string(&path).unwrap().trim_end().parse::<Secret>().is_ok());
        fs::remove_file(&path).unwrap();
    }
}
