//! Whoever has a request in hand: goes along with the task that answers it, so that the registry itself asks whether a
//! change may be, and notes it, whichever way the request came. A handler cannot forget it.
//! What has no actor is the process's own doing: probes, agents, clocks.

use super::admin::{Change as AccountChange, Refused};
use super::audit::{Line, rfc3339};
use super::{Access, Action, LoginError, Principal, Unknown};
use crate::model::{Instance, InstanceId, ServiceKey, ServiceMeta};
use crate::table::{Change, Changes, Command, Refusal};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Lines of one command: a batch of a thousand instances is told by its first ones, and how many more there are.
const LINES_MAX: usize = 16;

tokio::task_local! {
    static ACTOR: Actor;
}

/// See the module.
#[derive(Clone)]
pub struct Actor {
    /// Of which registry.
    pub access: Access,
    /// Who.
    pub principal: Principal,
    /// From where.
    pub peer: Option<SocketAddr>,
    /// By which protocol: "http", "grpc", "socket".
    pub via: &'static str,
}

impl Actor {
    /// Whatever `work` asks of the registry is asked by this one.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        ACTOR.scope(self, work).await
    }

    /// Who has the request in hand, if anybody has.
    pub(crate) fn current() -> Option<Actor> {
        ACTOR.try_with(Actor::clone).ok()
    }

    fn line(&self, action: &str, outcome: String) -> Line {
        Line {
            time: rfc3339(self.access.now_ms()),
            who: self.principal.name().to_string(),
            address: self.peer.map(|p| p.to_string()),
            via: self.via,
            action: action.to_owned(),
            outcome,
            ..Line::default()
        }
    }
}

/// A command's name, the service it is about, and the instance.
fn subject(command: &Command) -> Option<(&'static str, &ServiceKey, Option<&InstanceId>)> {
    Some(match command {
        Command::Register { service, instance } => ("register", service, Some(&instance.id)),
        Command::Deregister { service, id, .. } => ("deregister", service, Some(id)),
        Command::Update { service, id, .. } => ("update", service, Some(id)),
        Command::PutService { service, .. } => ("service put", service, None),
        Command::EditService { service, .. } => ("service edit", service, None),
        Command::EditInstance { service, id, .. } => ("update", service, Some(id)),
        Command::DeleteService { service } => ("service delete", service, None),
        Command::PutCluster { service, .. } => ("cluster put", service, None),
        Command::SetHealth { service, id, .. } => ("health set", service, Some(id)),
        Command::ClientPublish { service, .. } => ("register", service, None),
        Command::ClientWithdraw { service, id, .. } => ("deregister", service, Some(id)),
        Command::Beat { service, id } => ("beat", service, Some(id)),
        Command::Convert { service, .. } => ("service convert", service, None),
        Command::Steer { service, .. } => ("service steer", service, None),
        Command::ClientGone { .. }
        | Command::Heard { .. }
        | Command::Witnessed { .. }
        | Command::Tick { .. }
        | Command::AgentUp { .. }
        | Command::AgentHeard { .. }
        | Command::AgentGone { .. }
        | Command::AgentForget { .. } => return None,
    })
}

/// A command that was asked for by somebody.
pub(crate) struct Noted {
    actor: Actor,
    action: &'static str,
    service: ServiceKey,
    instance: Option<InstanceId>,
    is_beat: bool,
}

/// Asks whether whoever has the request in hand may have this done.
pub(crate) fn guarded(command: &Command) -> Result<Option<Noted>, Refusal> {
    let Some((action, service, instance)) = subject(command) else { return Ok(None) };
    let look = |actor: &Actor| {
        let may = actor.principal.may(service.namespace(), Action::Write);
        let notes = actor.access.audit().is_some();
        (may, (notes || !may).then(|| actor.clone()))
    };
    let Ok((may, actor)) = ACTOR.try_with(look) else { return Ok(None) };
    let noted = actor.map(|actor| Noted {
        actor,
        action,
        service: service.clone(),
        instance: instance.cloned(),
        is_beat: matches!(command, Command::Beat { .. }),
    });
    if may {
        return Ok(noted);
    }
    let refusal = Refusal::Denied { namespace: service.namespace().clone() };
    if let Some(noted) = noted {
        noted.end(&Err(refusal.clone()));
    }
    Err(refusal)
}

