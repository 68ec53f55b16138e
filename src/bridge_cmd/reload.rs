//! Another configuration for a bridge that runs.
//! Promise: a file with a mistake, or one that cannot be had, changes nothing; what takes a restart is named.

use super::listeners;
use super::server::BridgeServer;
use crate::Failure;
use crate::config::balance::Policies;
use crate::config::bridge::{Bridge as Config, Link, Tls};
use crate::watch_file::Why;
use ringspan_tunnel::limits::{Limiter, Rules};
use std::collections::BTreeSet;
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
        let changes = keep_limiters(&self.config, &mut config);
        let old = &self.config;
        let mut told =
            listeners::change(&self.hall.listening, &mut self.doors, &old.listeners, &config.listeners).await?;
        // Nothing can fail from here on.
        for change in changes {
            told.push(format!("{} is limited by other numbers; who is counted stays counted", change.whose));
            change.limiter.change((*change.rules).clone());
        }
        told.extend(told_services(&old.policies, &config.policies));
        if old.agents != config.agents {
            told.push("[[agent]] limits are other ones".into());
        }
        if old.memory != config.memory {
            told.push("[memory] is another one".into());
            self.handle.set_memory(config.memory);
        }
        if (old.drain, old.drain_takeover) != (config.drain, config.drain_takeover) {
            told.push(format!("drain is {:?}, drain_takeover {:?}", config.drain, config.drain_takeover));
        }
        told.extend(self.hooks.apply(&config.webhooks, &self.registry));
        for sentence in fixed(old, &config) {
            tracing::warn!("{sentence}");
        }
        let (policies, agents) = (config.policies.clone(), config.agents.clone());
        self.hall.change(move |sessions| {
            sessions.set_policies(policies);
            sessions.set_rules(agents);
        });
        let Config { data_dir, http_listen, grpc_listen, access, dns, link, engine, .. } = self.config.clone();
        self.config = Config { data_dir, http_listen, grpc_listen, access, dns, link, engine, ..config };
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

fn told_services(old: &Policies, new: &Policies) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differs = |name: &&&String| old.get(**name) != new.get(**name);
    names.iter().filter(differs).map(|name| format!("service {name:?} has another [[service]]")).collect()
}

/// What a running bridge cannot change: a sentence for each.
fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut look = |key: &str, old: String, new: String| {
        if old != new {
            let remedy = if key == "data_dir" { "restart" } else { "restart (or --takeover)" };
            sentences.push(format!(
                "{key} = {new} cannot be had by a running bridge: it stays {old}, and all else holds. Try: {remedy}"
            ));
        }
    };
    let address = |address: &SocketAddr| format!("\"{address}\"");
    let (link, new_link) = (&old.link, &new.link);
    let public = |link: &Link| link.public.as_ref().map_or("unsaid".to_owned(), |public| format!("\"{public}\""));
    let on = |on: bool| if on { "\"auto\"" } else { "\"off\"" }.to_owned();
    let workers = |config: &Config| config.engine.workers.map_or("unsaid".to_owned(), |n| n.to_string());
    look("data_dir", format!("{:?}", old.data_dir), format!("{:?}", new.data_dir));
    look("[http] listen", address(&old.http_listen), address(&new.http_listen));
    let grpc = |config: &Config| config.grpc_listen.as_ref().map_or("\"off\"".to_owned(), address);
    look("[http] grpc_listen", grpc(old), grpc(new));
    let access = |config: &Config| format!("{:?}", config.access);
    look("[registry] auth, session, rate limits, audit, [http] cert, key", access(old), access(new));
    look("[dns]", dns(old), dns(new));
    look("[link] listen", address(&link.listen), address(&new_link.listen));
    look("[link] public", public(link), public(new_link));
    look("[link] tls", tls(&link.tls), tls(&new_link.tls));
    look("[link] ktls", on(link.ktls), on(new_link.ktls));
    look("[engine] workers", workers(old), workers(new));
    look("[engine] backend", format!("{:?}", old.engine.backend), format!("{:?}", new.engine.backend));
    let affinity =
        |config: &Config| config.engine.affinity.as_ref().map_or("unsaid".to_owned(), |cores| format!("\"{cores}\""));
    look("[engine] affinity", affinity(old), affinity(new));
    sentences
}

