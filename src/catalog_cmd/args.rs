//! Flags of `ringspan service`, `instance`, `agent list|show`, `namespace` and `health`.

use crate::cli::ListFormat;
use crate::config::unit;
use clap::{Args, Subcommand, ValueEnum};
use std::num::{NonZeroU8, NonZeroU16};
use std::path::PathBuf;
use std::time::Duration;

/// Which registry, and how its answer comes out.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// Where the registry's HTTP is: "http://10.0.0.5:8848". Default: RINGSPAN_SERVER, then --config's [http] listen, then
    /// http://127.0.0.1:8848.
    #[arg(long, value_name = "URL", help_heading = "Registry")]
    pub(crate) server: Option<String>,
    /// A token of an account. Default: RINGSPAN_TOKEN, which nobody sees in a list of processes.
    #[arg(long, value_name = "T", help_heading = "Registry")]
    pub(crate) token: Option<String>,
    /// PEM file of the authorities to trust instead of the system's, for https.
    #[arg(long, value_name = "F", help_heading = "Registry")]
    pub(crate) ca: Option<PathBuf>,
    /// A bridge.toml, for its [http] listen.
    #[arg(long, value_name = "F", help_heading = "Registry")]
    pub(crate) config: Option<PathBuf>,
    /// A table for people, or the JSON that the API answered with.
    #[arg(long, value_enum, default_value_t = ListFormat::Text, help_heading = "Registry")]
    pub(crate) format: ListFormat,
}

/// Which page of a list.
#[derive(Debug, Args)]
pub(crate) struct Paged {
    /// Which page, from 1.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) page: u32,
    /// How many on a page, 1 to 1000.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) size: u32,
}

/// A service by its names.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The service: "web", or with its group "shop@@web".
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
    /// Its namespace.
    #[arg(long, value_name = "N", default_value = "public")]
    pub(crate) namespace: String,
    /// Its group, if the name does not bring it.
    #[arg(long, value_name = "G", default_value = "DEFAULT_GROUP")]
    pub(crate) group: String,
}

/// An instance by its names.
#[derive(Debug, Args)]
pub(crate) struct NamedInstance {
    /// Of which service.
    #[command(flatten)]
    pub(crate) of: Named,
    /// Its address: "10.0.0.7:8080", "[::1]:80".
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// Its cluster.
    #[arg(long, value_name = "C", default_value = "DEFAULT")]
    pub(crate) cluster: String,
}

/// `ringspan service ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ringspan service list --namespace '*' --label 'team=shop,!canary'\n  \
    ringspan service show web\n  \
    ringspan service set web --protect-threshold 0.3 --metadata team=shop\n  \
    ringspan service set web --cluster DEFAULT --check http --check-path /health --check-expect 2xx --interval 1s\n  \
    ringspan service convert web --to ephemeral\n  \
    ringspan service delete web")]
pub(crate) enum Service {
    /// Services, with how their instances are.
    List(ServiceList),
    /// A service: settings, checkers, instances.
    Show(ServiceShow),
    /// Configure a service; one that is not there comes to be. What is not named stays.
    Set(Box<ServiceSet>),
    /// Make all its instances ephemeral, or persistent.
    Convert(ServiceConvert),
    /// Forget a service's settings. It must have no instances.
    Delete(ServiceShow),
}

/// `ringspan service list`
#[derive(Debug, Args)]
pub(crate) struct ServiceList {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// A namespace, or * for all.
    #[arg(long, value_name = "N", default_value = "public")]
    pub(crate) namespace: String,
    /// This group alone.
    #[arg(long, value_name = "G")]
    pub(crate) group: Option<String>,
    /// Services with this in their names.
    #[arg(long, value_name = "PART")]
    pub(crate) name: Option<String>,
    /// Those whose metadata is so: "zone=a,env!=dev,tier in (x,y),!canary".
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) label: Option<String>,
    /// Those that have an instance that is so: "down,unknown".
    #[arg(long, value_name = "LIST")]
    pub(crate) health: Option<String>,
    /// Which page.
    #[command(flatten)]
    pub(crate) paged: Paged,
}

