//! `[[registry.webhook]]` of a bridge.toml: who is told of events over HTTP.

use super::registry::RawRegistry;
use super::{Document, Error, unit};
use ringspan_registry::events::Filter;
use ringspan_registry::events::webhook::{Destination, Hook, Pace, Secret};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use toml::Spanned;

/// Webhooks of one bridge: each is a queue and a connection.
const WEBHOOKS_MAX: usize = 32;
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// An hour: whoever is away longer has other means to find out what happened.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// A webhook of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    /// What it is.
    pub(crate) hook: Hook,
    /// Of all that makes it so, secrets too: another one is another webhook.
    pub(crate) digest: u64,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWebhook {
    name: Spanned<String>,
    url: Spanned<String>,
    secret: Option<Spanned<String>>,
    #[serde(default)]
    headers: BTreeMap<String, Spanned<String>>,
    kinds: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    services: Vec<String>,
    everything: Option<bool>,
    timeout: Option<Spanned<String>>,
    retries: Option<Spanned<i64>>,
    backoff: Option<Spanned<String>>,
    backoff_max: Option<Spanned<String>>,
    queue: Option<Spanned<i64>>,
    batch: Option<Spanned<i64>>,
    ca: Option<Spanned<String>>,
}

/// Checks them all. Reads this machine's roots where one is `https`.
pub(super) fn check_webhooks(doc: &Document, raw: Option<&Spanned<RawRegistry>>) -> Result<Vec<Webhook>, Error> {
    let all = raw.map_or(&[][..], |raw| &raw.get_ref().webhook);
    let mut hooks = Vec::<Webhook>::new();
    for spanned in all {
        let hook = check_webhook(doc, spanned.get_ref())?;
        let name = &spanned.get_ref().name;
        if hooks.iter().any(|other| other.hook.name == hook.hook.name) {
            return Err(doc.wrong(name.span(), "another webhook has that name", "a name of its own"));
        }
        if hooks.len() == WEBHOOKS_MAX {
            return Err(doc.wrong(name.span(), format!("there are more than {WEBHOOKS_MAX} webhooks"), "fewer"));
        }
        hooks.push(hook);
    }
    Ok(hooks)
}

fn check_webhook(doc: &Document, raw: &RawWebhook) -> Result<Webhook, Error> {
    let mut digest = DefaultHasher::new();
    let name = doc.value(&raw.name, |n| unit::service_name(n).map(|()| n.to_owned()), "\"pager\"")?;
    let ca = match &raw.ca {
        None => None,
        Some(raw) => {
            let read = |text: &str| {
                let path = doc.path_of(text);
                std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
            };
            Some(doc.value(raw, read, "the path of a readable PEM file")?)
        }
    };
    let url = doc.secret(&raw.url)?;
    let remedy = "\"https://hooks.example.com/ringspan\", or \"${WEBHOOK_URL}\"";
    // A receiver's path is often its password.
    let to =
        Destination::new(&url, ca.as_deref()).map_err(|problem| doc.wrong_secret(raw.url.span(), problem, remedy))?;
    (&url, &ca).hash(&mut digest);
    let mut hook = Hook::new(&name, to);
    if let Some(secret) = &raw.secret {
        let text = doc.secret(secret)?;
        text.hash(&mut digest);
        let wrong =
            |problem| doc.wrong_secret(secret.span(), problem, "\"${WEBHOOK_SECRET}\", from: openssl rand -hex 32");
        hook.secret = Some(Secret::new(&text).map_err(wrong)?);
    }
    for (header, value) in &raw.headers {
        let text = doc.secret(value)?;
        text.hash(&mut digest);
        let put = || {
            let name = header.parse::<hyper::header::HeaderName>().map_err(|e| e.to_string())?;
            let mut value = hyper::header::HeaderValue::from_str(&text).map_err(|e| e.to_string())?;
            value.set_sensitive(true);
            Ok::<_, String>((name, value))
        };
        let (name, text) =
            put().map_err(|problem| doc.wrong_secret(value.span(), problem, "a header that HTTP has"))?;
        hook.headers.insert(name, text);
    }
    hook.filter = Filter {
        kinds: raw.kinds.as_ref().map(|kinds| kinds.get_ref().clone()).unwrap_or_default(),
        namespaces: raw.namespaces.clone(),
        groups: raw.groups.clone(),
        services: raw.services.clone(),
    };
    if let (Err(problem), Some(kinds)) = (hook.filter.check(), &raw.kinds) {
        return Err(doc.wrong(kinds.span(), problem, "kinds = [\"health\", \"removed\"]"));
    }
    hook.everything = raw.everything.unwrap_or(false);
    let duration = |raw: &Option<Spanned<String>>, min, max, default: Duration, example| match raw {
        None => Ok(default),
        Some(raw) => doc.value(raw, |text: &str| unit::duration_within(text, min, max), example),
    };
    let default = Pace::default();
    let backoff = duration(&raw.backoff, BACKOFF_MIN, BACKOFF_MAX, default.backoff, "\"500ms\"")?;
    hook.pace = Pace {
        timeout: duration(&raw.timeout, TIMEOUT_MIN, TIMEOUT_MAX, default.timeout, "\"5s\"")?,
        retries: number(doc, raw.retries.as_ref(), 0..=100)?.unwrap_or(default.retries),
        backoff,
        backoff_max: duration(&raw.backoff_max, backoff, BACKOFF_MAX, default.backoff_max.max(backoff), "\"60s\"")?,
    };
    hook.queue_max = number(doc, raw.queue.as_ref(), 1..=65_536)?.unwrap_or(hook.queue_max);
    hook.batch_max = number(doc, raw.batch.as_ref(), 1..=1_000)?.unwrap_or(hook.batch_max);
    // What is not secret shows.
    format!("{hook:?}").hash(&mut digest);
    Ok(Webhook { hook, digest: digest.finish() })
}

