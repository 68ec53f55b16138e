//! `affinity` of `[engine]`: which cores workers are kept on.

use super::{Document, Error};
use ringspan_engine::cores::Cores;
use serde::Deserialize;
use toml::Spanned;

/// As a list of numbers, or as text with ranges.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"0-3,6\" or [0, 1, 2, 3, 6]")]
pub(super) enum RawCores {
    Text(String),
    List(Vec<i64>),
}

/// Reads `affinity`; `allowed`: the cores that the process may use.
pub(super) fn affinity(doc: &Document, raw: &Spanned<RawCores>, allowed: &Cores) -> Result<Cores, Error> {
    let cores = match raw.get_ref() {
        RawCores::Text(text) => text.parse(),
        RawCores::List(list) => Cores::of(list.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX))),
    };
    let checked = cores.and_then(|cores: Cores| match cores.first_beyond(allowed) {
        Some(core) => Err(format!("core {core} is not there, or this process may not use it")),
        None => Ok(cores),
    });
    checked.map_err(|problem| doc.wrong(raw.span(), problem, format!("\"{allowed}\", or some of these")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bridge::Engine;

    #[derive(Deserialize)]
    struct File {
        affinity: Spanned<RawCores>,
    }

    fn read(value: &str) -> Result<Vec<usize>, String> {
        let doc = Document::of("bridge.toml", &format!("affinity = {value}\n"));
        let file: File = doc.parse().map_err(|e| e.to_string())?;
        let allowed = "0-3".parse().unwrap();
        affinity(&doc, &file.affinity, &allowed).map(|cores| cores.as_slice().to_vec()).map_err(|e| e.to_string())
    }

    /// Both ways of writing it mean the same; a core that is not there is an error that names those that are.
    #[test]
    fn cores_are_read_and_checked() {
        assert_eq!(read("\"0-1,3\""), Ok(vec![0, 1, 3]));
        assert_eq!(read("[3, 0, 1]"), Ok(vec![3, 0, 1]));
        for (value, problem) in [
            ("\"2-5\"", "core 4 is not there, or this process may not use it"),
            ("[9]", "core 9 is not there, or this process may not use it"),
            ("\"two\"", "\"two\" is no number of a core"),
            ("[]", "it names no core"),
            ("[-1]", "cores have numbers below 1024"),
        ] {
            let whole = format!("bridge.toml:1: affinity = {value}: {problem}. Try: \"0-3\", or some of these");
            assert_eq!(read(value), Err(whole));
        }
        let no_list = read("true").unwrap_err();
        assert!(no_list.starts_with("bridge.toml:1: ") && no_list.contains("[0, 1, 2, 3, 6]"), "{no_list}");
    }

    /// The kernel places the workers, unless the file keeps them on cores: then there is one on each.
    #[test]
    fn only_affinity_keeps_workers_on_cores() {
        assert!(!Engine::default().options().pin);
        let cores: Cores = "0,2,5".parse().unwrap();
        let options = Engine { affinity: Some(cores.clone()), ..Engine::default() }.options();
        assert!(options.pin && options.cores == cores && options.workers == 3);
    }
}
