//! `ringspan check-config F`: reads a file as the bridge, the agent or the prober would and says what it means.

use crate::config::agent::Agent;
use crate::config::agent_link::AgentLink;
use crate::config::bridge::{Bridge, Listener, Tls};
use crate::config::doors::{Door, Greeting};
use crate::config::unit::Shown;
use crate::config::{Document, Error, agent, bridge, probe};
use crate::doors::http::tls::check_files;
use crate::probe_cmd::roster::Roster;
use crate::{Ending, Failure, cli};
use ringspan_engine::check::Check;
use ringspan_engine::engine::GROUPS_MAX;
use ringspan_tunnel::tls::ServerTls;
use ringspan_tunnel::token::JoinToken;

/// Which of the three a file is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bridge,
    Agent,
    Probe,
}

/// Runs the subcommand. A good file is summed up on stdout.
pub(crate) fn run(args: &cli::CheckConfig) -> Result<Ending, Failure> {
    let doc = Document::read(&args.file)?;
    crate::say(&format!("{}\n", summary(&doc)?));
    Ok(Ending::Good)
}

fn summary(doc: &Document) -> Result<String, Error> {
    let mut lines = Vec::new();
    match kind(doc)? {
        Kind::Bridge => {
            let Bridge { data_dir, http_listen, grpc_listen, dns, link, listeners, .. } = bridge::check(doc)?;
            lines.push(format!("{}: a good bridge configuration", doc.path()));
            lines.push(format!("  data      {}", data_dir.display()));
            let grpc = grpc_listen.map_or("no gRPC".to_owned(), |address| format!("gRPC {address}"));
            lines.push(format!("  registry  http://{http_listen}, {grpc}"));
            if let Some(dns) = dns {
                let listen: Vec<String> = dns.listen.iter().map(ToString::to_string).collect();
                lines.push(format!("  dns       {} at {}", dns.options.zone, listen.join(", ")));
            }
            let tls = match link.tls {
                Tls::Auto => "TLS 1.3, self-signed, pinned by the token".to_owned(),
                Tls::Files { cert, key } => {
                    let read = ServerTls::from_files(&cert, &key);
                    read.map_err(|e| doc.lacking(format!("[link] tls: {e}"), "a PEM certificate and its key"))?;
                    format!("TLS 1.3, {}", cert.display())
                }
                Tls::Off => "in the clear".to_owned(),
            };
            let public = link.public.map(|p| format!(", agents dial {p}")).unwrap_or_default();
            lines.push(format!("  link      {}, {tls}{public}", link.listen));
            for l in listeners {
                let Door::Http(http) = &l.door else {
                    let (name, place, service) = (&l.name, place(&l), &l.service);
                    lines.push(format!("  listener  {name} on {place} for service {service}"));
                    continue;
                };
                check_files(&http.certs).map_err(|why| {
                    doc.lacking(format!("[[listener]] {:?} tls: {why}", l.name), "PEM files that belong together")
                })?;
                let kind = if http.is_tls { "https" } else { "http" };
                lines.push(format!("  listener  {} on {}, {kind}", l.name, l.listen));
                for r in &http.routes {
                    let passed = if r.passthrough { ", TLS passed through" } else { "" };
                    lines.push(format!("    route   {} to service {}{passed}", r.label, r.service));
                }
            }
        }
        Kind::Agent => {
            let Agent { links, exposes, visits, .. } = agent::check(doc)?;
            lines.push(format!("{}: a good agent configuration", doc.path()));
            for AgentLink { token, state_dir, carriers, .. } in links {
                // As the agent has it: who has joined needs no token, and comes up with one that is of no use.
                let token = match token.map(|secret| secret.0.parse::<JoinToken>()) {
                    None => "no token: it must have joined before".to_owned(),
                    Some(Ok(_)) => "a token".to_owned(),
                    Some(Err(error)) => format!("a token that is none ({error}): it must have joined before"),
                };
                lines.push(format!("  state     {}, {token}", state_dir.display()));
                lines.push(format!("  link      {carriers} carriers"));
            }
            for e in exposes {
                let (p, t) = (e.check.policy, e.check.policy.thresholds);
                if let Check::None = e.check.ask {
                    lines.push(format!("  expose    {} at {}, not checked", e.service, e.backend));
                    continue;
                }
                lines.push(format!(
                    "  expose    {} at {}, {} checked every {} (timeout {}), up after {}, down after {}",
                    e.service,
                    e.backend,
                    e.check.ask.as_str(),
                    Shown(p.interval),
                    Shown(p.timeout),
                    t.rise,
                    t.fall
                ));
            }
            for v in visits {
                lines.push(format!("  visit     {} of another agent at {}, through {}", v.service, v.listen, v.way()));
            }
        }
        Kind::Probe => {
            let mut roster = Roster::default();
            let config = probe::check(doc, &mut roster, GROUPS_MAX)?;
            lines.push(format!("{}: a good probe configuration", doc.path()));
            lines.push(format!("  targets   {}", roster.count()));
            for file in config.files {
                lines.push(format!("  file      {}", file.display()));
            }
            if !roster.groups.is_empty() {
                lines.push(format!("  groups    {}", roster.groups.join(", ")));
            }
            lines.extend(config.listen.map(|address| format!("  metrics   http://{address}/metrics")));
        }
    }
    Ok(lines.join("\n"))
}

