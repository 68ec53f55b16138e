//! `[[agent]]` of bridge.toml: what all visitors of one agent may do together, or all of the agents of one token.

use super::limits::{RawLimits, check_numbers};
use super::{Document, Error};
use ringspan_tunnel::identity::AgentName;
use ringspan_tunnel::limits::Rules;
use ringspan_tunnel::token::TokenId;
use serde::Deserialize;
use std::collections::HashMap;
use toml::Spanned;

/// Whom they are for; the first that fits holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentRules {
    /// For each agent of this name by itself.
    pub(crate) by_name: HashMap<String, Rules>,
    /// For all agents together that have joined with this token.
    pub(crate) by_token: HashMap<String, Rules>,
    /// For each other agent by itself.
    pub(crate) others: Option<Rules>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    name: Option<Spanned<String>>,
    token: Option<Spanned<String>>,
    limits: RawLimits,
}

/// Checks them all.
pub(super) fn check_agents(doc: &Document, raw: &[Spanned<RawAgent>]) -> Result<AgentRules, Error> {
    let mut rules = AgentRules::default();
    for spanned in raw {
        let RawAgent { name, token, limits } = spanned.get_ref();
        let limits = check_numbers(doc, limits)?;
        let (before, at) = match (name, token) {
            (Some(_), Some(token)) => {
                return Err(doc.wrong(token.span(), "name is there, too", "one of the two"));
            }
            (Some(name), None) => {
                let read = |text: &str| {
                    AgentName::try_from(text.to_owned()).map(|_| text.to_owned()).map_err(|e| e.to_string())
                };
                (rules.by_name.insert(doc.value(name, read, "\"home\"")?, limits), name.span())
            }
            (None, Some(token)) => {
                let read = |text: &str| text.parse::<TokenId>().map(|id| id.to_string()).map_err(|e| e.to_string());
                let id = doc.value(token, read, "the id that `ringspan token list` shows, as in \"d955e371504c\"")?;
                (rules.by_token.insert(id, limits), token.span())
            }
            (None, None) => (rules.others.replace(limits), spanned.span()),
        };
        if before.is_some() {
            return Err(doc.wrong(at, "another [[agent]] is for the same agents", "one of the two"));
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bridge;

    /// By name, by token, and for the others; what does nothing or is there twice is named.
    #[test]
    fn whom_they_are_for() {
        let read = |text: &str| bridge::check(&Document::of("bridge.toml", text));
        let text = "[[agent]]\nname = \"home\"\nlimits = { connections = 5, down = \"1MiB\" }\n\
                    [[agent]]\ntoken = \"d955e371504c\"\nlimits = { rate = 10 }\n\
                    [[agent]]\nlimits = { up = \"2MiB\" }\n";
        let rules = read(text).expect("it is right").agents;
        assert_eq!((rules.by_name["home"].all.connections_max, rules.by_name["home"].all.down_bytes), (5, 1 << 20));
        assert_eq!(rules.by_token["d955e371504c"].all.rate, 10);
        assert_eq!(rules.others.expect("the last").all.up_bytes, 2 << 20);
        let rows = [
            ("name = \"a\"\ntoken = \"d955e371504c\"\nlimits = { rate = 1 }", "one of the two"),
            ("token = \"x\"\nlimits = { rate = 1 }", "ringspan token list"),
            ("limits = { idle = \"5m\" }", "an agent has connections, rate, burst, up and down alone"),
            ("limits = { visitor = { rate = 1 } }", "an agent has connections, rate, burst, up and down alone"),
            ("limits = { deny = [\"192.0.2.1\"] }", "an agent has connections, rate, burst, up and down alone"),
            ("limits = { rate = 1 }\n[[agent]]\nlimits = { rate = 2 }", "for the same agents"),
        ];
        for (text, expected) in rows {
            let error = read(&format!("[[agent]]\n{text}\n")).expect_err(text).to_string();
            assert!(error.contains(expected) && error.starts_with("bridge.toml:"), "{text}: {error}");
        }
    }
}
