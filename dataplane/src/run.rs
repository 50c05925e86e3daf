//! The core as a process: connects to the launcher, starts its threads, drops its privileges and
//! serves control until the launcher is gone.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
};

use braid_api::{
    BootId, decode,
    launcher::{FromClient, LAUNCHER_SOCKET, MAX_MESSAGE_LEN, ToCoreProcess},
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::{
    drop_reason::DropReason,
    esp::Engine,
    forward::Drops,
    handshakes::{self, Handshakes},
    io::{priority, udp},
    liveness::{Input, Liveness, link_thread::LinkThread, unreachable::Unreachable, uplinks::Uplinks},
    punt::{Punt, PuntLine},
    sandbox,
    service::{Service, Threads},
    tables::Writer,
    worker::{Command, Drained, Notice, Notices, Setup, Worker},
};

/// Wrong usage or surroundings.
const EXIT_USAGE: u8 = 2;
/// Where the threads stay that say that this end lives and hear that the other does. What keeps a processor for long
/// goes elsewhere: the kernel brings no thread to another one only because it has to wait.
pub const LIVENESS_CPU: usize = 0;
/// Notices that wait for the service thread, and inputs for the liveness thread.
const QUEUE: usize = 4096;

const HELP: &str = "\
Braid's forwarding core. It is started by `braid run`, or as a service unit beside the launcher.

Usage: braid-dataplane [--run-dir DIR]

  --run-dir DIR  where the launcher's socket is (default /run/braid)
";

/// Runs the core with the arguments that follow the program's name, until the launcher is gone.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let run_dir = match parse(arguments) {
        Ok(Some(run_dir)) => run_dir,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("braid-dataplane: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&run_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("braid-dataplane: {}: {error}", run_dir.display());
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<PathBuf>, String> {
    let mut run_dir = PathBuf::from("/run/braid");
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--run-dir") => {
                run_dir = arguments.next().ok_or("--run-dir wants a directory")?.into();
            }
            Some("--help" | "-h") => return Ok(None),
            _ => return Err(format!("unknown argument {}; see --help", argument.display())),
        }
    }
    Ok(Some(run_dir))
}

fn run(run_dir: &Path) -> io::Result<()> {
    // Started as /proc/self/exe, it would be called `exe`.
    rustix::thread::set_name(c"braid-dataplane")?;
    // The core is of no use without the launcher, whose descriptors it works with.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let (boot, iv_secret) = random.split_at(16);
    let boot = BootId(boot.try_into().map_err(io::Error::other)?);
    let iv_secret: &[u8; 32] = iv_secret.try_into().map_err(io::Error::other)?;

    let launcher = Launcher::connect(run_dir)?;
    let Some((ToCoreProcess::Start { workers, offload }, listeners)) = launcher.receive()? else {
        return Err(io::Error::other("the launcher's first message is not a start"));
    };
    let mut listeners = listeners.into_iter();
    let Some(tables_listener) = listeners.next() else {
        return Err(io::Error::other("the launcher's start has no sockets"));
    };
    let Some(punt_listener) = listeners.next() else {
        return Err(io::Error::other("the launcher's start has no punt socket"));
    };
    let writer = Writer::new(workers as usize, boot, Engine::detect(), iv_secret);
    let line = PuntLine::default();
    let icmp = listeners.collect();
    let (threads, notices, wake) = start_threads(&writer, workers as usize, offload, &line, icmp)?;
    let punt = Punt::new(punt_listener, line, Arc::clone(&threads.drops));
    sandbox::enter()?;
    let service = Service::new(writer, threads, tables_listener, punt, launcher, notices, wake, offload);
    service.run()
}

type Started = (Threads, mpsc::Receiver<Notice>, Arc<OwnedFd>);

