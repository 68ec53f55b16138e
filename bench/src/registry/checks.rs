//! `bench checks`: 80,000 persistent instances with HTTP checks, registered through the API as Nacos' users do it. Is
//! anybody called dead who lives, and how late does the API answer meanwhile? (Nacos issue 12068.)
//! The instances live in the world of `bench nacos12068` and answer after 0 to 200 ms. Four clients ask and change all the
//! while, each request timed from when it was due.

use super::api::{Api, SERVICE_SIZE, for_each};
use crate::probe::Common;
use crate::process::Failure;
use crate::product::Tunnel;
use crate::report::{Goal, Section};
use crate::world::{self, World};
use hdrhistogram::Histogram;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// How long it is watched.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Instances.
    #[arg(long, default_value_t = 80_000)]
    instances: usize,
    /// Requests a second, over four connections: three lists, one change that goes to the disk, and again.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Half a minute, 8,000 instances: does everything run?
    #[arg(long)]
    short: bool,
}

/// Ports of the world, each of which serves all of 127/8.
const PORTS: u16 = 80;
/// Answers come after 0 to so many milliseconds; the checks wait 500, as Nacos' do.
const DELAY_MAX_MS: u16 = 200;
const CHECKER: &str =
    "{\"type\":\"HTTP\",\"path\":\"/health\",\"intervalMs\":5000,\"timeoutMs\":500,\"rise\":2,\"fall\":3}";
const CLIENTS: u32 = 4;
/// What a request may take: the promise.
const P99_MS: f64 = 20.0;
/// Until all are found well: two intervals, and what registering them left behind.
const WARM_UP: Duration = Duration::from_secs(90);
/// How often is counted. Who falls is down for two intervals at least, so nobody falls unseen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Persistent instances by health, from /metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    up: u64,
    down: u64,
    unknown: u64,
}

impl Counts {
    fn read(api: &mut Api) -> Result<Counts, Failure> {
        let text = api.call("GET", "/metrics")?;
        let counts = Counts::of(&text);
        counts.ok_or_else(|| format!("/metrics shows no persistent instances: {text:.500}"))
    }

    fn of(metrics: &str) -> Option<Counts> {
        let of = |health: &str| {
            let lines = metrics.lines().filter(|l| l.starts_with("ringspan_registry_instances{"));
            let mut ours = lines.filter(|l| l.contains("kind=\"persistent\"") && l.contains(health));
            // Gauges are floats in OpenMetrics.
            ours.next()?.rsplit(' ').next()?.parse().ok().map(|n: f64| n as u64)
        };
        Some(Counts { up: of("health=\"up\"")?, down: of("health=\"down\"")?, unknown: of("health=\"unknown\"")? })
    }
}

/// Registers, watches, judges.
///
/// # Errors
/// World or bridge do not work, or not everybody comes up; with the log.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Section, Failure> {
    let (count, minutes) = if args.short { (args.instances.min(8000), 0.5) } else { (args.instances, args.minutes) };
    let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
    let first_port = common.port_base + 10;
    let crowd = (0..PORTS).map(|i| SocketAddr::from((Ipv4Addr::UNSPECIFIED, first_port + i))).collect();
    let plan = world::Plan { crowd, mortals: Vec::new(), delay_max_ms: DELAY_MAX_MS, control: port(3), seed: 12068 };
    let mut world = World::start(&plan, None, &common.folder)?;
    let tunnel = Tunnel::new(&common.ringspan, &common.folder, None, (port(0), port(1)), false, &[])?;
    let bridge = tunnel.start_bridge()?;
    let story = |e: Failure| format!("{e}\n{}", bridge.log_end());

    eprintln!("checks: registering {count} instances");
    let started = Instant::now();
    let services = count.div_ceil(SERVICE_SIZE);
    for_each(port(0), 8, services, |api, n| {
        api.call("POST", &format!("/nacos/v1/ns/service?serviceName=checked-{n}"))?;
        let checker = CHECKER.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let how = format!("clusterName=DEFAULT&checkPort=80&useInstancePort4Check=true&healthChecker={checker}");
        api.call("PUT", &format!("/nacos/v1/ns/cluster?serviceName=checked-{n}&{how}")).map(drop)
    })
    .map_err(story)?;
    let ports = usize::from(PORTS);
    let instance = |n: usize| {
        let ip = Ipv4Addr::from(0x7f14_0001 + (n / ports) as u32);
        let port = first_port + (n % ports) as u16;
        format!("serviceName=checked-{}&ip={ip}&port={port}&ephemeral=false", n / SERVICE_SIZE)
    };
    for_each(port(0), 16, count, |api, n| {
        api.call("POST", &format!("/nacos/v1/ns/instance?{}", instance(n))).map(drop)
    })
    .map_err(story)?;
    let registered_s = started.elapsed().as_secs_f64();

    eprintln!("checks: waiting until all {count} are up");
    let mut api = Api::connect(port(0))?;
    let deadline = Instant::now() + WARM_UP;
    loop {
        let counts = Counts::read(&mut api).map_err(story)?;
        if counts.up == count as u64 {
            break;
        }
        if Instant::now() > deadline {
            return Err(story(format!("of {count} instances not all came up: {counts:?}")));
        }
        thread::sleep(LOOK_EVERY);
    }

    let question = format!(
        "{count} persistent instances with HTTP checks every 5 s that answer after 0 to {DELAY_MAX_MS} ms, {minutes} \
         minutes: is anybody called dead who lives, and how late is the API?"
    );
    let columns = [
        ("probes/s", 0),
        ("false unhealthy", 0),
        ("not known", 0),
        ("list p50 ms", 2),
        ("list p99 ms", 2),
        ("change p50 ms", 2),
        ("change p99 ms", 2),
        ("errors", 0),
        ("CPU % of a core", 1),
        ("RSS MiB", 1),
    ];
    let mut section = Section::new("checks", question, &columns);
    eprintln!("checks: {minutes} minutes");
    let (cpu, served, began) = (bridge.cpu_seconds(), world.count()?.served, Instant::now());
    let end = AtomicBool::new(false);
    let (watched, askers) = thread::scope(|scope| {
        let askers: Vec<_> = (0..CLIENTS)
            .map(|n| {
                scope.spawn({
                    let (end, instance) = (&end, &instance);
                    move || ask(port(0), args.rate.max(CLIENTS), n, count, instance, end)
                })
            })
            .collect();
        let watched = watch(&mut api, Duration::from_secs_f64(minutes * 60.0));
        end.store(true, Ordering::Relaxed);
        let askers: Vec<_> = askers.into_iter().map(|it| it.join().expect("a client does not panic")).collect();
        (watched, askers)
    });
    let seconds = began.elapsed().as_secs_f64();
    let worst = watched.map_err(story)?;
    let (mut lists, mut changes, mut errors) = (no_times(), no_times(), 0);
    for asker in askers {
        let asker = asker.map_err(story)?;
        lists.add(&asker.lists).expect("the same bounds");
        changes.add(&asker.changes).expect("the same bounds");
        errors += asker.errors.len();
        asker.errors.iter().take(3).for_each(|e| section.note(e.clone()));
    }
    let ms = |times: &Histogram<u64>, quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    let probes = world.count()?.served - served;
    section.record(
        "ringspan",
        &[
            probes as f64 / seconds,
            worst.down as f64,
            worst.unknown as f64,
            ms(&lists, 0.5),
            ms(&lists, 0.99),
            ms(&changes, 0.5),
            ms(&changes, 0.99),
            errors as f64,
            (bridge.cpu_seconds() - cpu) / seconds * 100.0,
            bridge.rss_bytes() as f64 / f64::from(1 << 20),
        ],
    );
    section.promise("ringspan", "false unhealthy", Goal::AtMost(0.0));
    section.promise("ringspan", "not known", Goal::AtMost(0.0));
    section.promise("ringspan", "list p99 ms", Goal::AtMost(P99_MS));
    section.promise("ringspan", "change p99 ms", Goal::AtMost(P99_MS));
    section.promise("ringspan", "errors", Goal::AtMost(0.0));
    // The share of due probes that came: a prober that asks nobody blames nobody.
    let due = count as f64 / 5.0;
    section.hold("probes made of those due", probes as f64 / seconds / due, Goal::AtLeast(0.98));
    section.note(format!(
        "registered in {registered_s:.1} s, each on disk; {} lists, {} changes",
        lists.len(),
        changes.len()
    ));
    Ok(section)
}

