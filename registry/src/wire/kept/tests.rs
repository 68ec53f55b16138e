//! Kept lists against fresh ones, through every kind of change; and what is kept has a bound.

use super::*;
use crate::health::Health;
use crate::model::{Instance, InstanceId};
use crate::snapshot::Snapshot;
use crate::table::edits::{InstanceEdit, Onto, ServiceEdit};
use crate::table::tests::{at, delta, id, register, service};
use crate::table::{Command, Table};
use crate::wire::service_info;
use serde_json::Value;

fn read(pieces: [Bytes; 2]) -> Value {
    serde_json::from_slice(&pieces.concat()).expect("it is JSON")
}

/// Whatever changes, a list that is kept is what would be written now; while nothing does, it is the same bytes.
#[test]
fn kept_lists_are_as_fresh_ones() {
    let kept = Kept::default();
    let (mut table, web) = (Table::default(), service("web"));
    let snapshot = Snapshot::of(&table);
    let other = InstanceId::new("other", "10.0.0.9", 80).unwrap();
    let commands = [
        register("web", 1, false),
        register("web", 2, false),
        Command::Register { service: web.clone(), instance: Instance::new(other.clone()) },
        Command::Heard { deltas: vec![delta("web", id(1), Health::Down)] },
        Command::Heard { deltas: vec![delta("web", id(2), Health::Down)] },
        Command::EditInstance {
            service: web.clone(),
            id: id(2),
            edit: InstanceEdit { weight: Some(3.0), ..InstanceEdit::default() },
        },
        Command::Heard { deltas: vec![delta("web", other, Health::Down), delta("web", id(2), Health::Up)] },
        // One of three is healthy, which is too few: all are shown as healthy.
        Command::EditService {
            service: web.clone(),
            onto: Onto::Present,
            edit: ServiceEdit { protect_threshold: Some(0.9), ..ServiceEdit::default() },
        },
        Command::Deregister { service: web.clone(), id: id(1), ephemeral: None },
    ];
    let mut seen = Vec::new();
    for (n, command) in commands.into_iter().enumerate() {
        let what = format!("{command:?}");
        let changes = table.apply(at(n as u64), command).expect(&what);
        snapshot.publish(&table, [&changes]);
        let view = snapshot.service(&web).expect("it is there");
        for clusters in ["", "other", "DEFAULT", "none"] {
            for healthy_only in [false, true] {
                let first = kept.list(&view, clusters, healthy_only, n as u64);
                let again = kept.list(&view, clusters, healthy_only, n as u64);
                assert_eq!(first[1].as_ptr(), again[1].as_ptr(), "written once: {what}");
                let fresh = service_info(&web, Some(&view), clusters, healthy_only, n as u64);
                assert_eq!(read(first), serde_json::to_value(&fresh).unwrap(), "{clusters:?} {healthy_only} {what}");
            }
        }
        seen.push(read(kept.list(&view, "", false, 0)));
    }
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "each of them changes what is listed: {seen:#?}");
}

/// However much is asked, so much is kept; and what is asked again and again stays.
#[test]
fn there_is_a_bound() {
    let kept = Kept::default();
    let (mut table, web) = (Table::default(), service("web"));
    let snapshot = Snapshot::of(&table);
    for host in 0..200 {
        let changes = table.apply(at(0), register("web", host, false)).unwrap();
        snapshot.publish(&table, [&changes]);
    }
    let view = snapshot.service(&web).unwrap();
    let usual = kept.list(&view, "", false, 0)[1].as_ptr();
    let bytes = |shelf: &HashMap<Question, Written>| shelf.values().map(|w| w.json.len()).sum::<usize>();
    for n in 0..2_000 {
        // No cluster is called so, but all of them are asked for.
        kept.list(&view, &format!("DEFAULT,no-{n}"), false, 0);
        assert_eq!(kept.list(&view, "", false, 0)[1].as_ptr(), usual, "what is in use is not thrown out: {n}");
        let shelves = kept.shelves.lock().unwrap();
        assert!(bytes(&shelves.young) + bytes(&shelves.old) <= BYTES_MAX, "{n}");
    }
    let shelves = kept.shelves.lock().unwrap();
    assert!(shelves.young.len() + shelves.old.len() > 100, "and it is used");
}
