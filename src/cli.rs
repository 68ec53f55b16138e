//! The command line: every subcommand, flag, unit and default, and the examples that `--help` shows.
//! Promise: what leaves here is parsed; what needs a file, a name server or a kernel is checked by the subcommand.

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringspan_tunnel::rights::{Hosts, Ports};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use crate::catalog_cmd::args as catalog;
use crate::config::unit;
use ringspan_engine::check::{HttpSettings, Method, Pin, Statuses};

/// Where a bridge keeps its data when no file says otherwise.
pub(crate) const DATA_DIR_DEFAULT: &str = "ringspan-data";
/// Where an agent keeps its identity when no file says otherwise.
pub(crate) const STATE_DIR_DEFAULT: &str = "ringspan-agent";

/// Reverse tunnel, service registry and io_uring probe engine in one binary.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        ringspan demo                                       see all of it at work, on loopback\n  \
        ringspan probe db-1:3306 [::1]:80 --count 10        are they alive, and how far away?\n  \
        ringspan bridge --config bridge.toml                the public side of the tunnel, and the registry\n  \
        ringspan token create --service web                 a token that lets one agent join\n  \
        ringspan agent --token T --expose web=127.0.0.1:80  the side behind NAT\n  \
        ringspan health                                     what in the registry is unwell, and why\n\n\
        Exit codes: 0 good, 1 something is down or failed, 2 wrong usage or configuration.\n\
        Logs go to stderr; RINGSPAN_LOG=debug (or ringspan_tunnel=trace,info) says how much."
)]
pub(crate) struct Cli {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bridge, agent, two HTTP backends and visitors in one process: kills a backend, shows that visitors do not
    /// notice, brings it back.
    Demo(Demo),
    /// Run the public side: listeners for visitors, the link port for agents, the registry.
    Bridge(Bridge),
    /// Run the side behind NAT: checks its backends and carries visitors to them. Or, with list and show: which agents
    /// a registry knows.
    Agent(Agent),
    /// Create, list and revoke what lets agents join.
    #[command(subcommand)]
    Token(Token),
    /// Who may use the registry: users, roles, API tokens.
    #[command(subcommand)]
    User(User),
    /// Services in a registry: look, configure, check.
    #[command(subcommand)]
    Service(catalog::Service),
    /// Instances in a registry: look, register, change.
    #[command(subcommand)]
    Instance(catalog::Instance),
    /// Namespaces in a registry.
    #[command(subcommand)]
    Namespace(catalog::Namespace),
    /// What in a registry is unwell, why, since when, and seen from where.
    Health(catalog::Health),
    /// The registry's records: out, in, and as a whole.
    #[command(subcommand)]
    Registry(Registry),
    /// Probe targets and report what came of it.
    Probe(Box<Probe>),
    /// Draw the interval logs of probe --hlog: percentiles, RTT over time, lateness.
    Report(Report),
    /// Say what this kernel and its limits allow, what that costs, and what to do about it.
    Doctor(Doctor),
    /// Read a bridge.toml, agent.toml or probe.toml and say what is wrong with it.
    CheckConfig(CheckConfig),
}

impl Command {
    /// The log level without RINGSPAN_LOG: servers tell of changes, one-shot commands only of trouble.
    pub(crate) fn log_level(&self) -> &'static str {
        match self {
            Command::Agent(agent) if agent.query.is_some() => "warn",
            Command::Bridge(_) | Command::Agent(_) => "info",
            Command::Token(_)
            | Command::User(_)
            | Command::Service(_)
            | Command::Instance(_)
            | Command::Namespace(_)
            | Command::Health(_)
            | Command::Registry(_)
            | Command::Probe(_)
            | Command::Report(_)
            | Command::Doctor(_)
            | Command::CheckConfig(_) => "warn",
            // It tells its story itself.
            Command::Demo(_) => "error",
        }
    }
}

/// `ringspan demo`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ringspan demo --seconds 20; echo $?      0 only if all went as promised")]
pub(crate) struct Demo {
    /// Stop after this many seconds, but not before the story has been told once (about 4 s). Without it: until Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: Option<u64>,
}

/// `ringspan bridge`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ringspan bridge                          loopback only, data in ./ringspan-data\n  \
    ringspan bridge --config bridge.toml")]
