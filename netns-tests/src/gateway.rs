//! A Braid gateway under test: the shipped `braid` command, run in a gateway's namespace.

use crate::guard::{TempDir, temp_dir};
use crate::process::check;
use crate::{Error, Netns, Process, Ran, Result, retry_until};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// `braid run` in the background. Dropped, it is killed.
#[derive(Debug)]
pub struct Gateway {
    netns: Netns,
    process: Process,
    directory: TempDir,
}

impl Gateway {
    /// Starts `braid run` with this configuration, fixed keys allowed, and a run directory of
    /// its own. Returns as soon as it is started: see [`Gateway::wait_up`].
    ///
    /// # Errors
    /// When the binary is not built or cannot be started.
    pub fn start(netns: &Netns, configuration: &str) -> Result<Self> {
        Self::start_with(netns, configuration, &[])
    }

    /// As [`Gateway::start`], with more arguments to `braid run`.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn start_with(netns: &Netns, configuration: &str, more: &[&str]) -> Result<Self> {
        let binary = binary("braid")?;
        let directory = temp_dir("braid")?;
        let configured = directory.path().join("braid.toml");
        write_secret(&configured, configuration)?;
        let run_dir = directory.path().join("run");
        fs::create_dir(&run_dir).map_err(Error::io("cannot make a run directory"))?;
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(&configured);
        command.arg("--run-dir").arg(&run_dir).arg("--insecure-manual-keys").args(more);
        Ok(Self { netns: netns.clone(), process: netns.spawn_command(command)?, directory })
    }

    /// Writes a new configuration into the file it runs with; see `braid reload`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_configuration(&self, configuration: &str) -> Result<()> {
        write_secret(&self.configuration(), configuration)
    }

    /// Runs `braid <arguments> --run-dir …` against this gateway.
    ///
    /// # Errors
    /// When the binary cannot be started; its exit status is for the caller to judge.
    pub fn braid(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(binary("braid")?);
        command.args(arguments).arg("--run-dir").arg(self.run_dir());
        self.netns.output_of(command)
    }

    /// `braid status --json`, parsed.
    ///
    /// # Errors
    /// When the gateway does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        let ran = check("braid status --json", self.braid(&["status", "--json"])?)?;
        serde_json::from_str(&ran.stdout).map_err(|bad| Error::parse("braid status", bad))
    }

    /// Replaces a tunnel's keys now: those of its IKE SA, or of its child SA. Returns when the exchange
    /// is begun.
    ///
    /// # Errors
    /// When there is nothing to replace.
    pub fn rekey(&self, tunnel: &str, ike: bool) -> Result<()> {
        let mut arguments = vec!["rekey", tunnel];
        arguments.extend(ike.then_some("--ike"));
        check(&format!("braid {}", arguments.join(" ")), self.braid(&arguments)?).map(drop)
    }

    /// Packets dropped so far, by reason; reasons that never were are left out.
    ///
    /// # Errors
    /// As [`Gateway::status`].
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.status()?;
        let drops = status["drops"].as_object().ok_or_else(|| Error::parse("braid status", "no drops"))?;
        let counted = drops.iter().filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)));
        Ok(counted.filter(|(_, count)| *count > 0).collect())
    }

    /// Waits until every tunnel is up or standby.
    ///
    /// # Errors
    /// With what the gateway said, when it ended or the deadline passed.
    pub fn wait_up(&mut self, deadline: Duration) -> Result<()> {
        let mut ended = false;
        let up = retry_until("tunnels up", deadline, || {
            if self.process.ended().is_some() {
                ended = true;
                return Ok(());
            }
            let status = self.status().map_err(|error| error.to_string())?;
            let tunnels = status["tunnels"].as_array().ok_or("no tunnels in the status")?;
            let waiting =
                tunnels.iter().find(|tunnel| !matches!(tunnel["state"].as_str(), Some("up" | "standby")));
            match waiting {
                None => Ok(()),
                Some(tunnel) => Err(tunnel.to_string()),
            }
        });
        if ended {
            return Err(self.process.failure());
        }
        up.map_err(|timeout| Error::Usage(format!("{timeout}; {}", self.process.failure())))
    }

    /// Where its configuration is.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("braid.toml")
    }

    /// The process, to look at or to signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }
}

/// Where a binary of this workspace was built: `BRAID_BIN_DIR`, or beside the running test.
///
/// # Errors
/// When it is not there: build it first.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("BRAID_BIN_DIR") {
        let path = Path::new(&directory).join(name);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::Usage(format!("no {} (BRAID_BIN_DIR)", path.display())))
        };
    }
    let own = std::env::current_exe().map_err(Error::io("cannot tell where this runs"))?;
    // A test lives in deps/, one directory below the binaries.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::Usage(format!("{name} is not built beside {}: cargo build --release", own.display()))
        })
}

/// Braid refuses a file with secrets that others can read.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::io(format!("cannot protect {}", path.display())))
}
