//! The administration socket: one JSON document a line, questions in, answers out.
//!
//! It lives in the run directory, which is 0700, and answers only our own user and root.

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Name of the socket in the run directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Longest question, in bytes.
const MAX_REQUEST_LEN: u64 = 64 * 1024;
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 32;
/// An idle connection is closed.
const IDLE: Duration = Duration::from_secs(60);
/// A reload of a large configuration takes a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// A question or an order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// What `braid status --json` prints.
    Status,
    /// Which way a flow goes.
    Path {
        /// Destination.
        dst: std::net::IpAddr,
        /// Source; default: the gateway's own.
        src: Option<std::net::IpAddr>,
        /// IP protocol number.
        protocol: u8,
        /// Source port, or ICMP identifier.
        sport: u16,
        /// Destination port.
        dport: u16,
    },
    /// Routes, and why they are what they are.
    Routes {
        /// Only these.
        asked: Option<crate::status::Asked>,
        /// With all paths by BGP.
        why: bool,
    },
    /// Why tunnels do not come up.
    Doctor {
        /// Only this one.
        tunnel: Option<String>,
    },
    /// Read the configuration again.
    Reload,
    /// Take a tunnel out of service.
    Drain {
        /// Its name.
        tunnel: String,
    },
    /// Take it back.
    Undrain {
        /// Its name.
        tunnel: String,
    },
    /// Give a tunnel new keys.
    Rekey {
        /// Its name.
        tunnel: String,
        /// Those of its IKE SA, not of its child SA.
        #[serde(default)]
        ike: bool,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// What was asked for.
    Ok(Value),
    /// Why not, in lines.
    Failed {
        /// For stderr.
        lines: Vec<String>,
        /// Exit status of the command: 1, or 2 for a wrong configuration.
        status: u8,
    },
}

impl Response {
    /// It failed for this reason.
    pub fn failed(line: impl Into<String>) -> Self {
        Response::Failed { lines: vec![line.into()], status: 1 }
    }
}

/// A question with the way for its answer.
pub type Asked = (Request, oneshot::Sender<Response>);

/// Serves the socket; questions arrive at `asked`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(run_dir: &Path, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let path = run_dir.join(ADMIN_SOCKET);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) if is_allowed(&stream) => {
                    let asked = asked.clone();
                    tokio::spawn(async move {
                        // Whoever hangs up early needs no answer.
                        let _ = converse(stream, asked).await;
                        drop(place);
                    });
                }
                Ok(_) => {}
                // Out of descriptors: those in use may be free again soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

fn is_allowed(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

async fn converse(stream: UnixStream, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reading).take(MAX_REQUEST_LEN);
        let read = timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) if line.ends_with(b"\n") => ask(request, &asked).await,
            Ok(_) | Err(_) => Response::failed("braid: the question is not understood"),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        timeout(PATIENCE, writing.write_all(&bytes)).await??;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

async fn ask(request: Request, asked: &mpsc::Sender<Asked>) -> Response {
    let (answer, answered) = oneshot::channel();
    if asked.send((request, answer)).await.is_err() {
        return Response::failed("braid: control is stopping");
    }
    match timeout(PATIENCE, answered).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Response::failed("braid: control gave no answer"),
        Err(_) => Response::failed("braid: no answer in time"),
    }
}

/// Whether somebody listens, or listens and does not let us ask.
pub fn is_there(run_dir: &Path) -> bool {
    let connected = std::os::unix::net::UnixStream::connect(run_dir.join(ADMIN_SOCKET));
    !connected.is_err_and(|error| {
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    })
}

