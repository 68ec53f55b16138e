//! `drain` and `drain_takeover`: how long visitors have to finish when their program ends.

use super::{Document, Error, unit};
use std::time::Duration;
use toml::Spanned;

/// From the first signal to the end: longer than most requests, shorter than what supervisors wait before they kill
/// (systemd 90 s, Kubernetes 30 s, Docker 10 s: say less there).
pub(crate) const DRAIN_DEFAULT: Duration = Duration::from_secs(30);
/// When another process has taken over nobody waits for the old one: a working day's longest calls.
pub(crate) const DRAIN_TAKEOVER_DEFAULT: Duration = Duration::from_secs(12 * 3600);
/// Past a week it would be another program's business.
const DRAIN_MAX: Duration = Duration::from_secs(7 * 86_400);

/// One of the two keys; "0s": at once.
pub(super) fn check_drain(doc: &Document, raw: Option<&Spanned<String>>, default: Duration) -> Result<Duration, Error> {
    let read = |text: &str| match text.trim() {
        "0" => Ok(Duration::ZERO),
        text => unit::duration_within(text, Duration::ZERO, DRAIN_MAX),
    };
    raw.map_or(Ok(default), |raw| doc.value(raw, read, "\"30s\", or \"0s\" for at once"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{agent, bridge};

    /// Both files have `drain`, the bridge's has both; without a word the defaults, and what is wrong is named.
    #[test]
    fn how_long_they_have() {
        let bridge = |text: &str| bridge::check(&Document::of("bridge.toml", text));
        let b = bridge("").expect("empty is fine");
        assert_eq!((b.drain, b.drain_takeover), (DRAIN_DEFAULT, DRAIN_TAKEOVER_DEFAULT));
        let b = bridge("drain = \"0s\"\ndrain_takeover = \"1h\"\n").expect("both are right");
        assert_eq!((b.drain, b.drain_takeover), (Duration::ZERO, Duration::from_secs(3600)));
        let error = bridge("drain = \"30\"\n").expect_err("no unit").to_string();
        assert_eq!(
            error,
            "bridge.toml:1: drain = \"30\": it needs a unit, as in 500ms, 1s or 5m. Try: \"30s\", or \"0s\" for at once"
        );
        let error = bridge("drain_takeover = \"8d\"\n").expect_err("too long").to_string();
        assert!(error.contains("drain_takeover = \"8d\": above the maximum of 7d"), "{error}");
        let text = "drain = \"5s\"\n[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:80\"\n";
        assert_eq!(agent::check(&Document::of("agent.toml", text)).expect("right").drain, Duration::from_secs(5));
    }
}