/// `ringspan service show` and `delete`
#[derive(Debug, Args)]
pub(crate) struct ServiceShow {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which service.
    #[command(flatten)]
    pub(crate) of: Named,
}

/// `ringspan service convert`
#[derive(Debug, Args)]
pub(crate) struct ServiceConvert {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which service.
    #[command(flatten)]
    pub(crate) of: Named,
    /// What they are to be.
    #[arg(long, value_enum)]
    pub(crate) to: KindArg,
}

/// A kind of instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindArg {
    /// On disk until deregistered, and probed.
    Persistent,
    /// In memory, by its beats.
    Ephemeral,
}

/// `ringspan service set`
#[derive(Debug, Args)]
pub(crate) struct ServiceSet {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which service.
    #[command(flatten)]
    pub(crate) of: Named,
    /// Below this share of healthy instances Nacos' view shows all of them. 0 to 1; 0: never.
    #[arg(long, value_name = "SHARE")]
    pub(crate) protect_threshold: Option<f64>,
    /// Metadata, of the service or, with --cluster, of the cluster.
    #[command(flatten)]
    pub(crate) pairs: Pairs,
    /// The cluster that checker, vantages and metadata are for. Without it: checkers of DEFAULT, the rest of the service.
    #[arg(long, value_name = "C")]
    pub(crate) cluster: Option<String>,
    /// How its instances are checked.
    #[command(flatten)]
    pub(crate) check: CheckArgs,
    /// Who checks.
    #[command(flatten)]
    pub(crate) panel: PanelArgs,
}

/// Metadata.
#[derive(Debug, Args)]
pub(crate) struct Pairs {
    /// A pair to set. May be given several times.
    #[arg(long = "metadata", value_name = "K=V", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// A key to take away. May be given several times.
    #[arg(long = "unset", value_name = "K")]
    pub(crate) unset: Vec<String>,
}

/// Who checks.
#[derive(Debug, Args)]
pub(crate) struct PanelArgs {
    /// Who checks: "registry", "agent:edge-7", or several, separated by commas; "default": as if never said.
    #[arg(long, value_name = "LIST")]
    pub(crate) checked_by: Option<String>,
    /// How many of them must find an instance well. Default: more than half.
    #[arg(long, value_name = "N", requires = "checked_by")]
    pub(crate) quorum: Option<NonZeroU8>,
}

/// A checker.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Checker of the cluster")]
pub(crate) struct CheckArgs {
    /// What persistent instances are asked.
    #[arg(long, value_enum)]
    pub(crate) check: Option<CheckKind>,
    /// The port that is checked. Default: each instance's own.
    #[arg(long, value_name = "PORT", requires = "check")]
    pub(crate) check_port: Option<NonZeroU16>,
    /// http: path and query. Default /.
    #[arg(long, value_name = "PATH", requires = "check")]
    pub(crate) check_path: Option<String>,
    /// http: a header, "Name: value". May be given several times.
    #[arg(long, value_name = "H", value_parser = header, requires = "check")]
    pub(crate) check_header: Vec<(String, String)>,
    /// http: statuses that are well, as in 200 or 2xx,301. Default 200.
    #[arg(long, value_name = "LIST", requires = "check", value_delimiter = ',')]
    pub(crate) check_expect: Vec<String>,
    /// mysql: who logs in.
    #[arg(long, value_name = "NAME", requires = "check")]
    pub(crate) check_user: Option<String>,
    /// mysql: with what. Default: RINGSPAN_CHECK_PASSWORD, which nobody sees in a list of processes.
    #[arg(long, value_name = "PW", requires = "check")]
    pub(crate) check_password: Option<String>,
    /// mysql: what must not fail.
    #[arg(long, value_name = "SQL", requires = "check")]
    pub(crate) check_query: Option<String>,
    /// Repeat and believe it as the registry does, or as Nacos does.
    #[arg(long, value_enum, requires = "check", conflicts_with_all = ["interval", "timeout", "rise", "fall"])]
    pub(crate) manner: Option<MannerArg>,
    /// From probe to probe. 100ms to 1h.
    #[arg(long, value_name = "TIME", requires = "check", value_parser = crate::cli::interval)]
    pub(crate) interval: Option<Duration>,
    /// Until a probe has failed. 1ms to 60s.
    #[arg(long, value_name = "TIME", requires = "check", value_parser = crate::cli::timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Successes in a row before "up".
    #[arg(long, value_name = "N", requires = "check")]
    pub(crate) rise: Option<NonZeroU8>,
    /// Failures in a row before "down".
    #[arg(long, value_name = "N", requires = "check")]
    pub(crate) fall: Option<NonZeroU8>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckKind {
    /// A TCP handshake.
    Tcp,
    /// GET, and a status.
    Http,
    /// A login and a statement.
    Mysql,
    /// Nothing: health is set by hand.
    None,
}

/// In which manner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MannerArg {
    /// Each 5 s; 2 successes, 3 failures.
    Own,
    /// As Nacos does.
    Nacos,
}