/// Asks the gateway of a run directory; blocking.
///
/// # Errors
/// One line for stderr.
pub fn request(run_dir: &Path, request: &Request) -> Result<Response, String> {
    use std::io::{BufRead, Write};
    let path = run_dir.join(ADMIN_SOCKET);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "braid: no gateway runs in {}: start one with `braid run --config FILE`, or name its --run-dir",
            run_dir.display()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("braid: {}: permission denied: ask as the user that runs the gateway", path.display())
        }
        _ => format!("braid: {}: {error}", path.display()),
    };
    let mut stream = std::os::unix::net::UnixStream::connect(&path).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    io::BufReader::new(stream).read_until(b'\n', &mut answer).map_err(failed)?;
    serde_json::from_slice(&answer)
        .map_err(|_| format!("braid: {}: the gateway hung up without an answer", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for request in [
            Request::Status,
            Request::Reload,
            Request::Routes {
                asked: Some(crate::status::Asked::Prefix("10.2.0.0/16".parse().unwrap())),
                why: true,
            },
            Request::Drain { tunnel: "a".to_owned() },
            Request::Rekey { tunnel: "a".to_owned(), ike: true },
            Request::Path { dst: "10.2.0.5".parse().unwrap(), src: None, protocol: 6, sport: 1, dport: 80 },
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
        assert!(serde_json::from_str::<Request>("{\"command\":\"statsu\"}").is_err());
        assert!(serde_json::from_str::<Request>("{\"command\":\"drain\"}").is_err());
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), "{\"command\":\"status\"}");
    }

    /// Talks to [`converse`], and answers every question that it understands.
    fn talk(work: impl AsyncFnOnce(BufReader<UnixStream>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (asked, mut questions) = mpsc::channel::<Asked>(1);
            let answering = tokio::spawn(async move {
                while let Some((request, answer)) = questions.recv().await {
                    let _ = answer.send(Response::Ok(serde_json::to_value(&request).unwrap()));
                }
            });
            let conversing = tokio::spawn(converse(theirs, asked));
            timeout(IDLE / 2, work(BufReader::new(ours))).await.unwrap();
            // Whoever hangs up before an answer ends it with an error.
            let _ = conversing.await.unwrap();
            answering.await.unwrap();
        });
    }

    /// The next answer; `None` at the end.
    async fn answer(stream: &mut BufReader<UnixStream>) -> Option<Response> {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        Some(serde_json::from_str(&line).unwrap())
    }

    const STATUS: &[u8] = b"{\"command\":\"status\"}\n";

    #[test]
    fn what_is_no_question_is_said_to_be_none_and_the_next_one_is_answered() {
        talk(async |mut stream| {
            for line in [&b"\n"[..], b"status\n", b"{\"command\":\"statsu\"}\n", b"\xff\0\xfe\n", b"[[[[{\n"]
            {
                stream.write_all(line).await.unwrap();
                let refused = Response::failed("braid: the question is not understood");
                assert_eq!(answer(&mut stream).await, Some(refused), "{line:?}");
            }
            stream.write_all(STATUS).await.unwrap();
            let right = Response::Ok(serde_json::to_value(Request::Status).unwrap());
            assert_eq!(answer(&mut stream).await, Some(right));
        });
    }

    #[test]
    fn a_question_without_an_end_is_not_read_to_its_end() {
        for len in [MAX_REQUEST_LEN as usize, 4 * MAX_REQUEST_LEN as usize] {
            talk(async |mut stream| {
                // It begins as one that would be understood.
                let long = [&b"{\"command\":\"drain\",\"tunnel\":\""[..], &vec![b'x'; len]].concat();
                // It may be closed while we write.
                let _ = stream.write_all(&long).await;
                let _ = stream.write_all(STATUS).await;
                let first = answer(&mut stream).await;
                let refused = Response::failed("braid: the question is not understood");
                assert!(first.is_none_or(|answer| answer == refused));
                assert_eq!(answer(&mut stream).await, None, "nothing after it is a question");
            });
        }
    }

    proptest::proptest! {
        /// Bytes, and what looks like a document of ours.
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, text in "[\\[{\"a-z:,0-9. \\\\}\\]-]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes(), format!("{{\"command\":\"path\",{text}}}").as_bytes()] {
                let _ = serde_json::from_slice::<Request>(bytes);
                let _ = serde_json::from_slice::<Response>(bytes);
            }
        }
    }
}
