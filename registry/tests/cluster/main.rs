//! Claim: members of a cluster show the same, acknowledge what etcd has and nothing else, share out who probes what, and
//! lose neither records nor verdicts when a member, an etcd or its memory of old changes goes.
//! Method: real etcd processes (scripts/setup installs them), and several registries in this process, each with a runtime
//! and connections of its own. Every wait ends with an event.

mod etcd;

use etcd::*;
use ringspan_engine::health::Health;
use ringspan_registry::Registry;
use ringspan_registry::cluster::EtcdOptions;
use ringspan_registry::model::Instance;
use ringspan_registry::table::{Command, Patch, Refusal};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command as Process;
use std::time::Instant;

/// What one member acknowledges, it shows at once, the others soon, and after `fresh` surely; subscribers hear of it; a
/// restart finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_show_the_same() {
    let etcd = Etcd::start(1);
    let all = etcd.members(&["a", "b"]).await;
    let (a, b) = (&all[0], &all[1]);
    let mut told = b.subscribe();
    a.submit(register("web", 1, 2.0)).await.unwrap();
    assert_eq!(weight(a, "web", 1), Some(2.0), "a member shows what it has acknowledged");
    b.fresh().await.unwrap();
    assert_eq!(weight(b, "web", 1), Some(2.0));
    assert!(!told.recv().await.unwrap().is_empty());
    for n in 2..400 {
        b.submit(register("web", n, 1.0)).await.unwrap();
    }
    a.fresh().await.unwrap();
    assert_eq!(a.snapshot().counts(), (1, 399));
    b.submit(Command::PutService {
        service: service("web"),
        protect_threshold: Some(0.5),
        metadata: None,
        selector: None,
        create: false,
    })
    .await
    .unwrap();
    a.submit(deregister("web", 1)).await.unwrap();
    b.fresh().await.unwrap();
    a.fresh().await.unwrap();
    for registry in [a, b] {
        assert_eq!(weight(registry, "web", 1), None);
        assert_eq!(registry.snapshot().service(&service("web")).unwrap().protect_threshold(), 0.5);
    }
    stop(all);
    let again = etcd.member("a");
    assert_eq!(again.snapshot().counts(), (1, 398));
    again.stop();
}

