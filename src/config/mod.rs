//! Configuration files: read once, checked whole, turned into values that cannot be wrong.
//! Promise: every error names the file, the line, the key, the value and what would be right. Unknown keys are errors.
//!
//! ```text
//! text ──toml + serde──► raw (strings with their place) ──check──► Bridge | Agent (addresses, durations, enums)
//! ```

pub(crate) mod access;
mod affinity;
pub(crate) mod agent;
pub(crate) mod agent_limits;
pub(crate) mod agent_link;
pub(crate) mod balance;
pub(crate) mod bridge;
pub(crate) mod carrier;
pub(crate) mod check;
pub(crate) mod dns;
pub(crate) mod doors;
pub(crate) mod drain;
pub(crate) mod expose;
mod grpc;
pub(crate) mod http;
mod ktls;
mod limits;
mod memory;
mod place;
mod ports;
pub(crate) mod probe;
mod registry;
mod road;
pub(crate) mod unit;
pub(crate) mod visit;
mod watches;
pub(crate) mod webhook;

use serde::de::DeserializeOwned;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;

/// What is wrong with a file, where, and what would be right. Boxed: it is rare, and the good way stays small.
#[derive(Debug)]
pub(crate) struct Error(Box<Details>);

#[derive(Debug)]
struct Details {
    file: PathBuf,
    /// Counted from 1; 0: the file as a whole.
    line: usize,
    /// "[link] tls"; empty for the file as a whole.
    key: String,
    /// As the file has it; empty if the key is what is wrong, `***` in place of a secret.
    value: String,
    problem: String,
    /// Empty if the problem says it.
    remedy: String,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { file, line, key, value, problem, remedy } = &*self.0;
        write!(f, "{}", file.display())?;
        if *line > 0 {
            write!(f, ":{line}")?;
        }
        match (key.is_empty(), value.is_empty()) {
            (true, true) => {}
            (true, false) => write!(f, ": {value}")?,
            (false, true) => write!(f, ": {key}")?,
            (false, false) => write!(f, ": {key} = {value}")?,
        }
        write!(f, ": {problem}")?;
        if remedy.is_empty() { Ok(()) } else { write!(f, ". Try: {remedy}") }
    }
}

