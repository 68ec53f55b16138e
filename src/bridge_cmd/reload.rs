//! Another configuration for a bridge that runs.
//! Promise: a file with a mistake, or one that cannot be had, changes nothing; what takes a restart is named.

use super::listeners;
use super::server::BridgeServer;
use crate::Failure;
use crate::config::access::{Access, Auth};
use crate::config::balance::Policies;
use crate::config::bridge::{Bridge as Config, Link, Listener, Tls};
use crate::config::dns::Dns;
use crate::config::doors::Door;
use crate::config::http::CertFiles;
use crate::config::unit::Shown;
use crate::fixed::{Fixed, quoted, quoted_or_unsaid};
use crate::watch_file::Why;
use ringspan_registry::access::{Rate, Rates};
use ringspan_registry::cluster::{EtcdOptions, Options as Cluster};
use ringspan_registry::dns::Options as DnsOptions;
use ringspan_tunnel::limits::{Limiter, Rules};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

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
        let mut config = self.as_running(config);
        let stays = keep_fixed(&self.config, &mut config);
        let changes = keep_limiters(&self.config, &mut config);
        let old = &self.config;
        let mut told =
            listeners::change(&self.hall.listening, &mut self.doors, &old.listeners, &config.listeners).await?;
        // Nothing can fail from here on.
        for change in changes {
            told.push(change.told());
            change.limiter.change((*change.rules).clone());
        }
        told.extend(told_rest(old, &config));
        self.handle.set_memory(config.memory);
        told.extend(self.hooks.apply(&config.webhooks, &self.registry));
        stays.iter().for_each(|sentence| tracing::warn!("{sentence}"));
        let (policies, agents) = (config.policies.clone(), config.agents.clone());
        self.hall.change(move |sessions| {
            sessions.set_policies(policies);
            sessions.set_rules(agents);
        });
        self.config = config;
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

/// A limiter that goes on under other rules.
struct Change {
    whose: String,
    limiter: Arc<Limiter>,
    rules: Arc<Rules>,
}

impl Change {
    fn told(&self) -> String {
        format!("{} is limited by other numbers; who is counted stays counted", self.whose)
    }
}

/// Puts the limiters that run in the place of those of the new configuration, so that counts go on; where rules differ,
/// what is to be changed once all else is done.
fn keep_limiters(old: &Config, new: &mut Config) -> Vec<Change> {
    let mut changes = Vec::<Change>::new();
    let mut keep = |whose: String, old: &Arc<Limiter>, new: &mut Arc<Limiter>| {
        let rules = new.rules();
        let is_told = changes.iter().any(|change| Arc::ptr_eq(&change.limiter, old));
        if *old.rules() != *rules && !is_told {
            changes.push(Change { whose, limiter: old.clone(), rules });
        }
        *new = old.clone();
    };
    for listener in &mut new.listeners {
        let before = old.listeners.iter().find(|l| l.name == listener.name).and_then(|l| l.limiter.as_ref());
        if let (Some(old), Some(new)) = (before, &mut listener.limiter) {
            keep(format!("listener {:?}", listener.name), old, new);
        }
    }
    for (name, policy) in &mut new.policies {
        let before = old.policies.get(name).and_then(|p| p.limiter.as_ref());
        if let (Some(old), Some(_)) = (before, &policy.limiter)
            && let Some(new) = &mut Arc::make_mut(policy).limiter
        {
            keep(format!("service {name:?}"), old, new);
        }
    }
    changes
}

/// What is done at once, beside listeners, the numbers of limits and webhooks.
fn told_rest(old: &Config, new: &Config) -> Vec<String> {
    let mut told = told_services(&old.policies, &new.policies);
    if old.agents != new.agents {
        told.push("[[agent]] limits are other ones".into());
    }
    if old.memory != new.memory {
        told.push("[memory] is another one".into());
    }
    if (old.drain, old.drain_takeover) != (new.drain, new.drain_takeover) {
        told.push(format!("drain is {:?}, drain_takeover {:?}", new.drain, new.drain_takeover));
    }
    told
}

fn told_services(old: &Policies, new: &Policies) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |name: &&&String| old.get(**name) != new.get(**name);
    names.iter().filter(differs).map(|name| format!("service {name:?} has another [[service]]")).collect()
}

/// What a running bridge cannot change stays as it was, in `new`, too: a sentence for each key.
fn keep_fixed(old: &Config, new: &mut Config) -> Vec<String> {
    let mut fixed = Fixed::of("bridge", "restart (or --takeover)");
    // Who adds a key decides here what becomes of it. Those without a name follow at once, and are told.
    let Config {
        data_dir,
        http_listen,
        access,
        grpc_listen,
        dns,
        link,
        listeners,
        policies: _,
        agents: _,
        engine,
        memory: _,
        drain: _,
        drain_takeover: _,
        cluster,
        webhooks: _,
    } = new;
    // Whoever takes over asks at the same folder.
    fixed.keep_until("restart", "data_dir", &old.data_dir, data_dir, |path| format!("{path:?}"));
    fixed.keep("[http] listen", &old.http_listen, http_listen, quoted);
    let or_off = |address: &Option<SocketAddr>| address.as_ref().map_or_else(|| quoted("off"), quoted);
    fixed.keep("[http] grpc_listen", &old.grpc_listen, grpc_listen, or_off);
    keep_access(&mut fixed, &old.access, access);
    keep_dns(&mut fixed, &old.dns, dns);
    let Link { listen, public, tls, ktls } = link;
    fixed.keep("[link] listen", &old.link.listen, listen, quoted);
    fixed.keep("[link] public", &old.link.public, public, |public| quoted_or_unsaid(public.as_ref()));
    fixed.keep("[link] tls", &old.link.tls, tls, show_tls);
    fixed.keep("[link] ktls", &old.link.ktls, ktls, |on| quoted(if *on { "auto" } else { "off" }));
    fixed.keep_engine(&old.engine, engine);
    keep_cluster(&mut fixed, &old.cluster, cluster);
    keep_places(&mut fixed, &old.listeners, listeners);
    fixed.sentences()
}

