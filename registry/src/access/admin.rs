//! Changes of accounts: who may come in, and what he may.
//! Promise: a change is stored when it is answered; the last administrator cannot be shut out; no answer holds a hash, and
//! a token is in the answer that makes it alone.

use super::book::{
    self, ADMIN, Book, ENTRIES_MAX, KEY, PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, Permission, StoredRole, StoredToken,
    StoredUser, check_name, check_rights, hex, role_key, role_name, token_key, user_key,
};
use super::shelf::{NotStored, Write};
use super::{Access, FIRST_ADMIN, FirstAdmin, password, session};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Whoever grants says `role:NAME` for a role.
const ROLE: &str = "role:";
/// Digits of a token's id: of its SHA-256, enough to tell a hundred thousand apart.
const ID_LEN: usize = 12;
/// API tokens of one user: all of them go with him in one transaction of etcd's.
const TOKENS_MAX: usize = 100;
/// Longest life of an API token: ten years.
pub const TOKEN_SECONDS_MAX: u64 = 10 * 366 * 86_400;

/// A password on its way; nobody prints it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A new user.
    Add {
        /// His name.
        user: String,
        /// `None`: only API tokens open the account.
        password: Option<Password>,
        /// As in `Grant`.
        grants: Vec<String>,
    },
    /// Another password; his sessions are over.
    Password {
        /// Whose.
        user: String,
        /// The new one.
        password: Password,
    },
    /// A user goes, and his tokens with him.
    Remove {
        /// Who.
        user: String,
    },
    /// More rights: `admin`, `role:NAME`, `NAMESPACE:read`, `NAMESPACE:write`. A role comes to be with its first one.
    Grant {
        /// A user, or `role:NAME`.
        to: String,
        /// What.
        grants: Vec<String>,
    },
    /// Fewer rights. A role without any is gone.
    Revoke {
        /// A user, or `role:NAME`.
        from: String,
        /// What.
        grants: Vec<String>,
    },
    /// A new API token.
    Token {
        /// Whose rights it has.
        user: String,
        /// What it is for.
        name: String,
        /// It holds for so many seconds.
        seconds: u64,
    },
    /// An API token holds no longer.
    RevokeToken {
        /// As in lists.
        id: String,
    },
}

impl Change {
    /// A word for it, and whom it is about.
    pub(crate) fn subject(&self) -> (&'static str, &str) {
        match self {
            Change::Add { user, .. } => ("user add", user),
            Change::Password { user, .. } => ("user passwd", user),
            Change::Remove { user } => ("user remove", user),
            Change::Grant { to, .. } => ("user grant", to),
            Change::Revoke { from, .. } => ("user revoke", from),
            Change::Token { user, .. } => ("user token", user),
            Change::RevokeToken { id } => ("user revoke-token", id),
        }
    }

    /// What it gives or takes.
    pub(crate) fn detail(&self) -> String {
        match self {
            Change::Add { grants, .. } | Change::Grant { grants, .. } | Change::Revoke { grants, .. } => {
                grants.join(" ")
            }
            Change::Token { name, seconds, .. } => format!("{name}, {seconds} s"),
            Change::Password { .. } | Change::Remove { .. } | Change::RevokeToken { .. } => String::new(),
        }
    }
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be.
    #[error("{0}")]
    Wrong(String),
    /// There is no such user, role or token.
    #[error("{0}")]
    NotThere(String),
    /// It could not be stored.
    #[error("not stored, and so not done: {0}")]
    Failed(String),
}

impl From<String> for Refused {
    fn from(text: String) -> Refused {
        Refused::Wrong(text)
    }
}

impl From<NotStored<Refused>> for Refused {
    fn from(error: NotStored<Refused>) -> Refused {
        match error {
            NotStored::Refused(refused) => refused,
            NotStored::Failed(problem) => Refused::Failed(problem),
        }
    }
}

/// A user in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// His name; a role's begins with `role:`.
    pub name: String,
    /// Roles and permissions, as they are granted.
    pub grants: Vec<String>,
    /// Whether a password opens it.
    pub has_password: bool,
    /// His API tokens.
    pub tokens: Vec<ListedToken>,
}

