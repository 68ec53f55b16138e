//! The registry on a disk that fails or hangs: what is acknowledged, who waits, who does not.

use super::*;
use crate::health::Health;
use crate::model::{Instance, InstanceId, ServiceKey};
use crate::panel::VANTAGE_KEY;
use crate::store::tests::disk::Disk;
use crate::table::edits::InstanceEdit;
use crate::table::{Change, Patch};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

fn registry(disk: &Disk) -> Registry {
    Registry::with_store(Limits::default(), Some(disk.store())).unwrap()
}

fn service(name: &str) -> ServiceKey {
    ServiceKey::public(name).unwrap()
}

fn id(port: u16) -> InstanceId {
    InstanceId::new("", "10.0.0.1", port).unwrap()
}

fn register(name: &str, port: u16, ephemeral: bool) -> Command {
    Command::Register { service: service(name), instance: Instance { ephemeral, ..Instance::new(id(port)) } }
}

/// Ports of a service's instances that readers see.
fn shown(registry: &Registry, name: &str) -> Vec<u16> {
    let view = registry.snapshot().service(&service(name));
    view.iter().flat_map(|v| &v.instances).map(|i| i.record.id.port()).collect()
}

/// Until so many commands are applied and wait for the disk.
async fn until_they_wait(registry: &Registry, count: u64) {
    while registry.store_stats().waiting.load(Ordering::Relaxed) < count {
        tokio::task::yield_now().await;
    }
}

/// What was acknowledged is there after the process is gone, ephemeral instances aside.
#[test]
fn acknowledged_is_stored() {
    let disk = Disk::default();
    let first = registry(&disk);
    runtime().block_on(async {
        first.submit(register("web", 1, false)).await.unwrap();
        first.submit(register("beats", 2, true)).await.unwrap();
    });
    assert_eq!(shown(&first, "beats"), [2]);
    first.stop();
    assert_eq!(runtime().block_on(first.submit(register("web", 2, false))), Err(Refusal::Stopped));
    let second = registry(&disk);
    assert_eq!((shown(&second, "web"), shown(&second, "beats")), (vec![1], vec![]));
    second.stop();
}

/// Writers that wait while a commit is under way share the next one.
#[test]
fn waiting_writers_share_a_commit() {
    let (disk, runtime) = (Disk::default(), runtime());
    let registry = registry(&disk);
    disk.hang();
    runtime.block_on(async {
        let first = tokio::spawn({
            let registry = registry.clone();
            async move { registry.submit(register("web", 1, false)).await }
        });
        tokio::task::yield_now().await;
        disk.until_somebody_hangs();
        let many: Vec<_> = (2..=100)
            .map(|port| {
                let registry = registry.clone();
                tokio::spawn(async move { registry.submit(register("web", port, false)).await })
            })
            .collect();
        until_they_wait(&registry, 100).await;
        assert_eq!(shown(&registry, "web"), [0_u16; 0], "nobody sees what is not stored");
        disk.mend();
        first.await.unwrap().unwrap();
        for one in many {
            one.await.unwrap().unwrap();
        }
    });
    assert_eq!(shown(&registry, "web").len(), 100);
    let stats = registry.store_stats();
    assert_eq!((stats.commits.load(Ordering::Relaxed), stats.commands.load(Ordering::Relaxed)), (2, 100));
    registry.stop();
}

