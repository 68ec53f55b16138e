//! How soon does a subscriber learn that a port is refused, and that it is open again? The backends are ours and know when
//! they were asked: the deciding probe's schedule is the last good request plus so many intervals.
//! r-nacos checks every 60 s, so nobody stands beside it; the promise is held against the schedule itself.

use super::api::Api;
use super::subscribers::hear_service;
use super::{Args, Contender};
use crate::probe::Common;
use crate::process::Failure;
use crate::report::{Goal, Section};
use hdrhistogram::Histogram;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Backends, each refused and opened again on its own.
const BACKENDS: u16 = 16;
/// Between the checks of one.
const INTERVAL: Duration = Duration::from_millis(500);
const RISE: u32 = 2;
const FALL: u32 = 3;
/// Longer than any change of mind should take.
const PATIENCE: Duration = Duration::from_secs(15);
const SERVICE: &str = "refused";

/// What the subscriber was told last of each port, and when that changed.
#[derive(Default)]
struct Told {
    ports: Mutex<HashMap<u16, (bool, Instant)>>,
    news: Condvar,
}

impl Told {
    /// Takes a push.
    fn hear(&self, message: &[u8]) {
        let now = Instant::now();
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for (port, healthy) in hosts(message) {
            let said = ports.entry(port).or_insert((healthy, now));
            if said.0 != healthy {
                *said = (healthy, now);
            }
        }
        self.news.notify_all();
    }

    /// When it was told that this port is so.
    fn wait(&self, port: u16, healthy: bool) -> Result<Instant, Failure> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let is_so =
            |ports: &HashMap<u16, (bool, Instant)>| ports.get(&port).filter(|it| it.0 == healthy).map(|it| it.1);
        let waited = self.news.wait_timeout_while(ports, PATIENCE, |ports| is_so(ports).is_none());
        let (ports, _) = waited.unwrap_or_else(PoisonError::into_inner);
        is_so(&ports).ok_or_else(|| format!("port {port} is not told healthy={healthy} within {PATIENCE:?}"))
    }
}

/// Ports and their health in a message that has a service in it.
fn hosts(message: &[u8]) -> Vec<(u16, bool)> {
    let Some(at) = message.iter().position(|&byte| byte == b'{') else { return Vec::new() };
    let mut values = serde_json::Deserializer::from_slice(&message[at..]).into_iter::<serde_json::Value>();
    let Some(Ok(value)) = values.next() else { return Vec::new() };
    let hosts = value["serviceInfo"]["hosts"].as_array().cloned().unwrap_or_default();
    hosts
        .iter()
        .filter_map(|host| Some((u16::try_from(host["port"].as_u64()?).ok()?, host["healthy"].as_bool()?)))
        .collect()
}

