//! The office: what `ringspan token` may ask for, and the answers. One implementation for a running bridge (asked
//! through its admin socket) and for a stopped one (the command opens the keyring itself).
//! Promise: requests and answers are plain values; secrets are in the answer to `create` alone, once.

use crate::bridge_cmd::cluster;
use crate::keyring::{Error, Keyring, Revoked};
use ringspan_registry::access;
use ringspan_registry::transfer::Counts;
use ringspan_tunnel::address::Address;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::hello::AgentRecord;
use ringspan_tunnel::identity::AgentId;
use ringspan_tunnel::rights::Rights;
use ringspan_tunnel::token::{GrantTerms, JoinGrant, JoinToken, Scope};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// A new join token.
    Create {
        /// Services; none: any.
        services: Vec<String>,
        /// From now.
        expires_s: u64,
        /// Agents that may join.
        uses: u32,
        /// In place of the bridge's own address.
        address: Option<Address>,
        /// What its agents may do besides.
        #[serde(default)]
        rights: Rights,
    },
    /// Tokens and agents.
    List,
    /// The id of a token or an agent.
    Revoke {
        /// As `list` shows it.
        id: String,
    },
    /// The registry's records, into this file.
    RegistryExport {
        /// Of this machine.
        to: PathBuf,
    },
    /// A change of the registry's accounts.
    Account(access::Change),
    /// The registry's accounts.
    Accounts,
    /// This file's records, into the registry.
    RegistryImport {
        /// Of this machine.
        from: PathBuf,
    },
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The token, to be shown once.
    Created {
        /// To paste.
        token: String,
        /// For lists.
        id: String,
        /// Where it tells agents to go.
        address: Address,
        /// Whether it pins a TLS key.
        pinned: bool,
    },
    /// Tokens and agents.
    Listed(Listing),
    /// A token: no further agent joins with it.
    RevokedToken,
    /// An agent: it stays out; `was_connected` says whether it had to be thrown out first.
    RevokedAgent {
        /// It had a link.
        was_connected: bool,
    },
    /// So many records went out or in.
    Registry(Counts),
    /// Accounts are changed.
    Account {
        /// A new API token, to be shown once.
        token: Option<String>,
    },
    /// Accounts, without their hashes.
    Accounts(Vec<access::Listed>),
    /// The request was wrong.
    Wrong(String),
    /// The bridge could not do it.
    Failed(String),
}

/// Tokens and agents.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// Oldest first.
    pub(crate) tokens: Vec<JoinGrant>,
    /// Oldest first.
    pub(crate) agents: Vec<ListedAgent>,
}

/// An agent in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ListedAgent {
    /// What the keyring knows.
    #[serde(flatten)]
    pub(crate) record: AgentRecord,
    /// Whether it has a link now; `None` if no bridge runs.
    pub(crate) connected: Option<bool>,
}

/// What a running bridge knows and does beyond the keyring.
pub(crate) trait Floor: Send + Sync {
    /// Whether the agent has a link.
    fn is_connected(&self, agent: AgentId) -> bool;
    /// Ends the agent's link; whether it had one.
    fn disconnect(&self, agent: AgentId) -> bool;
    /// Takes the instances of the agent's cluster out of the registry.
    fn forget(&self, cluster: String);
    /// Writes the registry's records into a file.
    fn export(&self, to: &Path) -> Result<Counts, String>;
    /// Changes or lists the registry's accounts. Blocks until a change is stored.
    fn accounts(&self, request: Request) -> Answer;
    /// Reads a file's records into the registry. Blocks until they are stored.
    fn import(&self, from: &Path) -> Result<Counts, String>;
}

/// Answers requests.
pub(crate) struct Office {
    /// Tokens and agents.
    pub(crate) keyring: Arc<Keyring>,
    /// Where agents find the bridge.
    pub(crate) address: Address,
    /// How they know it.
    pub(crate) trust: Trust,
    /// `None` if no bridge runs.
    pub(crate) floor: Option<Arc<dyn Floor>>,
}

impl Office {
    /// Does what is asked. May write to disk: not for a thread that must not wait.
    pub(crate) fn answer(&self, request: Request) -> Answer {
        match self.try_answer(request) {
            Ok(answer) => answer,
            Err(e @ Error::NoSuchId(_)) => Answer::Wrong(e.to_string()),
            Err(e) => Answer::Failed(e.to_string()),
        }
    }

    fn records(&self, work: impl FnOnce(&dyn Floor) -> Result<Counts, String>) -> Answer {
        match &self.floor {
            Some(floor) => work(&**floor).map_or_else(Answer::Failed, Answer::Registry),
            None => Answer::Failed("no bridge runs here".into()),
        }
    }

    fn try_answer(&self, request: Request) -> Result<Answer, Error> {
        match request {
            Request::Create { services, expires_s, uses, address, rights } => {
                let now = unix_now();
                let address = address.unwrap_or_else(|| self.address.clone());
                if self.trust == Trust::Plain && !address.is_loopback() {
                    tracing::warn!(%address, "token for a link in the clear");
                }
                let terms = GrantTerms {
                    // Who is to visit and says no more is not to expose.
                    scope: match services.is_empty() && !rights.visits.is_empty() {
                        true => Scope::Services(BTreeSet::new()),
                        false => Scope::of(services),
                    },
                    rights,
                    expires_at: Some(now.saturating_add(expires_s)),
                    uses: Some(uses),
                };
                let (token, grant) = JoinToken::create(address.clone(), self.trust, terms, now);
                self.keyring.add(&grant)?;
                tracing::info!(token = %grant.id, uses, expires_s, "token created");
                let (id, pinned) = (grant.id.to_string(), self.trust != Trust::Plain);
                Ok(Answer::Created { token: token.to_paste(), id, address, pinned })
            }
            Request::Account(_) | Request::Accounts => Ok(match &self.floor {
                Some(floor) => floor.accounts(request),
                None => Answer::Failed("no bridge runs here".into()),
            }),
            Request::RegistryExport { to } => Ok(self.records(|floor| floor.export(&to))),
            Request::RegistryImport { from } => Ok(self.records(|floor| floor.import(&from))),
            Request::List => {
                let connected = |id| self.floor.as_ref().map(|f| f.is_connected(id));
                let agents = self.keyring.agents()?.into_iter();
                let agents = agents.map(|record| ListedAgent { connected: connected(record.id), record }).collect();
                Ok(Answer::Listed(Listing { tokens: self.keyring.grants()?, agents }))
            }
            Request::Revoke { id } => Ok(match self.keyring.revoke(&id)? {
                Revoked::Token(id) => {
                    tracing::info!(token = %id, "token revoked");
                    Answer::RevokedToken
                }
                Revoked::Agent(record) => {
                    let agent = record.id;
                    let was_connected = self.floor.as_ref().is_some_and(|f| f.disconnect(agent));
                    if let Some(floor) = &self.floor {
                        floor.forget(cluster(&record.name, agent));
                    }
                    tracing::info!(%agent, was_connected, "agent revoked");
                    Answer::RevokedAgent { was_connected }
                }
            }),
        }
    }
}

/// Unix time in seconds; 0 on a clock before 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
