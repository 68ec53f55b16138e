//! Logging in: a name and a password for a session.
//! Promise: a guess costs the same whether or not the user exists; failures are limited for an address and for a user; so
//! many passwords are hashed at a time, aside from the threads that serve, so that logins cannot starve anything else.

use super::book::PASSWORD_BYTES_MAX;
use super::rates::{Limiter, Rate, network};
use super::{Access, password, session};
use ring::digest::{SHA256, digest};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Wrong passwords of one address: ten at once, then one each 6 s.
const ADDRESS_RATE: Rate = Rate { per_second: 1.0 / 6.0, burst: 10.0 };
/// Wrong passwords for one user from all addresses: thirty at once, then one each 2 s. Looser than an address', since it
/// can keep its owner out, too; who has a token is not touched.
const USER_RATE: Rate = Rate { per_second: 0.5, burst: 30.0 };
/// Logins that wait for their turn. One more is told to come again.
const WAITING_MAX: usize = 512;

/// A login that was good.
#[derive(Clone)]
pub struct Session {
    /// The token.
    pub token: String,
    /// How long it holds.
    pub ttl: Duration,
    /// Whether it may do everything.
    pub is_admin: bool,
}

/// Why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// No such user, or another password: nobody is told which.
    #[error("unknown user!")]
    Wrong,
    /// Too many wrong ones from this address, or for this user.
    #[error("too many wrong passwords; try again in {} s", .0.as_secs().max(1))]
    TooMany(Duration),
    /// Too many at once.
    #[error("too many logins at once; try again in a second")]
    Busy,
}

/// Where logins wait.
pub(super) struct Desk {
    hands: Semaphore,
    waiting: AtomicUsize,
    addresses: Limiter<IpAddr>,
    users: Limiter<[u8; 16]>,
}

impl Default for Desk {
    fn default() -> Desk {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Desk {
            hands: Semaphore::new((cores / 2).max(1)),
            waiting: AtomicUsize::new(0),
            addresses: Limiter::new(ADDRESS_RATE),
            users: Limiter::new(USER_RATE),
        }
    }
}

impl Desk {
    /// One of the few hands that hash.
    pub(super) async fn hand(&self) -> SemaphorePermit<'_> {
        self.hands.acquire().await.expect("it is never closed")
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Place<'a>> {
        let more = |n: usize| (n < WAITING_MAX).then_some(n + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Access {
    /// Gives a session to whoever knows the password.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn log_in(&self, from: Option<IpAddr>, user: &str, password: &str) -> Result<Session, LoginError> {
        self.log_in_at(Instant::now, from, user, password).await
    }

    pub(super) async fn log_in_at(
        &self,
        now: impl Fn() -> Instant,
        from: Option<IpAddr>,
        user: &str,
        password: &str,
    ) -> Result<Session, LoginError> {
        let desk = &self.inner.desk;
        // Names of strangers' choice are kept short.
        let key: [u8; 16] = digest(&SHA256, user.as_bytes()).as_ref()[..16].try_into().expect("16 bytes");
        let look = || {
            let now = now();
            let address = from.map_or(Ok(()), |from| desk.addresses.look_at(now, network(from)));
            address.and(desk.users.look_at(now, key)).map_err(LoginError::TooMany)
        };
        look()?;
        let place = Place::take(&desk.waiting).ok_or(LoginError::Busy)?;
        let hand = desk.hand().await;
        // Those before us may have spent what was left.
        look()?;
        let (hash, generation, is_admin) = match self.book().user(user) {
            Some((_, user)) => (user.stored.hash.clone(), user.generation, user.rights.is_admin()),
            None => (None, 0, false),
        };
        let said = password.to_owned();
        let fits = said.len() <= PASSWORD_BYTES_MAX;
        let verified = tokio::task::spawn_blocking(move || {
            // A long one is compared with nobody's, and takes no longer.
            let said = if fits { said.as_str() } else { "" };
            password::verify(said, hash.as_deref().filter(|_| fits))
        });
        let good = verified.await.unwrap_or(false);
        drop((hand, place));
        if !good {
            let now = now();
            if let Some(from) = from {
                let _counted = desk.addresses.take_at(now, network(from));
            }
            let _counted = desk.users.take_at(now, key);
            return Err(LoginError::Wrong);
        }
        let book = self.book();
        let key = book.key().ok_or(LoginError::Wrong)?;
        let ttl = self.inner.session;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let said =
            session::Session { user: user.to_owned(), generation, expires_ms: self.now_ms().saturating_add(ttl_ms) };
        Ok(Session { token: session::write(key, &said), ttl, is_admin })
    }
}