pub(crate) struct Bridge {
    /// The bridge's configuration. Without it: data in ./ringspan-data, registry on 127.0.0.1:8848, link on
    /// 127.0.0.1:8024, no visitor listeners.
    #[arg(long, value_name = "F")]
    pub(crate) config: Option<PathBuf>,
    /// Take the place of the bridge that runs on the same data folder: its listening sockets come over, agents are called
    /// over, its visitors stay with it to their end. If none runs, start as usual.
    #[arg(long)]
    pub(crate) takeover: bool,
}

/// `ringspan agent`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    ringspan agent --config agent.toml\n  \
    ringspan agent list                            who is connected, by the registry's word\n  \
    ringspan agent --token \"$TOKEN\" --expose web=127.0.0.1:8081 --expose web=127.0.0.1:8082\n  \
    ringspan agent --expose web=127.0.0.1:8081     after the first time: the identity is in ./ringspan-agent")]
pub(crate) struct Agent {
    /// Ask a registry which agents it knows, instead of running one.
    #[command(subcommand)]
    pub(crate) query: Option<catalog::AgentQuery>,
    /// The agent's configuration.
    #[arg(long, value_name = "F", conflicts_with_all = ["token", "expose", "state_dir"])]
    pub(crate) config: Option<PathBuf>,
    /// The join token from `ringspan token create`. Needed once; afterwards the identity in the state folder is used.
    #[arg(long, value_name = "T")]
    pub(crate) token: Option<String>,
    /// A backend to offer, and under which service. May be given several times, also for one service.
    #[arg(long, value_name = "NAME=ADDR", value_parser = expose)]
    pub(crate) expose: Vec<(String, SocketAddr)>,
    /// Where the identity is kept. Default ./ringspan-agent.
    #[arg(long, value_name = "D")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `ringspan token ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    TOKEN=$(ringspan token create --service web --expires 24h)\n  \
    ringspan token list\n  \
    ringspan token revoke 5c1f02ab93de             a token: no further agent joins with it\n  \
    ringspan token revoke 9be2a0c41d77e5f60312     an agent: disconnected at once, and it stays out")]
pub(crate) enum Token {
    /// Make a join token. The token alone goes to stdout, everything else to stderr.
    Create(TokenCreate),
    /// Tokens and the agents that joined with them.
    List(TokenList),
    /// Revoke a token (no further agent joins with it; those that have joined stay) or an agent (it is disconnected
    /// at once and stays out).
    Revoke(TokenRevoke),
}

/// Which bridge a token command means.
#[derive(Debug, Args)]
pub(crate) struct Whose {
    /// The bridge's configuration, for its data_dir and its link address.
    #[arg(long, value_name = "F")]
    pub(crate) config: Option<PathBuf>,
    /// The bridge's data folder, where no file says so. Default ./ringspan-data.
    #[arg(long, value_name = "D", conflicts_with = "config")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// `ringspan registry ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ringspan registry export > records.jsonl            while the bridge runs, or while it does not\n  \
    ringspan registry import records.jsonl              beside what is there; the same again changes nothing\n  \
    ringspan registry import --from-nacos http://10.0.0.5:8848/nacos --user nacos --password \"$PW\"\n  \
    ringspan registry snapshot /backup/registry.jsonl   whole or not at all\n  \
    ringspan registry restore /backup/registry.jsonl    in the place of the store; the bridge must be stopped")]
pub(crate) enum Registry {
    /// Write all records that outlive the process to stdout: services, persistent instances. JSON, a service a line
    /// (docs/registry.md).
    Export(RegistryExport),
    /// Put records in, beside and in the place of those that are there.
    Import(RegistryImport),
    /// As export, into a file that is whole and on disk, or not there.
    Snapshot(RegistryFile),
    /// Put a snapshot in the place of the store. What was there is kept beside it.
    Restore(RegistryFile),
}

/// `ringspan registry export`
#[derive(Debug, Args)]
pub(crate) struct RegistryExport {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
}

/// `ringspan registry import`
#[derive(Debug, Args)]
pub(crate) struct RegistryImport {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// What an export wrote; "-" is stdin.
    #[arg(value_name = "FILE", conflicts_with = "from_nacos")]
    pub(crate) file: Option<PathBuf>,
    /// Read a running Nacos, or what speaks its v1 API, instead: its persistent instances, services and checkers.
    #[arg(long, value_name = "URL")]
    pub(crate) from_nacos: Option<String>,
    /// Its user.
    #[arg(long, value_name = "NAME", requires_all = ["from_nacos", "password"])]
    pub(crate) user: Option<String>,
    /// The user's password.
    #[arg(long, value_name = "PW", requires = "user")]
    pub(crate) password: Option<String>,
}

/// `ringspan registry snapshot` and `restore`
#[derive(Debug, Args)]
pub(crate) struct RegistryFile {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// The snapshot.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// `ringspan user ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ringspan user add alice --grant dev:write --grant '*:read'   prints a password, once\n  \
    printf %s \"$PW\" | ringspan user add bob --admin --password-stdin\n  \
    ringspan user grant role:ops prod:write; ringspan user grant alice role:ops\n  \
    ringspan user token alice --label ci --expires 90d           an API token, for what has no password\n  \
    ringspan user passwd nacos                                   the administrator's password is lost\n\n\
    Rights: admin, role:NAME, NAMESPACE:read, NAMESPACE:write; a namespace may end in *. docs/security.md")]
pub(crate) enum User {
    /// A new user. Without a password on stdin one is made by chance and printed.
    Add(UserAdd),
    /// Another password; his logins end. API tokens stay.
    Passwd(UserPasswd),
    /// A user goes, and his logins and API tokens with him.
    Remove(UserName),
    /// Users, roles and API tokens.
    List(TokenList),
    /// More rights for a user or for a role (role:NAME).
    Grant(UserGrant),
    /// Fewer rights for a user or for a role (role:NAME).
    Revoke(UserGrant),
    /// A new API token with a user's rights. The token alone goes to stdout.
    Token(UserToken),
    /// End an API token.
    RevokeToken(TokenRevoke),
}

/// `ringspan user add`
#[derive(Debug, Args)]
pub(crate) struct UserAdd {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// The new user's name: letters, digits, '-', '_', '.', '@', '+'; at most 64.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// He may do everything, accounts too.
    #[arg(long)]
    pub(crate) admin: bool,
    /// What he may: "dev:write", "*:read", "role:ops". May be given several times.
    #[arg(long = "grant", value_name = "RIGHT")]
    pub(crate) grants: Vec<String>,
    /// Read the password from stdin, one line: 8 to 256 bytes.
    #[arg(long, conflicts_with = "no_password")]
    pub(crate) password_stdin: bool,
    /// No password opens the account: API tokens do.
    #[arg(long)]
    pub(crate) no_password: bool,
}

/// `ringspan user passwd`
#[derive(Debug, Args)]
pub(crate) struct UserPasswd {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// Whose password.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Read it from stdin, one line: 8 to 256 bytes. Without this one is made by chance and printed.
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

/// `ringspan user remove`
#[derive(Debug, Args)]
pub(crate) struct UserName {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// Who.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `ringspan user grant` and `revoke`
#[derive(Debug, Args)]
pub(crate) struct UserGrant {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// A user, or role:NAME.
    #[arg(value_name = "WHO")]
    pub(crate) name: String,
    /// "admin", "role:NAME", "NAMESPACE:read", "NAMESPACE:write"; a namespace may end in *.
    #[arg(value_name = "RIGHT", required = true)]
    pub(crate) grants: Vec<String>,
}

/// `ringspan user token`
#[derive(Debug, Args)]
pub(crate) struct UserToken {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// Whose rights it has.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// What it is for, for lists.
    #[arg(long, value_name = "TEXT", default_value = "api")]
    pub(crate) label: String,
    /// How long it holds: "12h", "30d". 1 s to 365 d.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = expires)]
    pub(crate) expires: Duration,
}

/// `ringspan token create`
#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// A service that agents with this token may offer. May be given several times; without it: any.
    #[arg(long = "service", value_name = "G")]
    pub(crate) services: Vec<String>,
    /// A secret service that agents with this token may visit. May be given several times; with it and without --service
    /// they may offer nothing.
    #[arg(long = "visit", value_name = "G")]
    pub(crate) visits: Vec<String>,
    /// An address and ports that the bridge opens if an agent with this token asks for it: "0.0.0.0:2200-2210". May be
    /// given several times.
    #[arg(long = "listen", value_name = "IP:PORTS")]
    pub(crate) listens: Vec<Ports>,
    /// A host, or all below one, whose requests agents with this token may ask for: "a.example.org", "*.example.org". May
    /// be given several times.
    #[arg(long = "http-host", value_name = "HOST")]
    pub(crate) http_hosts: Vec<Hosts>,
    /// How long the token lets agents join: "90s", "30m", "24h", "7d". 1 s to 365 d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = expires)]
    pub(crate) expires: Duration,
    /// How many agents may join with it.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) uses: NonZeroU32,
    /// Where agents find the bridge, "host:port". Default: link.public of the configuration, then the link's own
    /// address.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
}

/// `ringspan token list`
#[derive(Debug, Args)]
pub(crate) struct TokenList {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// A table for people, or one JSON object.
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub(crate) format: ListFormat,
}

/// `ringspan token revoke`
#[derive(Debug, Args)]
pub(crate) struct TokenRevoke {
    /// Which bridge.
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// The id of a token or of an agent, as `ringspan token list` shows it.
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// How lists come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

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

/// `ringspan doctor`
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// A table for people, or one JSON object.
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    pub(crate) format: ListFormat,
}

/// `ringspan check-config`
#[derive(Debug, Args)]
pub(crate) struct CheckConfig {
    /// A bridge.toml, an agent.toml or a probe.toml; which of the three it is, its sections tell.
    #[arg(value_name = "F")]
    pub(crate) file: PathBuf,
}

pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    use ringspan_engine::target::{INTERVAL_MAX, INTERVAL_MIN};
    unit::duration_within(text, INTERVAL_MIN, INTERVAL_MAX)
}

pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    use ringspan_engine::target::{TIMEOUT_MAX, TIMEOUT_MIN};
    unit::duration_within(text, TIMEOUT_MIN, TIMEOUT_MAX)
}

