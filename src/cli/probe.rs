//! The command line of `probe` and of `report`, which draws what `probe` wrote.

use super::expires;
use crate::config::unit;
use clap::{Args, ValueEnum};
use ringspan_engine::check::{HttpSettings, Method, Pin, Statuses};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

/// `ringspan probe`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ringspan probe 10.0.0.7:3306                          once: up or down, and how fast\n  \
    ringspan probe tcp://db-1:3306 [::1]:80 --count 100   a hundred times, one second apart\n  \
    ringspan probe --file targets.txt --format json       one target a line, # starts a comment\n  \
    ringspan probe https://example.com/health --status 200 --cert-days 14\n  \
    ringspan probe 'mysql://monitor:pw@db-1/?mode=primary' udp://10.0.0.2:53 icmp://10.0.0.1\n  \
    ringspan probe --file targets.txt --watch             a live table, until q\n  \
    ringspan probe --config probe.toml --listen 127.0.0.1:9100   policies per target, /metrics\n  \
    ss -Htln | awk '{print $4}' | ringspan probe --file - --mode full\n\n\
    Targets: host:port, tcp:// (?send=&expect=), http://, https://, mysql:// (?query=&expect=&mode=primary&tls=), \
    tls://, udp:// (?send=&expect=&silence=ok), icmp://; docs/probing.md has them all.\n\
    A target is down after 3 failures in a row and up after 2 successes; the first outcome decides at once. Exit code \
    1: a target ended down, or could not be judged.")]
pub(crate) struct Probe {
    /// "host:port" or a URL; IPv6 literals in brackets; names are looked up, again in long runs, and the first address
    /// counts.
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
    /// A file of targets, one a line; "-" is stdin. Empty lines and what follows # are skipped.
    #[arg(long, value_name = "F")]
    pub(crate) file: Option<PathBuf>,
    /// A probe.toml: targets with policies of their own. Read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "F")]
    pub(crate) config: Option<PathBuf>,
    /// Probes for each target. Default 1; without end with --duration, --watch, --listen or --config.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU32>,
    /// End the run after this time. 1s to 365d.
    #[arg(long, value_name = "TIME", value_parser = expires)]
    pub(crate) duration: Option<Duration>,
    /// From the start of one probe of a target to the start of its next. 100ms to 1h.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// No answer by then is a failure. 1ms to 60s.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    /// Successes in a row before "up".
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) rise: NonZeroU8,
    /// Failures in a row before "down".
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) fall: NonZeroU8,
    /// How a handshake ends the connection it made.
    #[arg(long, value_enum, default_value_t = Mode::HalfOpen)]
    pub(crate) mode: Mode,
    /// Of http, https and tls targets.
    #[command(flatten)]
    pub(crate) check: CheckFlags,
    /// Threads, one a core. Default: as many as there are cores.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroU16>,
    /// Probes in flight at most, on each worker. Default 4096.
    #[arg(long, value_name = "N")]
    pub(crate) in_flight: Option<NonZeroU32>,
    /// Probes started per second at most, by all workers together. Default: no limit.
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<NonZeroU32>,
    /// How to talk to the kernel.
    #[arg(long, value_enum)]
    pub(crate) backend: Option<Backend>,
    /// text: counts and a histogram; json: one object; ndjson: a line for each probe, then the object.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) format: ReportFormat,
    /// A live table on a terminal, a line for each change elsewhere; =lines: lines on a terminal, too.
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) watch: Option<Watch>,
    /// Order of the live table.
    #[arg(long, value_enum, default_value_t = Sort::State)]
    pub(crate) sort: Sort,
    /// Serve /metrics (Prometheus) and /healthz here, as in 127.0.0.1:9100. There are no accounts: loopback is wise.
    #[arg(long, value_name = "ADDR", value_parser = unit::address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Targets up to which /metrics has a series for each. Default 1000.
    #[arg(long, value_name = "N")]
    pub(crate) metrics_targets: Option<usize>,
    /// Print the report so often, as SIGUSR1 does. 1s to 365d.
    #[arg(long, value_name = "TIME", value_parser = expires)]
    pub(crate) report_every: Option<Duration>,
    /// Write an HdrHistogram interval log (V2, values in microseconds) to this file, an interval a second: RTT untagged,
    /// lateness as Tag=lateness. `ringspan report` draws it.
    #[arg(long, value_name = "F")]
    pub(crate) hlog: Option<PathBuf>,
}

