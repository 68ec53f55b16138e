//! Claim: whatever kills a bridge or its disk, every change that was acknowledged is there afterwards, none is half there,
//! and what is gone stays gone. If that cannot be, the start is refused and says what to do.
//! Method: the real binary; writers register, change and deregister over HTTP and keep a ledger of what was acknowledged;
//! after each blow the registry is compared with the ledger. A command that was under way may or may not have been
//! carried out. `CRASH_ROUNDS` says how often (scripts/crash: 200), `SEED` replays a run's choices, though not the kernel's.

mod common;

use common::{Running, ringspan, until};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const WRITERS: usize = 6;
/// Instances a writer juggles with; in its ledger, 0 is the service's own settings.
const PORTS: u16 = 20;
const PAGE: usize = 4096;

/// What one writer knows: the number of the last acknowledged change of each thing that is there.
#[derive(Clone, Default)]
struct Ledger {
    there: BTreeMap<u16, u32>,
    /// A change without an answer: which thing, and what it was to be.
    under_way: Option<(u16, Option<u32>)>,
    number: u32,
    acknowledged: usize,
    /// Things beyond [`PORTS`] that there may be now; those above are removed.
    more: u16,
}

struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let seed = std::env::var("SEED").map_or(u64::from(std::process::id()), |s| s.parse().expect("SEED"));
        println!("SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn rounds() -> usize {
    std::env::var("CRASH_ROUNDS").map_or(8, |n| n.parse().expect("CRASH_ROUNDS is a number"))
}

/// One keep-alive connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(to: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(common::PATIENCE))?;
        Ok(Client(BufReader::new(stream)))
    }

    fn call(&mut self, method: &str, path: &str) -> io::Result<(u16, String)> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut status, mut length) = (String::new(), 0, 0);
        while line != "\r\n" {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().map_err(io::Error::other)?;
            } else if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = rest.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// A number, said thrice, so that half a record would show.
fn change(writer: usize, thing: u16, number: Option<u32>, is_new: bool) -> (&'static str, String) {
    let service = format!("serviceName=writer-{writer}");
    let place = format!("{service}&ip=10.{writer}.0.1&port={thing}&ephemeral=false");
    let Some(number) = number else { return ("DELETE", format!("/nacos/v1/ns/instance?{place}")) };
    let metadata = format!("%7B%22number%22:%22{number}%22,%22pad%22:%22{}%22%7D", pad(number));
    let method = if is_new { "POST" } else { "PUT" };
    match thing {
        0 => (method, format!("/nacos/v1/ns/service?{service}&protectThreshold=0&metadata={metadata}")),
        _ => (method, format!("/nacos/v1/ns/instance?{place}&weight={}&metadata={metadata}", number % 10_000)),
    }
}

fn pad(number: u32) -> String {
    number.to_string().repeat(50)
}

/// Changes things until `stop`, an unanswered call, or a refusal that the disk explains, which it counts.
fn write(
    at: SocketAddr,
    writer: usize,
    ledger: &Mutex<Ledger>,
    dice: &mut Dice,
    stop: &AtomicBool,
    refused: &AtomicUsize,
) {
    let Ok(mut client) = Client::connect(at) else { return };
    while !stop.load(Ordering::Relaxed) {
        let (thing, number, is_new) = {
            let mut ledger = ledger.lock().expect("no panic");
            ledger.number += 1;
            let most = PORTS + ledger.more;
            let beyond = ledger.there.range(most..).next_back().map(|(thing, _)| *thing);
            let thing = match beyond {
                Some(thing) => thing,
                None if ledger.there.contains_key(&0) => dice.below(most.into()) as u16,
                None => 0,
            };
            let is_new = !ledger.there.contains_key(&thing);
            let goes = beyond.is_some() || (thing > 0 && dice.below(3) == 0);
            let number = if goes { None } else { Some(ledger.number) };
            ledger.under_way = Some((thing, number));
            (thing, number, is_new)
        };
        let (method, path) = change(writer, thing, number, is_new);
        let Ok((status, body)) = client.call(method, &path) else { return };
        let mut ledger = ledger.lock().expect("no panic");
        ledger.under_way = None;
        match status {
            200 => {
                ledger.acknowledged += 1;
                match number {
                    Some(number) => drop(ledger.there.insert(thing, number)),
                    None => drop(ledger.there.remove(&thing)),
                }
            }
            500 if body.contains("not stored, and so not done") && body.contains("No space left") => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            _ => panic!("{method} {path}: {status} {body}"),
        }
    }
}