fn keep_access(fixed: &mut Fixed, old: &Access, new: &mut Access) {
    let Access { auth, session, rates: Rates { per_address, per_principal }, audit, tls } = new;
    let show_auth = |auth: &Auth| match auth {
        Auth::Auto => quoted("auto"),
        Auth::Required => quoted("required"),
        Auth::Off => quoted("off"),
    };
    let show_audit = |audit: &Option<bool>| match audit {
        None => quoted("auto"),
        Some(on) => quoted(if *on { "on" } else { "off" }),
    };
    let rate = |rate: &Rate| rate.per_second.to_string();
    fixed.keep("[registry] auth", &old.auth, auth, show_auth);
    fixed.keep("[registry] session", &old.session, session, |time| quoted(&Shown(*time)));
    fixed.keep("[registry] rate_limit", &old.rates.per_address, per_address, rate);
    fixed.keep("[registry] rate_limit_user", &old.rates.per_principal, per_principal, rate);
    fixed.keep("[registry] audit", &old.audit, audit, show_audit);
    let files = |tls: &Option<CertFiles>| match tls {
        None => "unsaid".into(),
        Some(CertFiles { cert, key }) => format!("{cert:?}, {key:?}"),
    };
    fixed.keep("[http] cert, key", &old.tls, tls, files);
}

fn keep_dns(fixed: &mut Fixed, old: &Option<Dns>, new: &mut Option<Dns>) {
    let (Some(before), Some(Dns { listen, options })) = (old, &mut *new) else {
        let addresses = |dns: &Option<Dns>| dns.as_ref().map_or("off".into(), |dns| list(&dns.listen));
        fixed.keep("[dns] listen", old, new, addresses);
        return;
    };
    let DnsOptions { zone, ttl, answers_max, rate, connections_max, allow, namespaces } = options;
    let had = &before.options;
    fixed.keep("[dns] listen", &before.listen, listen, |all| list(all));
    fixed.keep("[dns] zone", &had.zone, zone, quoted);
    fixed.keep("[dns] ttl", &had.ttl, ttl, |ttl| quoted(&Shown(*ttl)));
    fixed.keep("[dns] answers_max", &had.answers_max, answers_max, ToString::to_string);
    fixed.keep("[dns] rate_limit", &had.rate, rate, ToString::to_string);
    fixed.keep("[dns] connections_max", &had.connections_max, connections_max, ToString::to_string);
    fixed.keep("[dns] allow", &had.allow, allow, |all| all.as_ref().map_or("unsaid".into(), |all| list(all)));
    let names = |all: &Option<Vec<String>>| all.as_ref().map_or("unsaid".into(), |all| list(all));
    fixed.keep("[dns] namespaces", &had.namespaces, namespaces, names);
}

/// Where the registry's records are: the store is open, and the cluster knows us by what we said.
fn keep_cluster(fixed: &mut Fixed, old: &Option<Cluster>, new: &mut Option<Cluster>) {
    let (Some(before), Some(Cluster { etcd, prefix, member, address })) = (old, &mut *new) else {
        let (was, mut wanted) = (old.is_some(), new.is_some());
        fixed.keep("[registry] store", &was, &mut wanted, |etcd| quoted(if *etcd { "etcd" } else { "embedded" }));
        new.clone_from(old);
        return;
    };
    let EtcdOptions { endpoints, login, ca, identity } = etcd;
    fixed.keep("[registry] endpoints", &before.etcd.endpoints, endpoints, |all| list(all));
    fixed.keep_unseen("[registry] user, password", &before.etcd.login, login);
    fixed.keep_unseen("[registry] ca", &before.etcd.ca, ca);
    fixed.keep_unseen("[registry] cert, key", &before.etcd.identity, identity);
    fixed.keep("[registry] prefix", &before.prefix, prefix, quoted);
    fixed.keep("[registry] member", &before.member, member, quoted);
    fixed.keep("[registry] address", &before.address, address, quoted);
}

/// The one key of a listener that does not follow where its door stays: the places are counted out when it opens.
fn keep_places(fixed: &mut Fixed, old: &[Listener], new: &mut [Listener]) {
    for listener in new {
        let before = old.iter().find(|o| o.name == listener.name && o.listen == listener.listen);
        if let (Some(Door::Http(before)), Door::Http(door)) = (before.map(|b| &b.door), &mut listener.door) {
            let key = format!("listener {:?} [listener.http] connections_max", listener.name);
            let (was, wanted) = (before.options.connections_max, &mut door.options.connections_max);
            fixed.keep_until("restart (or --takeover), or another listen", &key, &was, wanted, ToString::to_string);
        }
    }
}

fn list<T: Display>(all: &[T]) -> String {
    format!("[{}]", all.iter().map(quoted).collect::<Vec<_>>().join(", "))
}

fn show_tls(tls: &Tls) -> String {
    match tls {
        Tls::Auto => quoted("auto"),
        Tls::Off => quoted("off"),
        Tls::Files { cert, key } => format!("{{ cert = {cert:?}, key = {key:?} }}"),
    }
}

#[cfg(test)]
mod tests;
