//! How bytes are moved: the defaults are what measured best (bench/README.md), the rest is for measuring again.

use super::pipes::PIPE_BYTES;

/// By which kind of carrier the streams of a listener go. Without a word: what measures best for streams of every size
/// (bench/README.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CarrierMode {
    /// In frames, many on one connection.
    Mux,
    /// Each on a connection of its own, without frames, as far as one waits for it; else as `Auto`.
    Direct,
    /// In frames, until it proves to be bulk; then on a connection of its own.
    #[default]
    Auto,
}

/// How bytes cross a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mover {
    /// Small pieces copied, large ones spliced.
    #[default]
    Adaptive,
    /// All copied through memory.
    Copy,
    /// Spliced from the first large piece on, whatever its size.
    Splice,
    /// As `Adaptive`, by IORING_OP_SPLICE where the kernel has it: for comparing (bench/README.md).
    RingSplice,
}

/// What can be chosen of the data path. Both ends choose by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneOptions {
    /// How bytes are moved.
    pub mover: Mover,
    /// Capacity of a pipe, 64 KiB to 1 MiB. Default 256 KiB.
    pub pipe_bytes: usize,
    /// A read of at least this many bytes speaks for splicing, 1 KiB to 64 KiB. Default 16 KiB.
    pub splice_bytes: usize,
    /// Bridge: a stream of [`CarrierMode::Auto`] that has carried this much in pieces worth splicing (half of `splice_bytes`)
    /// leaves the mux. Default 4 MiB: to move costs 0.3 ms of CPU (0.7 with TLS in user space), and what it saves pays for
    /// that after a few more (`bench sweep`).
    pub move_bytes: u64,
    /// Bulk rests where small messages are about and cores are short. Default: it does (`bench fairness`).
    pub bulk_rests: bool,
}

impl Default for PlaneOptions {
    fn default() -> Self {
        PlaneOptions {
            mover: Mover::Adaptive,
            pipe_bytes: PIPE_BYTES,
            splice_bytes: 16 << 10,
            move_bytes: 4 << 20,
            bulk_rests: true,
        }
    }
}

/// The same, brought into range and worked out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) pipe_bytes: usize,
    pub(super) may_splice: bool,
    /// By operations of a ring.
    pub(super) by_ring: bool,
    pub(super) splice_bytes: usize,
    /// A splice that moved less than this speaks for copying.
    pub(super) small_bytes: usize,
    /// Reads in a row that change the mover.
    pub(super) streak: u8,
    pub(super) move_bytes: u64,
    pub(super) bulk_rests: bool,
}

impl PlaneOptions {
    pub(super) fn settle(&self) -> Settled {
        let splice_bytes = if self.mover == Mover::Splice { 1 } else { self.splice_bytes.clamp(1 << 10, 64 << 10) };
        Settled {
            pipe_bytes: self.pipe_bytes.clamp(64 << 10, 1 << 20),
            may_splice: self.mover != Mover::Copy,
            by_ring: self.mover == Mover::RingSplice,
            splice_bytes,
            small_bytes: if self.mover == Mover::Splice { 0 } else { splice_bytes / 2 },
            streak: if self.mover == Mover::Splice { 1 } else { 2 },
            move_bytes: self.move_bytes,
            bulk_rests: self.bulk_rests,
        }
    }
}
