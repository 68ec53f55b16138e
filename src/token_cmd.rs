//! `ringspan token create | list | revoke`: asks the running bridge through its admin socket; if none runs, opens the
//! keyring itself.

use crate::cli::{self, ListFormat};
use crate::config::bridge::{Bridge, Tls};
use crate::config::unit;
use crate::office::{Answer, Listing, Office, Request, unix_now};
use crate::{Ending, Failure, admin};
use ringspan_tunnel::address::Address;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::rights::Rights;
use ringspan_tunnel::tls::ServerTls;
use ringspan_tunnel::token::{JoinGrant, Scope};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// Runs the subcommand.
pub(crate) fn run(command: &cli::Token) -> Result<Ending, Failure> {
    match command {
        cli::Token::Create(args) => create(args),
        cli::Token::List(args) => list(args),
        cli::Token::Revoke(args) => revoke(args),
    }
}

fn create(args: &cli::TokenCreate) -> Result<Ending, Failure> {
    for service in &args.services {
        unit::service_name(service).map_err(|e| Failure::Usage(format!("--service {service:?}: {e}. Try: web")))?;
    }
    for service in &args.visits {
        unit::service_name(service).map_err(|e| Failure::Usage(format!("--visit {service:?}: {e}. Try: db")))?;
    }
    let rights = Rights {
        visits: args.visits.iter().cloned().collect(),
        listens: args.listens.iter().copied().collect(),
        http_hosts: args.http_hosts.iter().cloned().collect(),
    };
    let address = args.address.as_deref().map(str::parse::<Address>).transpose();
    let request = Request::Create {
        services: args.services.clone(),
        expires_s: args.expires.as_secs().max(1),
        uses: args.uses.get(),
        address: address.map_err(|e| Failure::Usage(format!("--address: {e}")))?,
        rights: rights.clone(),
    };
    match ask(&args.whose, request)? {
        Answer::Created { token, id, address, pinned } => {
            crate::say(&format!("{token}\n"));
            let services = match (args.services.is_empty(), args.visits.is_empty()) {
                (true, true) => "any service".into(),
                (true, false) => "no service".into(),
                (false, _) => args.services.join(", "),
            };
            let services = services + &beside(&rights);
            let link = if pinned { "TLS" } else { "in the clear" };
            eprintln!(
                "token {id} for {services}: {} use(s), for {}. Agents dial {address} ({link}).\n\
                 It is a secret and is shown this once. On the agent's machine:\n  \
                 ringspan agent --token {}... --expose NAME=127.0.0.1:PORT",
                args.uses,
                unit::Shown(args.expires),
                token.chars().take(22).collect::<String>(),
            );
            Ok(Ending::Good)
        }
        other => Err(unexpected(other)),
    }
}

fn list(args: &cli::TokenList) -> Result<Ending, Failure> {
    match ask(&args.whose, Request::List)? {
        Answer::Listed(listing) => {
            crate::say(&match args.format {
                ListFormat::Text => table(&listing, unix_now()),
                ListFormat::Json => serde_json::to_string_pretty(&listing).expect("a listing is JSON") + "\n",
            });
            Ok(Ending::Good)
        }
        other => Err(unexpected(other)),
    }
}

fn revoke(args: &cli::TokenRevoke) -> Result<Ending, Failure> {
    match ask(&args.whose, Request::Revoke { id: args.id.clone() })? {
        Answer::RevokedToken => {
            eprintln!(
                "token {} is revoked: no further agent joins with it. Agents that have joined stay; revoke those by \
                 their own ids.",
                args.id
            );
            Ok(Ending::Good)
        }
        Answer::RevokedAgent { was_connected } => {
            let then = if was_connected { " It was connected and has been thrown out." } else { "" };
            eprintln!("agent {} is revoked and stays out.{then}", args.id);
            Ok(Ending::Good)
        }
        other => Err(unexpected(other)),
    }
}

/// What else is allowed, behind the services; empty if nothing.
fn beside(rights: &Rights) -> String {
    let mut out = String::new();
    let mut add = |what: &str, all: Vec<String>| {
        if !all.is_empty() {
            let _ = write!(out, "; {what} {}", all.join(","));
        }
    };
    add("visit", rights.visits.iter().cloned().collect());
    add("listen", rights.listens.iter().map(ToString::to_string).collect());
    add("http-host", rights.http_hosts.iter().map(ToString::to_string).collect());
    out
}

fn unexpected(answer: Answer) -> Failure {
    match answer {
        Answer::Wrong(text) => Failure::Usage(text),
        Answer::Failed(text) => Failure::Run(text),
        other => Failure::Run(format!("the bridge answered something else ({other:?}). Try: the same version of both")),
    }
}

/// Asks the bridge, or the keyring itself.
fn ask(whose: &cli::Whose, request: Request) -> Result<Answer, Failure> {
    let is_new = matches!(request, Request::Create { .. });
    admin::ask_owner(whose, request, is_new, |config, keyring, request| {
        let (_, trust) = protection(config)?;
        let office = Office { keyring: Arc::new(keyring), address: public_address(config), trust, floor: None };
        Ok(office.answer(request))
    })
}