/// Compares the registry with the ledgers, and takes what was under way for what it turned out to be.
fn check(at: SocketAddr, ledgers: &[Mutex<Ledger>], when: &str) {
    let mut client = Client::connect(at).expect("it listens");
    for (writer, ledger) in ledgers.iter().enumerate() {
        let ledger = &mut *ledger.lock().expect("no panic");
        let (status, body) =
            client.call("GET", &format!("/api/v1/services/public/DEFAULT_GROUP/writer-{writer}")).expect("it answers");
        let mut found = BTreeMap::new();
        if status != 404 {
            let service: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            let instances = service["instances"].as_array().expect("a list");
            for thing in instances.iter().chain([&service]).filter(|t| !t["metadata"]["number"].is_null()) {
                let port = thing["port"].as_u64().map_or(0, |p| p as u16);
                let number: u32 = thing["metadata"]["number"].as_str().and_then(|n| n.parse().ok()).expect("a number");
                let weight = thing["weight"].as_f64().map_or(number % 10_000, |w| w as u32);
                let whole = thing["metadata"]["pad"] == pad(number) && weight == number % 10_000;
                assert!(whole, "{when}: half a record: {thing}");
                found.insert(port, number);
            }
            assert_eq!(found.contains_key(&0), found.len() > instances.len(), "{when}: records without a number");
        }
        if let Some((thing, number)) = ledger.under_way.take()
            && found.get(&thing).copied() == number
        {
            match number {
                Some(number) => drop(ledger.there.insert(thing, number)),
                None => drop(ledger.there.remove(&thing)),
            }
        }
        assert_eq!(found, ledger.there, "{when}: writer {writer}: found, and acknowledged");
    }
}

fn configure(folder: &Path) {
    let text = "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n[engine]\nworkers = 1\n";
    std::fs::write(folder.join("bridge.toml"), text).expect("written");
}

fn start(folder: &Path) -> Running {
    Running::start(ringspan(&["bridge", "--config", "bridge.toml"]).current_dir(folder))
}

fn http_of(line: &str) -> SocketAddr {
    let rest = line.split(" http=").nth(1).expect("the line says where");
    rest.split_whitespace().next().and_then(|a| a.parse().ok()).expect("an address")
}

/// Where it answers, or with which words it refused to start.
fn up_or_refused(bridge: &mut Running) -> Result<SocketAddr, String> {
    until("a start or a refusal", || {
        if let Some(line) = bridge.text().lines().find(|l| l.contains("bridge is up")) {
            return Some(Ok(http_of(line)));
        }
        let code = bridge.ended()?;
        let text = until("its last words", || Some(bridge.text()).filter(|t| t.contains("ringspan:")));
        assert_eq!(code, 1, "{text}");
        Some(Err(text))
    })
}

fn ledgers() -> Vec<Mutex<Ledger>> {
    (0..WRITERS).map(|_| Mutex::default()).collect()
}

/// Lets everybody write until `until` returns, which also ends the bridge, or does not.
fn write_until(
    at: SocketAddr,
    ledgers: &[Mutex<Ledger>],
    dice: &mut Dice,
    refused: &AtomicUsize,
    until: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when `until` panics: the scope waits for the writers.
        let stopping = Stop(&stop);
        for (writer, ledger) in ledgers.iter().enumerate() {
            let (mut dice, stop) = (Dice(dice.below(1 << 30) as u64), &stop);
            scope.spawn(move || write(at, writer, ledger, &mut dice, stop, refused));
        }
        until();
        drop(stopping);
    });
}

/// Tells the writers when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many things each writer may have beyond [`PORTS`].
fn allow_more(ledgers: &[Mutex<Ledger>], more: u16) {
    ledgers.iter().for_each(|l| l.lock().expect("no panic").more = more);
}

fn acknowledged(ledgers: &[Mutex<Ledger>]) -> usize {
    ledgers.iter().map(|l| l.lock().expect("no panic").acknowledged).sum()
}

