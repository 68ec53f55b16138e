//! Which bridge an agent belongs to and who it is there: from its state folder, and from its token the first time.
//! Promise: one agent a state folder (two would throw each other out for ever); a damaged token of an agent that has
//! joined already is said and ignored.

use crate::Failure;
use crate::config::agent_link::AgentLink as Config;
use ringspan_tunnel::address::Address;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::identity::{AgentKey, AgentName, Bridge};
use ringspan_tunnel::token::JoinToken;
use std::fs::{DirBuilder, File, TryLockError};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// In the state folder; held while the agent runs.
const LOCK_FILE: &str = "lock";

/// Who, where, and how to know it.
pub(super) struct Link {
    pub(super) identity: AgentKey,
    pub(super) token: Option<JoinToken>,
    pub(super) bridge: Address,
    pub(super) trust: Trust,
    /// Whether it has joined this bridge before.
    pub(super) is_enrolled: bool,
    _lock: File,
}

impl Link {
    /// Finds out, or says what is missing.
    pub(super) fn settle(config: &Config) -> Result<Link, Failure> {
        let lock = lock(&config.state_dir)?;
        let usage = |text: String| Failure::Usage(text);
        let name = || config.name.clone().unwrap_or_else(host_name);
        let identity = AgentKey::load_or_create(&config.state_dir, name);
        let mut identity = identity.map_err(|e| Failure::Run(e.to_string()))?;
        if let Some(name) = &config.name {
            identity.name = name.clone();
        }
        let token = match config.token.as_ref().map(|secret| secret.0.parse::<JoinToken>()) {
            None => None,
            Some(Ok(token)) => Some(token),
            Some(Err(error)) if identity.bridge.is_some() => {
                tracing::warn!(%error, "the token is of no use; this agent has joined already and needs none");
                None
            }
            Some(Err(error)) => return Err(usage(format!("token: {error}"))),
        };
        let (bridge, trust) = match (&token, &identity.bridge) {
            // A token is newer than the state folder if it names another place.
            (Some(token), _) => (token.address.clone(), token.trust),
            (None, Some(known)) => (known.address.clone(), known.trust),
            (None, None) => {
                let missing = match &config.token_file_missing {
                    Some(file) => format!("has no token: token_file {} is not there or empty", file.display()),
                    None => "has no token".to_owned(),
                };
                return Err(usage(format!(
                    "state_dir {}: this agent has not joined a bridge yet and {missing}. Try: `ringspan token create` \
                     on the bridge, and here --token, or token_file in [link]",
                    config.state_dir.display()
                )));
            }
        };
        let is_enrolled = identity.bridge.as_ref().is_some_and(|known| known.trust == trust);
        Ok(Link { identity, token, bridge, trust, is_enrolled, _lock: lock })
    }

    /// A token that the configuration has now: for services that the first one did not cover. One of another bridge
    /// takes a restart, and one that is none is of no use.
    pub(super) fn take_token(&mut self, config: &Config) {
        match config.token.as_ref().map(|secret| secret.0.parse::<JoinToken>()) {
            Some(Ok(token)) if token.address == self.bridge && token.trust == self.trust => self.token = Some(token),
            Some(Ok(_)) => tracing::warn!("[link] token is for another bridge: that takes a restart of the agent"),
            Some(Err(error)) => tracing::warn!(%error, "[link] token is of no use: the one of before stays"),
            None => {}
        }
    }

    /// The bridge has let us in: from now on the token is not needed.
    pub(super) fn on_welcome(&mut self, state_dir: &Path) {
        self.is_enrolled = true;
        let bridge = Some(Bridge { address: self.bridge.clone(), trust: self.trust });
        if self.identity.bridge == bridge {
            return;
        }
        self.identity.bridge = bridge;
        if let Err(error) = self.identity.save(state_dir) {
            tracing::warn!(%error, "cannot remember the bridge: the token is needed again next time");
        }
    }

    /// The bridge's addresses now; none if its name has none. Blocks.
    pub(super) fn resolve(address: &Address) -> Vec<SocketAddr> {
        if let Some(known) = address.ip() {
            return vec![known];
        }
        match (address.host().as_str(), address.port()).to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(error) => {
                tracing::warn!(bridge = %address, %error, "the bridge's name has no address. It is asked for again");
                Vec::new()
            }
        }
    }
}

fn lock(state_dir: &Path) -> Result<File, Failure> {
    let say = |e: std::io::Error| {
        Failure::Run(format!("state_dir {}: {e}. Try: a folder this user can write to", state_dir.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(say)?;
    let file = File::create(state_dir.join(LOCK_FILE)).map_err(say)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::Run(format!(
            "state_dir {}: another agent runs with this identity. Stop that one first, or give this one a state_dir of \
             its own",
            state_dir.display()
        ))),
        Err(TryLockError::Error(e)) => Err(say(e)),
    }
}

/// This machine's name, as far as it is one.
fn host_name() -> AgentName {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fallback = || "agent".to_owned().try_into().expect("a name");
    AgentName::try_from(name.trim().to_owned()).unwrap_or_else(|_| fallback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::agent::Secret;
    use ringspan_tunnel::token::GrantTerms;

    fn config(state_dir: &Path, token: Option<String>) -> Config {
        Config { token: token.map(Secret), ..Config::at(state_dir.to_owned()) }
    }

    fn settle(state_dir: &Path, token: Option<&str>) -> Result<Link, String> {
        Link::settle(&config(state_dir, token.map(str::to_owned))).map_err(|e| e.to_string())
    }

    /// A token is needed until the first welcome and not after it; a second agent is kept out meanwhile.
    #[test]
    fn a_token_is_needed_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("state");
        assert!(settle(&dir, None).err().expect("no token").contains("ringspan token create"));
        assert!(
            settle(&dir, Some("x")).err().expect("no token").starts_with("token: the join token has no @host:port")
        );
        let address: Address = "127.0.0.1:8024".parse().expect("an address");
        let token = JoinToken::create(address.clone(), Trust::Plain, GrantTerms::default(), 0).0.to_paste();
        let mut link = settle(&dir, Some(&token)).expect("a good token");
        assert!(!link.is_enrolled);
        assert!(settle(&dir, Some(&token)).err().expect("it is taken").contains("another agent runs"));
        link.on_welcome(&dir);
        let id = link.identity.id();
        drop(link);
        for token in [None, Some("damaged"), Some(token.as_str())] {
            let link = settle(&dir, token).expect("it has joined");
            assert_eq!((link.is_enrolled, link.identity.id(), &link.bridge), (true, id, &address));
        }
    }
}
