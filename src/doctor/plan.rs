//! What one configuration makes of a machine: its workers, the `Io` they open, and who encrypts its links.
//! Promise: a file that the program itself would refuse is refused here with the same words; nothing is started, joined or
//! written.

use super::{Facts, Finding, Mark, finding};
use crate::Failure;
use crate::check_config::{Kind, kind};
use crate::config::agent_link::AgentLink;
use crate::config::bridge::{Engine, Tls};
use crate::config::{Document, agent, bridge};
use ringspan_engine::cores::Cores;
use ringspan_tunnel::fingerprint::Trust;
use ringspan_tunnel::identity::AgentKey;
use ringspan_tunnel::token::JoinToken;
use std::path::Path;

/// Of one file.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) file: String,
    /// "bridge" or "agent".
    pub(super) program: &'static str,
    pub(super) engine: Engine,
    pub(super) links: Vec<Link>,
}

/// How a link is protected, as far as the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Which one, if there are several.
    pub(super) section: String,
    pub(super) cover: Cover,
    /// Whether the kernel may have its keys.
    pub(super) ktls: bool,
    /// Its bytes pass through this process for another reason.
    pub(super) is_websocket: bool,
}

/// What is around a link's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    Tls,
    /// Nothing of ours.
    Clear,
    /// The bridge decides, and this agent has not heard of it yet.
    Unheard,
}

impl Plan {
    /// Reads a bridge's or an agent's file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(file: &Path) -> Result<Plan, Failure> {
        Plan::of(&Document::read(file)?)
    }

    fn of(doc: &Document) -> Result<Plan, Failure> {
        let file = doc.path().to_string();
        Ok(match kind(doc)? {
            Kind::Bridge => {
                let bridge = bridge::check(doc)?;
                let cover = if bridge.link.tls == Tls::Off { Cover::Clear } else { Cover::Tls };
                let (section, ktls) = ("[link]".into(), bridge.link.ktls);
                let links = vec![Link { section, cover, ktls, is_websocket: false }];
                Plan { file, program: "bridge", engine: bridge.engine, links }
            }
            Kind::Agent => {
                let agent = agent::check(doc)?;
                let links = agent.links.iter().enumerate().map(|(number, link)| Link {
                    section: if number == 0 { "[link]".into() } else { "[[bridge]]".into() },
                    cover: cover(link),
                    ktls: link.ktls,
                    is_websocket: link.road.websocket.is_some(),
                });
                Plan { file, program: "agent", links: links.collect(), engine: agent.engine }
            }
            Kind::Probe => {
                return Err(Failure::Usage(format!(
                    "{file}: a probe configuration has no links. Try: a bridge.toml or an agent.toml, or no --config"
                )));
            }
        })
    }

    /// How many workers, where.
    pub(super) fn judge_workers(&self) -> Finding {
        let options = self.engine.options();
        let count = options.workers;
        let kept_on = Cores::of(options.cores.as_slice().iter().copied().take(count));
        let (place, means) = match kept_on {
            Ok(cores) if options.pin => (format!("kept on {cores}"), "[engine] affinity keeps them there, in turn"),
            _ => ("on any core".to_owned(), "the kernel places them; [engine] affinity would keep them in place"),
        };
        let scheduling = if options.batch { "batch" } else { "normal" };
        finding(Mark::Good, "workers", format!("{count}, {place}, scheduling {scheduling}"), means, "")
    }

    /// Who encrypts each link.
    pub(super) fn judge_links(&self, facts: &Facts) -> Vec<Finding> {
        self.links.iter().map(|link| judge_link(link, facts)).collect()
    }
}

/// As the token says, which is newer than the state folder, or the bridge that it has joined.
fn cover(link: &AgentLink) -> Cover {
    let said = link.token.as_ref().and_then(|token| token.0.parse::<JoinToken>().ok()).map(|token| token.trust);
    let joined = || AgentKey::load(&link.state_dir).ok().flatten().and_then(|key| key.bridge).map(|known| known.trust);
    match said.or_else(joined) {
        Some(Trust::Plain) => Cover::Clear,
        Some(Trust::Pinned(_)) => Cover::Tls,
        None => Cover::Unheard,
    }
}

