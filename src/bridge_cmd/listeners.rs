//! Where visitors come in: turns the configuration's list of listeners into steps, at the start and at each reload.
//! Promise: a list that cannot be had as a whole changes nothing; what is the same in both lists is not touched.

use super::listening::Listening;
use crate::Failure;
use crate::config::bridge::Listener as Wanted;
use crate::config::doors::Door;
use crate::doors::{self, Doors};
use ringspan_tunnel::bridge::{Closing, Listener};
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
    // An address may go from a door to the plane or back: what goes, goes first.
    let stays = |l: &&Wanted| {
        let kind = std::mem::discriminant(&l.door);
        new.iter().any(|n| n.name == l.name && n.listen == l.listen && std::mem::discriminant(&n.door) == kind)
    };
    let stay: Vec<Wanted> = old.iter().filter(stays).cloned().collect();
    doors.apply(&stay)?;
    let closing = listening.set_file(new)?;
    closed(&closing).await;
    doors.apply(new)
}

/// Waits until these are over, or for [`CLOSE_MAX`].
pub(super) async fn closed(closing: &[Closing]) {
    let until = tokio::time::Instant::now() + CLOSE_MAX;
    while !closing.iter().all(Closing::is_over) && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn told(old: &[Wanted], new: &[Wanted]) -> Vec<String> {
    let mut told = Vec::new();
    for listener in new {
        let Wanted { name, listen, service, .. } = listener;
        match old.iter().find(|o| o.name == *name) {
            None => told.push(format!("listener {name:?} on {listen} for service {service:?} is new")),
            Some(before) if before == listener => {}
            Some(before) => {
                if before.listen != *listen {
                    told.push(format!("listener {name:?} is on {listen} in place of {}", before.listen));
                }
                if before.door != listener.door {
                    told.push(format!("listener {name:?} has other settings"));
                }
                if before.service != *service {
                    told.push(format!("listener {name:?} is for service {service:?} in place of {:?}", before.service));
                }
            }
        }
    }
    for Wanted { name, listen, .. } in old.iter().filter(|o| !new.iter().any(|n| n.name == o.name)) {
        told.push(format!("listener {name:?} on {listen} is gone; its visitors go on"));
    }
    told
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
            carrier: ringspan_tunnel::bridge::CarrierMode::default(),
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