async fn get(registry: &Registry, path: &str) -> String {
    let router = ringspan_registry::http::router(registry.clone(), ringspan_registry::http::Options::default());
    let request = axum::http::Request::get(path).header("host", "127.0.0.1:1").body(axum::body::Body::empty()).unwrap();
    let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A member's number of this name in /metrics.
async fn number(registry: &Registry, name: &str) -> f64 {
    let text = get(registry, "/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

/// Every member names all that live, in Nacos' words and in /metrics, and how it gets on with etcd; the shares add up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_says_of_itself() {
    let etcd = Etcd::start(1);
    let all = etcd.members(&["a", "b"]).await;
    for n in 0..40 {
        all[0].submit(register("web", n, 1.0)).await.unwrap();
    }
    all[1].fresh().await.unwrap();
    let mut held = 0.0;
    for registry in &all {
        for path in ["/nacos/v1/core/cluster/nodes", "/nacos/v2/core/cluster/node/list"] {
            let nodes: serde_json::Value = serde_json::from_str(&get(registry, path).await).unwrap();
            let names: Vec<_> = nodes["data"].as_array().unwrap().iter().map(|n| &n["extendInfo"]["name"]).collect();
            assert_eq!(names, ["a", "b"], "{path}");
        }
        assert_eq!(number(registry, "ringspan_cluster_members").await, 2.0);
        assert!(number(registry, "ringspan_cluster_lease_renewals_total").await >= 1.0);
        assert!(number(registry, "ringspan_cluster_etcd_calls_total").await >= 1.0);
        assert!(number(registry, "ringspan_cluster_etcd_call_seconds_total").await > 0.0);
        held += number(registry, "ringspan_cluster_share_instances").await;
    }
    assert_eq!(held, 40.0, "each instance is in one share");
    assert!(number(&all[0], "ringspan_cluster_changes_total").await >= 1.0);
    stop(all);
}

/// That there is nothing to do is so in etcd, not only as far as a member has followed: without etcd nobody is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_to_do_is_confirmed() {
    let mut etcd = Etcd::start(1);
    let all = etcd.members(&["a", "b"]).await;
    for round in 0..20 {
        // Told by one member, asked of the other at once: it may not have followed yet.
        all[0].submit(register("web", 1, f64::from(round))).await.unwrap();
        all[1].submit(deregister("web", 1)).await.unwrap();
        all[0].fresh().await.unwrap();
        assert_eq!(weight(&all[0], "web", 1), None, "round {round}: acknowledged as gone");
        all[0].submit(register("web", 1, 1.0)).await.unwrap();
        all[1].fresh().await.unwrap();
        all[0].submit(deregister("web", 1)).await.unwrap();
        all[1].submit(register("web", 1, 1.0)).await.unwrap();
        all[0].fresh().await.unwrap();
        assert_eq!(weight(&all[0], "web", 1), Some(1.0), "round {round}: acknowledged as there");
        all[0].submit(deregister("web", 1)).await.unwrap();
    }
    etcd.nodes[0].kill();
    let refused = all[0].submit(deregister("nobody", 1)).await;
    assert!(matches!(refused, Err(Refusal::Unavailable(_))), "{refused:?}");
    stop(all);
}

/// Two members that change the same things at once: each change is done or refused for what is there then, kinds do not
/// mix, and in the end both show the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_settled() {
    let etcd = Etcd::start(1);
    let all = etcd.members(&["a", "b"]).await;
    for round in 0..20 {
        let name = format!("s{round}");
        // One of the two kinds comes first, and the other is refused, whoever is asked.
        let (one, two) = tokio::join!(all[0].submit(register(&name, 1, 1.0)), all[1].submit(ephemeral(&name, 2)));
        assert!(one.is_ok() != two.is_ok(), "round {round}: {one:?} {two:?}");
        assert!(matches!(one.and(two), Err(Refusal::Kind { .. })));
    }
    all[0].submit(register("web", 1, 1.0)).await.unwrap();
    let patch = |registry: Registry, enabled: Option<bool>, weight: Option<f64>| async move {
        for _ in 0..20 {
            let patch = Patch { enabled, weight, metadata: None };
            registry.submit(Command::Update { service: service("web"), id: id(1), patch }).await.unwrap();
        }
    };
    all[1].fresh().await.unwrap();
    tokio::join!(patch(all[0].clone(), Some(false), None), patch(all[1].clone(), None, Some(7.0)));
    for registry in &all {
        registry.fresh().await.unwrap();
        let view = registry.snapshot().service(&service("web")).unwrap();
        let record = &view.instance(&id(1)).unwrap().record;
        assert!(!record.enabled && record.weight == 7.0, "an update leaves what it does not name: {record:?}");
    }
    stop(all);
}

