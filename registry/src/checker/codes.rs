//! Statuses of an HTTP answer that are well: `200`, `2xx`, `204,3xx`.
//! Promise: a value is one to 16 of them, each from 100 to 599; the engine takes what it makes of it.

use crate::model::Invalid;
use ringspan_engine::check::Statuses;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Statuses and classes of them in one value.
pub const CODES_MAX: usize = 16;
const PARAM: &str = "expectedResponseCode";

/// See the module. The default is 200.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Codes(Box<[Code]>);

/// A status, or a class of them by its first digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    One(u16),
    Class(u16),
}

impl Default for Codes {
    fn default() -> Codes {
        Codes([Code::One(200)].into())
    }
}

impl Codes {
    /// One status.
    ///
    /// # Errors
    /// [`Invalid`] outside of 100 to 599.
    pub fn of(status: u16) -> Result<Codes, Invalid> {
        status.to_string().parse()
    }

    /// For the engine.
    pub(super) fn statuses(&self) -> Statuses {
        let range = |code: &Code| match code {
            Code::One(status) => status.to_string(),
            Code::Class(first) => format!("{first}00-{first}99"),
        };
        let text = self.0.iter().map(range).collect::<Vec<_>>().join(",");
        text.parse().expect("at most 16 ranges within 100 to 599")
    }

    /// Each, as it is written.
    pub fn terms(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(Code::to_string)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Code::One(status) => write!(f, "{status}"),
            Code::Class(first) => write!(f, "{first}xx"),
        }
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.terms().collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Codes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Codes, Invalid> {
        let one = |term: &str| match term.trim().as_bytes() {
            [first @ b'1'..=b'5', b'x', b'x'] => Some(Code::Class(u16::from(first - b'0'))),
            digits @ [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9'] => {
                Some(Code::One(digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'))))
            }
            _ => None,
        };
        let codes: Option<Box<[Code]>> = text.split(',').map(one).collect();
        codes.filter(|c| c.len() <= CODES_MAX).map(Codes).ok_or_else(|| {
            let right = format!(
                "{text:?} should be 1 to {CODES_MAX} statuses from 100 to 599, or classes of them: 200, 204,3xx."
            );
            Invalid::new(PARAM, right)
        })
    }
}

/// One status is a number, as it always was; anything else is text.
impl Serialize for Codes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match *self.0 {
            [Code::One(status)] => to.serialize_u16(status),
            _ => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Codes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Codes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a status, or text such as \"200,3xx\"")]
        enum Said {
            Number(u16),
            Text(String),
        }
        let codes = match Said::deserialize(from)? {
            Said::Number(status) => Codes::of(status),
            Said::Text(text) => text.parse(),
        };
        codes.map_err(|e| serde::de::Error::custom(e.problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken, what is asked of the engine, and how it is stored: table.
    #[test]
    fn what_is_taken() {
        let cases = [
            ("200", "200", "200"),
            ("2xx", "200-299", "\"2xx\""),
            ("204, 3xx", "204,300-399", "\"204,3xx\""),
            ("599,100", "599,100", "\"599,100\""),
        ];
        for (text, engine, stored) in cases {
            let codes: Codes = text.parse().unwrap();
            assert_eq!(codes.statuses().to_string(), engine);
            assert_eq!(serde_json::to_string(&codes).unwrap(), stored);
            assert_eq!(serde_json::from_str::<Codes>(stored).unwrap(), codes);
        }
        let many = vec!["200"; CODES_MAX + 1].join(",");
        for bad in ["", "99", "600", "6xx", "0200", "2x", "200,", "200-299", &many] {
            assert!(bad.parse::<Codes>().is_err(), "{bad}");
        }
        assert!(Codes::of(99).is_err() && Codes::of(600).is_err());
        assert!(serde_json::from_str::<Codes>("\"moon\"").is_err());
    }
}