fn expires(text: &str) -> Result<Duration, String> {
    unit::duration_within(text, Duration::from_secs(1), Duration::from_secs(365 * 86_400))
}

fn expose(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("it must be NAME=ADDR, as in web=127.0.0.1:8081")?;
    unit::service_name(name)?;
    Ok((name.to_owned(), unit::address(address)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// clap's own check of the definitions: no two flags collide, every default parses.
    #[test]
    fn definitions_hold() {
        Cli::command().debug_assert();
    }

    /// Every flag the manual names parses; a bad value is refused with what would be right.
    #[test]
    fn flags_parse() {
        let good: &[&[&str]] = &[
            &["demo", "--seconds", "20"],
            &["bridge"],
            &["agent", "--token", "t", "--expose", "web=127.0.0.1:1", "--expose", "db=[::1]:2"],
            &["token", "create", "--service", "a", "--service", "b", "--expires", "24h", "--uses", "3"],
            &["token", "revoke", "tok-1", "--data-dir", "d"],
            &["probe", "a:1", "--mode", "half-open", "--backend", "io_uring", "--format", "ndjson", "--hlog", "f"],
            &["probe", "--file", "-", "--count", "2", "--interval", "500ms", "--timeout", "1s", "--in-flight", "7"],
            &["doctor"],
            &["agent", "--config", "f"],
            &["agent", "list", "--server", "http://h:1", "--format", "json"],
            &["agent", "show", "edge-7-0a1b2c3d"],
            &["service", "list", "--namespace", "*", "--label", "a=b"],
            &["instance", "register", "web", "[::1]:80", "--check", "tcp"],
            &["health", "web", "--token", "t"],
            &["namespace", "list"],
            &["check-config", "f"],
        ];
        for args in good {
            Cli::try_parse_from(std::iter::once(&"ringspan").chain(*args)).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        }
        let bad: &[(&[&str], &str)] = &[
            (&["probe", "a:1", "--interval", "5ms"], "below the minimum of 100ms"),
            (&["probe", "a:1", "--timeout", "1"], "it needs a unit, as in 500ms, 1s or 5m"),
            (&["agent", "--expose", "web"], "it must be NAME=ADDR"),
            (&["agent", "--config", "f", "--token", "t"], "cannot be used with"),
            (&["probe", "a:1", "--count", "0"], "invalid value '0'"),
            (&["agent", "--token", "t", "list"], "cannot be used with"),
            (&["instance", "list", "--size", "1001"], "1001 is not in 1..=1000"),
        ];
        for (args, say) in bad {
            let error = Cli::try_parse_from(std::iter::once(&"ringspan").chain(*args)).expect_err(say).to_string();
            assert!(error.contains(say), "{args:?}: {error}");
        }
    }
}