/// Each instance has one keeper at any number of members; verdicts are everybody's; a member that goes leaves its share and
/// its verdicts, and nothing turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_leaves_its_share() {
    let etcd = Etcd::start(1);
    let mut all = etcd.members(&["a", "b", "c"]).await;
    for n in 0..60 {
        all[0].submit(register("web", n, 1.0)).await.unwrap();
    }
    for registry in &all {
        registry.fresh().await.unwrap();
    }
    let ours = |registry: &Registry| {
        let shares = registry.shares().borrow().clone();
        (0..60).filter(|&n| shares.is_ours(&id(n))).collect::<BTreeSet<u16>>()
    };
    let keeper_of = |all: &[Registry], n: u16| {
        let keepers: Vec<_> = all.iter().filter(|r| ours(r).contains(&n)).cloned().collect();
        assert_eq!(keepers.len(), 1, "{n} is probed by exactly one");
        keepers[0].clone()
    };
    for n in 0..60 {
        let verdict = if n % 5 == 0 { Health::Down } else { Health::Up };
        keeper_of(&all, n).submit(heard("web", n, verdict)).await.unwrap();
    }
    let is_known = |registry: &Registry| {
        (0..60).all(|n| health(registry, "web", n) == Some(if n % 5 == 0 { Health::Down } else { Health::Up }))
    };
    for registry in &all {
        until("the verdicts to be everybody's", || is_known(registry)).await;
    }
    let of_c = ours(&all[2]);
    let (of_a, of_b) = (ours(&all[0]), ours(&all[1]));
    let mut told = all[0].subscribe();
    all.pop().unwrap().stop();
    for registry in &all {
        until("the loss to be known", || registry.members().len() == 2).await;
        assert!(is_known(registry), "verdicts of a member that is gone stay");
    }
    assert!(ours(&all[0]).is_superset(&of_a) && ours(&all[1]).is_superset(&of_b), "what was not lost has not moved");
    of_c.iter().for_each(|&n| drop(keeper_of(&all, n)));
    while let Ok(changes) = told.try_recv() {
        assert!(changes.is_empty(), "nothing turns because a member goes: {changes:?}");
    }
    // A newcomer learns the verdicts, its own name's old ones among them, and later ones win.
    let moved = *of_c.first().expect("c had a share");
    let keeper = keeper_of(&all, moved);
    keeper.submit(heard("web", moved, Health::Down)).await.unwrap();
    keeper.submit(heard("web", moved, Health::Up)).await.unwrap();
    keeper.submit(heard("web", moved, Health::Down)).await.unwrap();
    until("the verdict to be everybody's", || all.iter().all(|r| health(r, "web", moved) == Some(Health::Down))).await;
    let d = etcd.member("d");
    until("the newcomer to know", || health(&d, "web", moved) == Some(Health::Down)).await;
    assert!((0..60).filter(|n| *n != moved).all(|n| health(&d, "web", n).is_some_and(|h| h != Health::Unknown)));
    d.stop();
    stop(all);
}

/// An ephemeral instance is everybody's to see; a beat at another member brings it there; when its member goes without a
/// word it stays, and lives on by its beats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_instances_move() {
    let etcd = Etcd::start(1);
    let mut all = etcd.members(&["a", "b"]).await;
    all[1].submit(ephemeral("eph", 1)).await.unwrap();
    all[0].fresh().await.unwrap();
    assert_eq!(health(&all[0], "eph", 1), Some(Health::Up));
    let owner = || etcd.ctl(&["get", "--prefix", "/test/i/", "--print-value-only"]);
    assert!(owner().contains("\"owner\":\"b\""), "{}", owner());
    all[0].submit(Command::Beat { service: service("eph"), id: id(1) }).await.unwrap();
    assert!(owner().contains("\"owner\":\"a\""), "{}", owner());
    all[0].submit(Command::Beat { service: service("eph"), id: id(1) }).await.unwrap();
    all.remove(0).stop();
    until("the loss to be known", || all[0].members().len() == 1).await;
    assert_eq!(health(&all[0], "eph", 1), Some(Health::Up), "it stays when its member goes");
    all[0].submit(Command::Beat { service: service("eph"), id: id(1) }).await.unwrap();
    all[0].submit(deregister("eph", 1)).await.unwrap();
    assert_eq!(owner(), "");
    stop(all);
}

