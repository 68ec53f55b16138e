//! Claim: a registration that was acknowledged survives kill -9, and none is half there.
//! Method: a child (this test again, told by its environment) registers and deregisters as fast as it can from several
//! threads and writes down each acknowledgement; it is killed at a random moment; the store is opened and compared. The
//! seed is printed; `SEED=…` replays its moments, though not the kernel's.

use ringspan_registry::model::{Instance, InstanceId, ServiceKey};
use ringspan_registry::table::Command as Ask;
use ringspan_registry::{Options, Registry};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "RINGSPAN_TEST_STORE";
const ROUNDS: u32 = 20;
const WRITERS: u16 = 8;

/// For each writer and port: the last number that was acknowledged, and whether as there or as removed.
type Known = BTreeMap<(u16, u16), (u32, bool)>;

fn open(path: &Path) -> Registry {
    Registry::open(&Options { path: Some(path.to_owned()), ..Options::default() }).unwrap()
}

fn service(writer: u16) -> ServiceKey {
    ServiceKey::public(&format!("writer-{writer}")).unwrap()
}

/// An instance whose record says its number thrice, so that a half one would show.
fn instance(number: u32) -> Instance {
    let id = InstanceId::new("", "10.0.0.1", u16::try_from(number % 50 + 1).unwrap()).unwrap();
    let metadata =
        BTreeMap::from([("number".to_owned(), number.to_string()), ("pad".into(), number.to_string().repeat(40))]);
    Instance { weight: f64::from(number % 10_000), metadata, ..Instance::new(id) }
}

/// The child: each line of its output is "writer number" for a registration, "writer -number" for its removal.
fn write_until_killed(path: PathBuf) {
    let registry = open(&path);
    let start = std::env::var("RINGSPAN_TEST_START").unwrap().parse::<u32>().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // The test harness has begun a line of its own.
    println!();
    let write = async |writer: u16| {
        for number in start.. {
            let instance = instance(number);
            let id = instance.id.clone();
            registry.submit(Ask::Register { service: service(writer), instance }).await.unwrap();
            println!("{writer} {number}");
            if number % 3 == 0 {
                registry.submit(Ask::Deregister { service: service(writer), id, ephemeral: None }).await.unwrap();
                println!("{writer} -{number}");
            }
        }
    };
    runtime.block_on(async {
        tokio::join!(write(0), write(1), write(2), write(3), write(4), write(5), write(6), write(7));
    });
}

#[test]
fn acknowledged_registrations_survive_kill_9() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(path.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.redb");
    let mut seed = std::env::var("SEED").map_or(u64::from(std::process::id()), |s| s.parse().unwrap());
    println!("SEED={seed}");
    let mut known = Known::new();
    let mut start = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["acknowledged_registrations_survive_kill_9", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, &path)
            .env("RINGSPAN_TEST_START", start.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // A number of acknowledgements, and then a moment: anywhere in the life of a commit.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (acks, moment) = ((seed >> 33) % 200, Duration::from_micros((seed >> 45) % 20_000));
        let mut heard: Vec<String> = lines.by_ref().filter(|l| is_ack(l)).take(acks as usize).collect();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had written down before it died.
        heard.extend(lines.filter(|l| is_ack(l)));
        for line in &heard {
            let (writer, number) = line.split_once(' ').unwrap();
            let gone = number.starts_with('-');
            let number: u32 = number.trim_start_matches('-').parse().unwrap();
            start = start.max(number + 1);
            let at = (writer.parse().unwrap(), instance(number).id.port());
            known.insert(at, (number, !gone));
        }
        let registry = open(&path);
        check(&registry, &mut known, round);
        registry.stop();
        // The next child starts past whatever this one may have done without being able to say so.
        start += 1;
    }
    assert!(known.len() > 100, "only {} instances were ever acknowledged", known.len());
}

fn is_ack(line: &str) -> bool {
    let is_number = |s: &str| s.parse::<i64>().is_ok();
    line.split_once(' ').is_some_and(|(writer, number)| is_number(writer) && is_number(number))
}

fn check(registry: &Registry, known: &mut Known, round: u32) {
    for writer in 0..WRITERS {
        let mut unsaid = 0;
        for port in 1..=50 {
            let there = found(registry, writer, port, round);
            let said = known.get(&(writer, port)).copied();
            if there == said.filter(|(_, there)| *there).map(|(number, _)| number) {
                continue;
            }
            // A writer may have got one command done that it could not write down any more: its next one, which is a
            // newer registration, or the removal of its last one.
            unsaid += 1;
            let last = said.map_or(0, |(number, _)| number);
            assert!(
                there.unwrap_or(last) >= last,
                "round {round}: {writer} {port}: {said:?} acknowledged, {there:?} there"
            );
            known.insert((writer, port), (there.unwrap_or(last), there.is_some()));
        }
        assert!(unsaid <= 1, "round {round}: writer {writer} did {unsaid} things that it never acknowledged");
    }
}

fn found(registry: &Registry, writer: u16, port: u16, round: u32) -> Option<u32> {
    let view = registry.snapshot().service(&service(writer))?;
    let id = InstanceId::new("", "10.0.0.1", port).unwrap();
    let record = view.instance(&id)?.record.clone();
    let number: u32 = record.metadata["number"].parse().unwrap();
    assert_eq!(*record, instance(number), "round {round}: half a record");
    Some(number)
}
