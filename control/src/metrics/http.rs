//! HTTP/1.1 for one path. Whoever may connect is not trusted: connections are few, each lives for seconds, asks
//! once and in few bytes, and a further one takes the place of the oldest that has not asked yet.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Scrape, exposition};

/// Where metrics are.
pub(super) const PATH: &str = "/metrics";
/// At a time.
pub(super) const MAX_CONNECTIONS: usize = 32;
/// From connecting to having taken the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, in bytes: as little as the library allows.
const MAX_REQUEST_LEN: usize = 8192;
/// Between two connections: they are accepted no faster than they could do harm.
const PACE: Duration = Duration::from_millis(1);
/// Out of descriptors: those in use may be free again soon.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);

/// Those that are open, the oldest first.
pub(super) struct Connections {
    open: VecDeque<Connection>,
    scrapes: mpsc::Sender<Scrape>,
}

struct Connection {
    task: AbortHandle,
    /// Its request is here, whole.
    asked: Arc<AtomicBool>,
}

impl Connections {
    /// Texts are asked for at `scrapes`.
    pub(super) fn new(scrapes: mpsc::Sender<Scrape>) -> Self {
        Connections { open: VecDeque::new(), scrapes }
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(&mut self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.start(stream);
                    sleep(PACE).await;
                }
                Err(_) => sleep(ACCEPT_INTERVAL).await,
            }
        }
    }

    fn start(&mut self, stream: TcpStream) {
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS {
            let idle = self.open.iter().position(|connection| !connection.asked.load(Ordering::Relaxed));
            if let Some(oldest) = self.open.remove(idle.unwrap_or(0)) {
                oldest.task.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let conversation = converse(stream, Arc::clone(&asked), self.scrapes.clone());
        let task = tokio::spawn(conversation).abort_handle();
        self.open.push_back(Connection { task, asked });
    }
}

/// A text that all who take it at a time have in common: there may be megabytes of it, and slow readers.
struct Text(Option<Bytes>);

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

async fn converse(stream: TcpStream, asked: Arc<AtomicBool>, scrapes: mpsc::Sender<Scrape>) {
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(respond(&request, &scrapes).await) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).max_buf_size(MAX_REQUEST_LEN).header_read_timeout(None);
    // Whoever hangs up early or speaks something else needs no more than the library has said.
    let _ = timeout(PATIENCE, server.serve_connection(TokioIo::new(stream), service)).await;
}

async fn respond(request: &Request<Incoming>, scrapes: &mpsc::Sender<Scrape>) -> Response<Text> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let of = |status, header: (HeaderName, &'static str), body: Bytes| {
        let mut response = Response::new(Text(Some(body)));
        *response.status_mut() = status;
        for (name, value) in [(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, PLAIN), header] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    };
    let plain = (CONTENT_TYPE, PLAIN);
    if request.uri().path() != PATH {
        return of(StatusCode::NOT_FOUND, plain, format!("nothing is here: metrics are at {PATH}\n").into());
    }
    if request.method() != Method::GET {
        let line = format!("only GET is answered at {PATH}\n");
        return of(StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET"), line.into());
    }
    match scrape(scrapes).await {
        Some(text) => of(StatusCode::OK, (CONTENT_TYPE, exposition::CONTENT_TYPE), text),
        None => of(StatusCode::SERVICE_UNAVAILABLE, plain, "the gateway gives no answer\n".into()),
    }
}

async fn scrape(scrapes: &mpsc::Sender<Scrape>) -> Option<Bytes> {
    let (answer, answered) = oneshot::channel();
    scrapes.send(answer).await.ok()?;
    answered.await.ok().flatten()
}
