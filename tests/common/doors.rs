//! A bridge with any listeners and an agent with any backends, each a real process on loopback.

use super::world::get;
use super::{Running, parts, ringspan, run_with, until};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Both of them, and where they are.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) bridge: Running,
    pub(crate) agent: Running,
    pub(crate) http: SocketAddr,
}

impl Place {
    /// Starts a bridge with these `[[listener]]`s and an agent with these `[[expose]]`s, and waits until every backend
    /// that the agent exposes is up.
    pub(crate) fn start(listeners: &str, exposes: &str) -> Place {
        Place::start_with(listeners, exposes, |_| {})
    }

    /// The same, with something done in the folder before the agent starts.
    pub(crate) fn start_with(listeners: &str, exposes: &str, prepare: impl FnOnce(&Path)) -> Place {
        let (folder, bridge, http) = Place::bridge(listeners);
        prepare(folder.path());
        let token = token(folder.path(), &[]);
        let config = format!("[link]\ntoken = \"{token}\"\nstate_dir = \"state\"\n{exposes}");
        std::fs::write(folder.path().join("agent.toml"), config).expect("written");
        let agent = Running::start(ringspan(&["agent", "--config", "agent.toml"]).current_dir(folder.path()));
        let place = Place { folder, bridge, agent, http };
        for n in 0..exposes.matches("[[expose]]").count() {
            until("all backends to be up", || (place.bridge.text().matches("backend up").count() > n).then_some(()));
        }
        place
    }

    fn bridge(listeners: &str) -> (tempfile::TempDir, Running, SocketAddr) {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n{listeners}"
        );
        std::fs::write(folder.path().join("bridge.toml"), config).expect("written");
        let bridge = Running::start(ringspan(&["bridge", "--config", "bridge.toml"]).current_dir(folder.path()));
        let http = address_in(&bridge.wait_line(&["bridge is up"]), "http");
        (folder, bridge, http)
    }

    /// A fresh join token.
    pub(crate) fn token(&self, more: &[&str]) -> String {
        token(self.folder.path(), more)
    }

    /// Where a listener is.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        address_in(&self.bridge.wait_line(&["listener", &format!("name=\"{name}\"")]), "address")
    }

    /// A series of the bridge's metrics.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = get(self.http, "/metrics").expect("it serves").1;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or_else(|| panic!("{name} in {text}"));
        value.parse::<f64>().unwrap_or_else(|_| panic!("{name} = {value}")) as u64
    }

    /// A program in the place's folder.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path());
        command
    }
}

/// The address behind `key=` in a line of the log.
pub(crate) fn address_in(line: &str, key: &str) -> SocketAddr {
    let rest = line.split(&format!(" {key}=")).nth(1).unwrap_or_else(|| panic!("{key} in {line}"));
    rest.split_whitespace().next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{key} in {line}"))
}

fn token(folder: &Path, more: &[&str]) -> String {
    let mut args = vec!["token", "create", "--config", "bridge.toml"];
    args.extend(more);
    let (code, token, err) = parts(&run_with(ringspan(&args).current_dir(folder), ""));
    assert_eq!(code, 0, "{err}");
    token.trim().to_owned()
}