/// Where a listener is, and what it speaks if that is not plain TCP.
fn place(listener: &Listener) -> String {
    let listen = listener.listen;
    match &listener.door {
        Door::Tcp | Door::Http(_) => listen.to_string(),
        Door::Udp(_) => format!("{listen}, udp,"),
        Door::Visit => format!("{listen}, for visiting agents,"),
        Door::Unix(unix) => format!("unix:{} (mode {:04o})", unix.path.display(), unix.mode),
        Door::Proxy(proxy) => {
            let kind = if proxy.greeting == Greeting::Socks5 { "socks5" } else { "connect" };
            let who = if proxy.users.is_some() { "with a login" } else { "for everybody" };
            format!("{listen}, {kind} {who},")
        }
    }
}

/// The sections tell: an agent exposes or has a token, a bridge listens. In doubt it is a bridge's.
pub(crate) fn kind(doc: &Document) -> Result<Kind, Error> {
    let table: toml::Table = doc.parse()?;
    let in_link = |keys: &[&str]| {
        let link = table.get("link").and_then(toml::Value::as_table);
        link.is_some_and(|l| keys.iter().any(|k| l.contains_key(*k)))
    };
    if ["probe", "policy", "target"].iter().any(|key| table.contains_key(*key)) {
        return Ok(Kind::Probe);
    }
    let agent = table.contains_key("expose") || in_link(&["token", "token_file", "state_dir", "carriers"]);
    let bridge = ["data_dir", "http", "listener"].iter().any(|k| table.contains_key(*k)) || in_link(&["listen", "tls"]);
    Ok(if agent && !bridge { Kind::Agent } else { Kind::Bridge })
}

#[cfg(test)]
mod docs;

#[cfg(test)]
mod tests {
    use super::*;

    /// The sections tell which of the three a file is.
    #[test]
    fn kinds() {
        for (text, is) in [
            ("", Kind::Bridge),
            ("data_dir = \"d\"", Kind::Bridge),
            ("[link]\ncarriers = 2", Kind::Agent),
            ("[[target]]\nurl = \"10.0.0.1:1\"", Kind::Probe),
            ("[policy.web]\nrise = 1", Kind::Probe),
            ("[[expose]]\nservice = \"a\"", Kind::Agent),
            ("[link]\nlisten = \"x\"\ntoken = \"t\"", Kind::Bridge),
        ] {
            assert_eq!(kind(&Document::of("f", text)).expect(text), is, "{text}");
        }
    }

    /// A token that cannot be one is said, without a word of it.
    #[test]
    fn tokens_are_looked_at() {
        use ringspan_tunnel::fingerprint::Trust;
        use ringspan_tunnel::token::GrantTerms;
        let token =
            JoinToken::create("127.0.0.1:1".parse().expect("an address"), Trust::Plain, GrantTerms::default(), 0);
        let said = |token: &str| {
            let text = format!("[link]\n{token}\n[[expose]]\nservice = \"s\"\naddress = \"127.0.0.1:1\"\n");
            summary(&Document::of("f", &text)).expect("an agent that has joined runs with it")
        };
        assert!(said(&format!("token = {:?}", token.0.to_paste())).contains(", a token\n"));
        assert!(said("").contains(", no token: it must have joined before\n"));
        let none = said("token = \"ringspan1.sesame\"");
        assert!(none.contains(", a token that is none (") && none.contains("it must have joined before\n"), "{none}");
        assert!(!none.contains("sesame"), "{none}");
    }
}
