//! The log: lines on stderr, as many as `BRAID_LOG` asks for (`error`, `warn`, `info`, `debug`, or
//! the directives of tracing-subscriber).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Begins to log. Once a process is enough; later calls change nothing.
pub fn init() {
    let filter = EnvFilter::try_from_env("BRAID_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    // A second subscriber is refused, and the first stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .try_init();
}
