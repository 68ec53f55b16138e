//! `ringspan probe`: targets in, a report out.
//!
//! ```text
//! arguments, --file ──source──┐
//! --config ──config::probe────┴─► roster ──► session (engine, names, reload) ──► Summary ──► report
//!                                              ├─► lines, screen: what happens while it happens
//!                                              └─► metrics: /metrics, /healthz
//! ```

pub(crate) mod checks;
mod draw;
mod flags;
mod handover;
mod hlog;
mod lines;
mod names;
mod report;
mod resolver;
pub(crate) mod roster;
mod session;
pub(crate) mod source;
pub(crate) mod target;

use crate::cli::{self, ReportFormat};
use crate::{Ending, Failure};
use roster::Roster;

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Probe) -> Result<Ending, Failure> {
    crate::machine::prepare();
    let plan = flags::Plan::of(args)?;
    let mut roster = Roster::default();
    let sheet = roster.sheet(plan.sheet.clone());
    source::arguments(&mut roster, sheet, &args.targets).map_err(Failure::Usage)?;
    if let Some(path) = &args.file {
        source::file(&mut roster, sheet, path).map_err(Failure::Usage)?;
    }
    if roster.count() == 0 {
        let say = "no targets. Try: ringspan probe 127.0.0.1:80, --file targets.txt, or --config probe.toml";
        return Err(Failure::Usage(say.into()));
    }
    roster.close();
    let summary = session::run(&plan, roster)?;
    print(&summary, args.format);
    Ok(if summary.all_up() { Ending::Good } else { Ending::Down })
}

fn print(summary: &report::Summary, format: ReportFormat) {
    crate::say(&match format {
        ReportFormat::Text => summary.text(),
        ReportFormat::Json | ReportFormat::Ndjson => summary.json() + "\n",
    });
}