/// An API token in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedToken {
    /// To revoke it by.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
}

impl Access {
    /// Changes accounts. `Some`: a new API token, to be shown once.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub async fn change(&self, change: Change) -> Result<Option<String>, Refused> {
        let result = self.try_change(&change).await;
        self.note_change(&change, result.as_ref().err());
        result
    }

    async fn try_change(&self, change: &Change) -> Result<Option<String>, Refused> {
        let hash = match change {
            Change::Add { password: Some(password), .. } | Change::Password { password, .. } => {
                Some(self.hash(password).await?)
            }
            _ => None,
        };
        let token = matches!(change, Change::Token { .. }).then(session::api_token);
        let fresh_key = password::random::<32>();
        let now_ms = self.now_ms();
        let decide = |book: &Book| -> Result<Vec<Write>, Refused> {
            let digest = token.as_ref().map(|(_, digest)| digest);
            let mut writes = decide(book, change, now_ms, hash.as_deref(), digest)?;
            if book.key().is_none() {
                writes.push((KEY.into(), Some(hex(&fresh_key).into_bytes())));
            }
            Ok(writes)
        };
        self.inner.shelf.change(decide).await?;
        Ok(token.map(|(token, _)| token))
    }

    async fn hash(&self, password: &Password) -> Result<String, Refused> {
        let len = password.0.len();
        if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&len) {
            let text = format!("a password has {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes");
            return Err(Refused::Wrong(text));
        }
        let password = password.clone();
        let _hand = self.inner.desk.hand().await;
        let hashed = tokio::task::spawn_blocking(move || password::hash(&password.0));
        hashed.await.map_err(|e| Refused::Failed(e.to_string()))
    }

    /// Makes an administrator with a password of chance, if access is required and there is none. In a cluster one member
    /// alone does.
    ///
    /// # Errors
    /// [`Refused`] if it cannot be stored.
    pub async fn first_admin(&self) -> Result<Option<FirstAdmin>, Refused> {
        let now_ms = self.now_ms();
        if !self.is_required() || self.book().has_admin(now_ms) {
            return Ok(None);
        }
        let password = password::generate();
        let hash = self.hash(&Password(password.clone())).await?;
        let fresh_key = password::random::<32>();
        let decide = |book: &Book| -> Result<Vec<Write>, Option<Refused>> {
            if book.has_admin(now_ms) {
                return Err(None);
            }
            if book.user(FIRST_ADMIN).is_some() {
                let text = format!(
                    "there is no administrator, and {FIRST_ADMIN:?} is none. Try: ringspan user grant NAME admin"
                );
                return Err(Some(Refused::Wrong(text)));
            }
            let user = StoredUser {
                hash: Some(hash.clone()),
                roles: [ADMIN.to_owned()].into(),
                generation: now_ms,
                created_ms: now_ms,
                ..StoredUser::default()
            };
            let mut writes = vec![(user_key(FIRST_ADMIN), Some(json(&user)))];
            if book.key().is_none() {
                writes.push((KEY.into(), Some(hex(&fresh_key).into_bytes())));
            }
            Ok(writes)
        };
        match self.inner.shelf.change(decide).await {
            Ok(()) => Ok(Some(FirstAdmin { name: FIRST_ADMIN, password })),
            Err(NotStored::Refused(None)) => Ok(None),
            Err(NotStored::Refused(Some(refused))) => Err(refused),
            Err(NotStored::Failed(problem)) => Err(Refused::Failed(problem)),
        }
    }

    /// Users, and then roles.
    pub fn list(&self) -> Vec<Listed> {
        let book = self.book();
        let id = |digest: &book::Digest| hex(digest)[..ID_LEN].to_owned();
        let user = |(name, user): (&str, &book::User)| {
            let tokens = book.tokens().filter(|(_, t)| t.user == name).map(|(digest, t)| ListedToken {
                id: id(digest),
                name: t.name.clone(),
                expires_ms: t.expires_ms,
            });
            let mut tokens: Vec<ListedToken> = tokens.collect();
            tokens.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            let StoredUser { roles, permissions, hash, .. } = &user.stored;
            let role = |role: &String| if role == ADMIN { role.clone() } else { format!("{ROLE}{role}") };
            let grants = roles.iter().map(role).chain(permissions.iter().map(ToString::to_string)).collect();
            Listed { name: name.to_owned(), grants, has_password: hash.is_some(), tokens }
        };
        let role = |(name, role): (&str, &StoredRole)| Listed {
            name: format!("{ROLE}{name}"),
            grants: role.permissions.iter().map(ToString::to_string).collect(),
            has_password: false,
            tokens: Vec::new(),
        };
        book.users().map(user).chain(book.roles().map(role)).collect()
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and sets are JSON")
}

