//! What a program that runs cannot change. A key of its file that says something else is named, with both values and the
//! way out, and its old value is put back: the configuration that is kept says what runs, and the next one is compared
//! with that.

use crate::cli::Backend;
use crate::config::bridge::Engine;
use std::fmt::Display;

/// Collects a sentence for each key that stays.
pub(crate) struct Fixed {
    /// "bridge" or "agent".
    program: &'static str,
    /// What lets it have the new value.
    remedy: &'static str,
    sentences: Vec<String>,
}

impl Fixed {
    /// Of nothing yet.
    pub(crate) fn of(program: &'static str, remedy: &'static str) -> Fixed {
        Fixed { program, remedy, sentences: Vec::new() }
    }

    /// This one stays as it was. `show`: a value as the file would have it.
    pub(crate) fn keep<T: PartialEq + Clone>(
        &mut self,
        key: &str,
        old: &T,
        new: &mut T,
        show: impl Fn(&T) -> String,
    ) -> &mut Fixed {
        self.keep_until(self.remedy, key, old, new, show)
    }

    /// The same, where the way out is another one.
    pub(crate) fn keep_until<T: PartialEq + Clone>(
        &mut self,
        remedy: &str,
        key: &str,
        old: &T,
        new: &mut T,
        show: impl Fn(&T) -> String,
    ) -> &mut Fixed {
        if *old != *new {
            let (was, wanted, program) = (show(old), show(new), self.program);
            self.sentences.push(format!(
                "{key} = {wanted} cannot be had by a running {program}: it stays {was}, and all else holds. Try: {remedy}"
            ));
            new.clone_from(old);
        }
        self
    }

    /// The same of a secret, or of the contents of a file: the values are not shown.
    pub(crate) fn keep_unseen<T: PartialEq + Clone>(&mut self, key: &str, old: &T, new: &mut T) -> &mut Fixed {
        if *old != *new {
            let (program, remedy) = (self.program, self.remedy);
            self.sentences.push(format!(
                "{key}: another value cannot be had by a running {program}: the old one stays, and all else holds. Try: \
                 {remedy}"
            ));
            new.clone_from(old);
        }
        self
    }

    /// `[engine]`, which both files have: the workers run.
    pub(crate) fn keep_engine(&mut self, old: &Engine, new: &mut Engine) -> &mut Fixed {
        // Who adds a key decides here what becomes of it.
        let Engine { workers, backend, batch, affinity } = new;
        self.keep("[engine] workers", &old.workers, workers, |n| or_unsaid(n.as_ref()));
        let word = |backend: &Backend| match backend {
            Backend::Auto => quoted("auto"),
            Backend::IoUring => quoted("io_uring"),
            Backend::Epoll => quoted("epoll"),
        };
        self.keep("[engine] backend", &old.backend, backend, word);
        self.keep("[engine] scheduling", &old.batch, batch, |on| quoted(if *on { "batch" } else { "normal" }));
        self.keep("[engine] affinity", &old.affinity, affinity, |cores| quoted_or_unsaid(cores.as_ref()))
    }

    /// What is to be said.
    pub(crate) fn sentences(self) -> Vec<String> {
        self.sentences
    }
}

/// As a string of the file.
pub(crate) fn quoted<T: Display + ?Sized>(value: &T) -> String {
    format!("{:?}", value.to_string())
}

/// The same of a key that the file may leave out.
pub(crate) fn quoted_or_unsaid(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "unsaid".into(), quoted)
}

/// A number that the file may leave out.
pub(crate) fn or_unsaid(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "unsaid".into(), ToString::to_string)
}

/// Holds that a table of changes has a row for every key that a file may have.
#[cfg(test)]
pub(crate) mod every_key {
    use std::collections::{BTreeMap, BTreeSet};

    /// A line of the whole file, what stands in its place, and what is said of it; empty: nothing is to be said.
    pub(crate) type Row<'a> = (&'a str, &'a str, &'a str);

    /// The keys that no row changes. `whole`: a file with every key, each line once; `refused`: why a file is wrong.
    pub(crate) fn forgotten(whole: &str, rows: &[Row<'_>], refused: impl Fn(&str) -> Option<String>) -> Vec<String> {
        // All limits are alike, and [[bridge]] is as [link].
        let pool = |section: &str| match section {
            "bridge" => "link".to_owned(),
            limits if limits.ends_with(".limits") => "limits".to_owned(),
            section => section.to_owned(),
        };
        let mut written = BTreeMap::<String, BTreeMap<String, bool>>::new();
        let (mut section, mut headers) = (String::new(), vec![(0, String::new())]);
        for (number, line) in (1..).zip(whole.lines()) {
            if let Some(header) = line.strip_prefix('[') {
                let name = header.trim_matches(['[', ']']);
                let (above, last) = name.rsplit_once('.').unwrap_or(("", name));
                written.entry(pool(above)).or_default().insert(last.to_owned(), true);
                section = pool(name);
                headers.push((number, section.clone()));
            } else if let Some((key, _)) = line.split_once(" = ") {
                let is_changed = rows.iter().any(|(from, ..)| from.lines().any(|part| part == line));
                *written.entry(section.clone()).or_default().entry(key.to_owned()).or_default() |= is_changed;
            }
        }
        let mut forgotten = BTreeSet::new();
        for (section, keys) in &written {
            let unchanged = keys.iter().filter(|(_, is_changed)| !**is_changed);
            forgotten.extend(unchanged.map(|(key, _)| format!("[{section}] {key}: no row changes it")));
        }
        // A key that is none is refused with those that are.
        for (number, section) in headers {
            let mut lines: Vec<&str> = whole.lines().collect();
            lines.insert(number, "qqqqqqqqqqqq = 1");
            let why = refused(&lines.join("\n")).expect("there is no such key");
            let (_, known) = why.split_once("Try: one of ").unwrap_or_else(|| panic!("[{section}]: {why}"));
            let has = written.get(&section).cloned().unwrap_or_default();
            let missing = known.split(", ").filter(|key| !has.contains_key(*key));
            forgotten.extend(missing.map(|key| format!("[{section}] {key}: the whole file is without it")));
        }
        forgotten.into_iter().collect()
    }
}
