//! WireGuard against Debian's wireguard-tools.

use braid_netns::gateway::binary;
use braid_netns::runner::{Outcome, Scenario};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) const ALL: &[Scenario] = &[("wireguard::keys_are_those_of_wg", keys_are_those_of_wg)];

fn keys_are_those_of_wg() -> Outcome {
    let (braid, wg) = (binary("braid")?, Path::new("wg").to_owned());
    for maker in [&braid, &wg] {
        for _ in 0..8 {
            let private = ask(maker, "genkey", "")?;
            let public = ask(&wg, "pubkey", &private)?;
            assert_eq!(ask(&braid, "pubkey", &private)?, public);
            assert_eq!(ask(maker, "genpsk", "")?.len(), public.len());
        }
    }
    Ok(())
}

/// What a program prints for this input.
fn ask(program: &Path, command: &str, input: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut asked = Command::new(program);
    asked.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = asked.spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "{} {command}: {}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}
