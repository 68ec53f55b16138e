//! Logs: to stderr, filtered by RINGSPAN_LOG, as text or JSON.

use crate::cli::LogFormat;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Installs the logger. A bad RINGSPAN_LOG is said so and the default is used.
pub(crate) fn start(format: LogFormat, level_default: &str) {
    let filter = match std::env::var("RINGSPAN_LOG") {
        Err(_) => EnvFilter::new(level_default),
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            eprintln!("ringspan: RINGSPAN_LOG={text:?}: {error}. Try: RINGSPAN_LOG=debug. Using {level_default:?}.");
            EnvFilter::new(level_default)
        }),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