fn judge_link(link: &Link, facts: &Facts) -> Finding {
    let Link { section, cover, ktls, is_websocket } = link;
    const OURS: &str = "encrypted by this process";
    let (value, why) = match (cover, &facts.ktls) {
        (Cover::Clear, _) => ("in the clear", "tls = \"off\": nothing of ours encrypts it; spliced".to_owned()),
        (_, _) if *is_websocket => (OURS, "copied through this process: it rides in a websocket".into()),
        (_, _) if !ktls => (OURS, "copied through this process: ktls = \"off\"".into()),
        (_, Err(why)) => (OURS, format!("copied through this process: {why}")),
        (_, Ok((what, _))) => ("encrypted by the kernel", what.clone()),
    };
    let doubt = if *cover == Cover::Unheard {
        ", if the bridge has TLS: this agent has neither joined nor a token"
    } else {
        ""
    };
    finding(Mark::Good, "link", format!("{section} {value}{doubt}"), why, "")
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        Plan::of(&Document::of("/nonexistent/file.toml", text)).map_err(|failure| failure.to_string())
    }

    const EXPOSE: &str = "[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:1\"\n";

    /// Who encrypts is what the file, the environment and the kernel say together: table.
    #[test]
    fn who_encrypts() {
        let pinned = JoinToken::create(
            "127.0.0.1:1".parse().expect("an address"),
            "A".repeat(43).parse::<Trust>().expect("a trust"),
            ringspan_tunnel::token::GrantTerms::default(),
            0,
        );
        let token = pinned.0.to_paste();
        let joins = |more: &str| format!("[link]\ntoken = \"{token}\"\n{more}{EXPOSE}");
        let can = || Ok(("AES-128-GCM; spliced both ways".to_owned(), true));
        let cannot = || Err("RINGSPAN_KTLS = \"off\"".to_owned());
        let rows = [
            (String::new(), can(), "[link] encrypted by the kernel", "AES-128-GCM; spliced both ways"),
            (String::new(), cannot(), "[link] encrypted by this process", "RINGSPAN_KTLS = \"off\""),
            ("[link]\nktls = \"off\"\nlisten = \"127.0.0.1:1\"".into(), can(), "by this process", "ktls = \"off\""),
            ("[link]\ntls = \"off\"".into(), can(), "[link] in the clear", "nothing of ours"),
            (joins(""), can(), "[link] encrypted by the kernel", "spliced both ways"),
            (joins("ktls = \"off\"\n"), can(), "[link] encrypted by this process", "ktls = \"off\""),
            (joins("websocket = \"wss://b.example/\"\n"), can(), "[link] encrypted by this process", "websocket"),
            (EXPOSE.to_owned(), can(), "by the kernel, if the bridge has TLS", "spliced both ways"),
        ];
        for (text, ktls, value, means) in rows {
            let facts = Facts { ktls, ..machine() };
            let links = plan(&text).expect("it is right").judge_links(&facts);
            assert_eq!(links.len(), 1);
            let Finding { value: said, means: why, .. } = &links[0];
            assert!(said.contains(value) && why.contains(means), "{text}: {said}: {why}");
        }
        let two = format!("{}[[bridge]]\nstate_dir = \"two\"\nktls = \"off\"\n", joins(""));
        let links = plan(&two).expect("it is right").links;
        assert_eq!(
            links.iter().map(|link| (&*link.section, link.ktls)).collect::<Vec<_>>(),
            [("[link]", true), ("[[bridge]]", false)]
        );
    }

    /// Workers are counted and placed as the file has them, and a file that is none of the two is refused.
    #[test]
    fn workers_and_wrong_files() {
        let core = Cores::allowed().as_slice()[0];
        let workers = |text: &str| plan(text).expect("it is right").judge_workers().value;
        assert_eq!(workers("[engine]\nworkers = 3"), "3, on any core, scheduling batch");
        let kept = format!("[engine]\naffinity = [{core}]\nscheduling = \"normal\"");
        assert_eq!(workers(&kept), format!("1, kept on {core}, scheduling normal"));
        let refused = plan("[[target]]\nurl = \"10.0.0.1:1\"\n").expect_err("no links");
        assert!(refused.contains("a probe configuration has no links. Try: a bridge.toml"), "{refused}");
        let refused = plan("[link]\nktls = \"on\"\n").expect_err("no such word");
        assert_eq!(refused, "/nonexistent/file.toml:2: [link] ktls = \"on\": it is neither. Try: \"auto\" or \"off\"");
    }
}