fn start_threads(
    writer: &Writer,
    workers: usize,
    offload: bool,
    line: &PuntLine,
    icmp: Vec<OwnedFd>,
) -> io::Result<Started> {
    let max_segments = if offload { udp::probe_max_segments() } else { 1 };
    let drops = Arc::new(Drops::new(workers));
    let wake = Arc::new(eventfd()?);
    let (queue, notices) = mpsc::sync_channel(QUEUE);
    let notices_in = Notices::new(queue, Arc::clone(&wake));
    let (inputs, inputs_out) = mpsc::sync_channel::<Input>(QUEUE);
    let drained: Vec<Drained> = (0..workers).map(|_| Drained::default()).collect();
    let liveness = Liveness::new(
        writer.reader(),
        writer.states().clone(),
        inputs_out,
        notices_in.clone(),
        Arc::clone(&drops),
        drained.clone(),
    );
    thread::Builder::new().name("liveness".into()).spawn(move || {
        // Without the right to it, the ordinary priority has to do.
        let _ = priority::realtime();
        let _ = priority::pin(LIVENESS_CPU);
        let _ = sandbox::drop_capabilities();
        liveness.run();
    })?;
    if !icmp.is_empty() {
        let unreachable = Unreachable::new(icmp, writer.reader(), inputs.clone(), notices_in.clone());
        thread::Builder::new().name("unreachable".into()).spawn(move || {
            let _ = sandbox::drop_capabilities();
            unreachable.run();
        })?;
    }
    let uplinks = Uplinks::new(inputs.clone())?;
    thread::Builder::new().name("uplinks".into()).spawn(move || {
        let _ = priority::realtime();
        let _ = sandbox::drop_capabilities();
        uplinks.run();
    })?;
    let (link_thread, links) = LinkThread::new(eventfd()?, notices_in.clone(), Arc::clone(&drops));
    thread::Builder::new().name("bfd-links".into()).spawn(move || {
        let _ = priority::realtime();
        let _ = priority::pin(LIVENESS_CPU);
        let _ = sandbox::drop_capabilities();
        link_thread.run();
    })?;
    let (handshakes_in, handshakes_out) = handshakes::Line::new();
    let handshakes = Handshakes::new(
        writer.reader(),
        &handshakes_in,
        handshakes_out,
        notices_in.clone(),
        Arc::clone(&drops),
    );
    sandbox::drop_capabilities()?;
    thread::Builder::new().name("handshakes".into()).spawn(move || handshakes.run())?;
    let mut commands = Vec::new();
    for (number, drained) in drained.into_iter().enumerate() {
        let (command, commands_out) = mpsc::channel::<Command>();
        let worker_wake = eventfd()?;
        let setup = Setup {
            number,
            max_segments,
            offload,
            reader: writer.reader(),
            states: writer.states().clone(),
            drops: Arc::clone(&drops),
            commands: commands_out,
            wake: worker_wake.try_clone()?,
            notices: notices_in.clone(),
            probes: inputs.clone(),
            punt: line.clone(),
            handshakes: handshakes_in.clone(),
            drained,
        };
        commands.push((command, worker_wake));
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            if thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= 4) {
                // From four CPUs up; below, the kernel places threads better.
                let _ = priority::pin(number + 1);
            }
            Worker::new(setup).run();
        })?;
    }
    let names = DropReason::ALL;
    tracing::debug!(workers, max_segments, reasons = names.len(), "threads started");
    let threads = Threads { commands, inputs, links, handshakes: handshakes_in, drops, max_segments };
    Ok((threads, notices, wake))
}

fn eventfd() -> io::Result<OwnedFd> {
    use rustix::event::EventfdFlags;
    Ok(rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

/// The connection to the launcher.
pub(crate) struct Launcher {
    socket: OwnedFd,
}

impl Launcher {
    fn connect(run_dir: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(run_dir.join(LAUNCHER_SOCKET))?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &address)?;
        let launcher = Launcher { socket };
        let frame = braid_api::encode(&FromClient::Core).map_err(|_| io::ErrorKind::InvalidData)?;
        rustix::net::send(&launcher.socket, &frame[braid_api::FRAME_HEADER_LEN..], SendFlags::empty())?;
        Ok(launcher)
    }

    /// The next message with its descriptors; `None` when the launcher is gone. Blocks.
    pub(crate) fn receive(&self) -> io::Result<Option<(ToCoreProcess, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE_LEN];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let message = decode(&bytes[..received.bytes]).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Launcher {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
