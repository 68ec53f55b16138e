//! Where in a TOML text something stands, in the words of its author: line, section, key.
//! Pure. It reads backwards from an offset that the parser gave, so the text up to there is well formed.

use std::ops::Range;

/// A place in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Counted from 1.
    pub(super) line: usize,
    /// "[link] tls", "[[expose]] check.interval"; "" at the top of a file.
    pub(super) key: String,
}

/// The place of the value at `at`.
pub(super) fn of_value(text: &str, at: usize) -> Place {
    named(text, at, &key_path(text, at))
}

/// The place of the key at `at`.
pub(super) fn of_key(text: &str, at: usize) -> Place {
    let end = text[at..].find(|c: char| !is_key(c)).map_or(text.len(), |n| at + n);
    let name = text[at..end].trim_matches(['"', '\'']).to_owned();
    let mut path = enclosing(text, at).map(|open| key_path(text, open)).unwrap_or_default();
    path.push(name);
    if section_line(text, at) { named(text, at, &[]) } else { named(text, at, &path) }
}

/// The place of a table whose header or brace is at `at`.
pub(super) fn of_table(text: &str, at: usize) -> Place {
    let path = if text[at..].starts_with('{') { key_path(text, at) } else { vec![] };
    named(text, at, &path)
}

/// The line of `at`, no key: for what is no TOML at all.
pub(super) fn of_line(text: &str, at: usize) -> Place {
    Place { line: line(text, at), key: String::new() }
}

/// The text of a value, on one line and not too long.
pub(super) fn shown(text: &str, span: &Range<usize>) -> String {
    let whole = text.get(span.clone()).unwrap_or_default();
    let first = whole.lines().next().unwrap_or_default();
    let short: String = first.chars().take(60).collect();
    if short.len() == whole.len() { short } else { format!("{short}...") }
}

/// The candidate that was probably meant: at most a third of its letters differ, and at most two.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|c| (distance(word, c), *c))
        .filter(|(d, c)| *d <= 2.min(c.len().div_ceil(3)))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Letters to change, add, drop or swap with a neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut d = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in d.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in d[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            d[i][j] = change.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                d[i][j] = d[i][j].min(d[i - 2][j - 2] + 1);
            }
        }
    }
    d[a.len()][b.len()]
}

fn line(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

fn named(text: &str, at: usize, path: &[String]) -> Place {
    let line = line(text, at);
    let section = text.lines().take(line).map(str::trim_start).filter(|l| l.starts_with('[')).last();
    let section = section.and_then(|l| l.find(']').map(|n| if l.starts_with("[[") { &l[..n + 2] } else { &l[..=n] }));
    let path = path.join(".");
    let key = match (section, path.is_empty()) {
        (None, _) => path,
        (Some(s), true) => s.to_owned(),
        (Some(s), false) => format!("{s} {path}"),
    };
    Place { line, key }
}

fn section_line(text: &str, at: usize) -> bool {
    text[..at].rsplit('\n').next().is_some_and(|l| l.trim_start().starts_with('['))
}

fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '"' | '\'' | '.')
}

/// The keys on the way to the value at `at`, within its section.
fn key_path(text: &str, at: usize) -> Vec<String> {
    let mut path = enclosing(text, at).map(|open| key_path(text, open)).unwrap_or_default();
    let before = text[..at].trim_end();
    let Some(before) = before.strip_suffix('=').map(str::trim_end) else {
        return array(text, at).map_or(path, |open| key_path(text, open));
    };
    let start = before.rfind(|c: char| !is_key(c)).map_or(0, |n| n + 1);
    path.push(before[start..].trim_matches(['"', '\'']).to_owned());
    path
}

/// The offset of the `[` of the array around `at`, if a key has it for a value.
fn array(text: &str, at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, c) in text[..at].char_indices().rev() {
        match c {
            ']' => depth += 1,
            '[' if depth == 0 => return text[..offset].trim_end().ends_with('=').then_some(offset),
            '[' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The offset of the `{` of the inline table around `at`, if there is one.
fn enclosing(text: &str, at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, c) in text[..at].char_indices().rev() {
        match c {
            '}' => depth += 1,
            '{' if depth == 0 => return Some(offset),
            '{' => depth -= 1,
            // A line that starts a section or has no brace before it ends the search: inline tables stay on their line
            // in what people write.
            '\n' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "data_dir = \"d\"\n\n[link]\nlisten = \"x\"\n[[expose]]\ncheck = { type = \"tcp\", interval = \"5ms\" }\n";

    /// A place is named as its author would name it.
    #[test]
    fn places() {
        for (needle, line, key) in [
            ("\"d\"", 1, "data_dir"),
            ("\"x\"", 4, "[link] listen"),
            ("\"tcp\"", 6, "[[expose]] check.type"),
            ("\"5ms\"", 6, "[[expose]] check.interval"),
            ("{ type", 6, "[[expose]] check"),
        ] {
            let at = TEXT.find(needle).expect(needle);
            assert_eq!(of_value(TEXT, at), Place { line, key: key.into() }, "{needle}");
        }
        let at = TEXT.find("interval").expect("it is there");
        assert_eq!(of_key(TEXT, at).key, "[[expose]] check.interval");
    }

    /// A slip of the fingers finds its key; a word of another mind finds none.
    #[test]
    fn nearest_key() {
        let known = ["listen", "tls", "public", "insecure"];
        for (word, meant) in [
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("tsl", Some("tls")),
            ("pubilc", Some("public")),
            ("certificate", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
    }
}
