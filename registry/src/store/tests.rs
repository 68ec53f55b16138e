//! The store on a disk that fails when told to, and against the table.

pub(crate) mod disk;

use super::*;
use crate::model::{Checker, Cluster, Instance, InstanceId, Metadata, Name, ServiceKey, Vantage};
use crate::selector::service::{LabelSelector, ServiceSelector};
use crate::table::{Command, Exposed};
use disk::Disk;
use proptest::prelude::*;

fn load(disk: &Disk) -> Table {
    let mut table = Table::default();
    disk.store().load(Instant::ZERO, &mut table).unwrap();
    table
}

fn register(name: &str, port: u16) -> Command {
    let id = InstanceId::new("", "10.0.0.1", port).unwrap();
    Command::Register { service: ServiceKey::public(name).unwrap(), instance: Instance::new(id) }
}

/// What of a table is to be stored.
fn durable(table: &Table) -> Vec<(ServiceKey, Option<crate::model::ServiceMeta>, Vec<Instance>)> {
    let kept = |(key, meta, entries): (&ServiceKey, Option<&Arc<_>>, _)| {
        let entries: Vec<&crate::table::Entry> = Iterator::collect(entries);
        let records = entries.iter().filter(|e| !e.record.ephemeral).map(|e| Instance::clone(&e.record)).collect();
        (key.clone(), meta.map(|m| crate::model::ServiceMeta::clone(m)), records)
    };
    let all: Vec<(ServiceKey, Option<_>, Vec<Instance>)> = table
        .services()
        .map(|(key, meta, entries)| kept((key, meta, Box::new(entries) as Box<dyn Iterator<Item = _>>)))
        .collect();
    all.into_iter().filter(|(_, meta, records)| meta.is_some() || !records.is_empty()).collect()
}

/// Every kind of record comes back as it was.
#[test]
fn records_come_back() {
    let disk = Disk::default();
    let (mut store, mut table) = (disk.store(), Table::default());
    let web = ServiceKey::new("dev", "g", "web").unwrap();
    let id = InstanceId::new("c-1", "2001:db8::1", 65_535).unwrap();
    let metadata = Metadata::from([("k".into(), "v=\"ü\0\"".into())]);
    let instance = Instance {
        weight: 0.5,
        enabled: false,
        claims_healthy: false,
        metadata: metadata.clone(),
        ..Instance::new(id)
    };
    let exposed =
        Exposed { service: web.clone(), host: "db.local".into(), port: 5432, weight: 3.0, metadata: metadata.clone() };
    let settings = Cluster { checker: Checker::tcp(Some(81)), metadata: metadata.clone() };
    let commands = [
        Command::Register { service: web.clone(), instance: instance.clone() },
        Command::PutService {
            service: web.clone(),
            protect_threshold: Some(0.3),
            metadata: Some(metadata),
            selector: Some(ServiceSelector::Label(LabelSelector::of(["zone"]).unwrap())),
            create: false,
        },
        Command::PutCluster { service: web.clone(), cluster: Name::from("c-1"), settings },
        Command::AgentUp { agent: Name::from("edge"), session: 9, exposed: vec![exposed] },
    ];
    for command in commands {
        let changes = table.apply(Instant::ZERO, command).unwrap();
        store.commit(&[Arc::new(changes)]).unwrap();
    }
    drop(store);
    let found = load(&disk);
    assert_eq!(durable(&found), durable(&table));
    let agents: Vec<_> =
        found.agents().map(|(name, session, connected, had)| (&**name, session, connected, had.len())).collect();
    assert_eq!(agents, [("edge", 0, false, 1)]);
    let (_, _, mut entries) = found.services().next().unwrap();
    let of_agent = entries.find(|e| e.record.vantage != Vantage::Registry).unwrap();
    assert_eq!(of_agent.health.reason, crate::health::Reason::AgentGone);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// After any commands, in batches of any size, what is reloaded is what was there.
    #[test]
    fn reload_is_what_was(steps in crate::table::tests::commands(), batch_len in 1..8_usize) {
        let disk = Disk::default();
        let (mut store, mut table, mut now) = (disk.store(), Table::default(), Instant::from_ns(1));
        let mut batch = Vec::new();
        for (pause, command) in steps {
            now = now + std::time::Duration::from_millis(pause);
            batch.extend(table.apply(now, command).ok().map(Arc::new));
            if batch.len() == batch_len {
                store.commit(&std::mem::take(&mut batch)).unwrap();
            }
        }
        store.commit(&batch).unwrap();
        drop(store);
        prop_assert_eq!(durable(&load(&disk)), durable(&table));
    }
}

