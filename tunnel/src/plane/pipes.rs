//! The pipes of one worker, lent out one splice at a time and, to streams whose receiver is slow, for longer.
//! Promise: a pipe that is handed out is empty; no more than `PIPES_MAX` exist, and no more than `WAITING_MAX` wait for
//! slow receivers: the bytes of the others go to memory, so that the slow never make the quick copy. Exhausted is
//! normal: the mover copies.

use ringspan_engine::kernel::Pipe;
use std::io::{self, ErrorKind};

/// What a pipe asks for: 64 slots. Larger pipes leave the cache (512 KiB of payload in flight cost more than they
/// save), smaller ones mean more frames; a frame's default size is the same.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// Pipes of one worker, lent ones included: two workers use half of an ordinary user's soft limit
/// (/proc/sys/fs/pipe-user-pages-soft, 16,384 pages) even if every pipe is full.
pub(crate) const PIPES_MAX: usize = 64;

/// Pipes that wait, full, for receivers that are slow, at most: half.
const WAITING_MAX: usize = PIPES_MAX / 2;

/// A pipe with fewer bytes of capacity than this was refused its size: copying is cheaper than one page at a time.
const PIPE_BYTES_MIN: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Pipes {
    bytes: usize,
    spare: Vec<Pipe>,
    made: usize,
    waiting: usize,
    /// The kernel refused; do not ask again for every frame.
    refused: bool,
}

impl Pipes {
    /// No pipes yet; each will ask for `bytes`.
    pub(crate) fn new(bytes: usize) -> Pipes {
        Pipes { bytes, spare: Vec::new(), made: 0, waiting: 0, refused: false }
    }

    /// An empty pipe, if there is one or may be one more.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.made >= PIPES_MAX || self.refused {
            return None;
        }
        match Pipe::new(self.bytes) {
            Ok(pipe) if pipe.bytes_max() >= PIPE_BYTES_MIN => {
                self.made += 1;
                Some(pipe)
            }
            Ok(pipe) => {
                let bytes = pipe.bytes_max();
                tracing::warn!(bytes, "pipes are too small to splice, copying instead; see fs.pipe-user-pages-soft");
                self.refused = true;
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no pipe, copying instead");
                None
            }
        }
    }

    /// Takes an empty pipe back.
    pub(crate) fn put(&mut self, pipe: Pipe) {
        self.spare.push(pipe);
    }

    /// Closes a pipe that still holds bytes nobody wants.
    pub(crate) fn drop_full(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made -= 1;
    }

    /// A pipe whose receiver is slow: may its bytes stay in it? If so, it is given back with
    /// [`put_waiting`](Pipes::put_waiting) or [`drop_waiting`](Pipes::drop_waiting).
    pub(crate) fn may_wait(&mut self) -> bool {
        let may = self.waiting < WAITING_MAX;
        self.waiting += usize::from(may);
        may
    }

    /// The same for a pipe whose bytes cannot be copied instead: the kernel's TLS has begun a record with some of them, and
    /// before 6.7 a copy behind a splice into one record wrote where it should not (CVE-2024-0646). Such pipes count, and
    /// are bounded by `PIPES_MAX`.
    pub(crate) fn must_wait(&mut self) -> bool {
        self.waiting += 1;
        true
    }

    /// Takes a pipe back that waited and is empty now.
    pub(crate) fn put_waiting(&mut self, pipe: Pipe) {
        self.waiting -= 1;
        self.put(pipe);
    }

    /// Closes a pipe that waited for nothing.
    pub(crate) fn drop_waiting(&mut self, pipe: Pipe) {
        self.waiting -= 1;
        self.drop_full(pipe);
    }

    /// Reads the `left` bytes of a pipe that may not wait, and takes it back.
    pub(crate) fn empty(&mut self, pipe: Pipe, left: usize) -> io::Result<Vec<u8>> {
        let (mut bytes, mut at) = (vec![0; left], 0);
        while at < left {
            match pipe.read(&mut bytes[at..]) {
                Ok(0) => {
                    self.drop_full(pipe);
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                Ok(n) => at += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.drop_full(pipe);
                    return Err(error);
                }
            }
        }
        self.put(pipe);
        Ok(bytes)
    }

    /// How many exist.
    pub(crate) fn made(&self) -> usize {
        self.made
    }
}