fn dns(config: &Config) -> String {
    let Some(dns) = &config.dns else { return "off".into() };
    let (listen, options) = (dns.listen.iter().map(|a| format!("{:?}", a.to_string())), &dns.options);
    let listen = listen.collect::<Vec<_>>().join(", ");
    let or_all = |list: Option<String>| list.unwrap_or_else(|| "all".into());
    let allow = or_all(options.allow.as_ref().map(|all| format!("{all:?}")));
    let namespaces = or_all(options.namespaces.as_ref().map(|all| format!("{all:?}")));
    let (zone, ttl, answers) = (&options.zone, options.ttl, options.answers_max);
    let (rate, connections) = (options.rate, options.connections_max);
    format!(
        "{{ listen = [{listen}], zone = \"{zone}\", ttl = {ttl:?}, answers_max = {answers}, rate_limit = {rate}, \
         connections_max = {connections}, allow = {allow}, namespaces = {namespaces} }}"
    )
}

fn tls(tls: &Tls) -> String {
    match tls {
        Tls::Auto => "\"auto\"".into(),
        Tls::Off => "\"off\"".into(),
        Tls::Files { cert, key } => format!("{{ cert = {cert:?}, key = {key:?} }}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::config::bridge::check;

    fn config(text: &str) -> Config {
        check(&Document::of("bridge.toml", text)).expect("it is right")
    }

    /// What runs goes on counting, under the new numbers where they differ; who comes anew has a count of its own.
    #[test]
    fn limiters_are_kept() {
        let text = |a: u32, b: u32, more: &str| {
            format!(
                "[[listener]]\nname = \"a\"\ntype = \"tcp\"\nlisten = \"127.0.0.1:1-3\"\nservice = \"x\"\n\
                 limits = {{ connections = {a} }}\n[[service]]\nname = \"x\"\nlimits = {{ connections = {b} }}\n{more}"
            )
        };
        let old = config(&text(1, 2, ""));
        let mut new = config(&text(1, 3, "retries = 5\n"));
        let changes = keep_limiters(&old, &mut new);
        let whose: Vec<&str> = changes.iter().map(|change| change.whose.as_str()).collect();
        assert_eq!(whose, ["service \"x\""], "the listener's are the same");
        let same = |a: &Option<Arc<Limiter>>, b: &Option<Arc<Limiter>>| {
            Arc::ptr_eq(a.as_ref().expect("it has one"), b.as_ref().expect("it has one"))
        };
        assert!(same(&old.listeners[2].limiter, &new.listeners[0].limiter), "one for the whole range");
        assert!(same(&old.policies["x"].limiter, &new.policies["x"].limiter));
        let mut third = config(&text(9, 3, ""));
        let whose: Vec<String> = keep_limiters(&old, &mut third).into_iter().map(|change| change.whose).collect();
        assert_eq!(whose, ["listener \"a-1\"", "service \"x\""], "a range is told once");
    }

    /// Each key that stays is named with both values and the way out; the others are not.
    #[test]
    fn what_stays_is_named() {
        let old = config("drain = \"1s\"\n");
        let new = config(
            "data_dir = \"/other\"\n[http]\nlisten = \"127.0.0.1:1\"\n[link]\nlisten = \"127.0.0.1:2\"\n\
             public = \"a.example:2\"\ntls = \"off\"\nktls = \"off\"\n[engine]\nworkers = 3\nbackend = \"epoll\"\n\
             [dns]\nlisten = \"127.0.0.1:3\"\n",
        );
        let sentences = fixed(&old, &new);
        let keys = ["data_dir", "[http] listen", "[link] listen", "[link] public", "[link] tls", "[link] ktls"];
        for key in keys.into_iter().chain(["[dns]", "[http] grpc_listen", "[engine] workers", "[engine] backend"]) {
            let sentence = sentences.iter().find(|s| s.starts_with(key)).unwrap_or_else(|| panic!("{key}"));
            assert!(sentence.contains("Try: restart"), "{sentence}");
        }
        let link = sentences.iter().find(|s| s.starts_with("[link] listen")).expect("just seen");
        assert_eq!(
            link,
            "[link] listen = \"127.0.0.1:2\" cannot be had by a running bridge: it stays \"127.0.0.1:8024\", and all \
             else holds. Try: restart (or --takeover)"
        );
        assert_eq!((sentences.len(), fixed(&old, &old).len()), (10, 0));
    }
}
