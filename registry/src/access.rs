//! Who may do what: accounts, roles, tokens, limits, and a record of what was changed by whom.
//! Promise: where access is required, a request without a good token reads nothing but whether the server is well, and
//! changes nothing. There is no way round it: no header that identifies a "server", no default password, no default key.
//! Passwords are kept as argon2id hashes, API tokens as SHA-256; neither is ever logged.
//!
//! ```text
//! http layer ─┐                      ┌─► rates (an address, a principal)
//! grpc hook  ─┼─► Access::principal ─┼─► session (one HMAC) or API token (one SHA-256), one look-up in the book
//! commands   ─┘         │            └─► Principal::may(namespace, Action)
//!                       └─► ACTOR, which goes along to Registry::submit: asked again there, and noted in the audit
//! ```
//! The book is a snapshot (`arc-swap`): checks take no lock. Uses `shelf` for what outlives the process.

mod actor;
pub(crate) mod admin;
mod audit;
mod book;
mod login;
mod password;
mod rates;
mod session;
mod shelf;
#[cfg(test)]
mod tests;

pub use actor::Actor;
pub(crate) use actor::guarded;
pub use admin::{Change, Listed, ListedToken, Password, Refused, TOKEN_SECONDS_MAX};
pub use audit::AuditOptions;
pub use book::{ADMIN, Action, PASSWORD_BYTES_MIN, Permission};
pub use login::{LoginError, Session};
pub use password::{FIRST_ADMIN, generate};
pub use rates::{Rate, Rates};
pub use shelf::{Kept, OpenError};

use arc_swap::ArcSwap;
use audit::Audit;
use book::{Book, Rights};
use login::Desk;
use shelf::Shelf;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a login holds: Nacos' `tokenTtl`.
pub const SESSION_DEFAULT: Duration = Duration::from_secs(18_000);

/// Lines of an address that is refused, a second: those who knock all the time do not fill the audit.
const DENIALS: rates::Rate = rates::Rate { per_second: 1.0, burst: 20.0 };

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How access is kept.
#[derive(Clone)]
pub struct Options {
    /// Whether a token is asked for. `false`: whoever reaches the port may do everything.
    pub required: bool,
    /// Where accounts are.
    pub kept: Kept,
    /// How long a login holds.
    pub session: Duration,
    /// Requests a second of an address and of a principal.
    pub rates: Rates,
    /// Where changes are noted; `None`: nowhere.
    pub audit: Option<AuditOptions>,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Options {
    /// Open to everybody, nothing kept.
    fn default() -> Options {
        let unix = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Options {
            required: false,
            kept: Kept::InMemory,
            session: SESSION_DEFAULT,
            rates: Rates::default(),
            audit: None,
            clock: Arc::new(move || u64::try_from(unix().as_millis()).unwrap_or(0)),
        }
    }
}

impl Options {
    /// Accounts in this folder, the audit's lines too.
    pub fn in_folder(folder: &std::path::Path) -> Options {
        Options { kept: Kept::File(shelf::file_in(folder)), ..Options::default() }
    }
}

/// Access to a registry. Clones are the same.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    required: bool,
    session: Duration,
    book: Arc<ArcSwap<Book>>,
    shelf: Shelf,
    desk: Desk,
    addresses: rates::Limiter<IpAddr>,
    principals: rates::Limiter<Arc<str>>,
    tally: Tally,
    /// Lines about who was refused, for each address.
    denials: rates::Limiter<IpAddr>,
    audit: Option<Audit>,
    clock: Clock,
}

/// Why requests are refused; the last one: known, but without the right.
const DENIED: [&str; 4] = ["missing", "invalid", "expired", "rights"];
/// What becomes of logins; the last one: not looked at, there were too many.
const LOGINS: [&str; 3] = ["good", "wrong", "limited"];

/// Counters; they only grow.
#[derive(Default)]
struct Tally {
    denied: [AtomicU64; DENIED.len()],
    logins: [AtomicU64; LOGINS.len()],
}

