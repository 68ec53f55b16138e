//! What the kernel itself costs: bare loops that do only the system calls. Feature `floor`; for bench/ alone.
//!
//! They have no scheduling, no timeouts, no state and no statistics. A figure of ours is worth quoting when it stands
//! beside one of these, measured in the same run: a real engine can come close to them and cannot beat them by much.

mod relay;

pub use relay::splice_relay;
