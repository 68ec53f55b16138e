//! The selector of a service, in Nacos' words: which of its instances a consumer is to see.
//! Promise: what Nacos reads is read, what it refuses is refused with what would be right; what was written is shown again.
//! Pure.
//!
//! ```text
//! {"type":"none"}
//! {"type":"label","expression":"CONSUMER.label.zone = PROVIDER.label.zone & CONSUMER.label.room = PROVIDER.label.room"}
//! ```
//! Labels are those that Nacos' CMDB plug-in knows of an address, not metadata. Without one, and none comes with Nacos, no
//! address has labels; then nothing fits, and what fits nothing shows all. So it is here: a selector is kept and shown,
//! and everybody sees all instances.

use crate::model::Invalid;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Labels in one expression.
pub const LABELS_MAX: usize = 16;
/// Characters of a label.
pub const LABEL_LEN_MAX: usize = 64;
/// The longest expression, in bytes: that of the longest labels of four bytes a character, with a blank wherever one is usual.
pub const EXPRESSION_BYTES_MAX: usize =
    LABELS_MAX * (2 * 4 * LABEL_LEN_MAX + CONSUMER.len() + PROVIDER.len() + " =  & ".len());

const CONSUMER: &str = "CONSUMER.label.";
const PROVIDER: &str = "PROVIDER.label.";

/// What picks a service's instances for a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServiceSelector {
    /// Nothing: all of them.
    #[default]
    None,
    /// Labels that both must have alike.
    Label(LabelSelector),
}

/// An expression that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    expression: String,
    labels: BTreeSet<String>,
}

impl LabelSelector {
    /// Reads `CONSUMER.label.X = PROVIDER.label.X`, several of them joined by `&`. Blanks count nowhere; an empty one is one
    /// of no labels.
    ///
    /// # Errors
    /// [`Invalid`], with the term that is none.
    pub fn parse(expression: &str) -> Result<LabelSelector, Invalid> {
        let wrong = |problem: String| {
            Invalid::new(
                "selector",
                format!("{problem} Right is: {CONSUMER}zone = {PROVIDER}zone & {CONSUMER}room = {PROVIDER}room."),
            )
        };
        if expression.len() > EXPRESSION_BYTES_MAX {
            let bytes = expression.len();
            return Err(wrong(format!("the expression has {bytes} bytes, at most {EXPRESSION_BYTES_MAX} are taken.")));
        }
        let dense: String = expression.chars().filter(|c| !c.is_whitespace()).collect();
        let mut labels = BTreeSet::new();
        for term in dense.split('&').filter(|_| !dense.is_empty()) {
            let sides = term.split_once('=');
            let named = sides.and_then(|(c, p)| Some((c.strip_prefix(CONSUMER)?, p.strip_prefix(PROVIDER)?)));
            match named {
                Some((consumer, provider)) if consumer == provider && is_label(consumer) => {
                    labels.insert(consumer.to_owned());
                }
                Some((consumer, provider)) if consumer != provider => {
                    return Err(wrong(format!("{term:?} compares two labels, {consumer:?} and {provider:?}.")));
                }
                _ => return Err(wrong(format!("{term:?} is no term."))),
            }
        }
        if labels.len() > LABELS_MAX {
            return Err(wrong(format!("it has {} labels, at most {LABELS_MAX} are taken.", labels.len())));
        }
        Ok(LabelSelector { expression: expression.to_owned(), labels })
    }

    /// The one that compares these labels.
    ///
    /// # Errors
    /// [`Invalid`], for a label that an expression cannot name, or too many of them.
    pub fn of<'a>(labels: impl IntoIterator<Item = &'a str>) -> Result<LabelSelector, Invalid> {
        let mut terms = Vec::new();
        for label in labels {
            if !is_label(label) || label.contains(char::is_whitespace) {
                let problem = format!(
                    "{label:?} is no label: it should be 1 to {LABEL_LEN_MAX} characters, no blank, = or & among them."
                );
                return Err(Invalid::new("selector", problem));
            }
            terms.push(format!("{CONSUMER}{label} = {PROVIDER}{label}"));
        }
        LabelSelector::parse(&terms.join(" & "))
    }

    /// As it was written.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// What it compares.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(String::as_str)
    }
}

fn is_label(text: &str) -> bool {
    (1..=LABEL_LEN_MAX).contains(&text.chars().count())
        && !text.contains(['=', '&'])
        && !text.chars().any(char::is_control)
}

impl ServiceSelector {
    /// Reads Nacos' JSON.
    ///
    /// # Errors
    /// [`Invalid`], if it is none, or of a type that Nacos does not have either.
    pub fn read(text: &str) -> Result<ServiceSelector, Invalid> {
        let wrong = |problem: String| {
            Invalid::new(
                "selector",
                format!(
                    "{problem} Right is: {{\"type\":\"none\"}}, or {{\"type\":\"label\",\"expression\":\"{CONSUMER}zone = {PROVIDER}zone\"}}."
                ),
            )
        };
        let json: Value = serde_json::from_str(text).map_err(|e| wrong(format!("it is no JSON: {e}.")))?;
        match json["type"].as_str() {
            Some(kind) if kind.eq_ignore_ascii_case("none") => Ok(ServiceSelector::None),
            Some(kind) if kind.eq_ignore_ascii_case("label") => match &json["expression"] {
                Value::Null => Ok(ServiceSelector::Label(LabelSelector::parse("")?)),
                Value::String(expression) => Ok(ServiceSelector::Label(LabelSelector::parse(expression)?)),
                other => Err(wrong(format!("its expression is {other}, a string is wanted."))),
            },
            Some(kind) => Err(wrong(format!("not match any type of selector: {kind:?}."))),
            None => Err(wrong("it has no type.".into())),
        }
    }