/// Fail the first operation of a commit, then the second, and so on until one commit meets none: each time the caller
/// hears of it, the process goes on, the next commit succeeds, and then what was refused is not there and all else is.
#[test]
fn every_failure_is_survived() {
    for fail_at in 0.. {
        let disk = Disk::default();
        let (mut store, mut table) = (disk.store(), Table::default());
        let mut commit = |store: &mut Store, command| {
            let changes = Arc::new(table.apply(Instant::ZERO, command).unwrap());
            let result = store.commit(std::slice::from_ref(&changes));
            if result.is_err() {
                table.revert(&changes);
            }
            result
        };
        commit(&mut store, register("a", 1)).unwrap();
        disk.fail_after(fail_at);
        let failed = commit(&mut store, register("b", 2));
        let still_failing = disk.has_failed().then(|| commit(&mut store, register("c", 3)));
        disk.mend();
        commit(&mut store, register("d", 4)).unwrap();
        drop(store);
        assert_eq!(durable(&load(&disk)), durable(&table), "failed at operation {fail_at}");
        match (failed, still_failing) {
            (Err(problem), Some(Err(_))) => assert!(problem.contains("No space left"), "{problem}"),
            (Ok(()), None) => {
                assert!(fail_at >= 2, "a commit is at least a write and a sync");
                return;
            }
            other => panic!("failing at operation {fail_at}: {other:?}"),
        }
    }
}

/// The power goes at the first operation of a commit, then at the second, and so on, and chance decides which unsynced
/// writes are left: all that was acknowledged is there, and the batch that was not is there whole or not at all.
#[test]
fn acknowledged_survives_a_loss_of_power() {
    for (fail_at, seed) in (0..14).flat_map(|f| (0..16).map(move |s| (f, s))) {
        let disk = Disk::default();
        let (mut store, mut table) = (disk.store(), Table::default());
        let mut change = |command| Arc::new(table.apply(Instant::ZERO, command).unwrap());
        let first: Vec<_> = (1..20).map(|port| change(register("a", port))).collect();
        store.commit(&first).unwrap();
        disk.fail_after(fail_at);
        let second: Vec<_> = (20..40).map(|port| change(register("a", port))).collect();
        let acknowledged = store.commit(&second).is_ok();
        disk.lose_power(seed);
        // The process is gone with the power: what it would have written on its way out never was.
        let found = load(&disk).instance_count();
        let good: &[usize] = if acknowledged { &[39] } else { &[19, 39] };
        assert!(
            good.contains(&found),
            "power lost at operation {fail_at}, seed {seed}: {found} instances, not {good:?}"
        );
    }
}

/// A file of another format is refused by name, and left alone.
#[test]
fn another_format_is_refused() {
    let disk = Disk::default();
    let store = disk.store();
    let txn = store.database.as_ref().unwrap().begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    txn.commit().unwrap();
    drop(store);
    let refused = disk.try_store().err().expect("it is of another format").to_string();
    assert!(refused.contains("format 2"), "{refused}");
}

/// Two processes cannot have one file, and a folder that is not there is said to be so.
#[test]
fn the_file_is_ours_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.redb");
    let store = Store::open(&path).unwrap();
    let refused = Store::open(&path).err().expect("it is open").to_string();
    assert!(refused.contains("registry.redb") && refused.contains("another ringspan"), "{refused}");
    drop(store);
    Store::open(&path).unwrap();
    let nowhere = Store::open(&folder.path().join("no/where")).err().expect("no such folder").to_string();
    assert!(nowhere.contains("No such file"), "{nowhere}");
}

/// A file that lacks an acknowledged commit is refused, and says how to go on: an older copy, an empty one, or none.
#[test]
fn a_lost_commit_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.redb");
    let mut table = Table::default();
    let mut commit = |port| {
        let changes = Arc::new(table.apply(Instant::ZERO, register("a", port)).unwrap());
        Store::open(&path).unwrap().commit(&[changes]).unwrap();
    };
    commit(1);
    let older = std::fs::read(&path).unwrap();
    commit(2);
    for lost in [Some(&older[..]), Some(&[]), None] {
        match lost {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let refused = Store::open(&path).err().expect("a commit is missing").to_string();
        assert!(refused.contains("registry.redb") && refused.contains("ringspan registry restore"), "{refused}");
    }
    std::fs::write(&path, &older).unwrap();
    std::fs::remove_file(witness::path(&path)).unwrap();
    let mut table = Table::default();
    Store::open(&path).unwrap().load(Instant::ZERO, &mut table).unwrap();
    assert_eq!(table.instance_count(), 1, "whoever says so goes on with what is there");
}