/// What an agent was asked to look at is everybody's to know from the member that it is linked to, whoever keeps the
/// instance; without the agent, or without that member, or after a restart of it, nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_asked_by_their_member() {
    let etcd = Etcd::start(1);
    let mut all = etcd.members(&["a", "b"]).await;
    let numbers = 0..8;
    for n in numbers.clone() {
        let mut instance = Instance::new(id(n));
        instance.metadata.insert("preserved.vantage".into(), "agent:edge".into());
        all[0].submit(Command::Register { service: service("web"), instance }).await.unwrap();
    }
    for registry in &all {
        registry.fresh().await.unwrap();
    }
    let is = |registry: &Registry, want: Health| numbers.clone().all(|n| health(registry, "web", n) == Some(want));
    let witnessed = |session| {
        let deltas = numbers.clone().flat_map(|n| match heard("web", n, Health::Up) {
            Command::Heard { deltas } => deltas,
            _ => vec![],
        });
        Command::Witnessed { agent: "edge-0a1b2c3d".into(), session, deltas: deltas.collect() }
    };
    all[1].agent_up("edge-0a1b2c3d", 1, vec![]).await.unwrap();
    all[1].submit(witnessed(1)).await.unwrap();
    until("everybody to know", || all.iter().all(|r| is(r, Health::Up))).await;
    all[1].agent_gone("edge-0a1b2c3d", 1).await.unwrap();
    until("everybody to know that nobody does", || all.iter().all(|r| is(r, Health::Unknown))).await;
    all[1].agent_up("edge-0a1b2c3d", 2, vec![]).await.unwrap();
    all[1].submit(witnessed(2)).await.unwrap();
    until("everybody to know again", || all.iter().all(|r| is(r, Health::Up))).await;
    // A member that comes meanwhile takes its share of the instances, and no word of the agent's for its own.
    let c = etcd.member("c");
    until("the newcomer to know", || is(&c, Health::Up)).await;
    all[1].stop();
    all.remove(1);
    for registry in all.iter().chain([&c]) {
        until("nobody to know", || is(registry, Health::Unknown)).await;
    }
    let b = etcd.member("b");
    assert!(is(&b, Health::Unknown), "what it said in another life counts for nothing");
    // At once: it may not be a member yet.
    b.agent_up("edge-0a1b2c3d", 3, vec![]).await.unwrap();
    b.submit(witnessed(3)).await.unwrap();
    let all = [all.remove(0), b, c];
    until("everybody to know once more", || all.iter().all(|r| is(r, Health::Up))).await;
    stop(all.into());
}

/// Etcd is away: what is known is shown, verdicts go on, changes are refused as unavailable, nothing turns; when it is back
/// all goes on, and what happened meanwhile is known to all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_away() {
    let mut etcd = Etcd::start(1);
    let all = etcd.members(&["a", "b"]).await;
    let shares = all[0].shares().borrow().clone();
    let n = (0..60).find(|&n| shares.is_ours(&id(n))).expect("a has a share");
    all[0].submit(register("web", n, 1.0)).await.unwrap();
    all[0].submit(ephemeral("eph", 1)).await.unwrap();
    all[1].fresh().await.unwrap();
    etcd.nodes[0].kill();
    let refused = all[0].submit(register("web", n, 2.0)).await.unwrap_err();
    assert!(matches!(refused, Refusal::Unavailable(_)), "{refused}");
    assert!(all[1].fresh().await.is_err(), "nobody can say what is fresh");
    assert_eq!(weight(&all[0], "web", n), Some(1.0));
    all[0].submit(heard("web", n, Health::Down)).await.unwrap();
    assert_eq!(health(&all[0], "web", n), Some(Health::Down), "verdicts go on");
    all[0].submit(Command::Beat { service: service("eph"), id: id(1) }).await.unwrap();
    assert_eq!(health(&all[1], "eph", 1), Some(Health::Up));
    etcd.nodes[0].start();
    until("the verdict to arrive", || health(&all[1], "web", n) == Some(Health::Down)).await;
    let deadline = Instant::now() + PATIENCE;
    while all[1].submit(register("web", n, 3.0)).await.is_err() {
        assert!(Instant::now() < deadline, "waited for changes to be taken again");
    }
    all[0].fresh().await.unwrap();
    assert_eq!(weight(&all[0], "web", n), Some(3.0));
    stop(all);
}

