//! `[[service]]` of bridge.toml: how its visitors are spread over its backends, and what they may do.

use super::limits::{RawLimits, check_limits};
use super::{Document, Error, unit};
use ringspan_tunnel::routes::{Balance, Policy};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;

/// By the service's name. Those that are not in it have the defaults.
pub(crate) type Policies = BTreeMap<String, Arc<Policy>>;

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    name: Spanned<String>,
    balance: Option<Spanned<String>>,
    healthy_min: Option<Spanned<i64>>,
    panic_percent: Option<Spanned<i64>>,
    retries: Option<Spanned<i64>>,
    #[serde(default)]
    resend: bool,
    eject: Option<RawEject>,
    limits: Option<RawLimits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEject {
    dials: Option<Spanned<i64>>,
    resets: Option<Spanned<i64>>,
    length: Option<Spanned<String>>,
    length_max: Option<Spanned<String>>,
    percent_max: Option<Spanned<i64>>,
}

/// Checks them all.
pub(super) fn check_services(doc: &Document, raw: &[RawService]) -> Result<Policies, Error> {
    let mut policies = Policies::new();
    for service in raw {
        let name = doc.value(&service.name, |n| unit::service_name(n).map(|()| n.to_owned()), "\"web\"")?;
        let policy = Arc::new(check_service(doc, service)?);
        if policies.insert(name, policy).is_some() {
            return Err(doc.wrong(service.name.span(), "this service has a section already", "one for each service"));
        }
    }
    Ok(policies)
}

fn check_service(doc: &Document, raw: &RawService) -> Result<Policy, Error> {
    let mut policy = Policy { resend: raw.resend, ..Policy::default() };
    if let Some(balance) = &raw.balance {
        let read = |text: &str| match text {
            "round_robin" => Ok(Balance::RoundRobin),
            "least_connections" => Ok(Balance::LeastConnections),
            "source_hash" => Ok(Balance::SourceHash),
            _ => Err("no such way to balance".into()),
        };
        policy.balance = doc.value(balance, read, "\"round_robin\", \"least_connections\" or \"source_hash\"")?;
    }
    if let Some(healthy_min) = &raw.healthy_min {
        policy.healthy_min = doc.number(healthy_min, 1..=10_000)? as u16;
    }
    if let Some(percent) = &raw.panic_percent {
        policy.panic_percent = doc.number(percent, 0..=100)? as u8;
    }
    if let Some(retries) = &raw.retries {
        policy.retries = doc.number(retries, 0..=10)? as u8;
    }
    if let Some(raw) = &raw.eject {
        let eject = &mut policy.eject;
        let counts = [(&raw.dials, &mut eject.dials, 255), (&raw.resets, &mut eject.resets, 255)];
        for (raw, into, max) in counts.into_iter().chain([(&raw.percent_max, &mut eject.percent_max, 100)]) {
            if let Some(raw) = raw {
                *into = doc.number(raw, 0..=max)? as u8;
            }
        }
        let hour = Duration::from_secs(3600);
        for (raw, into) in [(&raw.length, &mut eject.length), (&raw.length_max, &mut eject.length_max)] {
            if let Some(raw) = raw {
                let read = |text: &str| unit::duration_within(text, Duration::from_millis(100), hour);
                *into = doc.value(raw, read, "\"2s\"")?;
            }
        }
    }
    policy.limiter = check_limits(doc, raw.limits.as_ref())?;
    Ok(policy)
}