/// A name and a password that nobody had before; shown once.
pub struct FirstAdmin {
    /// Its name.
    pub name: &'static str,
    /// In the clear, here and nowhere else.
    pub password: String,
}

impl std::fmt::Debug for FirstAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstAdmin").field("name", &self.name).field("password", &"***").finish()
    }
}

/// Who asks, and what he may.
#[derive(Clone, Debug)]
pub struct Principal {
    name: Arc<str>,
    rights: Arc<Rights>,
    /// His session's, or his API token's.
    proof: Proof,
}

/// What somebody is known by.
#[derive(Clone, Copy, Debug)]
enum Proof {
    None,
    Session { generation: u64 },
    Token(book::Digest),
}

impl Principal {
    /// Whoever asks where access is open.
    pub fn anybody() -> Principal {
        static ALL: std::sync::LazyLock<(Arc<str>, Arc<Rights>)> =
            std::sync::LazyLock::new(|| (Arc::from(""), Arc::new(Rights::all())));
        Principal { name: ALL.0.clone(), rights: ALL.1.clone(), proof: Proof::None }
    }

    /// Whoever is nobody yet, and may do nothing.
    pub(crate) fn nobody() -> Principal {
        Principal { rights: Arc::default(), ..Principal::anybody() }
    }

    /// His name; empty where access is open.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether he may do this in a namespace.
    pub fn may(&self, namespace: &str, action: Action) -> bool {
        self.rights.may(namespace, action)
    }

    /// Whether he may do this somewhere.
    pub fn may_somewhere(&self, action: Action) -> bool {
        self.rights.may_somewhere(action)
    }

    /// Whether he may do this in every namespace, those that are yet to come too.
    pub fn may_everywhere(&self, action: Action) -> bool {
        self.rights.may_everywhere(action)
    }

    /// Whether he may do everything, accounts too.
    pub fn is_admin(&self) -> bool {
        self.rights.is_admin()
    }
}

/// One state of the accounts. It keeps the state's place in memory (not the state), so that no later one is taken for it.
#[derive(Clone, Debug)]
pub(crate) struct Version(Weak<Book>);

impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        Weak::ptr_eq(&self.0, &other.0)
    }
}

/// Why a token is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// There is none.
    #[error("user not found! Log in first (accessToken, or Authorization: Bearer)")]
    Missing,
    /// Nobody here has made it, or its user is gone, or has another password since.
    #[error("token invalid! Log in again")]
    Invalid,
    /// It was good.
    #[error("token expired! Log in again")]
    Expired,
}

impl Default for Access {
    /// Open to everybody.
    fn default() -> Access {
        Access::open_to_all()
    }
}

impl Access {
    /// Open to everybody, with nothing kept: for tests and demonstrations.
    pub fn open_to_all() -> Access {
        Access::open(&Options::default()).expect("nothing is read")
    }

    /// Reads the accounts.
    ///
    /// # Errors
    /// [`OpenError`] if they cannot be read.
    pub fn open(options: &Options) -> Result<Access, OpenError> {
        let (shelf, book) = Shelf::open(&options.kept)?;
        let audit = options.audit.clone().map(Audit::start).transpose().map_err(OpenError::Thread)?;
        Ok(Access {
            inner: Arc::new(Inner {
                required: options.required,
                session: options.session,
                book,
                shelf,
                desk: Desk::default(),
                addresses: rates::Limiter::new(options.rates.per_address),
                principals: rates::Limiter::new(options.rates.per_principal),
                tally: Tally::default(),
                denials: rates::Limiter::new(DENIALS),
                audit,
                clock: options.clock.clone(),
            }),
        })
    }

    /// Whether a token is asked for.
    pub fn is_required(&self) -> bool {
        self.inner.required
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        (self.inner.clock)()
    }

    fn book(&self) -> arc_swap::Guard<Arc<Book>> {
        self.inner.book.load()
    }