/// The worst that is seen in so long.
fn watch(api: &mut Api, how_long: Duration) -> Result<Counts, Failure> {
    let end = Instant::now() + how_long;
    let mut worst = Counts { up: u64::MAX, ..Counts::default() };
    while Instant::now() < end {
        let now = Counts::read(api)?;
        worst = Counts {
            up: worst.up.min(now.up),
            down: worst.down.max(now.down),
            unknown: worst.unknown.max(now.unknown),
        };
        thread::sleep(LOOK_EVERY);
    }
    Ok(worst)
}

fn no_times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are constants")
}

/// What one client met.
struct Asked {
    lists: Histogram<u64>,
    changes: Histogram<u64>,
    errors: Vec<String>,
}

fn ask(
    to: SocketAddr,
    rate: u32,
    n: u32,
    count: usize,
    instance: &(impl Fn(usize) -> String + Sync),
    end: &AtomicBool,
) -> Result<Asked, Failure> {
    let mut api = Api::connect(to)?;
    let mut asked = Asked { lists: no_times(), changes: no_times(), errors: Vec::new() };
    let mut rng = fastrand::Rng::with_seed(u64::from(n));
    let every = Duration::from_secs(1) * CLIENTS / rate;
    let mut due = Instant::now() + every / CLIENTS * n;
    for turn in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        // From when it was due: who waits for one answer is late with the next.
        due += every;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let at = rng.usize(..count);
        let change = turn % 4 == 3;
        let outcome = if change {
            let weight = rng.u32(1..=100);
            api.call("PUT", &format!("/nacos/v1/ns/instance?{}&weight={weight}", instance(at)))
        } else {
            api.call("GET", &format!("/nacos/v1/ns/instance/list?serviceName=checked-{}", at / SERVICE_SIZE))
        };
        let took = due.elapsed().as_micros() as u64;
        match outcome {
            Ok(_) if change => asked.changes.saturating_record(took),
            Ok(_) => asked.lists.saturating_record(took),
            Err(e) => {
                asked.errors.push(e);
                api = Api::connect(to)?;
            }
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The persistent ones are counted, and nobody else.
    #[test]
    fn healths_are_read_from_metrics() {
        let text = "# TYPE ringspan_registry_instances gauge\n\
                    ringspan_registry_instances{kind=\"ephemeral\",health=\"down\"} 9\n\
                    ringspan_registry_instances{kind=\"persistent\",health=\"up\"} 7.0\n\
                    ringspan_registry_instances{kind=\"persistent\",health=\"down\"} 2\n\
                    ringspan_registry_instances{kind=\"persistent\",health=\"unknown\"} 1\n# EOF\n";
        assert_eq!(Counts::of(text), Some(Counts { up: 7, down: 2, unknown: 1 }));
        assert_eq!(Counts::of("# EOF\n"), None);
    }
}