/// Settings of http, https and tls targets; they apply to all targets of the kind.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "http, https and tls targets")]
pub(crate) struct CheckFlags {
    /// Request method: GET, HEAD, OPTIONS or POST. Default GET.
    #[arg(long, value_name = "M")]
    pub(crate) method: Option<Method>,
    /// A header, "Name: value". May be given several times.
    #[arg(long = "header", value_name = "H")]
    pub(crate) headers: Vec<String>,
    /// The Host header. Default: the URL's.
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// Statuses that are good, as in 200-299,301. Default 200-399.
    #[arg(long, value_name = "LIST")]
    pub(crate) status: Option<Statuses>,
    /// Text that must be in the body.
    #[arg(long, value_name = "TEXT")]
    pub(crate) body: Option<String>,
    /// Regular expression that must match the body.
    #[arg(long, value_name = "RE", conflicts_with = "body")]
    pub(crate) body_regex: Option<String>,
    /// Redirects to follow, at the same address. 0 to 20; 0: a redirect is judged by its status.
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u8).range(..=i64::from(HttpSettings::REDIRECTS_MAX)))]
    pub(crate) redirects: u8,
    /// Follow redirects to other names too, still at the same address.
    #[arg(long, requires = "redirects")]
    pub(crate) redirects_any_host: bool,
    /// Accept any certificate.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// PEM file of the authorities to trust instead of the system's.
    #[arg(long, value_name = "F")]
    pub(crate) ca: Option<PathBuf>,
    /// SHA-256 of the certificate (cert:HEX) or of its public key (key:HEX) that must be presented: that one and no
    /// other, whoever signed it.
    #[arg(long, value_name = "PIN")]
    pub(crate) pin: Option<Pin>,
    /// Name asked for and verified. Default: the URL's host.
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// A certificate with fewer days left is a failure.
    #[arg(long, value_name = "N")]
    pub(crate) cert_days: Option<i16>,
}

/// How changes are shown while they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Watch {
    /// The table on a terminal, lines elsewhere.
    Auto,
    /// A line for each change.
    Lines,
}

/// Order of the live table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// What is down first, then by name.
    State,
    /// By name.
    Name,
    /// The slowest first.
    Rtt,
}

/// How a probe ends the connection it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// SYN, SYN/ACK, RST: the application never sees it.
    HalfOpen,
    /// Full handshake, then RST: no TIME_WAIT.
    Full,
    /// Full handshake, then FIN: a clean end for the application, 60 s of TIME_WAIT here.
    Graceful,
}

impl From<Mode> for ringspan_engine::io::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::HalfOpen => Self::HalfOpen,
            Mode::Full => Self::Full,
            Mode::Graceful => Self::Graceful,
        }
    }
}

impl From<Backend> for ringspan_engine::kernel::Backend {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::IoUring => Self::Ring,
            Backend::Epoll => Self::Epoll,
        }
    }
}

/// How to talk to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// io_uring where the kernel lets us, epoll otherwise.
    Auto,
    /// io_uring or an error.
    #[value(name = "io_uring")]
    IoUring,
    /// epoll.
    Epoll,
}

/// How the probe report comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For people.
    Text,
    /// One object at the end.
    Json,
    /// One line a probe, then the object.
    Ndjson,
}

/// `ringspan report`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ringspan probe --file targets.txt --duration 10m --hlog run.hlog\n  \
    ringspan report run.hlog --html run.html --title 'Ten minutes of the web tier'\n  \
    ringspan report monday.hlog tuesday.hlog --svg both.svg")]
pub(crate) struct Report {
    /// Interval logs of `ringspan probe --hlog`. Several are drawn together.
    #[arg(value_name = "F", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Write a page: pictures and tables in one file, nothing loaded from elsewhere.
    #[arg(long, value_name = "F")]
    pub(crate) html: Option<PathBuf>,
    /// Write the pictures alone.
    #[arg(long, value_name = "F")]
    pub(crate) svg: Option<PathBuf>,
    /// The headline. Default: the files' names.
    #[arg(long, value_name = "TEXT")]
    pub(crate) title: Option<String>,
}

pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    use ringspan_engine::target::{INTERVAL_MAX, INTERVAL_MIN};
    unit::duration_within(text, INTERVAL_MIN, INTERVAL_MAX)
}

pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    use ringspan_engine::target::{TIMEOUT_MAX, TIMEOUT_MIN};
    unit::duration_within(text, TIMEOUT_MIN, TIMEOUT_MAX)
}
