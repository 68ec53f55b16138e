//! Who may come in: the whole decision, as one function over what the bridge's keyring holds.
//! Pure: the keyring looks up and writes back, `now` comes in.

use super::{Applicant, Refusal, RefusalCode};
use crate::identity::{AgentId, AgentName};
use crate::keys::PublicKey;
use crate::rights::{Rights, listed};
use crate::token::{JoinGrant, Scope, TokenId};
use serde::{Deserialize, Serialize};

/// What the bridge keeps of an agent that has enrolled. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Derived from `public_key`.
    pub id: AgentId,
    /// The key it signs with.
    pub public_key: PublicKey,
    /// What it called itself when it enrolled.
    pub name: AgentName,
    /// Which services it may expose.
    pub scope: Scope,
    /// What else it may do.
    #[serde(default, skip_serializing_if = "Rights::is_nothing")]
    pub rights: Rights,
    /// Unix time in seconds.
    pub enrolled_at: u64,
    /// With which token.
    pub token: TokenId,
    /// Refused for good.
    pub revoked: bool,
}

/// How an agent comes in.
#[expect(clippy::large_enum_variant, reason = "one per handshake, taken apart at once: a box would only be in the way")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The bridge knows it.
    Known,
    /// It enrols now: keep the record and the grant (with one use less), in one transaction, before the welcome.
    Enrols {
        /// To keep.
        record: AgentRecord,
        /// To keep instead of the grant that was looked up.
        grant: JoinGrant,
    },
}

/// Decides. `record` is what the keyring has under `applicant.agent`; `grant` what it has under `applicant.token`;
/// `now` is Unix time in seconds.
///
/// An agent that is known needs no token, and the token it may still bring is looked at only if it exposes a service
/// that its record does not cover: then a good token widens its scope (and costs a use). Revoked agents stay out
/// whatever they bring.
///
/// # Errors
/// The refusal to send.
pub fn admit(
    applicant: &Applicant,
    record: Option<&AgentRecord>,
    grant: Option<&JoinGrant>,
    now: u64,
) -> Result<Admission, Refusal> {
    match record {
        Some(record) if record.revoked => Err(Refusal::of(RefusalCode::AgentRevoked)),
        // 80 bits of a hash are a name, not a proof.
        Some(record) if record.public_key != applicant.key => Err(Refusal::of(RefusalCode::UnknownAgent)),
        Some(record) => match (beyond(applicant, &record.scope, &record.rights, record.token), applicant.token) {
            (None, _) => Ok(Admission::Known),
            (Some(refusal), None) => Err(refusal),
            (Some(refusal), Some(_)) => match enrol(applicant, grant, Some(record), now) {
                Ok(admission) => Ok(admission),
                // The token it enrolled with is commonly still in its configuration, by now used up or expired: the
                // service or listener is what the operator has to hear about.
                Err(_) => Err(refusal),
            },
        },
        None if applicant.token.is_none() => Err(Refusal::of(RefusalCode::UnknownAgent)),
        None => enrol(applicant, grant, None, now),
    }
}

fn enrol(
    applicant: &Applicant,
    grant: Option<&JoinGrant>,
    known: Option<&AgentRecord>,
    now: u64,
) -> Result<Admission, Refusal> {
    let Some(grant) = grant.filter(|grant| Some(grant.id) == applicant.token) else {
        return Err(Refusal::of(RefusalCode::UnknownToken));
    };
    // First of all the proof: a stranger learns nothing about a token but that it exists.
    if !applicant.proves(&grant.public_key) {
        return Err(Refusal::of(RefusalCode::WrongSecret));
    }
    if grant.revoked {
        return Err(Refusal::of(RefusalCode::TokenRevoked));
    }
    if grant.expires_at.is_some_and(|at| now >= at) {
        return Err(Refusal::of(RefusalCode::TokenExpired));
    }
    if grant.uses_left == Some(0) {
        return Err(Refusal::of(RefusalCode::TokenUsedUp));
    }
    let (scope, rights) = match known {
        Some(record) => (widened(&record.scope, &grant.scope), record.rights.and(&grant.rights)),
        None => (grant.scope.clone(), grant.rights.clone()),
    };
    if let Some(refusal) = beyond(applicant, &scope, &rights, grant.id) {
        return Err(refusal);
    }
    let record = AgentRecord {
        id: applicant.agent,
        public_key: applicant.key,
        name: applicant.name.clone(),
        scope,
        rights,
        enrolled_at: known.map_or(now, |record| record.enrolled_at),
        token: grant.id,
        revoked: false,
    };
    let grant = JoinGrant { uses_left: grant.uses_left.map(|left| left - 1), ..grant.clone() };
    Ok(Admission::Enrols { record, grant })
}

/// The same for a visit of a secret service, by an agent that has joined already.
///
/// # Errors
/// The refusal to send.
pub fn admit_visit(applicant: &Applicant, record: Option<&AgentRecord>, service: &str) -> Result<(), Refusal> {
    match record {
        Some(record) if record.revoked => Err(Refusal::of(RefusalCode::AgentRevoked)),
        Some(record) if record.public_key != applicant.key => Err(Refusal::of(RefusalCode::UnknownAgent)),
        Some(record) if record.scope.covers(service) || record.rights.visits.contains(service) => Ok(()),
        Some(_) => {
            let details = format_args!("{service}. Create one that does: ringspan token create --visit {service}");
            Err(Refusal::with(RefusalCode::ServiceOutOfScope, details))
        }
        None => Err(Refusal::of(RefusalCode::UnknownAgent)),
    }
}

/// What is offered or asked for beyond what is allowed.
fn beyond(applicant: &Applicant, scope: &Scope, rights: &Rights, token: TokenId) -> Option<Refusal> {
    applicant.exposes.iter().find_map(|expose| {
        let service = expose.service.as_str();
        if !scope.covers(service) {
            return Some(out_of_scope(service));
        }
        let (what, at, allowed) = match (expose.listen, &expose.http_host) {
            (Some(address), _) if !rights.may_listen(address) => {
                ("listen", address.to_string(), listed(&rights.listens))
            }
            (_, Some(host)) if !rights.may_have(host) => ("http-host", host.clone(), listed(&rights.http_hosts)),
            _ => return None,
        };
        let details = format_args!(
            "token {token} allows {allowed}, not {at} (service {service}). Create one that does: ringspan token create \
             --{what} '{at}'"
        );
        Some(Refusal::with(RefusalCode::ListenOutOfScope, details))
    })
}

fn out_of_scope(service: &str) -> Refusal {
    let details = format_args!("{service}. Create one that does: ringspan token create --service {service}");
    Refusal::with(RefusalCode::ServiceOutOfScope, details)
}

fn widened(a: &Scope, b: &Scope) -> Scope {
    match (a, b) {
        (Scope::All, _) | (_, Scope::All) => Scope::All,
        (Scope::Services(a), Scope::Services(b)) => Scope::Services(a.union(b).cloned().collect()),
    }
}
