//! What an answer must contain: a run of bytes, or a regular expression over bytes.
//! Promise: looking takes time linear in what is looked at, whatever the pattern and whatever the peer sends (crate
//! `regex`), and a compiled pattern is bounded ([`Pattern::PROGRAM_BYTES_MAX`]).

use regex::bytes::{Regex, RegexBuilder};
use std::fmt;

/// Something to be found in an answer. Cloning shares the compiled form.
#[derive(Clone)]
pub struct Pattern {
    /// As it was written, for people.
    text: String,
    found: Regex,
    /// A match never begins more than this many bytes before the end of what has been looked at; `None`: anywhere.
    overlap_bytes: Option<usize>,
}

/// Why something is not a pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It would match everything.
    #[error("the pattern is empty: every answer contains it. Leave it out to accept any answer")]
    Empty,
    /// Longer than [`Pattern::TEXT_BYTES_MAX`].
    #[error("the pattern has {bytes} bytes, at most {max} are possible", max = Pattern::TEXT_BYTES_MAX)]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Not a regular expression, or too big a one.
    #[error("\"{text}\" is not a regular expression: {why}")]
    Regex {
        /// What was given.
        text: String,
        /// What the compiler said, on one line.
        why: String,
    },
}

impl Pattern {
    /// Bytes of the text of a pattern: longer ones are not a description any more but a copy.
    pub const TEXT_BYTES_MAX: usize = 1024;
    /// Bytes of a compiled pattern. `\w{500}` needs about 100 KB; 256 KB is room for what people write by hand and a limit to
    /// what a mistake (`.{1000}{1000}`) costs.
    pub const PROGRAM_BYTES_MAX: usize = 256 * 1024;

    /// These very bytes, anywhere. Bytes outside of ASCII are fine.
    ///
    /// # Errors
    /// Empty, or longer than [`Pattern::TEXT_BYTES_MAX`].
    pub fn bytes(bytes: &[u8]) -> Result<Pattern, PatternError> {
        length_is_good(bytes.len())?;
        let escaped: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let found = compile(&escaped).map_err(|why| PatternError::Regex { text: escaped, why })?;
        let text = bytes.escape_ascii().to_string();
        Ok(Pattern { text, found, overlap_bytes: Some(bytes.len() - 1) })
    }

    /// A regular expression in the syntax of the `regex` crate, over bytes: `.` is any byte but a line feed, `\d`, `\w`
    /// and `(?i)` know ASCII, `\xFF` is that byte. No look-around, no back references.
    ///
    /// # Errors
    /// Empty, longer than [`Pattern::TEXT_BYTES_MAX`], not a regular expression, or one that compiles to more than
    /// [`Pattern::PROGRAM_BYTES_MAX`].
    pub fn regex(text: &str) -> Result<Pattern, PatternError> {
        length_is_good(text.len())?;
        let found = compile(text).map_err(|why| PatternError::Regex { text: text.to_owned(), why })?;
        Ok(Pattern { text: text.to_owned(), found, overlap_bytes: None })
    }

    /// Whether `answer` contains it.
    pub fn is_in(&self, answer: &[u8]) -> bool {
        self.found.is_match(answer)
    }

    /// Whether `answer` contains it, where its first `looked_bytes` are known not to. Regular expressions are looked
    /// for from the beginning all the same: `^` and `\b` depend on what stands before.
    pub(crate) fn is_in_longer(&self, answer: &[u8], looked_bytes: usize) -> bool {
        let from = self.overlap_bytes.map_or(0, |overlap| looked_bytes.saturating_sub(overlap));
        self.found.is_match_at(answer, from)
    }

    /// The pattern as it was written; bytes that cannot be shown as `\xNN`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.overlap_bytes.is_some() { "bytes" } else { "regex" };
        write!(f, "{kind}({})", self.text)
    }
}

/// Two patterns are the same when they were written the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text && self.overlap_bytes == other.overlap_bytes
    }
}

impl Eq for Pattern {}

fn length_is_good(bytes: usize) -> Result<(), PatternError> {
    match bytes {
        0 => Err(PatternError::Empty),
        1..=Pattern::TEXT_BYTES_MAX => Ok(()),
        _ => Err(PatternError::TooLong { bytes }),
    }
}

/// Unicode off: answers are bytes, and classes that know Unicode compile to a hundred times the size.
fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(Pattern::PROGRAM_BYTES_MAX)
        .dfa_size_limit(Pattern::PROGRAM_BYTES_MAX)
        .build()
        .map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is a pattern and what it finds.
    #[test]
    fn patterns_find_what_they_say() {
        let table: [(Pattern, &[u8], bool); 9] = [
            (Pattern::bytes(b"+PONG").unwrap(), b"+PONG\r\n", true),
            (Pattern::bytes(b"+PONG").unwrap(), b"+PON", false),
            (Pattern::bytes(b"a.c").unwrap(), b"abc", false),
            (Pattern::bytes(&[0xff, 0x00]).unwrap(), &[1, 0xff, 0x00, 2], true),
            (Pattern::regex("^220[ -]").unwrap(), b"220 mail.example.net ESMTP\r\n", true),
            (Pattern::regex("^220[ -]").unwrap(), b"x220 ", false),
            (Pattern::regex(r"(?i)ssh-2\.\d").unwrap(), b"SSH-2.0-x", true),
            (Pattern::regex(r"\xff").unwrap(), &[0xff], true),
            (Pattern::regex("a.b").unwrap(), b"a\nb", false),
        ];
        for (pattern, answer, expected) in table {
            assert_eq!(pattern.is_in(answer), expected, "{pattern:?} in {}", answer.escape_ascii());
        }
    }

    /// What is no pattern says why, on one line.
    #[test]
    fn what_is_no_pattern_is_refused() {
        let table: [(Result<Pattern, PatternError>, &str); 5] = [
            (Pattern::bytes(b""), "empty"),
            (Pattern::regex(""), "empty"),
            (Pattern::bytes(&[b'a'; Pattern::TEXT_BYTES_MAX + 1]), "1025 bytes, at most 1024"),
            (Pattern::regex("a("), "\"a(\" is not a regular expression: error: unclosed group"),
            (Pattern::regex("a{1000}{1000}"), "size limit"),
        ];
        for (result, words) in table {
            let error = result.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    proptest! {
        /// Bytes that come in pieces are found exactly when the naive search over the whole finds them.
        #[test]
        fn pieces_are_as_good_as_the_whole(
            answer in proptest::collection::vec(0u8..3, 0..40),
            wanted in proptest::collection::vec(0u8..3, 1..4),
            cut in 0usize..40,
        ) {
            let pattern = Pattern::bytes(&wanted).unwrap();
            let whole = answer.windows(wanted.len()).any(|window| window == wanted);
            let cut = cut.min(answer.len());
            let pieces = pattern.is_in(&answer[..cut]) || pattern.is_in_longer(&answer, cut);
            prop_assert_eq!(pieces, whole);
        }
    }
}
