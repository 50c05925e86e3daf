//! Network namespaces without names, and the netlink requests that furnish them.
//!
//! Each namespace is held by a thread that lives in it and by one descriptor of this process, so
//! that it is gone with the process, however that ends. Work is handed to the thread; a socket it
//! opens stays in its namespace, whoever uses it then.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth};
use netlink_packet_route::route::RouteType;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::{Builder, Runtime};

use super::error::Error;

/// A network namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    name: &'static str,
    handle: File,
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce(&Inside) + Send>;

impl Namespace {
    /// Makes one, with its loopback up and duplicate address detection off (an address is usable
    /// at once). `name` is for messages only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn new(name: &'static str) -> Result<Self, Error> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (made, outcome) = mpsc::channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || match Inside::new(name) {
                Ok((handle, inside)) => {
                    let _ = made.send(Ok(handle));
                    while let Ok(job) = todo.recv() {
                        job(&inside);
                    }
                }
                Err(error) => drop(made.send(Err(error))),
            })
            .map_err(Error::system("cannot start a thread"))?;
        let handle = outcome.recv().map_err(|_| Error::NamespaceGone(name))??;
        Ok(Self { name, handle, jobs })
    }

    /// Runs `work` inside and waits for it.
    ///
    /// # Errors
    /// Those of `work`, and [`Error::NamespaceGone`].
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inside) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = mpsc::channel();
        let job = Box::new(move |inside: &Inside| drop(done.send(work(inside))));
        self.jobs.send(job).map_err(|_| Error::NamespaceGone(self.name))?;
        result.recv().map_err(|_| Error::NamespaceGone(self.name))?
    }

    /// For moving a device here. Valid as long as this namespace.
    pub(super) fn descriptor(&self) -> RawFd {
        self.handle.as_raw_fd()
    }
}

/// What a namespace's own thread can do.
#[derive(Debug)]
pub(super) struct Inside {
    name: &'static str,
    runtime: Runtime,
    netlink: Handle,
}

impl Inside {
    fn new(name: &'static str) -> Result<(File, Self), Error> {
        let doing = |what: &str| format!("{what} for {name}");
        unshare(CloneFlags::CLONE_NEWNET).map_err(Error::system(doing("cannot make a namespace")))?;
        let handle =
            File::open("/proc/thread-self/ns/net").map_err(Error::system(doing("cannot open it")))?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::system(doing("cannot start a runtime")))?;
        let (connection, netlink, _) = {
            let _context = runtime.enter();
            rtnetlink::new_connection().map_err(Error::system(doing("cannot open netlink")))?
        };
        runtime.spawn(connection);
        let inside = Self { name, runtime, netlink };
        inside.up("lo")?;
        for scope in ["all", "default"] {
            inside.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            inside.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        Ok((handle, inside))
    }

    /// Writes a sysctl, named by its path below `/proc/sys`.
    pub(super) fn sysctl(&self, path: &str, value: &str) -> Result<(), Error> {
        let what = format!("cannot set {path} to {value} in {}", self.name);
        fs::write(Path::new("/proc/sys").join(path), value).map_err(Error::system(what))
    }

    /// Forwards packets of both families from now on.
    pub(super) fn forward(&self) -> Result<(), Error> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Makes a veth pair, one end here and the other in the namespace behind `there`.
    pub(super) fn veth(&self, device: &str, peer: &str, there: RawFd) -> Result<(), Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(there).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(device)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.ask(&format!("make the device {device}"), self.netlink.link().add(pair).execute())
    }

    /// Sets a device up.
    pub(super) fn up(&self, device: &str) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(self.index(device)?).up().build();
        self.ask(&format!("set {device} up"), self.netlink.link().set(link).execute())
    }

    /// Adds an address with its prefix length.
    pub(super) fn address(&self, device: &str, address: IpNet) -> Result<(), Error> {
        let index = self.index(device)?;
        let mut adding = self.netlink.address().add(index, address.addr(), address.prefix_len());
        // Usable at once: even with duplicate address detection off it would be tentative for a moment.
        adding.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        self.ask(&format!("give {device} the address {address}"), adding.execute())
    }

    /// Adds a route, with the source address to prefer if it matters.
    pub(super) fn route(&self, to: IpNet, via: IpAddr, source: Option<IpAddr>) -> Result<(), Error> {
        let what = format!("route {to} via {via}");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .and_then(|builder| builder.gateway(via))
            .and_then(|builder| match source {
                Some(source) => builder.pref_source(source),
                None => Ok(builder),
            })
            .map_err(|_| Error::System { what: what.clone(), source: io::ErrorKind::InvalidInput.into() })?
            .build();
        self.ask(&what, self.netlink.route().add(message).execute())
    }

    /// From now on packets to this address vanish here, without any message to their sender.
    pub(super) fn swallow(&self, address: Ipv4Addr) -> Result<(), Error> {
        let adding = self.netlink.route().add(black_hole(address)).execute();
        self.ask(&format!("swallow what goes to {address}"), adding)
    }

    /// Undoes [`Inside::swallow`].
    pub(super) fn stop_swallowing(&self, address: Ipv4Addr) -> Result<(), Error> {
        let removing = self.netlink.route().del(black_hole(address)).execute();
        self.ask(&format!("let pass what goes to {address}"), removing)
    }

    /// A device's number.
    pub(super) fn index(&self, device: &str) -> Result<u32, Error> {
        let what = format!("no device {device} in {}", self.name);
        nix::net::if_::if_nametoindex(device).map_err(Error::system(what))
    }

    /// Bytes received so far by each device named, 0 for one that does not exist.
    pub(super) fn received<const N: usize>(&self, devices: [&str; N]) -> Result<[u64; N], Error> {
        // Not /proc/net: that shows the namespace of the process's first thread.
        let table = fs::read_to_string("/proc/thread-self/net/dev")
            .map_err(Error::system("cannot read the device counters"))?;
        Ok(devices.map(|device| received(&table, device).unwrap_or(0)))
    }

    fn ask(
        &self,
        what: &str,
        request: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), Error> {
        let what = || format!("cannot {what} in {}", self.name);
        self.runtime.block_on(request).map_err(|source| Error::Netlink { what: what(), source })
    }
}

fn black_hole(address: Ipv4Addr) -> netlink_packet_route::route::RouteMessage {
    let host = Ipv4Net::from(address);
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(host.addr(), host.prefix_len())
        .kind(RouteType::BlackHole)
        .build()
}

fn received(table: &str, device: &str) -> Option<u64> {
    let counters =
        table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    counters.split_whitespace().next()?.parse().ok()
}

/// Makes this process one that may make namespaces: root stays what it is, anybody else becomes
/// root of a user namespace of their own. Mounts made from now on are this process's own.
///
/// # Errors
/// [`Error::Privileges`] when neither is possible. Must be called before any thread is started.
pub(super) fn gain_privileges() -> Result<(), Error> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if user.is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::Privileges(errno.into()))?;
    // The kernel takes a group map from an unprivileged process only once setgroups is given up.
    let maps = [
        ("setgroups", "deny".into()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ];
    for (file, text) in maps {
        fs::write(Path::new("/proc/self").join(file), text).map_err(Error::Privileges)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_counters_are_found_by_whole_name() {
        let table = "Inter-|   Receive\n face |bytes    packets\n    lo:       0       0    0\n   a1:  123456    789    0\n  a10: 5 6\n";
        assert_eq!(received(table, "a1"), Some(123_456));
        assert_eq!(received(table, "a10"), Some(5));
        assert_eq!(received(table, "a"), None);
        assert_eq!(received(table, "b1"), None);
    }
}
