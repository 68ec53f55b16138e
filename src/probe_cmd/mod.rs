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
mod metrics;
mod names;
mod pulse;
mod reload;
mod report;
mod resolver;
pub(crate) mod roster;
mod screen;
mod session;
pub(crate) mod source;
mod table;
pub(crate) mod target;
mod view;

use crate::cli::{self, ReportFormat};
use crate::{Ending, Failure};

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Probe) -> Result<Ending, Failure> {
    crate::machine::prepare();
    let mut plan = flags::Plan::of(args)?;
    let sources = reload::Sources::of(args, plan.sheet.clone())?;
    let (roster, config) = sources.read(None)?;
    if roster.count() == 0 {
        let say = "no targets. Try: ringspan probe 127.0.0.1:80, --file targets.txt, or --config probe.toml";
        return Err(Failure::Usage(say.into()));
    }
    plan.take_over(args, &config, roster.count());
    plan.options.groups = roster.groups.clone();
    let reload = reload::Reload::new(sources, config, roster.groups.clone());
    let summary = session::run(&plan, roster, reload)?;
    print(&summary, args.format);
    Ok(if summary.all_up() { Ending::Good } else { Ending::Down })
}

fn print(summary: &report::Summary, format: ReportFormat) {
    crate::say(&match format {
        ReportFormat::Text => summary.text(),
        ReportFormat::Json | ReportFormat::Ndjson => summary.json() + "\n",
    });
}