/// `ringspan instance ...`
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    ringspan instance register web 10.0.0.7:8080 --metadata zone=a --check http --check-path /health\n  \
    ringspan instance list web --label 'zone in (a,b)' --health down\n  \
    ringspan instance set web 10.0.0.7:8080 --weight 0 --unset canary\n  \
    ringspan instance health web 10.0.0.7:8080 down         where the checker is none\n  \
    ringspan instance probe web 10.0.0.7:8080               now, not when it is its turn\n  \
    ringspan instance deregister web 10.0.0.7:8080")]
pub(crate) enum Instance {
    /// Instances of a service, or of all.
    List(InstanceList),
    /// An instance, and what each vantage found.
    Show(InstanceShow),
    /// Put an instance in, with its cluster's checker in the same step; or put this record in the place of the old one.
    Register(Box<InstanceRegister>),
    /// Change what is named.
    Set(InstanceSet),
    /// Take an instance out.
    Deregister(InstanceShow),
    /// Set health by hand, where the cluster's checker is none.
    Health(InstanceHealth),
    /// Have it probed now, by all who check it. Exit code 0: it is up; 1: it is not.
    Probe(InstanceShow),
}

/// `ringspan instance list`
#[derive(Debug, Args)]
pub(crate) struct InstanceList {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// The service: "web", or with its group "shop@@web". Without it: all.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// A namespace; * for all, where no service is named.
    #[arg(long, value_name = "N", default_value = "public")]
    pub(crate) namespace: String,
    /// This group alone; of a named service its group.
    #[arg(long, value_name = "G")]
    pub(crate) group: Option<String>,
    /// This cluster alone.
    #[arg(long, value_name = "C")]
    pub(crate) cluster: Option<String>,
    /// Those whose metadata is so: "zone=a,env!=dev,tier in (x,y),!canary".
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) label: Option<String>,
    /// Those that are so: "down,unknown".
    #[arg(long, value_name = "LIST")]
    pub(crate) health: Option<String>,
    /// Which page.
    #[command(flatten)]
    pub(crate) paged: Paged,
}

/// `ringspan instance show`, `deregister` and `probe`
#[derive(Debug, Args)]
pub(crate) struct InstanceShow {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which instance.
    #[command(flatten)]
    pub(crate) which: NamedInstance,
}

