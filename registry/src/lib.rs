//! A service registry with Nacos' model and wire APIs, checked by the engine.
//!
//! ```text
//! http ─► service ─► table (pure) ─► store ─► snapshot ─► http
//!            ▲                                   │
//!            └── prober ◄── engine     changes ──┴─► prober, whoever subscribes
//! ```
//! Arrows point one way: `http`, `prober` → `service` → `table`, `store`, `snapshot` → `health` → `model`.
//! The page for users is docs/registry.md.

pub mod access;
pub mod checker;
pub mod cluster;
pub mod dns;
pub mod events;
pub mod grpc;
pub mod health;
#[cfg(test)]
mod hostile;
pub mod http;
pub mod model;
pub mod panel;
pub mod prober;
pub mod push;
pub mod selector;
pub mod service;
pub mod snapshot;
pub mod store;
pub mod table;
pub mod transfer;
mod wire;

pub use service::{Options, Registry};