/// What a grant means.
enum Granted {
    Role(String),
    Permission(Permission),
}

fn read_grant(text: &str) -> Result<Granted, Refused> {
    if let Some(role) = text.strip_prefix(ROLE).or((role_name(text) == ADMIN).then_some(text)) {
        check_name("role", role)?;
        return Ok(Granted::Role(role_name(role).to_owned()));
    }
    Ok(Granted::Permission(Permission::read(text).map_err(|e| format!("{e}; or \"admin\", or role:NAME"))?))
}

/// Gives a user more, or takes it.
fn regrant(book: &Book, user: &mut StoredUser, grants: &[String], give: bool) -> Result<(), Refused> {
    for text in grants {
        match read_grant(text)? {
            Granted::Role(role) if give => {
                if role != ADMIN && book.role(&role).is_none() {
                    let text = format!("there is no role {role:?}. Try: ringspan user grant role:{role} dev:write");
                    return Err(Refused::NotThere(text));
                }
                user.roles.insert(role);
            }
            Granted::Permission(permission) if give => drop(user.permissions.insert(permission)),
            Granted::Role(role) => {
                if !user.roles.remove(&role) {
                    return Err(Refused::NotThere(format!("{text:?} is not granted")));
                }
            }
            Granted::Permission(permission) => {
                if !user.permissions.remove(&permission) {
                    return Err(Refused::NotThere(format!("{text:?} is not granted")));
                }
            }
        }
    }
    check_rights(&user.roles)?;
    Ok(check_rights(&user.permissions)?)
}

fn regrant_role(book: &Book, role: &str, grants: &[String], give: bool) -> Result<Write, Refused> {
    check_name("role", role)?;
    if role_name(role) == ADMIN {
        return Err(Refused::Wrong(format!("role {role:?} may do everything, and that is not to be changed")));
    }
    let mut stored = book.role(role).cloned().unwrap_or_default();
    for text in grants {
        let permission = Permission::read(text)?;
        match give {
            true => drop(stored.permissions.insert(permission)),
            false if stored.permissions.remove(&permission) => {}
            false => return Err(Refused::NotThere(format!("{text:?} is not granted to the role"))),
        }
    }
    check_rights(&stored.permissions)?;
    let value = (!stored.permissions.is_empty()).then(|| json(&stored));
    Ok((role_key(role), value))
}

