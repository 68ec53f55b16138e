//! `ringspan probe`
mod draw;
mod report;
mod targets;