impl Noted {
    /// What came of it.
    pub(crate) fn end(self, outcome: &Result<Arc<Changes>, Refusal>) {
        let Some(audit) = self.actor.access.audit() else { return };
        let line = |outcome: String| Line {
            namespace: Some(self.service.namespace().to_string()),
            group: Some(self.service.group().to_string()),
            service: Some(self.service.name().to_string()),
            instance: self.instance.as_ref().map(ToString::to_string),
            ..self.actor.line(self.action, outcome)
        };
        let changes = match outcome {
            Ok(changes) => changes,
            // A beat of an instance that is not there is followed by a registration.
            Err(_) if self.is_beat => return,
            Err(refusal) => {
                let line = line(refusal.to_string());
                tracing::debug!(target: "audit", who = line.who, action = line.action, outcome = line.outcome);
                return audit.note(&line);
            }
        };
        let by_hand = self.action == "health set";
        let mut told = 0;
        for change in &changes.list {
            let (instance, before, after) = match change {
                Change::Instance { id, before, after, .. } => {
                    let show =
                        |e: &Option<crate::table::Entry>| e.as_ref().map_or(Value::Null, |e| of_instance(&e.record));
                    (Some(id), show(before), show(after))
                }
                Change::Service { before, after, .. } => {
                    let show = |m: &Option<Arc<ServiceMeta>>| m.as_deref().map_or(Value::Null, of_service);
                    (None, show(before), show(after))
                }
                Change::Health { id, before, after, .. } if by_hand => {
                    let show = |h: crate::health::Health| json!({ "health": format!("{h:?}").to_lowercase() });
                    (Some(id), show(before.health), show(after.health))
                }
                Change::Health { .. } | Change::Votes { .. } | Change::Agent { .. } => continue,
            };
            told += 1;
            if told > LINES_MAX {
                continue;
            }
            let line = Line { instance: instance.map(ToString::to_string), before, after, ..line("ok".into()) };
            tracing::debug!(target: "audit", who = line.who, action = line.action, service = %self.service.grouped(), instance = line.instance);
            audit.note(&line);
        }
        if told > LINES_MAX {
            audit.note(&Line { detail: Some(format!("and {} more", told - LINES_MAX)), ..line("ok".into()) });
        }
    }
}

fn of_instance(record: &Instance) -> Value {
    json!({
        "weight": record.weight,
        "enabled": record.enabled,
        "ephemeral": record.ephemeral,
        "metadata": record.metadata,
    })
}

/// Checkers by their kind alone: some have a password.
fn of_service(meta: &ServiceMeta) -> Value {
    let checker = |c: &crate::model::Cluster| {
        let kind = serde_json::to_value(&c.checker.how.kind).ok();
        let kind = kind.as_ref().and_then(|k| k["type"].as_str()).unwrap_or("none").to_owned();
        json!({ "checker": kind, "port": c.checker.port, "metadata": c.metadata })
    };
    let clusters: serde_json::Map<String, Value> =
        meta.clusters.iter().map(|(name, c)| (name.to_string(), checker(c))).collect();
    json!({ "protect_threshold": meta.protect_threshold, "metadata": meta.metadata, "clusters": clusters })
}

impl Access {
    /// Whoever asks without being anybody yet.
    fn stranger(&self, peer: Option<SocketAddr>, via: &'static str) -> Actor {
        Actor { access: self.clone(), principal: Principal::nobody(), peer, via }
    }

    /// Somebody was not let in, or not to what he asked for. Those of one address who are refused all the time are noted
    /// once in a while, so that they cannot push out what others did.
    pub(crate) fn note_denied(
        &self,
        principal: Option<&Principal>,
        peer: Option<SocketAddr>,
        via: &'static str,
        what: &str,
        why: &str,
    ) {
        let reason = super::DENIED.iter().position(|r| *r == why).unwrap_or(super::DENIED.len() - 1);
        self.inner.tally.denied[reason].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "audit", who = principal.map(|p| &**p.name()), ?peer, via, what, why, "denied");
        let Some(audit) = self.audit() else { return };
        if peer.is_some_and(|p| self.inner.denials.take(super::rates::network(p.ip())).is_err()) {
            return;
        }
        let stranger = self.stranger(peer, via);
        let actor = Actor { principal: principal.cloned().unwrap_or_else(Principal::nobody), ..stranger };
        let what: String = what.chars().filter(|c| !c.is_control()).take(200).collect();
        audit.note(&Line { detail: Some(what), ..actor.line("denied", why.to_owned()) });
    }

    /// Somebody logged in, or tried to.
    pub(crate) fn note_login(&self, peer: Option<SocketAddr>, user: &str, outcome: Result<(), LoginError>) {
        let which = match &outcome {
            Ok(()) => 0,
            Err(LoginError::Wrong) => 1,
            Err(LoginError::TooMany(_) | LoginError::Busy) => 2,
        };
        self.inner.tally.logins[which].fetch_add(1, Ordering::Relaxed);
        let user: String = user.chars().filter(|c| !c.is_control()).take(64).collect();
        let outcome = outcome.map_or_else(|why| why.to_string(), |()| "ok".into());
        tracing::info!(target: "audit", user, ?peer, outcome, "login");
        let Some(audit) = self.audit() else { return };
        if outcome != "ok" && peer.is_some_and(|p| self.inner.denials.take(super::rates::network(p.ip())).is_err()) {
            return;
        }
        audit.note(&Line { subject: Some(user), ..self.stranger(peer, "http").line("login", outcome) });
    }

    /// Accounts were changed, or not.
    pub(super) fn note_change(&self, change: &AccountChange, refused: Option<&Refused>) {
        let (action, subject) = change.subject();
        let outcome = refused.map_or_else(|| "ok".to_owned(), ToString::to_string);
        let actor = Actor::current().unwrap_or_else(|| self.stranger(None, "socket"));
        tracing::info!(target: "audit", who = &**actor.principal.name(), action, subject, outcome, "accounts");
        let Some(audit) = self.audit() else { return };
        let detail = Some(change.detail()).filter(|d| !d.is_empty());
        audit.note(&Line { subject: Some(subject.to_owned()), detail, ..actor.line(action, outcome) });
    }
}

/// A word for why a token is no good.
impl Unknown {
    /// For counters.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Unknown::Missing => "missing",
            Unknown::Invalid => "invalid",
            Unknown::Expired => "expired",
        }
    }
}
