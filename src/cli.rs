//! The command line: every subcommand, flag, unit and default, and the examples that `--help` shows.
//! Promise: what leaves here is parsed; what needs a file, a name server or a kernel is checked by the subcommand.

mod office;
mod probe;

use crate::catalog_cmd::args as catalog;
use crate::config::unit;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use office::*;
pub(crate) use probe::*;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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

/// How lists come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `ringspan doctor`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ringspan doctor                           what this machine can do\n  \
    ringspan doctor --config bridge.toml      and what a bridge with this file would make of it")]
pub(crate) struct Doctor {
    /// A bridge.toml or an agent.toml: its workers, what they open, and who encrypts its links, as the program would have
    /// it on this machine with this environment.
    #[arg(long, value_name = "F")]
    pub(crate) config: Option<PathBuf>,
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
            &["doctor", "--config", "f", "--format", "json"],
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
