//! One bridge takes another's place on the same data folder, and no visitor notices.
//!
//! ```text
//! old                                                   new  (ringspan bridge --takeover)
//!  │ ◄──────────── admin socket: "takeover" ────────────────│
//!  │ no more agents; store, admin socket, http closed       │
//!  │ ───── all listening sockets, who is connected ────────►│ opens the store, accepts agents, holds its visitors
//!  │ ◄────────────────────── ready ─────────────────────────│
//!  │ tells its agents to come over; goes on with visitors   │ ◄── agents, with what they know of their backends
//!  │ ◄────────────────────── settled ───────────────────────│
//!  │ no more visitors; carries those it has to their end    │
//!  │ ───────────────────── end of file ────────────────────►│ accepts visitors
//! ```
//! Promises: one of the two accepts visitors and has routes for them, or they wait, for milliseconds, in the kernel's
//! queue of a socket that both have; never do both accept, since the kernel wakes only one of them for a connection. If the new one dies on the way, the old one starts over by itself; if the old one dies, the
//! new one has the sockets already, or starts as if there had been nobody.

use super::BridgeServer;
use super::leases::Leased;
use crate::inherit::AtPath;
use crate::keyring::{Error, Keyring};
use crate::{Failure, admin};
use ringspan_engine::kernel::handover::{FDS_MAX, Waiting, recv_fds, send_fds, waiting_sockets};
use ringspan_tunnel::identity::AgentId;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A step of the other side takes at most this long: opening a large registry is the longest of them.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Agents have this long to come over before visitors are accepted all the same.
pub(super) const AGENTS_MAX: Duration = Duration::from_secs(10);
/// A process that is killed has closed everything within this time, on a machine that is not itself dying.
const DEATH_MAX: Duration = Duration::from_secs(10);
/// How often that is looked at.
const DEATH_LOOK: Duration = Duration::from_millis(10);
/// Longest list of sockets and agents: ten thousand of them fit.
const LETTER_BYTES_MAX: usize = 1 << 20;

/// What goes with the sockets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Estate {
    /// Address and whether it is for datagrams, in the order of the descriptors.
    pub(super) sockets: Vec<(SocketAddr, bool)>,
    /// After them come two descriptors for each of these: the socket, and its lock.
    #[serde(default)]
    pub(super) paths: Vec<PathBuf>,
    /// Agents that were connected: visitors are accepted when they are here.
    pub(super) agents: Vec<AgentId>,
    /// Services that had a healthy backend.
    pub(super) services: Vec<String>,
    /// What agents had asked for.
    #[serde(default)]
    pub(super) leases: Vec<Leased>,
}

/// The new one's end of the conversation.
#[derive(Debug)]
pub(super) struct Predecessor {
    stream: UnixStream,
    pub(super) estate: Estate,
}

/// The old one's.
pub(super) struct Successor {
    stream: UnixStream,
}

impl Predecessor {
    /// Asks the bridge that runs on this folder for its place; its sockets are in [`crate::inherit`] then. `None`: none
    /// runs. Blocks.
    pub(super) fn ask(data_dir: &Path) -> Result<Option<Predecessor>, Failure> {
        let say = |what: &str, error: io::Error| Failure::Run(format!("--takeover: {what}: {error}"));
        let mut stream = match UnixStream::connect(data_dir.join(admin::SOCKET)) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
            Err(e) => return Err(say("the admin socket of the running bridge", e)),
        };
        stream.set_read_timeout(Some(STEP_MAX)).map_err(|e| say("the admin socket", e))?;
        match take(&mut stream) {
            Ok((estate, (sockets, paths))) => {
                crate::inherit::put(sockets);
                crate::inherit::put_paths(paths);
                Ok(Some(Predecessor { stream, estate }))
            }
            // It died before it gave anything away: its ports and its folder are free.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                tracing::warn!("the running bridge ended before it handed over: starting as if there had been none");
                // Its descriptors are closed one after the other: the folder's lock may be among the last.
                let until = std::time::Instant::now() + DEATH_MAX;
                while matches!(Keyring::open(data_dir), Err(Error::Locked(_))) && std::time::Instant::now() < until {
                    std::thread::sleep(DEATH_LOOK);
                }
                Ok(None)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let (waited, how) =
                    (STEP_MAX.as_secs(), "look whether it stands still; stop it, and start without --takeover");
                Err(Failure::Run(format!("--takeover: the running bridge has not answered for {waited} s. Try: {how}")))
            }
            Err(e) => Err(say("the running bridge did not hand over. Try: the same version of both; stop that one", e)),
        }
    }

    /// Waits until it accepts no visitors any more, or is gone. Blocks.
    pub(super) fn wait_left(mut self) {
        let _ = self.stream.read(&mut [0]);
    }

    /// Says how far we are. An old one that is gone is none to tell.
    pub(super) fn say(&mut self, word: &str) {
        let _ = self.stream.write_all(format!("{word}\n").as_bytes());
    }
}

