//! The command line of what asks a bridge through its data folder: `token`, `user`, `registry`. Their answers:
//! [`office`](crate::office).

use super::{ListFormat, expires};
use clap::{Args, Subcommand};
use ringspan_tunnel::rights::{Hosts, Ports};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

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