fn decide(
    book: &Book,
    change: &Change,
    now_ms: u64,
    hash: Option<&str>,
    digest: Option<&book::Digest>,
) -> Result<Vec<Write>, Refused> {
    let find = |name: &str| {
        let found = book.user(name).map(|(_, user)| user.stored.clone());
        found.ok_or_else(|| Refused::NotThere(format!("there is no user {name:?}")))
    };
    let put = |name: &str, user: &StoredUser| (user_key(name), Some(json(user)));
    let room = || match book.len() < ENTRIES_MAX {
        true => Ok(()),
        false => Err(Refused::Wrong(format!("{ENTRIES_MAX} users, roles and tokens are all there may be"))),
    };
    match change {
        Change::Add { user, grants, .. } => {
            check_name("user", user)?;
            if book.user(user).is_some() {
                return Err(Refused::Wrong(format!("there is a user {user:?} already")));
            }
            room()?;
            let hash = hash.map(str::to_owned);
            let mut stored = StoredUser { hash, generation: now_ms, created_ms: now_ms, ..StoredUser::default() };
            regrant(book, &mut stored, grants, true)?;
            Ok(vec![put(user, &stored)])
        }
        Change::Password { user, .. } => {
            let mut stored = find(user)?;
            stored.hash = hash.map(str::to_owned);
            stored.generation = now_ms.max(stored.generation + 1);
            Ok(vec![put(user, &stored)])
        }
        Change::Remove { user } => {
            find(user)?;
            let is_other_admin = |(name, u): (&str, &book::User)| name != user && u.rights.is_admin();
            if book.user(user).is_some_and(|(_, u)| u.rights.is_admin()) && !book.users().any(is_other_admin) {
                return Err(Refused::Wrong(format!("{user:?} is the last administrator")));
            }
            let theirs = book.tokens().filter(|(_, t)| t.user == *user).map(|(digest, _)| (token_key(digest), None));
            Ok(std::iter::once((user_key(user), None)).chain(theirs).collect())
        }
        Change::Grant { to, grants } => match to.strip_prefix(ROLE) {
            Some(role) => {
                room()?;
                Ok(vec![regrant_role(book, role, grants, true)?])
            }
            None => {
                let mut stored = find(to)?;
                regrant(book, &mut stored, grants, true)?;
                Ok(vec![put(to, &stored)])
            }
        },
        Change::Revoke { from, grants } => match from.strip_prefix(ROLE) {
            Some(role) => {
                let write = regrant_role(book, role, grants, false)?;
                if write.1.is_some() {
                    return Ok(vec![write]);
                }
                // Nobody has a role that is not there.
                let mut writes = vec![write];
                for (name, user) in book.users().filter(|(_, u)| u.stored.roles.contains(role)) {
                    let mut stored = user.stored.clone();
                    stored.roles.remove(role);
                    writes.push(put(name, &stored));
                }
                Ok(writes)
            }
            None => {
                let mut stored = find(from)?;
                regrant(book, &mut stored, grants, false)?;
                let others: BTreeSet<&str> =
                    book.users().filter(|(n, u)| n != from && u.rights.is_admin()).map(|(n, _)| n).collect();
                let was_admin = book.user(from).is_some_and(|(_, u)| u.rights.is_admin());
                if was_admin && !stored.roles.contains(ADMIN) && others.is_empty() {
                    return Err(Refused::Wrong(format!("{from:?} is the last administrator")));
                }
                Ok(vec![put(from, &stored)])
            }
        },
        Change::Token { user, name, seconds } => {
            find(user)?;
            check_name("token", name)?;
            room()?;
            if book.tokens().filter(|(_, t)| t.user == *user).count() >= TOKENS_MAX {
                return Err(Refused::Wrong(format!("{user:?} has {TOKENS_MAX} API tokens; revoke some")));
            }
            if !(1..=TOKEN_SECONDS_MAX).contains(seconds) {
                return Err(Refused::Wrong(format!("a token holds for 1 s to {} days", TOKEN_SECONDS_MAX / 86_400)));
            }
            let expires_ms = now_ms.saturating_add(seconds * 1_000);
            let token = StoredToken { user: user.clone(), name: name.clone(), created_ms: now_ms, expires_ms };
            let digest = digest.expect("a token was made for this change");
            // Those that are over go when another one comes.
            let over = book.tokens().filter(|(_, t)| t.expires_ms <= now_ms).take(TOKENS_MAX / 2);
            let gone = over.map(|(digest, _)| (token_key(digest), None));
            Ok(gone.chain([(token_key(digest), Some(json(&token)))]).collect())
        }
        Change::RevokeToken { id } => {
            let is_meant = |digest: &book::Digest| id.len() >= ID_LEN && hex(digest).starts_with(id.as_str());
            let found: Vec<_> = book.tokens().filter(|(digest, _)| is_meant(digest)).collect();
            match found[..] {
                [(digest, _)] => Ok(vec![(token_key(digest), None)]),
                _ => Err(Refused::NotThere(format!("there is no API token {id:?}. Try: ringspan user list"))),
            }
        }
    }
}
