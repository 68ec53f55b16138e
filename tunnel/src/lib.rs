//! A reverse tunnel: bridge, agents, a multiplexed link that splices.
//!
//! Who and how, all of it pure or sans-IO: [`token`], [`identity`], [`tls`], [`hello`], [`backoff`], [`health_feed`],
//! [`routes`].

pub mod address;
pub mod backoff;
pub mod fingerprint;
pub mod health_feed;
pub mod hello;
pub mod identity;
pub mod keys;
mod private_file;
pub mod routes;
pub mod tls;
pub mod token;

pub mod credit;
pub mod frame;
pub mod mux;
mod plane;
pub mod slots;
pub mod stats;
