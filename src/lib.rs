//! The command as a library: the binary is one call of [`main`], and the readers of what people write can be fuzzed.
//!
//! Exit codes: 0 all is good, 1 something is down or went wrong at run time, 2 the command line or a configuration file
//! is wrong (clap's own code for usage, too).

mod admin;
mod agent_cmd;
mod bridge_cmd;
mod catalog_cmd;
mod check_config;
mod cli;
mod config;
mod demo;
mod dns_sockets;
mod doctor;
mod doors;
mod fixed;
pub mod fuzz;
mod http_server;
mod http_tls;
mod inherit;
mod keyring;
mod logging;
mod machine;
mod office;
mod probe_cmd;
mod registry_cmd;
mod report_cmd;
mod token_cmd;
mod user_cmd;
mod watch_file;

use clap::Parser;
use std::process::ExitCode;

/// How a subcommand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All is good.
    Good,
    /// Something is down, or did not go as promised.
    Down,
}

/// Why a subcommand could not do its work. The text is the whole message: input, reason, next step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or a configuration file is wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The machine or a peer said no: exit code 1.
    #[error("{0}")]
    Run(String),
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// Writes to stdout. A reader that has gone away (`| head`) is no reason to fail: the exit code still speaks.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Reads the command line, runs one subcommand, turns its end into an exit code.
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    logging::start(cli.log, cli.command.log_level());
    match run(cli.command) {
        Ok(Ending::Good) => ExitCode::SUCCESS,
        Ok(Ending::Down) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("ringspan: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                Failure::Run(_) => 1,
            })
        }
    }
}

fn run(command: cli::Command) -> Result<Ending, Failure> {
    match command {
        cli::Command::Agent(args) => match &args.query {
            Some(query) => catalog_cmd::agent(query),
            None => agent_cmd::run(&args),
        },
        cli::Command::Service(command) => catalog_cmd::service(&command),
        cli::Command::Instance(command) => catalog_cmd::instance(&command),
        cli::Command::Namespace(command) => catalog_cmd::namespace(&command),
        cli::Command::Health(args) => catalog_cmd::health(&args),
        cli::Command::Bridge(args) => bridge_cmd::run(&args),
        cli::Command::CheckConfig(args) => check_config::run(&args),
        cli::Command::Doctor(args) => doctor::run(&args),
        cli::Command::Probe(args) => probe_cmd::run(&args),
        cli::Command::Registry(command) => registry_cmd::run(&command),
        cli::Command::Report(args) => report_cmd::run(&args),
        cli::Command::Token(command) => token_cmd::run(&command),
        cli::Command::User(command) => user_cmd::run(&command),
        cli::Command::Demo(args) => demo::run(&args),
    }
}
