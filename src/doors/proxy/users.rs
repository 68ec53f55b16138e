//! Who may use a proxy: names and passwords. Promise: a wrong guess takes as long whatever is wrong about it; nothing
//! here prints a password.

use std::fmt;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Users(Vec<(String, String)>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        write!(f, "{names:?}:***")
    }
}

impl Users {
    /// These: name and password.
    pub(crate) fn new(users: Vec<(String, String)>) -> Users {
        Users(users)
    }

    /// Whether there is such a user. Looks at all of them, and at all of each.
    pub(crate) fn knows(&self, name: &[u8], password: &[u8]) -> bool {
        self.0.iter().fold(false, |known, (its_name, its_password)| {
            known | (same(its_name.as_bytes(), name) & same(its_password.as_bytes(), password))
        })
    }
}

/// Compares without stopping at the first difference; only the length shows.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| std::hint::black_box(differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right pair, and no other.
    #[test]
    fn pairs() {
        let users = Users::new(vec![("a".into(), "1".into()), ("b".into(), "2".into())]);
        for (name, password, known) in [
            ("a", "1", true),
            ("b", "2", true),
            ("a", "2", false),
            ("b", "1", false),
            ("", "", false),
            ("a", "", false),
        ] {
            assert_eq!(users.knows(name.as_bytes(), password.as_bytes()), known, "{name} {password}");
        }
        assert!(!format!("{users:?}").contains('1'));
    }
}