/// Etcd forgets old changes while a member is cut off: it reads all anew, and tells only of what differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_forgets() {
    let mut etcd = Etcd::start(1);
    let all = etcd.members(&["a"]).await;
    for n in 0..20 {
        all[0].submit(register("web", n, 1.0)).await.unwrap();
        all[0].submit(heard("web", n, Health::Up)).await.unwrap();
    }
    let mut told = all[0].subscribe();
    etcd.nodes[0].kill();
    // A second etcd process on the same data, which the member does not know: the world goes on without it.
    let (client, args) = (etcd.nodes[0].client.clone(), etcd.nodes[0].args.clone());
    let spare = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let elsewhere = format!("http://{spare}");
    etcd.nodes[0].client.clone_from(&elsewhere);
    etcd.nodes[0].args = args.iter().map(|a| a.replace(&client, &elsewhere)).collect();
    etcd.nodes[0].start();
    let b = etcd.member("b");
    b.submit(deregister("web", 3)).await.unwrap();
    b.submit(register("web", 4, 9.0)).await.unwrap();
    b.submit(register("new", 1, 1.0)).await.unwrap();
    b.stop();
    let status = etcd.ctl(&["endpoint", "status", "--write-out=json"]);
    let revision = status.split("\"revision\":").nth(1).and_then(|s| s.split([',', '}']).next()).expect("it says");
    etcd.ctl(&["compact", revision]);
    etcd.nodes[0].kill();
    (etcd.nodes[0].client, etcd.nodes[0].args) = (client, args);
    etcd.nodes[0].start();
    until("the member to follow", || weight(&all[0], "new", 1).is_some()).await;
    assert_eq!((weight(&all[0], "web", 3), weight(&all[0], "web", 4)), (None, Some(9.0)));
    assert!((0..20).filter(|n| *n != 3).all(|n| health(&all[0], "web", n) == Some(Health::Up)), "no verdict is lost");
    let mut instances = 0;
    while let Ok(changes) = told.try_recv() {
        for change in &changes.list {
            instances += usize::from(matches!(change, ringspan_registry::table::Change::Instance { .. }));
            assert!(!matches!(change, ringspan_registry::table::Change::Health { .. }), "nothing flaps: {change:?}");
        }
    }
    assert_eq!(instances, 3, "what differs is told, and nothing else");
    stop(all);
}

