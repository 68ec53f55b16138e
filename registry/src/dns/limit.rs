//! How often a network may be answered over UDP, whose senders can be made up: response rate limiting.
//! Promise: fixed memory; past the limit every second answer is an empty one that says TC, so that who really asked comes over TCP,
//! and the others are not sent: nobody is sent more by us than was sent to us in his name.
//! Pure: `now` comes in.

use ringspan_engine::time::Instant;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Networks that are counted at a time: 16 bytes each. Two that share a place share a limit.
const PLACES: usize = 1 << 14;

/// What may be done for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Answer.
    Answer,
    /// Say TC and nothing else.
    Slip,
    /// Nothing.
    Drop,
}

/// A bucket for each place: an answer takes a drop, and the rate refills it, up to a second's worth.
#[derive(Debug)]
pub(super) struct Limit {
    /// Answers a second to a network; 0: no limit.
    rate: u32,
    places: Vec<Place>,
    hash: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    drops: f32,
    /// Milliseconds.
    at: u32,
    slips: u32,
}

impl Limit {
    pub(super) fn new(rate: u32) -> Limit {
        let place = Place { drops: rate as f32, at: 0, slips: 0 };
        Limit { rate, places: vec![place; if rate == 0 { 0 } else { PLACES }], hash: RandomState::new() }
    }

    /// One answer to this address is wanted now.
    pub(super) fn ask(&mut self, address: IpAddr, now: Instant) -> Grant {
        if self.rate == 0 {
            return Grant::Answer;
        }
        let place = self.hash.hash_one(network(address)) as usize % PLACES;
        let place = &mut self.places[place];
        // Wraps after 49 days: a bucket that is looked at then is too full or too empty for a second.
        let now = (now.ns() / 1_000_000) as u32;
        let since = now.wrapping_sub(place.at) as f32 / 1000.0;
        place.at = now;
        place.drops = (place.drops + since * self.rate as f32).min(self.rate as f32);
        if place.drops >= 1.0 {
            place.drops -= 1.0;
            return Grant::Answer;
        }
        place.slips = place.slips.wrapping_add(1);
        if place.slips % 2 == 1 { Grant::Slip } else { Grant::Drop }
    }
}

/// The first 24 bits of an IPv4 address, the first 56 of an IPv6 one: what one sender can make up at will around itself.
fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => (ip.to_bits() >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A second's worth at once, then every second one slips and the others are dropped, until time refills it; others go on.
    #[test]
    fn past_the_limit() {
        let (mut limit, mut now) = (Limit::new(10), Instant::ZERO + Duration::from_secs(5));
        let (here, beside, there) = (["10.0.0.1", "10.0.0.2", "10.0.1.1"]).map(|a| a.parse().unwrap()).into();
        assert!((0..10).all(|_| limit.ask(here, now) == Grant::Answer));
        assert_eq!([(); 4].map(|()| limit.ask(beside, now)), [Grant::Slip, Grant::Drop, Grant::Slip, Grant::Drop]);
        // In another place, but for one chance in 16384.
        limit.hash = RandomState::new();
        while limit.hash.hash_one(network(there)) as usize % PLACES
            == limit.hash.hash_one(network(here)) as usize % PLACES
        {
            limit.hash = RandomState::new();
        }
        assert_eq!(limit.ask(there, now), Grant::Answer);
        now = now + Duration::from_secs(1);
        assert!((0..10).all(|_| limit.ask(here, now) == Grant::Answer));
        let mut off = Limit::new(0);
        assert!((0..1000).all(|_| off.ask(here, now) == Grant::Answer));
    }

    /// Addresses of one network are one: table.
    #[test]
    fn networks() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("10.0.0.1", "10.0.0.255") && !same("10.0.0.1", "10.0.1.1"));
        assert!(same("2001:db8:0:1::", "2001:db8:0:ff::1") && !same("2001:db8:0:1::", "2001:db8:0:100::"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.9"));
    }
}