/// Sockets at addresses, and those at paths.
type Sockets = (Vec<Waiting>, Vec<AtPath>);

fn take(stream: &mut UnixStream) -> io::Result<(Estate, Sockets)> {
    stream.write_all(b"\"takeover\"\n")?;
    // The length of the list first, with the descriptors; then the list.
    let mut length = [0; 8];
    let (n, mut fds) = recv_fds(stream, &mut length)?;
    if n == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut length[n..])?;
    let wrong = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > LETTER_BYTES_MAX {
        return Err(wrong("it speaks another language".into()));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    let estate: Estate = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    while fds.len() < estate.sockets.len() + 2 * estate.paths.len() {
        let (n, more) = recv_fds(stream, &mut [0; 1])?;
        if n == 0 || more.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        fds.extend(more);
    }
    let mut fds = fds.into_iter();
    let sockets = estate.sockets.iter().zip(fds.by_ref());
    let sockets = sockets.map(|((address, is_udp), fd)| Waiting { address: *address, is_udp: *is_udp, fd }).collect();
    let paths = estate.paths.iter().map_while(|path| {
        let (listener, lock) = (fds.next()?, fds.next()?);
        Some(AtPath { path: path.clone(), listener, lock })
    });
    let paths = paths.collect();
    Ok((estate, (sockets, paths)))
}

impl Successor {
    /// A client of the admin socket that has asked for our place.
    pub(super) fn new(stream: UnixStream) -> io::Result<Successor> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STEP_MAX))?;
        stream.set_write_timeout(Some(STEP_MAX))?;
        Ok(Successor { stream })
    }

    /// Gives it all sockets. Blocks.
    pub(super) fn give(&self, mut estate: Estate, sockets: &[Waiting], paths: &[AtPath]) -> io::Result<()> {
        estate.sockets = sockets.iter().map(|w| (w.address, w.is_udp)).collect();
        estate.paths = paths.iter().map(|at| at.path.clone()).collect();
        let text = serde_json::to_vec(&estate).map_err(io::Error::other)?;
        let at_paths = paths.iter().flat_map(|at| [at.listener.as_fd(), at.lock.as_fd()]);
        let fds: Vec<_> = sockets.iter().map(|w| w.fd.as_fd()).chain(at_paths).collect();
        let mut batches = fds.chunks(FDS_MAX);
        let length = (text.len() as u64).to_le_bytes();
        let sent = send_fds(&self.stream, &length, batches.next().unwrap_or_default())?;
        (&self.stream).write_all(&length[sent..])?;
        (&self.stream).write_all(&text)?;
        for batch in batches {
            send_fds(&self.stream, &[0], batch)?;
        }
        Ok(())
    }

    /// Waits for it to say this. Blocks.
    pub(super) fn wait(&self, word: &str) -> io::Result<()> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            (&self.stream).read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > word.len() + 1 {
                break;
            }
        }
        let is_it = line.strip_suffix(b"\n") == Some(word.as_bytes());
        if is_it { Ok(()) } else { Err(io::Error::new(ErrorKind::InvalidData, "it said something else")) }
    }
}

/// Our own sockets of these addresses.
pub(super) fn sockets(addresses: &HashSet<SocketAddr>) -> io::Result<Vec<Waiting>> {
    Ok(waiting_sockets()?.into_iter().filter(|w| addresses.contains(&w.address)).collect())
}

/// Waits until those who were there are here, or for [`AGENTS_MAX`].
pub(super) async fn agents_are_here(server: &BridgeServer, estate: &Estate) {
    let until = tokio::time::Instant::now() + AGENTS_MAX;
    loop {
        let missing = estate.agents.iter().filter(|agent| !server.hall.knows(**agent)).count();
        let routes = server.handle.routes();
        let is_up = |service: &String| {
            let up = |b: &ringspan_tunnel::routes::Backend| b.health == ringspan_engine::health::Health::Up;
            routes.backends(service).is_some_and(|backends| backends.iter().any(up))
        };
        let unserved: Vec<&String> = estate.services.iter().filter(|service| !is_up(service)).collect();
        if missing == 0 && unserved.is_empty() {
            return;
        }
        if tokio::time::Instant::now() >= until {
            tracing::warn!(missing, ?unserved, "not all agents have come over: visitors are accepted all the same");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