/// Three etcd, and their leader is killed again and again while two members write: all that was acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_loses_its_leader() {
    let mut etcd = Etcd::start(3);
    let all = etcd.members(&["a", "b"]).await;
    let write = |registry: Registry, name: &'static str, done: tokio::sync::watch::Receiver<bool>| async move {
        let (mut there, mut refused) = (BTreeSet::new(), 0);
        let mut n = 0;
        while !*done.borrow() {
            n += 1;
            match registry.submit(register(name, n, f64::from(n))).await {
                Ok(_) => drop(there.insert(n)),
                Err(Refusal::Unavailable(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        (there, refused)
    };
    let (stop_writing, stopped) = tokio::sync::watch::channel(false);
    let writers = [
        tokio::spawn(write(all[0].clone(), "of-a", stopped.clone())),
        tokio::spawn(write(all[1].clone(), "of-b", stopped)),
    ];
    for _ in 0..2 {
        let leader = |etcd: &Etcd| {
            etcd.nodes.iter().position(|node| {
                let one = Process::new("etcdctl")
                    .env("ETCDCTL_API", "3")
                    .args([&format!("--endpoints={}", node.client), "endpoint", "status"])
                    .output();
                one.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(", true, "))
            })
        };
        let mut at = None;
        until("a leader", || {
            at = leader(&etcd);
            at.is_some()
        })
        .await;
        let at = at.expect("found");
        etcd.nodes[at].kill();
        let count = all[0].snapshot().counts().1;
        until("writes under the next leader", || all[0].snapshot().counts().1 > count + 20).await;
        etcd.nodes[at].start();
    }
    stop_writing.send(true).unwrap();
    for (writer, name) in writers.into_iter().zip(["of-a", "of-b"]) {
        let (there, refused) = writer.await.unwrap();
        println!("{name}: {} acknowledged, {refused} refused", there.len());
        for registry in &all {
            registry.fresh().await.unwrap();
            for &n in &there {
                assert_eq!(weight(registry, name, n), Some(f64::from(n)), "{name} {n} was acknowledged");
            }
        }
    }
    assert!(all.iter().all(|r| r.members().len() == 2), "nobody was taken for dead");
    stop(all);
}

/// Accounts are the same on every member: one alone makes the first administrator; who logs in on one is known on the others at
/// once; what is changed on one holds on the others; without etcd logins go on from memory, changes are refused, and a member
/// that was away follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_everybodys() {
    use ringspan_registry::access::{Access, Action, Change, Kept, Options as AccessOptions, Password, Refused};
    let mut etcd = Etcd::start(1);
    // The records of the same members are under the same prefix, and do not mind.
    let members = etcd.members(&["a", "b"]).await;
    let endpoints = vec![etcd.nodes[0].client.clone()];
    let open = || {
        let etcd = EtcdOptions { endpoints: endpoints.clone(), ..EtcdOptions::default() };
        let kept = Kept::Etcd { etcd, prefix: "/test/".into() };
        Access::open(&AccessOptions { required: true, kept, ..AccessOptions::default() }).unwrap()
    };
    let (a, b) = (open(), open());
    let firsts = tokio::join!(a.first_admin(), b.first_admin());
    let firsts: Vec<_> = [firsts.0.unwrap(), firsts.1.unwrap()].into_iter().flatten().collect();
    assert_eq!(firsts.len(), 1, "one of them");
    let password = |text: &str| Password(text.into());
    let add =
        Change::Add { user: "app".into(), password: Some(password("correct horse")), grants: vec!["dev:write".into()] };
    a.change(add).await.unwrap();
    until("the other one to know", || b.list().iter().any(|u| u.name == "app")).await;
    let session = a.log_in(None, "app", "correct horse").await.unwrap().token;
    let may = |access: &Access, namespace: &str| {
        access.principal(Some(&session)).is_ok_and(|p| p.may(namespace, Action::Write))
    };
    assert!(may(&b, "dev") && !may(&b, "prod"));
    b.change(Change::Grant { to: "app".into(), grants: vec!["prod:write".into()] }).await.unwrap();
    assert!(may(&b, "prod"), "who has acknowledged it shows it");
    until("the other one to follow", || may(&a, "prod")).await;
    // Both at once: neither undoes the other.
    let grant = |what: &str| Change::Grant { to: "app".into(), grants: vec![what.into()] };
    let (one, two) = tokio::join!(a.change(grant("one:read")), b.change(grant("two:read")));
    one.and(two).unwrap();
    until("both", || [&a, &b].iter().all(|x| x.list().iter().any(|u| u.name == "app" && u.grants.len() == 4))).await;

    etcd.nodes[0].kill();
    assert!(b.log_in(None, "app", "correct horse").await.is_ok() && may(&a, "dev"), "from memory");
    let refused = a.change(grant("three:read")).await.unwrap_err();
    assert!(matches!(refused, Refused::Failed(_)), "{refused}");
    etcd.nodes[0].start();
    let change = Change::Password { user: "app".into(), password: password("another horse") };
    while a.change(change.clone()).await.is_err() {}
    until("the other one to have heard", || !may(&b, "dev")).await;
    assert!(members.iter().all(|m| m.snapshot().counts() == (0, 0)));
    a.stop();
    b.stop();
    stop(members);
}
