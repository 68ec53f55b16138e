//! The pipes of one worker, lent out one splice at a time and, to streams whose receiver is slow, for longer.
//! Promise: a pipe that is handed out is empty; no more than `PIPES_MAX` exist. Exhausted is normal: the mover copies.

use ringspan_engine::kernel::Pipe;

/// What a pipe asks for: 64 slots. Larger pipes leave the cache (512 KiB of payload in flight cost more than they
/// save), smaller ones mean more frames; a frame's default size is the same.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// Pipes of one worker, lent ones included: two workers use half of an ordinary user's soft limit
/// (/proc/sys/fs/pipe-user-pages-soft, 16,384 pages) even if every pipe is full.
pub(crate) const PIPES_MAX: usize = 64;

/// A pipe with fewer bytes of capacity than this was refused its size: copying is cheaper than one page at a time.
const PIPE_BYTES_MIN: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Pipes {
    spare: Vec<Pipe>,
    made: usize,
    /// The kernel refused; do not ask again for every frame.
    refused: bool,
}

impl Pipes {
    /// An empty pipe, if there is one or may be one more.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.made >= PIPES_MAX || self.refused {
            return None;
        }
        match Pipe::new(PIPE_BYTES) {
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

    /// How many exist.
    pub(crate) fn made(&self) -> usize {
        self.made
    }
}