/// Killed at any moment of its writing, or of its start.
#[test]
fn acknowledged_changes_survive_kill_9() {
    let folder = tempfile::tempdir().expect("a folder");
    configure(folder.path());
    let (mut dice, ledgers, refused) = (Dice::new(), ledgers(), AtomicUsize::new(0));
    for round in 0..rounds() {
        if dice.below(4) == 0 {
            let bridge = start(folder.path());
            std::thread::sleep(Duration::from_micros(dice.below(120_000) as u64));
            bridge.kill();
        }
        let mut bridge = start(folder.path());
        let at = up_or_refused(&mut bridge).unwrap_or_else(|text| panic!("round {round}: {text}"));
        check(at, &ledgers, &format!("round {round}"));
        // Some are killed among their first commits, some later: how far one comes in a time is the machine's to say.
        let moment = Duration::from_micros(dice.below(300_000) as u64);
        let (acked, later) = (acknowledged(&ledgers), dice.below(4) * dice.below(50));
        write_until(at, &ledgers, &mut dice, &refused, || {
            until("changes", || (acknowledged(&ledgers) >= acked + later).then_some(()));
            std::thread::sleep(moment);
            bridge.kill();
        });
    }
    let mut bridge = start(folder.path());
    check(up_or_refused(&mut bridge).expect("it starts"), &ledgers, "at the end");
    println!("{} acknowledged changes in {} rounds", acknowledged(&ledgers), rounds());
    assert!(acknowledged(&ledgers) > rounds(), "too few for a claim: {}", acknowledged(&ledgers));
    assert_eq!(refused.load(Ordering::Relaxed), 0);
}

/// Killed while it makes its files for the first time: the next start makes them.
#[test]
fn killed_at_its_first_start() {
    let mut dice = Dice::new();
    for _ in 0..rounds() {
        let folder = tempfile::tempdir().expect("a folder");
        configure(folder.path());
        let bridge = start(folder.path());
        std::thread::sleep(Duration::from_micros(dice.below(60_000) as u64));
        bridge.kill();
        let mut bridge = start(folder.path());
        up_or_refused(&mut bridge).expect("it starts");
    }
}

/// What may happen to the file's pages behind the registry's back.
fn damage(file: &Path, dice: &mut Dice) -> String {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("it is there");
    let pages = file.metadata().expect("it is there").len() as usize / PAGE;
    let mut bytes = vec![0; pages * PAGE];
    file.read_exact_at(&mut bytes, 0).expect("it reads");
    let last = (0..pages).rev().find(|p| bytes[p * PAGE..][..PAGE].iter().any(|b| *b != 0)).unwrap_or(0);
    let tear = |page: usize, dice: &mut Dice| {
        let from = if dice.below(2) == 0 { 0 } else { dice.below(PAGE) };
        let what: Vec<u8> = match dice.below(3) {
            0 => vec![0; PAGE - from],
            1 => (0..PAGE - from).map(|_| dice.below(256) as u8).collect(),
            // As it was before the last write of it: what was in some other page.
            _ => bytes[dice.below(pages) * PAGE..][from..PAGE].to_vec(),
        };
        file.write_all_at(&what, (page * PAGE + from) as u64).expect("it writes");
        format!("page {page} of {pages} from byte {from}")
    };
    match dice.below(6) {
        0 => tear(last, dice),
        1 => tear(dice.below(last + 1), dice),
        2 => tear(0, dice),
        3 => (0..4).map(|_| tear(dice.below(last + 1), dice)).collect::<Vec<_>>().join(", "),
        4 => {
            let left = last.saturating_sub(dice.below(4)) * PAGE;
            file.set_len(left as u64).expect("it shrinks");
            format!("cut to {left} bytes")
        }
        _ => {
            let left = dice.below(pages * PAGE);
            file.set_len(left as u64).expect("it shrinks");
            format!("cut to {left} bytes, the last page torn")
        }
    }
}

