//! `[metrics]`: what `braid status --json` says, for Prometheus: [`exposition`] is its text, [`http`] carries it.
//!
//! Everything here runs on a thread of its own, at a lower priority, so that a flood of connections costs
//! control's loop nothing. The loop only hands out a [`Status`]; it is asked for one at a time, and for a tenth of
//! the time at most.
//!
//! An address that cannot be listened on, as one that is in use, or one that a tunnel is to bring, stops no
//! tunnel: it is said, and tried again.

mod exposition;
mod http;

use std::{
    future::pending,
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use crate::status::{self, Status};
use http::Connections;

/// Of the thread; the loop has 0.
const NICENESS: i32 = 5;
/// Between two tries to listen where that was not possible.
const LISTEN_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 256;
/// Scrapes that wait for the text; there are not more connections.
const QUEUE: usize = http::MAX_CONNECTIONS;
/// A loop or a core that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A text is given again for so many times as long as it took to make, so that no flood of scrapes takes more
/// of the loop's time than the reciprocal.
const REST: u32 = 10;

/// The way for a status.
type Asked = oneshot::Sender<Status>;
/// The way for a text; nothing where control gives no answer.
type Scrape = oneshot::Sender<Option<Bytes>>;

/// The endpoint, as control's loop has it.
pub struct Metrics {
    listen: Option<SocketAddr>,
    /// Started when there is first something to listen on.
    thread: Option<Thread>,
}

/// What goes to and comes from the thread.
struct Thread {
    listen: watch::Sender<Option<SocketAddr>>,
    questions: mpsc::Receiver<Asked>,
    problem: watch::Receiver<Option<String>>,
}

impl Metrics {
    /// Listens nowhere.
    pub fn new() -> Self {
        Metrics { listen: None, thread: None }
    }

    /// Listens there, and nowhere else.
    pub fn listen(&mut self, listen: Option<SocketAddr>) {
        if self.listen == listen {
            return;
        }
        self.listen = listen;
        if let Some(thread) = &self.thread {
            thread.listen.send_replace(listen);
            return;
        }
        match Thread::start(listen) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!("metrics: cannot start a thread: {error}"),
        }
    }

    /// Where it is to listen, and whether it does.
    pub fn view(&self) -> Option<status::Metrics> {
        let problem = match &self.thread {
            Some(thread) => thread.problem.borrow().clone(),
            None => Some("cannot start a thread".to_owned()),
        };
        Some(status::Metrics { listen: self.listen?.to_string(), problem })
    }

    /// The next question for a status. Safe to cancel.
    pub async fn next(&mut self) -> oneshot::Sender<Status> {
        let asked = match &mut self.thread {
            Some(thread) => thread.questions.recv().await,
            None => None,
        };
        match asked {
            Some(asked) => asked,
            None => pending().await,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Thread {
    fn start(listen: Option<SocketAddr>) -> io::Result<Self> {
        let (listen, wanted) = watch::channel(listen);
        let (asked, questions) = mpsc::channel(1);
        let (problems, problem) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            // Without it there is less order, and no harm.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            runtime.block_on(serve(wanted, asked, problems));
        })?;
        Ok(Thread { listen, questions, problem })
    }
}

/// Until control ends.
async fn serve(
    mut wanted: watch::Receiver<Option<SocketAddr>>,
    asked: mpsc::Sender<Asked>,
    problem: watch::Sender<Option<String>>,
) {
    let (scrapes, waiting) = mpsc::channel(QUEUE);
    tokio::spawn(answer(waiting, asked));
    let mut connections = Connections::new(scrapes);
    loop {
        let listen = *wanted.borrow_and_update();
        let listener = listen.map(listen_on).transpose();
        let now = listener.as_ref().err().map(ToString::to_string);
        let is_news = problem.send_replace(now.clone()) != now;
        let listening = async {
            match (listen, listener) {
                (Some(listen), Ok(Some(listener))) => {
                    tracing::info!("metrics at http://{listen}{}", http::PATH);
                    connections.accept(&listener).await;
                }
                (Some(listen), Err(error)) => {
                    if is_news {
                        tracing::warn!("cannot listen for metrics on {listen}: {error}");
                    }
                    sleep(LISTEN_INTERVAL).await;
                }
                (None, _) | (_, Ok(None)) => pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = listening => {}
        }
    }
}

fn listen_on(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier life may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// Gives every scrape the text, a fresh one where the last is no longer.
async fn answer(mut waiting: mpsc::Receiver<Scrape>, asked: mpsc::Sender<Asked>) {
    let mut last: Option<(Bytes, Instant)> = None;
    while let Some(scrape) = waiting.recv().await {
        if scrape.is_closed() {
            continue;
        }
        if last.as_ref().is_none_or(|(_, until)| *until <= Instant::now()) {
            let begun = Instant::now();
            let text = text(&asked).await;
            last = text.map(|text| (text.into(), Instant::now() + REST * begun.elapsed()));
        }
        // Whoever hung up does not want to know.
        let _ = scrape.send(last.as_ref().map(|(text, _)| text.clone()));
    }
}

/// A fresh text.
async fn text(asked: &mpsc::Sender<Asked>) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    let status = timeout(PATIENCE, async {
        asked.send(answer).await.ok()?;
        answered.await.ok()
    });
    status.await.ok().flatten().map(exposition::text)
}

#[cfg(test)]
mod tests;
