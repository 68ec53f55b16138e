//! A reverse tunnel: bridge, agents, a multiplexed link that splices.
//!
//! ```text
//! visitor ─▶ bridge ═link (1 to 16 carriers)═▶ agent ─▶ backend
//!            plane: carriers, streams' sockets, movers ── mux ── credit, frame
//! ```
//! Who and how, all of it pure or sans-IO: [`token`], [`identity`], [`tls`], [`hello`], [`backoff`], [`health_feed`],
//! [`routes`]. The bytes: [`frame`], [`credit`], [`memory`], [`mux`], [`moving`] (pure) and `plane` (sockets, on the
//! engine's workers). The two
//! programs: [`bridge`] and [`agent`].

pub mod address;
pub mod agent;
pub mod backoff;
pub mod bridge;
pub mod credit;
pub mod fingerprint;
pub mod frame;
pub mod health_feed;
pub mod hello;
pub mod identity;
pub mod keys;
pub mod limits;
pub mod memory;
pub mod moving;
pub mod mux;
pub mod outliers;
mod plane;
mod private_file;
pub mod proxy_header;
pub mod routes;
mod slots;
pub mod stats;
pub mod tls;
pub mod token;
