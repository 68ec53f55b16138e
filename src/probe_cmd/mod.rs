//! `ringspan probe`: targets in, a report out.
//!
//! ```text
//! targets ──► session (engine, progress, hlog, ndjson lines) ──► Summary ──► report
//! ```

mod draw;
mod report;
mod session;
mod target;
mod targets;

use crate::cli::{self, ReportFormat};
use crate::{Ending, Failure};

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Probe) -> Result<Ending, Failure> {
    let targets = targets::collect(&args.targets, args.file.as_deref()).map_err(Failure::Usage)?;
    let summary = session::run(args, &targets)?;
    crate::say(&match args.format {
        ReportFormat::Text => summary.text(),
        ReportFormat::Json | ReportFormat::Ndjson => summary.json() + "\n",
    });
    Ok(if summary.all_up() { Ending::Good } else { Ending::Down })
}
