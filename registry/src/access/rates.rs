//! How often somebody may ask: a bucket of tokens for each address and each principal.
//! Promise: as many buckets as are named here, whoever comes; a bucket that is full again is forgotten first. Off costs
//! nothing. No lock is held for longer than a look-up.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests a second, and how many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: f64,
    /// At least 1 where there is a limit.
    pub burst: f64,
}

impl Rate {
    /// No limit.
    pub const OFF: Rate = Rate { per_second: 0.0, burst: 0.0 };

    /// So many a second, and two seconds' worth at once.
    pub fn per_second(requests: u32) -> Rate {
        Rate { per_second: requests.into(), burst: f64::from(requests) * 2.0 }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of an address; of IPv6, of its /64.
    pub per_address: Rate,
    /// Of a user, all his tokens together.
    pub per_principal: Rate,
}

impl Default for Rates {
    /// No limits.
    fn default() -> Rates {
        Rates { per_address: Rate::OFF, per_principal: Rate::OFF }
    }
}

/// Locks: two cores seldom want the same one.
const SHARDS: usize = 16;
/// Buckets of one lock: 64 Ki in all, 4 MiB.
const SHARD_LEN: usize = 4096;
/// A full table is looked through for buckets that are full again this often at most.
const SWEEP: Duration = Duration::from_secs(1);

/// Who counts as one: an address, or a network that one host may have all of (RFC 4291 §2.5.4).
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

struct Shard<K> {
    buckets: HashMap<K, Bucket>,
    swept: Option<Instant>,
}

/// Buckets of one kind.
pub(super) struct Limiter<K> {
    rate: Rate,
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
    refused: AtomicU64,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    pub(super) fn new(rate: Rate) -> Limiter<K> {
        let shard = || Mutex::new(Shard { buckets: HashMap::new(), swept: None });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Limiter { rate, shards, hasher: RandomState::new(), refused: AtomicU64::new(0) }
    }

    pub(super) fn is_off(&self) -> bool {
        self.rate.per_second <= 0.0
    }

    /// How many were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes one; if there is none, when there will be.
    pub(super) fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(Instant::now(), key)
    }

    pub(super) fn take_at(&self, now: Instant, key: K) -> Result<(), Duration> {
        self.with(now, key, |bucket, rate| {
            if bucket.tokens >= 1.0 {
                bucket.tokens -= 1.0;
                return Ok(());
            }
            Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate.per_second))
        })
        .inspect_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Whether there is one, without taking it.
    pub(super) fn look_at(&self, now: Instant, key: K) -> Result<(), Duration> {
        self.with(now, key, |bucket, rate| match bucket.tokens >= 1.0 {
            true => Ok(()),
            false => Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate.per_second)),
        })
    }

    fn with<R>(&self, now: Instant, key: K, act: impl FnOnce(&mut Bucket, Rate) -> R) -> R {
        let rate = self.rate;
        let at = usize::try_from(self.hasher.hash_one(&key) % SHARDS as u64).expect("it is small");
        let mut shard = self.shards[at].lock().unwrap_or_else(PoisonError::into_inner);
        if shard.buckets.len() >= SHARD_LEN && !shard.buckets.contains_key(&key) {
            shard.make_room(now, rate);
        }
        let bucket = shard.buckets.entry(key).or_insert(Bucket { tokens: rate.burst, at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        *bucket = Bucket { tokens: (bucket.tokens + since * rate.per_second).min(rate.burst), at: now.max(bucket.at) };
        act(bucket, rate)
    }
}

impl<K: Hash + Eq + Clone> Shard<K> {
    /// Buckets that are full say nothing; without such a one, whichever comes first goes.
    fn make_room(&mut self, now: Instant, rate: Rate) {
        if self.swept.is_none_or(|then| now.saturating_duration_since(then) >= SWEEP) {
            self.swept = Some(now);
            self.buckets.retain(|_, b| {
                b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * rate.per_second < rate.burst
            });
        }
        if self.buckets.len() >= SHARD_LEN
            && let Some(key) = self.buckets.keys().next().cloned()
        {
            self.buckets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst, then the rate, then a burst again after a rest; others are not touched: in virtual time.
    #[test]
    fn buckets_fill_again() {
        let limiter = Limiter::new(Rate { per_second: 2.0, burst: 3.0 });
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let took = |ms, n: usize| (0..n).filter(|_| limiter.take_at(at(ms), "a").is_ok()).count();
        assert_eq!(took(0, 10), 3);
        assert_eq!(limiter.take_at(at(0), "a"), Err(Duration::from_millis(500)));
        assert_eq!(limiter.take_at(at(0), "b"), Ok(()));
        assert_eq!((took(499, 1), took(500, 2), took(1_000, 2)), (0, 1, 1));
        assert_eq!(took(60_000, 10), 3);
        assert_eq!(limiter.refused(), 7 + 1 + 1 + 1 + 1 + 7);
    }

    /// However many come, so many are remembered; and who asks too much is not forgotten while others have rested.
    #[test]
    fn the_table_is_bounded() {
        let limiter = Limiter::new(Rate { per_second: 1.0, burst: 1.0 });
        let start = Instant::now();
        for i in 0..200_000_u32 {
            let _ = limiter.take_at(start, i);
        }
        let len = || limiter.shards.iter().map(|s| s.lock().unwrap().buckets.len()).sum::<usize>();
        assert_eq!(len(), SHARDS * SHARD_LEN);
        let later = start + Duration::from_secs(5);
        for i in 0..SHARDS * 64 {
            let _ = limiter.take_at(later, 1_000_000 + u32::try_from(i).unwrap());
        }
        assert!(len() < SHARDS * SHARD_LEN / 2, "those that are full again are gone: {}", len());
    }

    /// A /64 is one, and an IPv4 address in IPv6's clothes is itself.
    #[test]
    fn networks() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!((of("2001:db8::1:2:3:4"), of("2001:db8:0:1::9")), ("2001:db8::".into(), "2001:db8:0:1::".into()));
        assert_eq!((of("::ffff:10.0.0.1"), of("10.0.0.1")), ("10.0.0.1".into(), "10.0.0.1".into()));
    }
}
