//! `braid check` as a program: what it says of a file, and its exit status.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

const RIGHT: &str = "[gateway]\nname = \"here\"\n[[tunnel]]\nname = \"a\"\nlocal = \"192.0.2.1\"\n\
                     remote = \"203.0.113.1\"\ninside = \"169.254.10.2/30\"\n[tunnel.ike]\npsk = \"not to be shown\"\n\
                     [[route]]\nprefix = \"10.2.0.0/16\"\nvia = [\"a\"]\n";

fn check(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_braid")).args(["check", "--config"]).arg(file).output().unwrap()
}

#[test]
fn a_file_is_right_or_every_line_that_is_not_is_named() {
    let directory = std::env::temp_dir().join(format!("braid-check-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("braid.toml");
    let shown = file.display();
    let write = |text: &str, mode| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    };
    write(RIGHT, 0o600);
    let output = check(&file);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("{shown}: right: gateway here, 1 tunnel, 1 route, device braid0\n"));
    let named = format!("{shown}:2: gateway.nmae: unknown key; did you mean `name`?\n");
    let routed = format!("{shown}:12: route.via");
    let cases = [
        (RIGHT.replace("name = \"here\"", "nmae = \"here\""), 0o600, vec![named.clone()]),
        (
            RIGHT.replace("name = \"here\"", "nmae = \"here\"").replace("[\"a\"]", "[\"b\"]"),
            0o600,
            vec![named, routed],
        ),
        (RIGHT.replace("\"here\"", "here"), 0o600, vec![format!("{shown}:2: ")]),
        (RIGHT.to_owned(), 0o644, vec!["chmod 600".to_owned()]),
    ];
    for (text, mode, lines) in cases {
        write(&text, mode);
        let output = check(&file);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), lines.len(), "{said}");
        assert!(lines.iter().all(|line| said.contains(line)) && !said.contains("not to be shown"), "{said}");
    }
    fs::remove_dir_all(directory).unwrap();
    let output = check(&file);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
}
