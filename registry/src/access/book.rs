//! The book of accounts: users, roles and API tokens, as they are stored and as they are asked.
//! Promise: what is stored and cannot be read is an error, never somebody with fewer or more rights. Pure.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The role that may do everything.
pub const ADMIN: &str = "admin";
/// What Nacos calls it.
const ADMIN_NACOS: &str = "ROLE_ADMIN";
/// Shortest password that is taken. A generated one has 144 bits.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// Longest: argon2 reads all of it.
pub(super) const PASSWORD_BYTES_MAX: usize = 256;
/// Longest name of a user, a role or a token.
const NAME_LEN_MAX: usize = 64;
/// Permissions, roles of one user; permissions of one role.
const RIGHTS_MAX: usize = 256;
/// Users, roles and tokens of one registry: all are in memory, and each look-up is a hash.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// What may be done in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Look, list, subscribe.
    Read,
    /// Read, and register, change, configure and remove services and instances.
    Write,
}

impl Action {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Write => "write",
        }
    }
}

/// What may be done where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permission {
    /// A namespace; the beginning of one and `*`; or `*`, which is every one.
    namespace: String,
    action: Action,
}

impl Permission {
    /// Reads `NAMESPACE:read` or `NAMESPACE:write`; the namespace may end in `*`, and none is `public`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn read(text: &str) -> Result<Permission, String> {
        let wrong =
            || format!("{text:?} is no permission; it should be NAMESPACE:read or NAMESPACE:write, as dev:write");
        let (namespace, action) = text.rsplit_once(':').ok_or_else(wrong)?;
        let action = match action {
            "read" | "r" => Action::Read,
            "write" | "rw" | "w" => Action::Write,
            _ => return Err(wrong()),
        };
        let namespace = if namespace.is_empty() { crate::model::NAMESPACE_DEFAULT } else { namespace };
        let stem = namespace.strip_suffix('*').unwrap_or(namespace);
        if !stem.chars().all(is_word) || namespace.len() > crate::model::NAMESPACE_LEN_MAX {
            return Err(wrong());
        }
        Ok(Permission { namespace: namespace.to_owned(), action })
    }

    /// Where.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether it is of a namespace, or of all that a pattern means (`dev-*`).
    fn is_of(&self, namespace: &str) -> bool {
        match self.namespace.strip_suffix('*') {
            Some(stem) => namespace.starts_with(stem),
            None => namespace == self.namespace,
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.namespace, self.action.as_str())
    }
}

impl TryFrom<String> for Permission {
    type Error = String;
    fn try_from(text: String) -> Result<Permission, String> {
        Permission::read(&text)
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> String {
        permission.to_string()
    }
}

/// What somebody may do, by himself and by his roles.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rights {
    is_admin: bool,
    permissions: BTreeSet<Permission>,
}

impl Rights {
    /// Everything.
    pub(super) fn all() -> Rights {
        Rights { is_admin: true, permissions: BTreeSet::new() }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.is_admin
    }

    pub(super) fn may(&self, namespace: &str, action: Action) -> bool {
        // What is no namespace is nobody's: a list of several must not pass for the first of them.
        let stem = namespace.strip_suffix('*').unwrap_or(namespace);
        self.is_admin
            || stem.chars().all(is_word) && self.permissions.iter().any(|p| p.action >= action && p.is_of(namespace))
    }

    pub(super) fn may_somewhere(&self, action: Action) -> bool {
        self.is_admin || self.permissions.iter().any(|p| p.action >= action)
    }

    pub(super) fn may_everywhere(&self, action: Action) -> bool {
        self.is_admin || self.permissions.iter().any(|p| p.action >= action && p.namespace == "*")
    }
}

/// A user as stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredUser {
    /// argon2id, in PHC's text form; `None`: no password opens this account, API tokens do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<String>,
    #[serde(default)]
    pub(super) roles: BTreeSet<String>,
    #[serde(default)]
    pub(super) permissions: BTreeSet<Permission>,
    /// Sessions of another generation are over: a new password, a user made anew.
    pub(super) generation: u64,
    pub(super) created_ms: u64,
}

/// A role as stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredRole {
    pub(super) permissions: BTreeSet<Permission>,
}

/// An API token as stored; its key is the SHA-256 of its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredToken {
    pub(super) user: String,
    /// What it is for.
    pub(super) name: String,
    pub(super) created_ms: u64,
    pub(super) expires_ms: u64,
}

/// A user with all his rights.
#[derive(Debug)]
pub(crate) struct User {
    pub(super) stored: StoredUser,
    pub(super) generation: u64,
    pub(super) rights: Arc<Rights>,
}