/// While the disk hangs, health moves, beats are taken, agents come to be unknown, and readers read.
#[test]
fn health_does_not_wait_for_the_disk() {
    let (disk, runtime) = (Disk::default(), runtime());
    let registry = registry(&disk);
    let exposed = Exposed {
        service: service("far"),
        host: "10.0.0.1".into(),
        port: 9,
        weight: 1.0,
        metadata: Default::default(),
    };
    let far = exposed.id("edge").unwrap();
    let heard = |service, id, health| {
        let reason = crate::health::Reason::Probe { code: ringspan_engine::outcome::Code::L4Ok, errno: 0 };
        vec![Delta { service, id, health, reason, rtt_ns: 1, due: None }]
    };
    let health = |name: &str, id: &InstanceId| {
        let view = registry.snapshot().service(&service(name)).unwrap();
        view.instance(id).unwrap().health().health
    };
    runtime.block_on(async {
        registry.submit(register("web", 1, false)).await.unwrap();
        registry.submit(register("beats", 2, true)).await.unwrap();
        registry.agent_up("edge", 1, vec![exposed]).await.unwrap();
        disk.hang();
        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { registry.submit(register("web", 3, false)).await }
        });
        tokio::task::yield_now().await;
        disk.until_somebody_hangs();

        let deltas = heard(service("web"), id(1), Health::Down);
        registry.submit(Command::Heard { deltas }).await.unwrap();
        assert_eq!(health("web", &id(1)), Health::Down);
        registry.submit(Command::Beat { service: service("beats"), id: id(2) }).await.unwrap();
        registry.agent_health("edge", 1, heard(service("far"), far.clone(), Health::Up)).await.unwrap();
        assert_eq!(health("far", &far), Health::Up);
        registry.agent_gone("edge", 1).await.unwrap();
        assert_eq!(health("far", &far), Health::Unknown);
        // News of an instance whose record is still on its way count, too.
        registry.submit(Command::Heard { deltas: heard(service("web"), id(3), Health::Up) }).await.unwrap();
        assert_eq!(shown(&registry, "web"), [1]);
        disk.mend();
        waiting.await.unwrap().unwrap();
        assert_eq!(health("web", &id(3)), Health::Up);
    });
    registry.stop();
}

