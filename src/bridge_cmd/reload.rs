//! Another configuration for a bridge that runs.
//! Promise: a file with a mistake, or one that cannot be had, changes nothing; what takes a restart is named.

use super::listeners;
use super::server::BridgeServer;
use crate::Failure;
use crate::config::bridge::Bridge as Config;
use crate::watch_file::Why;
use std::net::SocketAddr;
use std::path::Path;

impl BridgeServer {
    /// Reads the configuration again and does what it says. A bad one changes nothing. What was done, or what is wrong.
    pub(crate) async fn reload(&mut self, file: &Path, why: Why) -> Result<Vec<String>, Failure> {
        let done = match Config::read(file) {
            Ok(config) => self.apply(config).await,
            Err(error) => Err(error.into()),
        };
        match &done {
            Ok(told) if told.is_empty() => {
                tracing::info!(file = %file.display(), ?why, "configuration read again: the same")
            }
            Ok(told) => {
                told.iter().for_each(|line| tracing::info!("{line}"));
                tracing::info!(file = %file.display(), ?why, changes = told.len(), "configuration read again");
            }
            Err(failure) => tracing::error!(%failure, ?why, "configuration not read again: the old one stays"),
        }
        done
    }

    /// Goes over to another configuration, as far as a running bridge can.
    async fn apply(&mut self, config: Config) -> Result<Vec<String>, Failure> {
        let config = self.as_running(config);
        let told = listeners::change(&self.handle, &mut self.doors, &self.config.listeners, &config.listeners).await?;
        for (what, same) in [
            ("data_dir", self.config.data_dir == config.data_dir),
            ("[http]", self.config.http_listen == config.http_listen),
            ("[link]", self.config.link == config.link),
            ("[engine]", self.config.engine == config.engine),
        ] {
            if !same {
                tracing::warn!("{what} has changed: that takes a restart. Try: ringspan bridge again beside this one");
            }
        }
        self.config.listeners = config.listeners;
        Ok(told)
    }

    /// The same, where an address that we have is spelled as it was asked for: port 0 asks for any, and got that one.
    fn as_running(&self, mut config: Config) -> Config {
        let real = self.real_config();
        let keep = |asked: SocketAddr, real: SocketAddr, new: &mut SocketAddr| {
            if *new == real {
                *new = asked;
            }
        };
        keep(self.config.http_listen, real.http_listen, &mut config.http_listen);
        keep(self.config.link.listen, real.link.listen, &mut config.link.listen);
        for (old, real) in self.config.listeners.iter().zip(&real.listeners) {
            if let Some(new) = config.listeners.iter_mut().find(|l| l.name == old.name) {
                keep(old.listen, real.listen, &mut new.listen);
            }
        }
        config
    }
}
