//! Label selectors: whose metadata is meant.
//! Promise: a [`Selector`] is bounded, and means what Kubernetes means by the same words; what is none is refused with the
//! character at which it stops being one. Pure.
//!
//! ```text
//! zone=a                   has it, and it is that (also ==)        env!=dev               has it not, or it is another
//! tier in (web,"a b")      has it, and it is one of these          tier notin (web,db)    has it not, or it is none of these
//! canary                   has it                                  !canary                has it not
//! zone=a,env!=dev,!canary  all of them
//! ```
//! A key or a value that has blanks, quotes or any of `,()=!<>` in it stands in double quotes, with `\"` and `\\` inside.

pub mod service;

use crate::model::Metadata;
use std::collections::BTreeSet;
use std::fmt;
use std::iter::Peekable;
use std::str::{CharIndices, FromStr};

/// The longest selector, in characters: as long as all the metadata of an instance may be.
pub const SELECTOR_CHARS_MAX: usize = 1024;
/// Terms of a selector.
pub const TERMS_MAX: usize = 32;
/// Values in the parentheses of one term.
pub const VALUES_MAX: usize = 64;

/// Picks by metadata. The default one picks everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
}

/// The language as a regular expression, for documents; [`SELECTOR_CHARS_MAX`] aside it is the very same.
pub fn pattern() -> String {
    let (blanks, plain) = ("[ \\t]*", r#"[^\x00-\x20\x7f-\xa0,()=!<>"]+"#);
    let quoted = r#""(?:[^"\\]|\\["\\])*""#;
    let word = format!("(?:{plain}|{quoted})");
    let values = format!("\\({blanks}{word}(?:{blanks},{blanks}{word}){{0,{}}}{blanks}\\)", VALUES_MAX - 1);
    let among = format!("(?:{plain}[ \\t]+|{quoted}{blanks})(?:in|notin){blanks}{values}");
    let term = format!("(?:!{blanks}{word}|{among}|{word}(?:{blanks}(?:==?|!=){blanks}{word}?)?)");
    format!("^{blanks}(?:{term}(?:{blanks},{blanks}{term}){{0,{}}}{blanks})?$", TERMS_MAX - 1)
}

/// Where a text stops being a selector, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("character {at}: {problem}. Right is: zone=a,env!=dev,tier in (x,y),!canary")]
pub struct SelectorError {
    /// The character, from 1.
    pub at: usize,
    /// What is wrong there.
    pub problem: String,
}

impl Selector {
    /// Whether all terms hold.
    pub fn matches(&self, metadata: &Metadata) -> bool {
        self.terms.iter().all(|Term { key, test }| match (metadata.get(key), test) {
            (Some(value), Test::In(values)) => values.contains(value),
            (Some(value), Test::NotIn(values)) => !values.contains(value),
            (Some(_), Test::Exists) | (None, Test::Absent | Test::NotIn(_)) => true,
            (Some(_), Test::Absent) | (None, Test::Exists | Test::In(_)) => false,
        })
    }

    /// Whether it picks everything.
    pub fn is_all(&self) -> bool {
        self.terms.is_empty()
    }
}

impl fmt::Display for Selector {
    /// As [`FromStr`] reads it; not necessarily as it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Term { key, test }) in self.terms.iter().enumerate() {
            let (comma, key) = (if place == 0 { "" } else { "," }, Word(key));
            let list =
                |values: &BTreeSet<String>| values.iter().map(|v| Word(v).to_string()).collect::<Vec<_>>().join(",");
            match test {
                Test::Exists => write!(f, "{comma}{key}")?,
                Test::Absent => write!(f, "{comma}!{key}")?,
                Test::In(values) if values.len() == 1 => write!(f, "{comma}{key}={}", list(values))?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{comma}{key}!={}", list(values))?,
                Test::In(values) => write!(f, "{comma}{key} in ({})", list(values))?,
                Test::NotIn(values) => write!(f, "{comma}{key} notin ({})", list(values))?,
            }
        }
        Ok(())
    }
}