    /// As Nacos shows it.
    pub fn shown(&self) -> Value {
        match self {
            ServiceSelector::None => json!({ "type": "none", "contextType": "NONE" }),
            ServiceSelector::Label(LabelSelector { expression, labels }) => {
                json!({ "type": "label", "expression": expression, "labels": labels, "contextType": "CMDB" })
            }
        }
    }

    /// What is compared; `None` if there is no selector.
    pub fn labels(&self) -> Option<&LabelSelector> {
        match self {
            ServiceSelector::None => None,
            ServiceSelector::Label(selector) => Some(selector),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expressions that Nacos reads are read, others refused: table.
    #[test]
    fn expressions() {
        let cases: &[(&str, Result<&[&str], &str>)] = &[
            ("CONSUMER.label.zone = PROVIDER.label.zone", Ok(&["zone"])),
            ("CONSUMER.label.b=PROVIDER.label.b&CONSUMER.label.a=PROVIDER.label.a", Ok(&["a", "b"])),
            (" CONSUMER . label.a\t=\nPROVIDER.label.a ", Ok(&["a"])),
            ("CONSUMER.label.a=PROVIDER.label.a & CONSUMER.label.a=PROVIDER.label.a", Ok(&["a"])),
            ("", Ok(&[])),
            ("  ", Ok(&[])),
            ("CONSUMER.label.a = PROVIDER.label.b", Err("two labels")),
            ("PROVIDER.label.a = CONSUMER.label.a", Err("no term")),
            ("CONSUMER.label.a != PROVIDER.label.a", Err("two labels")),
            ("CONSUMER.label.=PROVIDER.label.", Err("no term")),
            ("CONSUMER.label.a", Err("no term")),
            ("CONSUMER.label.a=PROVIDER.label.a &", Err("no term")),
            ("CONSUMER.label.a=PROVIDER.label.a | b", Err("two labels")),
            ("CONSUMER.label.a=b=PROVIDER.label.a=b", Err("no term")),
            ("zone=a", Err("no term")),
        ];
        for (text, want) in cases {
            match (LabelSelector::parse(text), want) {
                (Ok(read), Ok(labels)) => {
                    assert_eq!(read.labels().collect::<Vec<_>>(), *labels, "{text}");
                    assert_eq!(read.expression(), *text);
                }
                (Err(e), Err(part)) => assert!(e.problem.contains(part), "{text}: {e}"),
                (got, want) => panic!("{text}: {got:?}, want {want:?}"),
            }
        }
        let long = "x".repeat(EXPRESSION_BYTES_MAX + 1);
        assert!(LabelSelector::parse(&long).is_err());
        let many: Vec<String> = (0..=LABELS_MAX).map(|n| format!("{n}")).collect();
        assert!(LabelSelector::of(many.iter().map(String::as_str)).is_err());
    }

    /// What labels make is what is read of it, the longest too; what none can name is refused.
    #[test]
    fn of_labels() {
        let made = LabelSelector::of(["b", "a"]).unwrap();
        assert_eq!(made.labels().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(LabelSelector::parse(made.expression()).unwrap(), made);
        let longest: Vec<String> = (0..LABELS_MAX).map(|n| format!("{n:\u{10000}>LABEL_LEN_MAX$}")).collect();
        let made = LabelSelector::of(longest.iter().map(String::as_str)).unwrap();
        assert_eq!(made.labels().count(), LABELS_MAX);
        for bad in ["", "a=b", "a&b", "a b", "\u{1}", &"x".repeat(LABEL_LEN_MAX + 1)] {
            assert!(LabelSelector::of([bad]).is_err(), "{bad:?}");
        }
    }

    /// Nacos' JSON, in and out.
    #[test]
    fn json() {
        assert_eq!(ServiceSelector::read(r#"{"type":"none"}"#).unwrap(), ServiceSelector::None);
        let label = r#"{"type":"label","expression":"CONSUMER.label.a = PROVIDER.label.a","labels":["x"]}"#;
        let read = ServiceSelector::read(label).unwrap();
        let want = json!({ "type": "label", "expression": "CONSUMER.label.a = PROVIDER.label.a", "labels": ["a"], "contextType": "CMDB" });
        assert_eq!(read.shown(), want);
        assert_eq!(ServiceSelector::read(&want.to_string()).unwrap(), read, "what is shown can be sent back");
        assert_eq!(ServiceSelector::read(&ServiceSelector::None.shown().to_string()).unwrap(), ServiceSelector::None);
        for bad in ["", "label", "[]", "{}", r#"{"type":"cmdb"}"#, r#"{"type":"label","expression":7}"#] {
            assert!(ServiceSelector::read(bad).is_err(), "{bad}");
        }
    }
}