/// A file and its text: what turns a place in it into an error.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Document, Error> {
        let mut doc = Document { path: path.to_owned(), text: String::new() };
        doc.text = std::fs::read_to_string(path)
            .map_err(|e| doc.lacking(format!("cannot be read: {e}"), "give the path of a readable UTF-8 file"))?;
        Ok(doc)
    }

    /// A document without a file, for tests and the fuzzer.
    pub(crate) fn of(path: &str, text: &str) -> Document {
        Document { path: path.into(), text: text.into() }
    }

    /// The file's name, for messages.
    pub(crate) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The text as the raw form of a file.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|e| self.explain(&e))
    }

    /// An error about a value.
    pub(crate) fn wrong(&self, span: Range<usize>, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        let place = place::of_value(&self.text, span.start);
        // A whole section is named once.
        let shown = Some(place::shown(&self.text, &span)).filter(|shown| *shown != place.key).unwrap_or_default();
        self.error(place, shown, problem.into(), remedy.into())
    }

    /// An error about a value that is not to be shown as it is.
    pub(crate) fn wrong_as(&self, span: Range<usize>, shown: String, problem: String, remedy: String) -> Error {
        self.error(place::of_value(&self.text, span.start), shown, problem, remedy)
    }

    /// An error about the file as a whole.
    pub(crate) fn lacking(&self, problem: impl Into<String>, remedy: &str) -> Error {
        self.error(place::Place { line: 0, key: String::new() }, String::new(), problem.into(), remedy.into())
    }

    /// An error about a table that lacks something.
    pub(crate) fn lacking_in(&self, span: Range<usize>, problem: impl Into<String>, remedy: &str) -> Error {
        self.error(place::of_table(&self.text, span.start), String::new(), problem.into(), remedy.into())
    }

    /// An error about a secret: the value is not shown.
    pub(crate) fn wrong_secret(&self, span: Range<usize>, problem: impl Into<String>, remedy: &str) -> Error {
        self.error(place::of_value(&self.text, span.start), "***".into(), problem.into(), remedy.into())
    }

    /// An error about a key that a table has not; `span` is the table's.
    pub(crate) fn missing(&self, span: Range<usize>, key: &str) -> Error {
        self.wrong_table(span, format!("{key:?} is missing"), format!("add {key} = ..."))
    }

    /// An error about a table as a whole.
    pub(crate) fn wrong_table(
        &self,
        span: Range<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Error {
        self.error(place::of_table(&self.text, span.start), String::new(), problem.into(), remedy.into())
    }

    /// A path in the file: relative ones start at the folder the file is in.
    pub(crate) fn path_of(&self, text: &str) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(text),
            None => text.into(),
        }
    }

    /// A value that is read from text; `example` is what would be right.
    pub(crate) fn value<T>(
        &self,
        raw: &Spanned<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
        example: &str,
    ) -> Result<T, Error> {
        let text = raw.get_ref();
        if text.contains("${") {
            return Err(self.wrong(raw.span(), "${...} is replaced in secrets only", example));
        }
        read(text).map_err(|problem| self.wrong(raw.span(), problem, example))
    }

    /// A value that may be missing, by its own parser.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(
        &self,
        raw: Option<&Spanned<String>>,
        example: &str,
    ) -> Result<Option<T>, Error> {
        raw.map(|raw| self.value(raw, |text| text.parse::<T>().map_err(|e| e.to_string()), example)).transpose()
    }

    /// A text that may be missing.
    pub(super) fn text(&self, raw: Option<&Spanned<String>>, example: &str) -> Result<Option<String>, Error> {
        raw.map(|raw| self.value(raw, |text| Ok(text.to_owned()), example)).transpose()
    }

    /// A whole number within a range.
    pub(crate) fn number(&self, raw: &Spanned<i64>, range: std::ops::RangeInclusive<i64>) -> Result<i64, Error> {
        let n = *raw.get_ref();
        if range.contains(&n) {
            return Ok(n);
        }
        let side = if n < *range.start() { "below the minimum of" } else { "above the maximum of" };
        let end = if n < *range.start() { range.start() } else { range.end() };
        Err(self.wrong(raw.span(), format!("{side} {end}"), format!("{} to {}", range.start(), range.end())))
    }

    /// A secret: `${NAME}` is replaced by the environment's value, wherever it stands.
    pub(crate) fn secret(&self, raw: &Spanned<String>) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = raw.get_ref().as_str();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, tail)) = after.split_once('}') else {
                return Err(self.wrong_secret(raw.span(), "a ${ has no }", "${NAME}"));
            };
            let value = std::env::var(name).map_err(|_| {
                let problem = format!("the environment has no variable {name:?}");
                let place = place::of_value(&self.text, raw.span().start);
                let more = if has_token_file(&place.key) { ", or use token_file" } else { "" };
                self.wrong_secret(raw.span(), problem, &format!("set it before the start{more}"))
            })?;
            out.push_str(before);
            out.push_str(&value);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// What toml and serde say, in our words where they name a key.
    fn explain(&self, error: &toml::de::Error) -> Error {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().trim().replace('\n', ", ");
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let (place, value, problem, remedy) = if message.starts_with("unknown field") {
            let known = quoted.get(1..).unwrap_or_default();
            let remedy = match place::nearest(quoted[0], known) {
                Some(name) => name.to_owned(),
                None if known.is_empty() => "remove it".into(),
                None => format!("one of {}", known.join(", ")),
            };
            (place::of_key(&self.text, span.start), String::new(), "unknown key".into(), remedy)
        } else if message.starts_with("missing field") {
            let key = format!("{:?} is missing", quoted[0]);
            (place::of_table(&self.text, span.start), String::new(), key, format!("add {} = ...", quoted[0]))
        } else if message.starts_with("invalid type") {
            let place = place::of_value(&self.text, span.start);
            let remedy = right_type(&message);
            if has_token_file(&place.key) {
                (place, "***".into(), "it is no string".into(), "\"${RINGSPAN_TOKEN}\", or use token_file".into())
            } else if ["password", "url", "urls", "headers", "users", "basic_auth", "secret"]
                .iter()
                .any(|secret| place.key.ends_with(secret))
            {
                (place, "***".into(), message.split(',').next_back().unwrap_or_default().trim().into(), remedy)
            } else {
                (place, place::shown(&self.text, &span), message.clone(), remedy)
            }
        } else {
            (place::of_line(&self.text, span.start), String::new(), message.clone(), String::new())
        };
        self.error(place, value, problem, remedy)
    }

    fn error(&self, place: place::Place, value: String, problem: String, remedy: String) -> Error {
        let (file, place::Place { line, key }) = (self.path.clone(), place);
        Error(Box::new(Details { file, line, key, value, problem, remedy }))
    }
}

/// What would be right where serde says "invalid type: integer `5`, expected a string".
fn right_type(message: &str) -> String {
    let expected = message.rsplit("expected ").next().unwrap_or_default();
    let is_number =
        |word: &str| matches!(word, "u8" | "u16" | "u32" | "u64" | "usize" | "i64" | "integer" | "an integer");
    match expected {
        "a string" | "a borrowed string" => "a text in quotes: \"...\"".into(),
        "a boolean" => "true or false, without quotes".into(),
        "f64" | "a float" => "a number without quotes".into(),
        word if is_number(word) => "a whole number without quotes".into(),
        word if word.contains("sequence") => "a list: [...]".into(),
        word if word.contains("map") || word.contains("struct") => "a table: { name = value }".into(),
        _ => String::new(),
    }
}

/// Whether the secret may stand in a file of its own.
fn has_token_file(key: &str) -> bool {
    ["[link] token", "[[bridge]] token"].contains(&key)
}

#[cfg(test)]
mod tests;