/// A key or a value, quoted if it must be.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            return f.write_str(self.0);
        }
        write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// Whether a character needs no quotes. Blanks are spaces and tabs; control characters stand in quotes alone.
fn is_plain(c: char) -> bool {
    !matches!(c, '\0'..=' ' | '\u{7f}'..='\u{a0}') && !matches!(c, ',' | '(' | ')' | '=' | '!' | '<' | '>' | '"')
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        let chars = text.chars().count();
        if chars > SELECTOR_CHARS_MAX {
            let problem = format!("it has {chars} characters, at most {SELECTOR_CHARS_MAX} are taken");
            return Err(SelectorError { at: 1, problem });
        }
        let mut reader = Reader { text, rest: text.char_indices().peekable() };
        let mut terms = Vec::new();
        reader.skip_blanks();
        if reader.rest.peek().is_none() {
            return Ok(Selector::default());
        }
        loop {
            if terms.len() == TERMS_MAX {
                return Err(reader.wrong(format!("more than {TERMS_MAX} terms")));
            }
            terms.push(reader.term()?);
            match reader.next() {
                None => return Ok(Selector { terms }),
                Some((_, ',')) => {}
                Some((at, other)) => return Err(reader.wrong_at(at, format!("{other:?} where a comma should be"))),
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

impl Reader<'_> {
    fn term(&mut self) -> Result<Term, SelectorError> {
        if self.takes('!') {
            return Ok(Term { key: self.word("a key")?, test: Test::Absent });
        }
        let key = self.word("a key")?;
        let one = |value| BTreeSet::from([value]);
        let test = if self.takes('=') {
            self.takes_now('=');
            Test::In(one(self.value()?))
        } else if self.takes('!') {
            if !self.takes_now('=') {
                return Err(self.wrong("'!' after a key should be !=".into()));
            }
            Test::NotIn(one(self.value()?))
        } else {
            match self.rest.peek() {
                None | Some((_, ',')) => Test::Exists,
                Some(&(at, c)) => match self.operator(c).as_str() {
                    "in" => Test::In(self.values()?),
                    "notin" => Test::NotIn(self.values()?),
                    _ => {
                        let problem = "after a key comes =, !=, in (...), notin (...), a comma or the end".to_owned();
                        return Err(self.wrong_at(at, problem));
                    }
                },
            }
        };
        Ok(Term { key, test })
    }

    fn operator(&mut self, first: char) -> String {
        let mut word = String::new();
        if is_plain(first) {
            while let Some((_, c)) = self.rest.next_if(|(_, c)| is_plain(*c)) {
                word.push(c);
            }
        }
        word
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if !self.takes('(') {
            return Err(self.wrong("values should stand in parentheses".into()));
        }
        let (mut values, mut count) = (BTreeSet::new(), 0);
        loop {
            count += 1;
            if count > VALUES_MAX {
                return Err(self.wrong(format!("more than {VALUES_MAX} values")));
            }
            values.insert(self.word("a value")?);
            match self.next() {
                Some((_, ',')) => {}
                Some((_, ')')) => return Ok(values),
                Some((at, other)) => return Err(self.wrong_at(at, format!("{other:?} where , or ) should be"))),
                None => return Err(self.wrong("a parenthesis is not closed".into())),
            }
        }
    }

    /// What follows `=`; nothing is a value, too.
    fn value(&mut self) -> Result<String, SelectorError> {
        self.skip_blanks();
        match self.rest.peek() {
            None | Some((_, ',')) => Ok(String::new()),
            Some(_) => self.word("a value"),
        }
    }

    fn word(&mut self, what: &str) -> Result<String, SelectorError> {
        self.skip_blanks();
        let mut word = String::new();
        match self.rest.peek() {
            Some((_, '"')) => {
                self.rest.next();
                loop {
                    match self.rest.next() {
                        Some((_, '"')) => return Ok(word),
                        Some((_, '\\')) => match self.rest.next() {
                            Some((_, c @ ('"' | '\\'))) => word.push(c),
                            Some((at, _)) => {
                                return Err(self.wrong_at(at, "after a \\ comes \" or \\".into()));
                            }
                            None => return Err(self.wrong("a quote is not closed".into())),
                        },
                        Some((_, c)) => word.push(c),
                        None => return Err(self.wrong("a quote is not closed".into())),
                    }
                }
            }
            Some((_, c)) if is_plain(*c) => {
                while let Some((_, c)) = self.rest.next_if(|(_, c)| is_plain(*c)) {
                    word.push(c);
                }
                Ok(word)
            }
            Some(&(at, c)) => Err(self.wrong_at(at, format!("{c:?} where {what} should be"))),
            None => Err(self.wrong(format!("it ends where {what} should be"))),
        }
    }

    fn next(&mut self) -> Option<(usize, char)> {
        self.skip_blanks();
        self.rest.next()
    }

    fn takes(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        self.takes_now(wanted)
    }

    fn takes_now(&mut self, wanted: char) -> bool {
        self.rest.next_if(|(_, c)| *c == wanted).is_some()
    }

    fn skip_blanks(&mut self) {
        while self.rest.next_if(|(_, c)| matches!(c, ' ' | '\t')).is_some() {}
    }

    fn wrong(&mut self, problem: String) -> SelectorError {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        self.wrong_at(at, problem)
    }

    fn wrong_at(&self, at: usize, problem: String) -> SelectorError {
        SelectorError { at: self.text[..at].chars().count() + 1, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// What each form picks: table.
    #[test]
    fn what_is_picked() {
        let labels = metadata(&[("zone", "a"), ("tier", "a b"), ("empty", ""), ("q\"", "\\")]);
        let cases = [
            ("", true),
            ("  ", true),
            ("zone", true),
            ("zone=a", true),
            ("zone==a", true),
            ("zone = a", true),
            ("zone=b", false),
            ("zone!=b", true),
            ("zone!=a", false),
            ("moon!=a", true),
            ("moon=a", false),
            ("moon", false),
            ("!moon", true),
            ("! zone", false),
            ("zone in (b, a)", true),
            ("zone in(b)", false),
            ("zone notin (b)", true),
            ("moon notin (b)", true),
            ("zone notin (a,b)", false),
            ("tier=\"a b\"", true),
            ("empty=", true),
            ("empty=,zone", true),
            ("zone=", false),
            ("\"q\\\"\"=\"\\\\\"", true),
            ("zone=a,tier,!moon,zone notin (x)", true),
            ("zone=a,moon", false),
        ];
        for (text, want) in cases {
            let selector = text.parse::<Selector>().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(&labels), want, "{text}");
        }
    }

    /// What is none is refused at the character where it stops being one: table.
    #[test]
    fn what_is_refused() {
        let many = vec!["a"; TERMS_MAX + 1].join(",");
        let values = format!("a in ({})", vec!["b"; VALUES_MAX + 1].join(","));
        let long = "é".repeat(SELECTOR_CHARS_MAX + 1);
        assert!("é".repeat(SELECTOR_CHARS_MAX).parse::<Selector>().is_ok());
        let cases = [
            (",", 1, "a key"),
            ("zone=a,", 8, "a key"),
            ("zone=a b", 8, "comma"),
            ("zone ~ a", 6, "after a key"),
            ("zone > 1", 6, "after a key"),
            ("zone!a", 6, "!="),
            ("zone in a", 9, "parentheses"),
            ("zone in ()", 10, "a value"),
            ("zone in (a", 11, "not closed"),
            ("zone in (a;b)", 14, "ends"),
            ("zöne=\"a", 8, "not closed"),
            ("a=\"\\n\"", 5, "after a \\"),
            (&*many, 65, "32 terms"),
            (&*values, 135, "64 values"),
            (&*long, 1, "1025 characters"),
        ];
        for (text, at, says) in cases {
            // A semicolon is a letter like any other: the value is "a;b".
            if text.contains(';') {
                assert!(text.parse::<Selector>().is_ok());
                continue;
            }
            let error = text.parse::<Selector>().expect_err(text);
            assert_eq!((error.at, error.problem.contains(says)), (at, true), "{text}: {error}");
        }
    }

    /// A selector as somebody might mean it, and an oracle that needs no parser.
    #[derive(Clone, Debug)]
    enum Meant {
        Is(String, String),
        IsNot(String, String),
        Among(String, Vec<String>),
        NotAmong(String, Vec<String>),
        Has(String),
        HasNot(String),
    }

    impl Meant {
        fn holds(&self, m: &Metadata) -> bool {
            match self {
                Meant::Is(k, v) => m.get(k) == Some(v),
                Meant::IsNot(k, v) => m.get(k) != Some(v),
                Meant::Among(k, vs) => vs.iter().any(|v| m.get(k) == Some(v)),
                Meant::NotAmong(k, vs) => vs.iter().all(|v| m.get(k) != Some(v)),
                Meant::Has(k) => m.contains_key(k),
                Meant::HasNot(k) => !m.contains_key(k),
            }
        }

        fn write(&self, blank: &str) -> String {
            let list = |vs: &Vec<String>| {
                vs.iter().map(|v| Word(v).to_string()).collect::<Vec<_>>().join(&format!("{blank},{blank}"))
            };
            match self {
                Meant::Is(k, v) => format!("{}{blank}={blank}{}", Word(k), Word(v)),
                Meant::IsNot(k, v) => format!("{}{blank}!={blank}{}", Word(k), Word(v)),
                Meant::Among(k, vs) => format!("{} in{blank}({blank}{}{blank})", Word(k), list(vs)),
                Meant::NotAmong(k, vs) => format!("{} notin{blank}({blank}{}{blank})", Word(k), list(vs)),
                Meant::Has(k) => Word(k).to_string(),
                Meant::HasNot(k) => format!("!{blank}{}", Word(k)),
            }
        }
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![Just("in".to_owned()), Just("notin".to_owned()), Just("a".to_owned()), "[ab,()=!\"\\\\ é]{0,3}"]
    }

    fn meant() -> impl Strategy<Value = Meant> {
        let words = || proptest::collection::vec(word(), 1..4);
        prop_oneof![
            (word(), word()).prop_map(|(k, v)| Meant::Is(k, v)),
            (word(), word()).prop_map(|(k, v)| Meant::IsNot(k, v)),
            (word(), words()).prop_map(|(k, v)| Meant::Among(k, v)),
            (word(), words()).prop_map(|(k, v)| Meant::NotAmong(k, v)),
            word().prop_map(Meant::Has),
            word().prop_map(Meant::HasNot),
        ]
    }

    proptest! {
        /// Whatever is meant is what is picked, and what is printed means the same.
        #[test]
        fn as_meant(
            all in proptest::collection::vec(meant(), 1..5),
            labels in proptest::collection::btree_map(word(), word(), 0..5),
            blank in prop_oneof![Just(""), Just(" "), Just(" \t")],
        ) {
            let text = all.iter().map(|m| m.write(blank)).collect::<Vec<_>>().join(&format!("{blank},{blank}"));
            let selector: Selector = text.parse().map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            prop_assert_eq!(selector.matches(&labels), all.iter().all(|m| m.holds(&labels)), "{}", &text);
            let printed = selector.to_string();
            prop_assert_eq!(printed.parse::<Selector>(), Ok(selector), "{}", printed);
        }

        /// Any text at all: taken, or refused at one of its characters or just behind it.
        #[test]
        fn any_text(text in "[ab,()=!\"\\\\ é<>in]{0,40}") {
            if let Err(error) = text.parse::<Selector>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.at), "{}: {}", text, error);
            }
        }
    }
}
