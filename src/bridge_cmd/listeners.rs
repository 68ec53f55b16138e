//! Where visitors come in: turns the configuration's list of listeners into steps, at the start and at each reload.
//! Promise: a list that cannot be had as a whole changes nothing; what is the same in both lists is not touched.

use super::listening::Listening;
use crate::Failure;
use crate::config::bridge::{Listener as Wanted, collide};
use crate::config::doors::Door;
use crate::doors::{self, Doors};
use ipnet::IpNet;
use ringspan_tunnel::bridge::{CarrierMode, Closing, Listener};
use std::time::Duration;

/// How long an address may take to come free when its listener goes: workers need a turn each.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The plane's own listeners of a configuration.
pub(super) fn plain(listeners: &[Wanted]) -> Result<Vec<Listener>, Failure> {
    let plain = listeners.iter().filter(|l| l.door == Door::Tcp);
    plain.map(|l| Ok(Listener { address: l.listen, gate: doors::gate(l)? })).collect()
}

/// Goes from one list to the other; what is told of it.
///
/// # Errors
/// What could not be had. The old list is what runs then.
pub(super) async fn change(
    listening: &Listening,
    doors: &mut Doors,
    old: &[Wanted],
    new: &[Wanted],
) -> Result<Vec<String>, Failure> {
    match go(listening, doors, old, new).await {
        Ok(()) => Ok(told(old, new)),
        Err(failure) => {
            if let Err(worse) = go(listening, doors, new, old).await {
                tracing::error!(failure = %worse, "the old listeners could not be had again");
            }
            Err(failure)
        }
    }
}

async fn go(listening: &Listening, doors: &mut Doors, old: &[Wanted], new: &[Wanted]) -> Result<(), Failure> {
    // The kernel gives an address once. What is in another's way goes first: a door in the plane's, the plane's in a door's, and either where
    // one address and the wildcard have the same port.
    let door = doors.close(|l| in_the_way(l, new, |n| n.door == Door::Tcp || n.listen != l.listen));
    until(|| door.iter().all(doors::Closing::is_over)).await;
    let moves = |l: &&Wanted| l.door == Door::Tcp && in_the_way(l, new, |n| n.listen != l.listen);
    if old.iter().any(|l| moves(&l)) {
        let stay: Vec<Wanted> = old.iter().filter(|l| !moves(l)).cloned().collect();
        closed(&listening.set_file(&stay)?).await;
    }
    closed(&listening.set_file(new)?).await;
    doors.apply(new)
}

/// Whether one of these wants the place of a listener, and cannot have it as long as that is open.
fn in_the_way(listener: &Wanted, new: &[Wanted], cannot: impl Fn(&Wanted) -> bool) -> bool {
    let is_tcp = |l: &Wanted| !matches!(l.door, Door::Udp(_) | Door::Unix(_));
    is_tcp(listener) && new.iter().any(|n| is_tcp(n) && collide(n.listen, listener.listen) && cannot(n))
}

/// Waits until these are over, or for [`CLOSE_MAX`].
pub(super) async fn closed(closing: &[Closing]) {
    until(|| closing.iter().all(Closing::is_over)).await;
}

async fn until(is_over: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + CLOSE_MAX;
    while !is_over() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a reload says of it. The numbers of limits that go on are told by who changes them.
pub(super) fn told(old: &[Wanted], new: &[Wanted]) -> Vec<String> {
    let mut told = Vec::new();
    for listener in new {
        // Who adds a key says here what is told of it.
        let Wanted { name, listen, service, door, carrier, limiter, proxy_from } = listener;
        let Some(before) = old.iter().find(|o| o.name == *name) else {
            told.push(format!("listener {name:?} on {listen} for service {service:?} is new"));
            continue;
        };
        let mut tell = |what: String| told.push(format!("listener {name:?} {what}"));
        if before.listen != *listen {
            tell(format!("is on {listen} in place of {}", before.listen));
        }
        if before.door != *door {
            tell("has other settings".into());
        }
        if before.service != *service {
            tell(format!("is for service {service:?} in place of {:?}", before.service));
        }
        if before.carrier != *carrier {
            tell(format!("has carrier = {} in place of {}", word(*carrier), word(before.carrier)));
        }
        match (&before.limiter, limiter) {
            (None, Some(_)) => tell("has limits".into()),
            (Some(_), None) => tell("has no limits any more".into()),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if before.proxy_from != *proxy_from {
            let from = |all: &Option<Vec<IpNet>>| {
                all.as_ref().map_or("nobody".to_owned(), |all| {
                    format!("{:?}", all.iter().map(ToString::to_string).collect::<Vec<_>>())
                })
            };
            tell(format!("takes PROXY headers from {} in place of {}", from(proxy_from), from(&before.proxy_from)));
        }
    }
    for Wanted { name, listen, .. } in old.iter().filter(|o| !new.iter().any(|n| n.name == o.name)) {
        told.push(format!("listener {name:?} on {listen} is gone; its visitors go on"));
    }
    told
}

/// As the file has it.
fn word(carrier: CarrierMode) -> &'static str {
    match carrier {
        CarrierMode::Mux => "\"mux\"",
        CarrierMode::Direct => "\"direct\"",
        CarrierMode::Auto => "\"auto\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of change is told in one line, what is the same in none.
    #[test]
    fn changes_are_told() {
        let l = |name: &str, port, service: &str| Wanted {
            name: name.into(),
            listen: ([127, 0, 0, 1], port).into(),
            service: service.into(),
            door: Door::Tcp,
            carrier: CarrierMode::default(),
            limiter: None,
            proxy_from: None,
        };
        let old = [l("same", 1, "web"), l("moves", 2, "web"), l("turns", 3, "web"), l("goes", 4, "web")];
        let new = [l("same", 1, "web"), l("moves", 9, "web"), l("turns", 3, "db"), l("comes", 5, "web")];
        assert_eq!(
            told(&old, &new),
            [
                "listener \"moves\" is on 127.0.0.1:9 in place of 127.0.0.1:2",
                "listener \"turns\" is for service \"db\" in place of \"web\"",
                "listener \"comes\" on 127.0.0.1:5 for service \"web\" is new",
                "listener \"goes\" on 127.0.0.1:4 is gone; its visitors go on",
            ]
        );
    }
}
