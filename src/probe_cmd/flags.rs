//! What the flags ask for, checked: how the engine runs, how long, and what the targets of the command line share.

use super::checks::{self, Settings};
use super::roster::Sheet;
use crate::cli::{self, ReportFormat, Watch};
use crate::config::probe::Probe;
use crate::{Failure, config};
use ringspan_engine::check::Content;
use ringspan_engine::engine::{Options, in_flight_default};
use ringspan_engine::health::{Health, Thresholds};
use ringspan_engine::target::Policy;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Targets up to which /metrics has a series for each, if nobody says otherwise: a thousand series are 100 KB a scrape.
const METRICS_TARGETS_DEFAULT: usize = 1000;
/// Samples that may wait to be read: some rounds of all targets, within reason (about 120 bytes each).
const ROUNDS_KEPT: u32 = 4;
const SAMPLES_MIN: usize = 1024;
const SAMPLES_MAX: usize = 1 << 20;

/// What is shown while it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// Nothing but a progress bar.
    Bar,
    /// A line for each change.
    Lines,
    /// A line for each probe.
    Ndjson,
    /// The table.
    Table(cli::Sort),
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Of the engine.
    pub(super) options: Options,
    /// For the targets of the command line.
    pub(super) sheet: Sheet,
    /// Probes for each target; `None`: without end.
    pub(super) count: Option<u32>,
    /// When to end at the latest.
    pub(super) duration: Option<Duration>,
    pub(super) live: Live,
    pub(super) format: ReportFormat,
    pub(super) report_every: Option<Duration>,
    pub(super) hlog: Option<PathBuf>,
    /// Where /metrics is served.
    pub(super) listen: Option<SocketAddr>,
    /// Targets up to which each has a series.
    pub(super) metrics_targets: usize,
}

impl Plan {
    /// Reads the flags.
    pub(super) fn of(args: &cli::Probe) -> Result<Plan, Failure> {
        let is_endless =
            args.duration.is_some() || args.watch.is_some() || args.listen.is_some() || args.config.is_some();
        let count = args.count.map(|n| n.get()).or((!is_endless).then_some(1));
        let live = match (args.watch, args.format) {
            (Some(Watch::Auto), ReportFormat::Text) if std::io::stdout().is_terminal() => Live::Table(args.sort),
            (_, ReportFormat::Ndjson) => Live::Ndjson,
            (Some(_), _) => Live::Lines,
            (None, ReportFormat::Text) if args.config.is_some() => Live::Lines,
            (None, _) => Live::Bar,
        };
        let thresholds = Thresholds { rise: args.rise, fall: args.fall };
        let policy = Policy { interval: args.interval, timeout: args.timeout, thresholds, ..Policy::DEFAULT };
        let defaults = Options::default();
        let workers = args.workers.map_or(defaults.workers, |n| n.get().into());
        let options = Options {
            workers,
            backend: args.backend.unwrap_or(cli::Backend::Auto).into(),
            in_flight_max: args.in_flight.map_or_else(|| in_flight_default(workers), |n| n.get()),
            rate_max: args.rate.map(|n| n.get()),
            ..defaults
        };
        Ok(Plan {
            options,
            sheet: Sheet { settings: settings(args)?, policy: Arc::new(policy), group: 0, initial: Health::Unknown },
            count,
            duration: args.duration,
            live,
            format: args.format,
            report_every: args.report_every,
            hlog: args.hlog.clone(),
            listen: args.listen,
            metrics_targets: args.metrics_targets.unwrap_or(METRICS_TARGETS_DEFAULT),
        })
    }
}

impl Plan {
    /// What a file says holds where no flag says otherwise; and what so many targets need.
    pub(super) fn take_over(&mut self, args: &cli::Probe, config: &Probe, targets: usize) {
        let options = &mut self.options;
        if matches!(self.live, Live::Ndjson | Live::Table(_)) {
            let rounds = self.count.unwrap_or(u32::MAX).min(ROUNDS_KEPT) as usize;
            options.samples_max = targets.saturating_mul(rounds).clamp(SAMPLES_MIN, SAMPLES_MAX);
        }
        if let (None, Some(n)) = (args.workers, config.workers) {
            options.workers = n.get().into();
            options.in_flight_max = args.in_flight.map_or_else(|| in_flight_default(options.workers), |n| n.get());
        }
        if let (None, Some(backend)) = (args.backend, config.backend) {
            options.backend = backend.into();
        }
        if let (None, Some(n)) = (args.in_flight, config.in_flight_max) {
            options.in_flight_max = n.get();
        }
        options.rate_max = options.rate_max.or(config.rate.map(|n| n.get()));
        options.rate_per_net = config.rate_per_net.map(|n| n.get());
        options.in_flight_per_net = config.in_flight_per_net.map(|n| n.get());
        options.freeze = config.freeze.unwrap_or(options.freeze);
        options.mass_flip = config.mass_flip.unwrap_or(options.mass_flip);
        options.mass_flip_percent = config.mass_flip_percent.unwrap_or(options.mass_flip_percent);
        self.listen = self.listen.or(config.listen);
        self.hlog = self.hlog.take().or_else(|| config.hlog.clone());
        self.metrics_targets = args.metrics_targets.or(config.metrics_targets).unwrap_or(METRICS_TARGETS_DEFAULT);
    }
}

fn settings(args: &cli::Probe) -> Result<Settings, Failure> {
    let flags = &args.check;
    let wrong = |flag: &str, value: &str, e: String| Failure::Usage(format!("--{flag} {value:?}: {e}"));
    let headers = flags.headers.iter().map(|h| config::unit::header(h).map_err(|e| wrong("header", "***", e)));
    let Some(trust) = checks::trust(flags.insecure, flags.ca.clone(), flags.pin) else {
        return Err(Failure::Usage("one of --insecure, --ca and --pin is enough".into()));
    };
    let body = flags.body.clone().map(Content::Contains);
    Ok(Settings {
        mode: args.mode.into(),
        http: checks::Http {
            method: flags.method.unwrap_or_default(),
            headers: headers.collect::<Result<_, _>>()?,
            host: flags.host.clone(),
            status: flags.status.clone().unwrap_or_default(),
            content: body.or_else(|| flags.body_regex.clone().map(Content::Matches)),
            redirects: checks::redirects(flags.redirects, flags.redirects_any_host),
        },
        tls: checks::Tls { trust, sni: flags.sni.clone(), cert_days_min: flags.cert_days },
    })
}