/// SHA-256.
pub(crate) type Digest = [u8; 32];
/// A record's key and value.
pub(super) type Pair = (String, Vec<u8>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(super) revision: i64,
    users: BTreeMap<Arc<str>, User>,
    roles: BTreeMap<String, StoredRole>,
    tokens: HashMap<Digest, StoredToken>,
    key: Option<Secret>,
}

/// The key that sessions are signed with.
#[derive(Clone, PartialEq)]
pub(super) struct Secret(pub(super) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Where the signing key is.
pub(super) const KEY: &str = "key";

pub(super) fn user_key(name: &str) -> String {
    format!("u/{name}")
}

pub(super) fn role_key(name: &str) -> String {
    format!("r/{name}")
}

pub(super) fn token_key(digest: &Digest) -> String {
    format!("t/{}", hex(digest))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Digest> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(out)
}

impl Book {
    /// Reads all records.
    pub(super) fn read(revision: i64, pairs: impl IntoIterator<Item = Pair>) -> Result<Book, String> {
        let mut book = Book { revision, ..Book::default() };
        let mut users = Vec::new();
        for (key, value) in pairs {
            let wrong = |e: &dyn std::fmt::Display| format!("record {key:?}: {e}");
            if key == KEY {
                let text = std::str::from_utf8(&value).ok().and_then(unhex);
                book.key = Some(Secret(text.ok_or_else(|| wrong(&"it is no key"))?));
                continue;
            }
            match key.split_once('/') {
                Some(("u", name)) => {
                    users.push((name.to_owned(), serde_json::from_slice::<StoredUser>(&value).map_err(|e| wrong(&e))?));
                }
                Some(("r", name)) => {
                    book.roles.insert(name.to_owned(), serde_json::from_slice(&value).map_err(|e| wrong(&e))?);
                }
                Some(("t", digest)) => {
                    let digest = unhex(digest).ok_or_else(|| wrong(&"it is no SHA-256"))?;
                    book.tokens.insert(digest, serde_json::from_slice(&value).map_err(|e| wrong(&e))?);
                }
                _ => return Err(wrong(&"it is of another version")),
            }
        }
        for (name, stored) in users {
            let of_roles = stored.roles.iter().filter_map(|r| book.roles.get(r)).flat_map(|r| &r.permissions);
            let permissions = stored.permissions.iter().chain(of_roles).cloned().collect();
            let rights = Rights { is_admin: stored.roles.contains(ADMIN), permissions };
            let user = User { generation: stored.generation, rights: Arc::new(rights), stored };
            book.users.insert(name.into(), user);
        }
        Ok(book)
    }

    pub(super) fn user(&self, name: &str) -> Option<(&Arc<str>, &User)> {
        self.users.get_key_value(name)
    }

    pub(super) fn users(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (&**name, user))
    }

    pub(super) fn role(&self, name: &str) -> Option<&StoredRole> {
        self.roles.get(name)
    }

    pub(super) fn roles(&self) -> impl Iterator<Item = (&str, &StoredRole)> {
        self.roles.iter().map(|(name, role)| (&**name, role))
    }

    pub(super) fn token(&self, digest: &Digest) -> Option<&StoredToken> {
        self.tokens.get(digest)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = (&Digest, &StoredToken)> {
        self.tokens.iter()
    }

    pub(super) fn key(&self) -> Option<&[u8; 32]> {
        self.key.as_ref().map(|k| &k.0)
    }

    /// How much it holds.
    pub(super) fn len(&self) -> usize {
        self.users.len() + self.roles.len() + self.tokens.len()
    }

    /// Whether somebody may do everything, and can come in.
    pub(super) fn has_admin(&self, now_ms: u64) -> bool {
        let has_token = |name: &str| self.tokens.values().any(|t| t.user == name && t.expires_ms > now_ms);
        self.users().any(|(name, u)| u.rights.is_admin && (u.stored.hash.is_some() || has_token(name)))
    }
}

/// A name that can be a user's, a role's or a token's.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+');
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_good) {
        return Err(format!(
            "{what} {name:?}: it should be 1 to {NAME_LEN_MAX} letters, digits, '-', '_', '.', '@' and '+'"
        ));
    }
    Ok(())
}

/// A role's name as it is kept.
pub(super) fn role_name(name: &str) -> &str {
    if name == ADMIN_NACOS { ADMIN } else { name }
}

/// A set that is not too large.
pub(super) fn check_rights<T>(set: &BTreeSet<T>) -> Result<(), String> {
    if set.len() > RIGHTS_MAX {
        return Err(format!("{} are too many; at most {RIGHTS_MAX} for one", set.len()));
    }
    Ok(())
}
