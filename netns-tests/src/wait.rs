//! Waiting for a state with a deadline, instead of sleeping and hoping.

use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Between two looks. Short beside every state waited for, long beside one look.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `look` until it returns `Some`, at most for `deadline`.
///
/// # Errors
/// [`Error::Timeout`] naming `what`.
pub fn poll_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    retry_until(what, deadline, || look().ok_or_else(String::new))
}

/// Calls `attempt` until it succeeds, at most for `deadline`; it is always called at least once,
/// and once more after the deadline, so that a slow machine does not turn a state that holds into
/// a failure.
///
/// # Errors
/// [`Error::Timeout`] naming `what` and the last failure.
pub fn retry_until<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let late = Instant::now() >= end;
        match attempt() {
            Ok(found) => return Ok(found),
            Err(last) if late => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    after: deadline,
                    last: last.to_string(),
                });
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_was_found() {
        let mut looks = 0;
        let found = poll_until("third look", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_timeout_names_the_condition_and_the_last_state() {
        let failed = retry_until("the moon", Duration::ZERO, || Err::<(), _>("still waxing"));
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("the moon") && text.contains("still waxing"), "{text}");
    }
}
