//! A worker's kernel in memory: virtual time, a network of made-up hosts, and every trouble on demand, all from one
//! seed. A day of probing runs in a second, and a failure replays from its number.
//!
//! [`SimIo`] keeps [`Io`](crate::io::Io)'s promises and holds its user to the other side of them: a lane that is used
//! twice at a time, or a token, a lane of the wrong family or way, a talk on a lane that is in no call, a second end of
//! one call, a buffer touched while the kernel has it, is a panic. With [`Faults::rogue`] it breaks promise 1 and
//! repeats itself, so that its user can show that it minds the generation. [`Sim`] stands in for the worker.

mod call;
mod drive;
mod host;
mod io;
mod lane;
mod world;

pub use drive::{IDLE_TURNS_MAX, Sim};
pub use host::{Host, Said, Script, Speaker, Word};
pub use io::{SimIo, Visit};
pub use world::{Behaviour, Cut, Faults, Speech, World};

#[cfg(test)]
mod tests;