/// A torn or missing page is mended, or the start is refused with a remedy; nothing acknowledged is lost in silence.
#[test]
fn a_torn_page_is_mended_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    configure(folder.path());
    let (mut dice, ledgers, refused) = (Dice::new(), ledgers(), AtomicUsize::new(0));
    let file = folder.path().join("data/registry.redb");
    let (mut mended, mut turned_away) = (0, 0);
    for round in 0..rounds() {
        let mut bridge = start(folder.path());
        let at = up_or_refused(&mut bridge).unwrap_or_else(|text| panic!("round {round}: {text}"));
        check(at, &ledgers, &format!("round {round}"));
        let moment = Duration::from_micros(dice.below(200_000) as u64);
        write_until(at, &ledgers, &mut dice, &refused, || {
            std::thread::sleep(moment);
            bridge.kill();
        });
        let (good, witness) = (std::fs::read(&file).expect("it reads"), file.with_extension("redb.acknowledged"));
        let noted = std::fs::read(&witness).expect("it reads");
        for _ in 0..4 {
            let what = damage(&file, &mut dice);
            let mut bridge = start(folder.path());
            match up_or_refused(&mut bridge) {
                Ok(at) => {
                    // A copy: what was under way is in one damaged file and not in the next, and either is right.
                    let copy = |l: &Mutex<Ledger>| Mutex::new(l.lock().expect("no panic").clone());
                    let ledgers: Vec<_> = ledgers.iter().map(copy).collect();
                    check(at, &ledgers, &format!("round {round}: {what}"));
                    mended += 1;
                }
                Err(text) => {
                    assert!(
                        text.contains("registry.redb") && text.contains("Try: ringspan registry restore"),
                        "round {round}: {what}: {text}"
                    );
                    assert!(!text.contains("panicked"), "round {round}: {what}: {text}");
                    turned_away += 1;
                }
            }
            bridge.kill();
            std::fs::write(&file, &good).expect("it writes");
            std::fs::write(&witness, &noted).expect("it writes");
        }
    }
    println!("{mended} times mended, {turned_away} times refused");
    assert!(turned_away > 0, "nothing that was done to the file was noticed");
}

/// Set in the copy of this test that has a mount namespace of its own.
const INSIDE: &str = "RINGSPAN_TEST_DISK";

/// A disk that is full refuses what needs it, clearly, and loses nothing, whether or not the bridge is killed meanwhile;
/// when there is room again, so is the registry, without a restart.
#[test]
fn a_full_disk_loses_nothing() {
    let Some(disk) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        let folder = tempfile::tempdir().expect("a folder");
        let test = std::env::current_exe().expect("we run");
        let script = "mount -t tmpfs -o size=16m,mode=0700 ringspan-test \"$0\" && exec \"$@\"";
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(folder.path())
            .arg(test)
            .args(["a_full_disk_loses_nothing", "--exact", "--nocapture", "--test-threads=1"])
            .env(INSIDE, folder.path())
            .output()
            .expect("unshare is there: scripts/setup");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        println!("{text}");
        assert!(output.status.success(), "on a disk of its own");
        assert!(text.contains("times full"), "it ran");
        return;
    };
    configure(&disk);
    let (mut dice, ledgers, refused) = (Dice::new(), ledgers(), AtomicUsize::new(0));
    let fill = disk.join("fill");
    for round in 0..rounds() {
        let when = |what: &str| format!("round {round}, {what}");
        let mut bridge = start(&disk);
        let at = up_or_refused(&mut bridge).unwrap_or_else(|text| panic!("{}", when(&text)));
        check(at, &ledgers, &when("started"));
        let (acked, had) = (acknowledged(&ledgers), refused.load(Ordering::Relaxed));
        write_until(at, &ledgers, &mut dice, &refused, || {
            until("changes", || (acknowledged(&ledgers) > acked + 50).then_some(()));
            let mut file = std::fs::File::create(&fill).expect("a file");
            let mut more = 0;
            until("refusals", || {
                // The store gives room back and has some of its own: what it frees is filled, and it is made to grow.
                while file.write_all(&[1; PAGE]).is_ok() {}
                more = (more + 5).min(1000);
                allow_more(&ledgers, more);
                (refused.load(Ordering::Relaxed) > had + 20).then_some(())
            });
        });
        check(at, &ledgers, &when("full"));
        let killed = dice.below(2) == 0;
        if killed {
            bridge.kill();
            let mut again = start(&disk);
            match up_or_refused(&mut again) {
                Ok(at) => check(at, &ledgers, &when("killed and started on a full disk")),
                Err(text) => assert!(text.contains("No space left") && !text.contains("panicked"), "{}", when(&text)),
            }
            again.kill();
            std::fs::remove_file(&fill).expect("it goes");
            bridge = start(&disk);
        } else {
            std::fs::remove_file(&fill).expect("it goes");
        }
        let at = up_or_refused(&mut bridge).unwrap_or_else(|text| panic!("{}", when(&text)));
        allow_more(&ledgers, 0);
        let acked = acknowledged(&ledgers);
        write_until(at, &ledgers, &mut dice, &refused, || {
            until("changes", || (acknowledged(&ledgers) > acked + 50).then_some(()));
        });
        check(at, &ledgers, &when("room again"));
        bridge.kill();
    }
    println!("{} times full, {} refusals", rounds(), refused.load(Ordering::Relaxed));
}