/// The bridge's end of the link's TLS, and what tokens say of it.
pub(crate) fn protection(config: &Bridge) -> Result<(Option<ServerTls>, Trust), Failure> {
    let tls = match &config.link.tls {
        Tls::Off => return Ok((None, Trust::Plain)),
        Tls::Auto => ServerTls::self_signed(&config.data_dir),
        Tls::Files { cert, key } => ServerTls::from_files(cert, key),
    };
    let tls = tls.map_err(|e| Failure::Usage(format!("[link] tls: {e}")))?.with_ktls(config.link.ktls);
    let trust = Trust::Pinned(tls.fingerprint());
    Ok((Some(tls), trust))
}

/// What tokens tell agents to dial: the public address, else the link's own (loopback in place of "any").
pub(crate) fn public_address(config: &Bridge) -> Address {
    if let Some(public) = &config.link.public {
        return public.clone();
    }
    let mut listen = config.link.listen;
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    listen.into()
}

fn table(listing: &Listing, now: u64) -> String {
    let mut out = String::new();
    let scope = |scope: &Scope| match scope {
        Scope::All => "any".to_owned(),
        Scope::Services(names) if names.is_empty() => "none".to_owned(),
        Scope::Services(names) => names.iter().cloned().collect::<Vec<_>>().join(","),
    };
    if listing.tokens.is_empty() {
        return "No tokens. Create one: ringspan token create --service web\n".into();
    }
    let _ = writeln!(out, "{:<14}{:<26}{:<8}SERVICES", "TOKEN", "STATE", "USES");
    for t in &listing.tokens {
        let uses = t.uses_left.map_or("any".to_owned(), |n| n.to_string());
        let _ = writeln!(
            out,
            "{:<14}{:<26}{uses:<8}{}{}",
            t.id.to_string(),
            state(t, now),
            scope(&t.scope),
            beside(&t.rights)
        );
    }
    if !listing.agents.is_empty() {
        let _ = writeln!(out, "\n{:<22}{:<14}{:<16}{:<14}SERVICES", "AGENT", "STATE", "NAME", "JOINED WITH");
    }
    for a in &listing.agents {
        let state = match (a.record.revoked, a.connected) {
            (true, _) => "revoked",
            (false, Some(true)) => "connected",
            (false, Some(false)) => "away",
            (false, None) => "no bridge",
        };
        let (id, token) = (a.record.id.to_string(), a.record.token.to_string());
        let name = a.record.name.as_str();
        let _ = writeln!(
            out,
            "{id:<22}{state:<14}{name:<16}{token:<14}{}{}",
            scope(&a.record.scope),
            beside(&a.record.rights)
        );
    }
    out
}

fn state(grant: &JoinGrant, now: u64) -> String {
    match (grant.revoked, grant.expires_at, grant.uses_left) {
        (true, _, _) => "revoked".into(),
        (false, Some(at), _) if at <= now => "expired".into(),
        (false, _, Some(0)) => "spent".into(),
        (false, Some(at), _) => {
            // Rounded to what a reader cares for.
            let left = at - now;
            let coarse = if left > 7200 {
                left - left % 3600
            } else if left > 120 {
                left - left % 60
            } else {
                left
            };
            format!("good for {}", unit::Shown(Duration::from_secs(coarse)))
        }
        (false, None, _) => "good".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_tunnel::token::{GrantTerms, JoinToken};

    /// Every state of a token has its word, and revoked beats the others.
    #[test]
    fn states() {
        let terms = GrantTerms {
            expires_at: Some(10_000),
            uses: Some(2),
            scope: Scope::of(["web".to_owned()]),
            ..GrantTerms::default()
        };
        let grant = JoinToken::create("127.0.0.1:1".parse().expect("an address"), Trust::Plain, terms, 0).1;
        assert_eq!(state(&grant, 0), "good for 2h");
        assert_eq!(state(&grant, 9_990), "good for 10s");
        assert_eq!(state(&grant, 10_000), "expired");
        let spent = JoinGrant { uses_left: Some(0), ..grant.clone() };
        assert_eq!(state(&spent, 0), "spent");
        assert_eq!(state(&JoinGrant { revoked: true, ..spent }, 0), "revoked");
        let text = table(&Listing { tokens: vec![grant.clone()], agents: vec![] }, 0);
        assert!(text.contains(&grant.id.to_string()) && text.ends_with("web\n"), "{text}");
    }

    /// A token never tells agents to dial 0.0.0.0.
    #[test]
    fn addresses_can_be_dialled() {
        let mut config = Bridge::default();
        config.link.listen = "0.0.0.0:8024".parse().expect("an address");
        assert_eq!(public_address(&config).to_string(), "127.0.0.1:8024");
        config.link.listen = "[::]:8024".parse().expect("an address");
        assert_eq!(public_address(&config).to_string(), "[::1]:8024");
        config.link.public = Some("bridge.example.com:443".parse().expect("an address"));
        assert_eq!(public_address(&config).to_string(), "bridge.example.com:443");
    }
}