fn number<T: TryFrom<i64>>(
    doc: &Document,
    raw: Option<&Spanned<i64>>,
    range: std::ops::RangeInclusive<i64>,
) -> Result<Option<T>, Error> {
    let read = raw.map(|raw| doc.number(raw, range)).transpose()?;
    Ok(read.and_then(|n| T::try_from(n).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bridge;

    fn read(keys: &str) -> Result<Vec<Hook>, String> {
        let text = format!("[[registry.webhook]]\nname = \"pager\"\n{keys}");
        bridge::check(&Document::of("bridge.toml", &text))
            .map(|b| b.webhooks.into_iter().map(|w| w.hook).collect())
            .map_err(|e| e.to_string())
    }

    /// A whole one is read, with its defaults where it says nothing.
    #[test]
    fn a_webhook_is_read() {
        let url = "url = \"http://127.0.0.1:9/x?y=1\"\n";
        let hooks = read(url).unwrap();
        assert_eq!((hooks[0].name.as_str(), hooks[0].queue_max, hooks[0].batch_max), ("pager", 4096, 100));
        assert_eq!((hooks[0].pace, hooks[0].secret.is_some()), (Pace::default(), false));
        let more = "secret = \"sixteen letters!\"\nkinds = [\"health\"]\nservices = [\"pay-*\"]\nretries = 2\n\
                    backoff = \"1s\"\ntimeout = \"2s\"\nqueue = 10\nbatch = 1\neverything = true\n\
                    headers = { Authorization = \"Bearer x\" }\n";
        let hook = read(&format!("{url}{more}")).unwrap().remove(0);
        assert_eq!((hook.queue_max, hook.batch_max, hook.pace.retries, hook.everything), (10, 1, 2, true));
        assert_eq!((hook.filter.kinds.len(), hook.filter.services.len(), hook.headers.len()), (1, 1, 1));
        assert!(hook.secret.is_some());
        let shown = format!("{hook:?}");
        assert!(!shown.contains("letters") && !shown.contains("Bearer") && !shown.contains("y=1"), "{shown}");
    }

    /// What is wrong is named, with the key and what would be right, and no secret is shown: table.
    #[test]
    fn mistakes_are_named() {
        let url = "url = \"http://127.0.0.1:9/\"\n";
        let cases = [
            ("url = \"ftp://x/\"\n".to_owned(), "url", "http://"),
            ("url = \"https://me:pw@x/\"\n".into(), "url", "Authorization"),
            ("url = \"${RINGSPAN_NO_SUCH_VARIABLE}\"\n".into(), "url", "RINGSPAN_NO_SUCH_VARIABLE"),
            (format!("{url}secret = \"short\"\n"), "secret", "5 bytes"),
            (format!("{url}kinds = [\"moon\"]\n"), "kinds", "\"moon\" is no kind"),
            (format!("{url}retries = 101\n"), "retries", "101"),
            (format!("{url}queue = 0\n"), "queue", "0"),
            (format!("{url}timeout = \"1h\"\n"), "timeout", "5s"),
            (format!("{url}backoff = \"10s\"\nbackoff_max = \"5s\"\n"), "backoff_max", "5s"),
            (format!("{url}headers = {{ \"a b\" = \"c\" }}\n"), "headers", "header"),
            (format!("{url}ca = \"no-such.pem\"\n"), "ca", "no-such.pem"),
            (format!("{url}[[registry.webhook]]\nname = \"pager\"\n{url}"), "name", "another webhook"),
            (String::new(), "url", "missing"),
        ];
        for (keys, key, problem) in cases {
            let said = read(&keys).unwrap_err();
            assert!(said.contains("bridge.toml") && said.contains(key) && said.contains(problem), "{keys}: {said}");
            assert!(!said.contains("pw@") && !said.contains("short"), "{said}");
        }
    }
}
