//! Which `Io` this machine gives: found by trying, best first, never by the kernel's version number. Vendors carry
//! newer io_uring code under old numbers (Debian's 5.10.162 and later have 5.15's) and forbid it under new ones.

use super::epoll::Epoll;
use super::ring::Ring;
use super::waker::Waker;
use crate::io::Io;
use std::fmt;
use std::io;

/// Which kind of `Io` the caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring if the kernel allows it, else epoll; [`Capabilities::why`] says why.
    #[default]
    Auto,
    /// io_uring or an error.
    Ring,
    /// epoll, whatever the kernel has.
    Epoll,
}

/// What an `Io` leans on, worst first. A tier is named after the first mainline kernel that has all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// No io_uring.
    Epoll,
    /// io_uring as of 5.10: waits are timed by a timeout operation, accepts are one by one.
    Ring510,
    /// Waits are timed by the call itself (IORING_FEAT_EXT_ARG, 5.11) and connects are retried in place (5.14).
    Ring515,
    /// Cooperative task work (IORING_SETUP_COOP_TASKRUN) and multishot accept.
    Ring519,
    /// Completion work runs only when the worker waits (IORING_SETUP_DEFER_TASKRUN).
    Ring61,
}

impl Tier {
    /// Every tier, worst first.
    pub const ALL: [Tier; 5] = [Tier::Epoll, Tier::Ring510, Tier::Ring515, Tier::Ring519, Tier::Ring61];

    /// Its name in [`TIER_VARIABLE`], logs and `doctor`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Epoll => "epoll",
            Tier::Ring510 => "ring-5.10",
            Tier::Ring515 => "ring-5.15",
            Tier::Ring519 => "ring-5.19",
            Tier::Ring61 => "ring-6.1",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment variable that holds [`Backend::Auto`] and [`Backend::Ring`] at a [`Tier`] or below: for tests and
/// for living with a kernel bug. Unset or empty: the best there is.
pub const TIER_VARIABLE: &str = "RINGSPAN_IO_TIER";

/// What [`open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What the `Io` leans on.
    pub tier: Tier,
    /// Why it is not a better one, with the remedy; empty if it is the best there is.
    pub why: String,
}

impl Capabilities {
    /// Before anything was opened.
    pub(crate) const fn none() -> Capabilities {
        Capabilities { tier: Tier::Epoll, why: String::new() }
    }

    /// `io_uring` or `epoll`.
    pub const fn backend(&self) -> &'static str {
        match self.tier {
            Tier::Epoll => "epoll",
            Tier::Ring510 | Tier::Ring515 | Tier::Ring519 | Tier::Ring61 => "io_uring",
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tier {
            Tier::Epoll => f.write_str("epoll")?,
            tier => write!(f, "io_uring, tier {tier}")?,
        }
        if self.why.is_empty() { Ok(()) } else { write!(f, " ({})", self.why) }
    }
}

/// Why there is no `Io`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The caller insisted on io_uring, and the kernel has or gives none.
    #[error("{0}; or choose the backend `epoll`")]
    Ring(String),
    /// epoll itself failed: no descriptors or no memory.
    #[error("epoll_create1: {0}. Try: raise the limit on open files (ulimit -n)")]
    Epoll(io::Error),
    /// The environment names a tier that is none.
    #[error("{TIER_VARIABLE} = \"{0}\" is not a tier; give one of epoll, ring-5.10, ring-5.15, ring-5.19, ring-6.1")]
    TierName(String),
}

/// Opens the calling thread's `Io`; it is to be used on this thread only. `waker` ends its waits.
///
/// # Errors
/// See [`OpenError`]. `Auto` fails only if epoll does or if [`TIER_VARIABLE`] holds nonsense.
pub fn open(backend: Backend, waker: &Waker) -> Result<(Box<dyn Io>, Capabilities), OpenError> {
    let best = tier_from(std::env::var(TIER_VARIABLE).ok())?;
    match (backend, best) {
        (Backend::Epoll, _) => epoll(waker, "asked for".to_owned()),
        (Backend::Auto, Some(Tier::Epoll)) => epoll(waker, format!("{TIER_VARIABLE} says so")),
        (Backend::Ring, Some(Tier::Epoll)) => Err(OpenError::Ring(format!("{TIER_VARIABLE} forbids io_uring"))),
        (Backend::Auto | Backend::Ring, _) => match open_tier(best.unwrap_or(Tier::Ring61), waker) {
            Ok(opened) => Ok(opened),
            Err(OpenError::Ring(why)) if backend == Backend::Auto => epoll(waker, why),
            Err(error) => Err(error),
        },
    }
}

/// Opens an `Io` of this tier, or of the best one below it that io_uring gives here; epoll only if `best` is epoll.
///
/// # Errors
/// See [`OpenError`].
pub fn open_tier(best: Tier, waker: &Waker) -> Result<(Box<dyn Io>, Capabilities), OpenError> {
    match best {
        Tier::Epoll => epoll(waker, "asked for".to_owned()),
        _ => {
            let (ring, capabilities) = Ring::open(best, waker).map_err(OpenError::Ring)?;
            Ok((Box::new(ring), capabilities))
        }
    }
}

fn epoll(waker: &Waker, why: String) -> Result<(Box<dyn Io>, Capabilities), OpenError> {
    let io = Epoll::new(waker).map_err(OpenError::Epoll)?;
    Ok((Box::new(io), Capabilities { tier: Tier::Epoll, why }))
}

fn tier_from(variable: Option<String>) -> Result<Option<Tier>, OpenError> {
    match variable {
        None => Ok(None),
        Some(name) if name.is_empty() => Ok(None),
        Some(name) => match Tier::ALL.into_iter().find(|t| t.as_str() == name) {
            Some(tier) => Ok(Some(tier)),
            None => Err(OpenError::TierName(name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each tier answers to its name; nothing else is taken for one.
    #[test]
    fn tiers_have_names() {
        for tier in Tier::ALL {
            assert_eq!(tier_from(Some(tier.as_str().to_owned())).expect("a tier's name"), Some(tier));
        }
        assert_eq!(tier_from(None).expect("unset is fine"), None);
        assert_eq!(tier_from(Some(String::new())).expect("empty is unset"), None);
        let error = tier_from(Some("ring-9".to_owned())).expect_err("not a tier").to_string();
        assert!(error.contains("ring-9") && Tier::ALL.iter().all(|t| error.contains(t.as_str())), "{error}");
    }
}