    /// Who has this token; everybody is [`Principal::anybody`] where access is open.
    ///
    /// # Errors
    /// [`Unknown`]: why it is no good.
    pub fn principal(&self, token: Option<&str>) -> Result<Principal, Unknown> {
        if !self.inner.required {
            return Ok(Principal::anybody());
        }
        let token = token.filter(|t| !t.is_empty()).ok_or(Unknown::Missing)?;
        let book = self.book();
        let now_ms = self.now_ms();
        if let Some(secret) = token.strip_prefix(session::API_PREFIX) {
            let key = session::digest(secret);
            let token = book.token(&key).ok_or(Unknown::Invalid)?;
            if token.expires_ms <= now_ms {
                return Err(Unknown::Expired);
            }
            return principal_of(&book, &token.user, Proof::Token(key));
        }
        let session = session::read(book.key().ok_or(Unknown::Invalid)?, token).ok_or(Unknown::Invalid)?;
        if session.expires_ms <= now_ms {
            return Err(Unknown::Expired);
        }
        principal_of(&book, &session.user, Proof::Session { generation: session.generation })
    }

    /// Another one whenever accounts have changed.
    pub(crate) fn version(&self) -> Version {
        Version(Arc::downgrade(&self.book()))
    }

    /// The same one with the rights that he has now; `None`: he has been shut out since. That his session has expired
    /// meanwhile does not count: what he has begun may go on.
    pub(crate) fn again(&self, principal: &Principal) -> Option<Principal> {
        match principal.proof {
            Proof::None => Some(principal.clone()),
            proof => principal_of(&self.book(), &principal.name, proof).ok(),
        }
    }

    /// Whether an address may ask now; if not, when to ask again.
    pub(crate) fn admit_address(&self, address: IpAddr) -> Result<(), Duration> {
        match &self.inner.addresses {
            limiter if limiter.is_off() => Ok(()),
            limiter => limiter.take(rates::network(address)),
        }
    }

    /// Whether a principal may ask now; if not, when to ask again.
    pub(crate) fn admit_principal(&self, principal: &Principal) -> Result<(), Duration> {
        match &self.inner.principals {
            limiter if limiter.is_off() || principal.name.is_empty() => Ok(()),
            limiter => limiter.take(principal.name.clone()),
        }
    }

    pub(crate) fn audit(&self) -> Option<&Audit> {
        self.inner.audit.as_ref()
    }

    /// Audit lines that could not be written.
    pub fn audit_lost(&self) -> u64 {
        self.audit().map_or(0, Audit::lost)
    }

    /// Requests refused because of a rate: by address, by principal.
    pub fn limited(&self) -> (u64, u64) {
        (self.inner.addresses.refused(), self.inner.principals.refused())
    }

    /// Requests refused, by reason.
    pub fn denied(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DENIED.iter().zip(&self.inner.tally.denied).map(|(reason, n)| (*reason, n.load(Ordering::Relaxed)))
    }

    /// Logins, by outcome.
    pub fn logins(&self) -> impl Iterator<Item = (&'static str, u64)> {
        LOGINS.iter().zip(&self.inner.tally.logins).map(|(outcome, n)| (*outcome, n.load(Ordering::Relaxed)))
    }

    /// Writes what the audit still has. Blocks for as long as the disk does.
    pub fn stop(&self) {
        if let Some(audit) = self.audit() {
            audit.stop();
        }
        self.inner.shelf.stop();
    }
}

fn principal_of(book: &Book, name: &str, proof: Proof) -> Result<Principal, Unknown> {
    let (name, user) = book.user(name).ok_or(Unknown::Invalid)?;
    let is_good = match &proof {
        Proof::None => true,
        Proof::Session { generation } => *generation == user.generation,
        Proof::Token(digest) => book.token(digest).is_some(),
    };
    if !is_good {
        return Err(Unknown::Invalid);
    }
    Ok(Principal { name: name.clone(), rights: user.rights.clone(), proof })
}

/// The file of the audit in a data folder.
pub fn audit_file_in(folder: &std::path::Path) -> PathBuf {
    folder.join("audit.log")
}