/// A full disk: the caller is told, nobody sees what was not stored, what needs no disk goes on, and when there is room
/// again all is well.
#[test]
fn a_full_disk_is_survived() {
    let (disk, runtime) = (Disk::default(), runtime());
    let registry = registry(&disk);
    runtime.block_on(async {
        registry.submit(register("web", 1, false)).await.unwrap();
        let mut changes = registry.subscribe();
        disk.fail_after(0);
        // One batch: three that need the disk, the second of them on top of the first; one that does not.
        let (a, b, c, d) = tokio::join!(
            registry.submit(register("web", 2, false)),
            registry.submit(register("web", 2, false)),
            registry.submit(Command::Deregister { service: service("web"), id: id(1), ephemeral: None }),
            registry.submit(register("beats", 3, true)),
        );
        for refused in [a, b, c] {
            let Err(Refusal::Store(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains("No space left"), "{why}");
        }
        d.unwrap();
        assert_eq!((shown(&registry, "web"), shown(&registry, "beats")), (vec![1], vec![3]));
        let change = changes.recv().await.unwrap();
        assert!(matches!(&change.list[..], [Change::Instance { id: of, .. }] if *of == id(3)), "{change:?}");

        disk.mend();
        registry.submit(register("web", 4, false)).await.unwrap();
    });
    registry.stop();
    let again = self::registry(&disk);
    assert_eq!(shown(&again, "web"), [1, 4]);
    again.stop();
}

/// Wherever the disk fails between two batches that change one instance: readers see what was acknowledged, and nothing
/// of what was not. The second batch is in the table when the first is published.
#[test]
fn a_batch_shows_nothing_of_the_next() {
    let edit = |edit| Command::EditInstance { service: service("web"), id: id(1), edit };
    let heavier = || edit(InstanceEdit { weight: Some(2.0), ..InstanceEdit::default() });
    let panel = BTreeMap::from([(VANTAGE_KEY.to_owned(), Some("agent:edge".to_owned()))]);
    let elsewhere = || edit(InstanceEdit { metadata: panel.clone(), ..InstanceEdit::default() });
    let mut seen = BTreeSet::new();
    for good in 0..40 {
        let (disk, runtime) = (Disk::default(), runtime());
        let registry = registry(&disk);
        let submit = |command| {
            let registry = registry.clone();
            async move { registry.submit(command).await }
        };
        runtime.block_on(async {
            registry.submit(register("web", 1, false)).await.unwrap();
            disk.hang();
            let first = tokio::spawn(submit(heavier()));
            tokio::task::yield_now().await;
            disk.until_somebody_hangs();
            let second = tokio::spawn(submit(elsewhere()));
            until_they_wait(&registry, 2).await;
            disk.go_on_for(good);
            let (first, second) = (first.await.unwrap().is_ok(), second.await.unwrap().is_ok());
            let view = registry.snapshot().service(&service("web")).unwrap();
            let shown = view.instance(&id(1)).unwrap();
            assert_eq!(shown.record.weight == 2.0, first, "{good}");
            assert_eq!(shown.record.metadata.contains_key(VANTAGE_KEY), second, "{good}");
            assert_eq!(shown.ballot().is_some(), second, "who votes is as what is stored has it: {good}");
            disk.mend();
            registry.submit(register("web", 2, false)).await.unwrap();
            seen.insert((first, second));
        });
        registry.stop();
    }
    assert_eq!(seen, BTreeSet::from([(false, false), (true, false), (true, true)]), "each of them was met");
}

/// Wherever the disk fails between batches of which each builds on the last: what was refused because of a change that was
/// undone is asked anew, and what is acknowledged is what is stored.
#[test]
fn a_failure_undoes_what_came_of_it() {
    let mut seen = BTreeSet::new();
    for good in 0..40 {
        let (disk, runtime) = (Disk::default(), runtime());
        let registry = registry(&disk);
        let submit = |command| {
            let registry = registry.clone();
            tokio::spawn(async move { registry.submit(command).await.map(drop) })
        };
        let expected = runtime.block_on(async {
            registry.submit(register("web", 1, false)).await.unwrap();
            disk.hang();
            let gone = submit(Command::Deregister { service: service("web"), id: id(1), ephemeral: None });
            tokio::task::yield_now().await;
            disk.until_somebody_hangs();
            let patch = Patch { weight: Some(2.0), ..Patch::default() };
            let heavier = submit(Command::Update { service: service("web"), id: id(1), patch });
            let again = submit(register("web", 1, false));
            until_they_wait(&registry, 3).await;
            disk.go_on_for(good);
            let (gone, heavier, again) = (gone.await.unwrap(), heavier.await.unwrap(), again.await.unwrap());
            let is_missing = matches!(heavier, Err(Refusal::NoInstance { .. } | Refusal::NoService { .. }));
            assert_eq!(gone.is_ok(), is_missing, "{good}: {gone:?} {heavier:?}");
            disk.mend();
            registry.submit(register("web", 2, false)).await.unwrap();
            seen.insert((gone.is_ok(), again.is_ok()));
            if gone.is_ok() && again.is_err() { vec![2] } else { vec![1, 2] }
        });
        assert_eq!(shown(&registry, "web"), expected, "{good}");
        assert_eq!(registry.store_stats().waiting.load(Ordering::Relaxed), 0);
        registry.stop();
        let second = self::registry(&disk);
        assert_eq!(shown(&second, "web"), expected, "{good}: after a restart");
        second.stop();
    }
    assert_eq!(seen, BTreeSet::from([(false, true), (true, false), (true, true)]), "each of them was met");
}

/// An ephemeral instance that is silent is taken out by the registry itself.
#[test]
fn silence_is_noticed() {
    let runtime = runtime();
    let registry = Registry::open(&Options::default()).unwrap();
    let metadata = [("preserved.heart.beat.timeout", "100"), ("preserved.ip.delete.timeout", "200")];
    let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let instance = Instance { ephemeral: true, metadata, ..Instance::new(id(1)) };
    runtime.block_on(async {
        let mut changes = registry.subscribe();
        registry.submit(Command::Register { service: service("web"), instance }).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            for change in &changes.recv().await.unwrap().list {
                seen.push(match change {
                    Change::Instance { after: Some(_), .. } => "came",
                    Change::Health { after, .. } if after.health == Health::Down => "late",
                    Change::Instance { after: None, .. } => "gone",
                    _ => "?",
                });
            }
        }
        assert_eq!(seen, ["came", "late", "gone"]);
    });
    assert_eq!(registry.snapshot().counts(), (0, 0));
    registry.stop();
    registry.stop();
}
