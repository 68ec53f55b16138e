//! UDP through the tunnel: a conversation of datagrams is one stream of frames.
//!
//! ```text
//! visitor ═▶ listener (bridge) ─frames─▶ plane ═link═▶ plane ─frames─▶ backend (agent) ═▶ UDP server
//! ```

pub(crate) mod backend;
pub(crate) mod frames;
mod header;
pub(crate) mod listener;
mod names;
mod socket;