/// `ringspan instance register`
#[derive(Debug, Args)]
pub(crate) struct InstanceRegister {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which instance.
    #[command(flatten)]
    pub(crate) which: NamedInstance,
    /// It lives by its beats, in memory. Without it: on disk until deregistered.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Its share of the visitors, 0 to 10000.
    #[arg(long, value_name = "W", default_value = "1")]
    pub(crate) weight: f64,
    /// Clients are not to see it yet.
    #[arg(long)]
    pub(crate) disabled: bool,
    /// A pair of metadata. May be given several times.
    #[arg(long = "metadata", value_name = "K=V", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Who checks it.
    #[command(flatten)]
    pub(crate) panel: PanelArgs,
    /// How its cluster is checked.
    #[command(flatten)]
    pub(crate) check: CheckArgs,
}

/// `ringspan instance set`
#[derive(Debug, Args)]
pub(crate) struct InstanceSet {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which instance.
    #[command(flatten)]
    pub(crate) which: NamedInstance,
    /// Its share of the visitors, 0 to 10000.
    #[arg(long, value_name = "W")]
    pub(crate) weight: Option<f64>,
    /// Whether clients may see it.
    #[arg(long, value_name = "BOOL")]
    pub(crate) enabled: Option<bool>,
    /// Metadata.
    #[command(flatten)]
    pub(crate) pairs: Pairs,
    /// Who checks it.
    #[command(flatten)]
    pub(crate) panel: PanelArgs,
}

/// `ringspan instance health`
#[derive(Debug, Args)]
pub(crate) struct InstanceHealth {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which instance.
    #[command(flatten)]
    pub(crate) which: NamedInstance,
    /// What it is.
    #[arg(value_enum)]
    pub(crate) health: HealthArg,
}

/// Health as a person sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HealthArg {
    /// Well.
    Up,
    /// Not well.
    Down,
}

/// `ringspan agent list` and `show`
#[derive(Debug, Subcommand)]
pub(crate) enum AgentQuery {
    /// Agents that the registry knows, and how what they expose is.
    List(AgentList),
    /// An agent, what it exposes, and what it was asked to look at.
    Show(AgentShow),
}

/// `ringspan agent list`
#[derive(Debug, Args)]
pub(crate) struct AgentList {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// Which page.
    #[command(flatten)]
    pub(crate) paged: Paged,
}

/// `ringspan agent show`
#[derive(Debug, Args)]
pub(crate) struct AgentShow {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// The agent, as `ringspan agent list` names it.
    #[arg(value_name = "AGENT")]
    pub(crate) agent: String,
}

/// `ringspan namespace ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Namespace {
    /// Namespaces that services are in.
    List(AgentList),
}

/// `ringspan health`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ringspan health || page-somebody\n  \
    ringspan health web --namespace dev\n\n\
    Exit codes: 0 all is well; 1 an enabled instance is down, or unknown because nobody can look (its agent is gone, \
    ...), or there was no answer; 2 wrong usage. What has just come and was not looked at yet is shown, and no failure.")]
pub(crate) struct Health {
    /// Which registry.
    #[command(flatten)]
    pub(crate) ask: Ask,
    /// The service: "web", or with its group "shop@@web". Without it: all.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// A namespace. Default: all; of a named service: public.
    #[arg(long, value_name = "N")]
    pub(crate) namespace: Option<String>,
    /// This group alone; of a named service its group.
    #[arg(long, value_name = "G")]
    pub(crate) group: Option<String>,
    /// Instances whose metadata is so alone.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) label: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be K=V, as in zone=a")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("it must be \"Name: value\"")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Host and port of an instance.
pub(super) fn address(text: &str) -> Result<(String, u16), String> {
    let right = "it must be HOST:PORT, as in 10.0.0.7:8080 or [::1]:80";
    let (host, port) = text.rsplit_once(':').ok_or(right)?;
    let port = port.parse().ok().filter(|p| *p > 0).ok_or(right)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(right.into());
    }
    Ok((host.to_owned(), port))
}

/// A time in milliseconds.
pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How a time is shown.
pub(super) fn shown(time: Duration) -> String {
    unit::Shown(time).to_string()
}
