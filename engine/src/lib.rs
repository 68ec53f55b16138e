//! An io_uring probe engine: thousands of checks in flight on pinned workers.
//!
//! Arrows point one way: `engine` → (`probe`, `worker`) → `io` ← `kernel`. `probe/` and `kernel/` never meet;
//! everything they say to each other is in [`io`]. All unsafe code is in `kernel/`.

pub mod check;
pub mod cores;
pub mod crowding;
pub mod engine;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod histogram;
pub mod hlog;
pub mod io;
pub mod kernel;
pub mod mailbox;
pub mod outcome;
pub mod policy;
pub mod probe;
pub mod resident;
pub mod sim;
pub mod slab;
pub mod stats;
pub mod target;
pub mod time;
pub mod token;
pub mod wheel;
pub mod worker;