/// One backend: serves `requests` of them, then refuses; when it was asked last.
fn serve(address: SocketAddr, requests: u32) -> Result<Instant, Failure> {
    let failed = |e: std::io::Error| format!("backend {address}: {e}");
    let listener = TcpListener::bind(address).map_err(failed)?;
    let mut last = Instant::now();
    for _ in 0..requests {
        let (mut stream, _) = listener.accept().map_err(failed)?;
        last = Instant::now();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
    Ok(last)
}

/// Deaths and recoveries of one backend, in microseconds late.
fn live(address: SocketAddr, rounds: usize, told: &Told) -> Result<Vec<(u64, u64)>, Failure> {
    let mut late = Vec::new();
    let mut opened = None;
    for _ in 0..=rounds {
        // Enough to be well, and some more.
        let last = serve(address, RISE + 3)?;
        let up = told.wait(address.port(), true)?;
        let down = told.wait(address.port(), false)?;
        if let Some((opened, down_late)) = opened {
            let up: Duration = up.saturating_duration_since(opened);
            late.push((down_late, up.saturating_sub(INTERVAL * RISE).as_micros() as u64));
        }
        let down_late = down.saturating_duration_since(last + INTERVAL * FALL).as_micros() as u64;
        opened = Some((Instant::now(), down_late));
    }
    Ok(late)
}

/// The part.
pub(super) fn part(args: &Args, common: &Common, _: &[(&'static str, Contender)]) -> Section {
    let rounds = if args.short { 1 } else { 10 };
    let question = format!(
        "{BACKENDS} backends with an HTTP check each {INTERVAL:?}, rise {RISE}, fall {FALL}: how long after the failing probe's \
         schedule is a subscriber told that the port is refused, and how long after rise x interval that it is open again?"
    );
    let columns = [
        ("down: p50 ms", 2),
        ("down: p99 ms", 2),
        ("down: max ms", 2),
        ("up: p50 ms", 2),
        ("up: p99 ms", 2),
        ("up: max ms", 2),
        ("changes", 0),
    ];
    let mut section = Section::new("registry-refused", question, &columns);
    eprintln!("registry: refused");
    let found =
        Contender::Ringspan.with(common, |server, _| measure(server.http, server.grpc, common.port_base, rounds));
    section.record_or_fail(super::OURS, found);
    section.promise(super::OURS, "down: max ms", Goal::AtMost(100.0));
    section.promise(super::OURS, "up: max ms", Goal::AtMost(100.0));
    section.note("down: from the last good request plus fall x interval; up: from the open port plus rise x interval; 0 is sooner than that");
    section
}

fn measure(http: SocketAddr, grpc: SocketAddr, port_base: u16, rounds: usize) -> Result<[f64; 7], Failure> {
    let mut api = Api::connect(http)?;
    let checker = format!(
        "%7B%22type%22%3A%22HTTP%22%2C%22path%22%3A%22/%22%2C%22intervalMs%22%3A{}%2C%22timeoutMs%22%3A300%2C%22rise%22%3A{RISE}%2C%22fall%22%3A{FALL}%7D",
        INTERVAL.as_millis()
    );
    api.call("POST", &format!("/nacos/v1/ns/service?serviceName={SERVICE}"))?;
    let how = format!("clusterName=DEFAULT&checkPort=80&useInstancePort4Check=true&healthChecker={checker}");
    api.call("PUT", &format!("/nacos/v1/ns/cluster?serviceName={SERVICE}&{how}"))?;
    let addresses: Vec<SocketAddr> =
        (0..BACKENDS).map(|n| SocketAddr::from(([127, 0, 0, 1], port_base + 100 + n))).collect();
    for address in &addresses {
        let port = address.port();
        let instance = format!("serviceName={SERVICE}&ip=127.0.0.1&port={port}&ephemeral=false&healthy=false");
        api.call("POST", &format!("/nacos/v1/ns/instance?{instance}"))?;
    }
    let told = Arc::new(Told::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|e| format!("runtime: {e}"))?;
    let hearing = told.clone();
    runtime.spawn(async move {
        if let Err(e) = hear_service(grpc, SERVICE, |push| hearing.hear(push)).await {
            eprintln!("{e}");
        }
    });
    let told = &*told;
    let late: Vec<Result<_, Failure>> = thread::scope(|scope| {
        let lives: Vec<_> = addresses.iter().map(|&address| scope.spawn(move || live(address, rounds, told))).collect();
        lives.into_iter().map(|it| it.join().expect("a backend does not panic")).collect()
    });
    runtime.shutdown_background();
    let times = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants");
    let (mut down, mut up) = (times(), times());
    for one in late {
        for (down_late, up_late) in one? {
            down.saturating_record(down_late);
            up.saturating_record(up_late);
        }
    }
    let ms = |us: u64| us as f64 / 1e3;
    let of = |times: &Histogram<u64>| [0.5, 0.99, 1.0].map(|quantile| ms(times.value_at_quantile(quantile)));
    let ([a, b, c], [d, e, f]) = (of(&down), of(&up));
    Ok([a, b, c, d, e, f, down.len() as f64])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of whom is read out of a push, whatever stands around it.
    #[test]
    fn hosts_are_read() {
        let push = b"\x12\x05{\"serviceInfo\":{\"hosts\":[{\"port\":80,\"healthy\":true},{\"port\":81,\"healthy\":false}]}}\x1a";
        assert_eq!(hosts(push), [(80, true), (81, false)]);
        assert!(hosts(b"nothing").is_empty() && hosts(b"{\"serviceInfo\":{}}").is_empty());
    }

    /// A change is told with its time; what stays so keeps the time of its change.
    #[test]
    fn changes_are_told() {
        let told = Told::default();
        let push = |healthy: bool| format!("{{\"serviceInfo\":{{\"hosts\":[{{\"port\":80,\"healthy\":{healthy}}}]}}}}");
        told.hear(push(true).as_bytes());
        let first = told.wait(80, true).expect("told");
        told.hear(push(true).as_bytes());
        assert_eq!(told.wait(80, true).expect("told"), first);
        told.hear(push(false).as_bytes());
        assert!(told.wait(80, false).expect("told") >= first);
    }
}
