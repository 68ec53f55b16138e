//! `bench registry`: how many registrations and queries a second, how soon is a subscriber told, and what does an instance
//! take in memory, beside r-nacos?
//! Both are asked the same through Nacos' v1 API by wrk on kept connections, each question on a server started afresh on an
//! empty folder. Subscribers are told by whatever a server has: UDP, or a gRPC connection each (subscribers.rs).

mod api;
pub(crate) mod checks;
mod refused;
pub(crate) mod subscribers;

use crate::peers;
use crate::probe::Common;
use crate::process::{self, Failure, Process};
use crate::product::{self, Tunnel};
use crate::report::{Goal, Section};
use crate::stage::until_ready;
use crate::wrk;
use api::{Api, SERVICE_SIZE, for_each, instance};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use subscribers::{By, Plan};

/// What to run.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Rounds; every contender runs once in each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each wrk run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections of wrk.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Persistent instances whose memory is measured.
    #[arg(long, default_value_t = 100_000)]
    instances: usize,
    /// Subscribers of one service, beside a single one.
    #[arg(long, default_value_t = 5000)]
    subscribers: usize,
    /// The r-nacos to stand beside. Default: target/peers (scripts/peers rnacos), then the PATH.
    #[arg(long, value_name = "PATH")]
    rnacos: Option<PathBuf>,
    /// Only this part: writes, memory, push, refused.
    #[arg(long, value_name = "PART")]
    part: Option<String>,
    /// One round of a second, 5,000 instances, 200 subscribers: does everything run?
    #[arg(long)]
    short: bool,
}

const OURS: &str = "ringspan";
const THEIRS: &str = "r-nacos";
const PERSISTENT: &str = "persistent/s";
const EPHEMERAL: &str = "ephemeral/s";
const QUERIES: &str = "queries/s";
const WHOLE: &str = "MiB with all";
const MANY_P99: &str = "many: p99 ms";
const ONE_P99: &str = "one: p99 ms";

/// Time for what follows the last request: commits, first probes, timers of a second.
const SETTLE: Duration = Duration::from_secs(3);

/// A naming server, and where it is spoken to.
struct Server {
    process: Process,
    http: SocketAddr,
    grpc: SocketAddr,
}

/// Who serves names.
#[derive(Clone, Debug)]
enum Contender {
    Ringspan,
    Rnacos(PathBuf),
}

impl Contender {
    fn start(&self, common: &Common, folder: &Path) -> Result<Server, Failure> {
        let port = |offset: u16| SocketAddr::from(([127, 0, 0, 1], common.port_base + offset));
        // Nacos' clients look for gRPC a thousand ports above HTTP.
        let (http, grpc) = (port(0), port(1000));
        process::until_free(http)?;
        process::until_free(grpc)?;
        let mut process = match self {
            Contender::Ringspan => {
                Tunnel::new(&common.ringspan, folder, None, (http, port(1)), false, &[])?.start_bridge()?
            }
            Contender::Rnacos(program) => peers::start_rnacos(program, folder, (http, grpc, port(2)))?,
        };
        process.wait_listening(http)?;
        let ready = || Api::connect(http)?.call("GET", &format!("/nacos/v1/ns/instance/list?{}", instance(0, true)));
        // r-nacos elects itself first.
        until_ready("the server", || ready().map(drop)).map_err(|e| format!("{e}\n{}", process.log_end()))?;
        let probe = "/nacos/v1/ns/instance?serviceName=ready&ip=127.0.0.1&port=1&ephemeral=false";
        until_ready("the first registration", || Api::connect(http)?.call("POST", probe).map(drop))
            .map_err(|e| format!("{e}\n{}", process.log_end()))?;
        Ok(Server { process, http, grpc })
    }

    fn with<T>(
        &self,
        common: &Common,
        measure: impl FnOnce(&Server, &Path) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let folder = tempfile::tempdir_in(&common.folder).map_err(|e| format!("scratch folder: {e}"))?;
        let server = self.start(common, folder.path())?;
        measure(&server, folder.path()).map_err(|e| format!("{e}\n{}", server.process.log_end()))
    }
}

/// All parts.
///
/// # Errors
/// No scratch folder; a contender that breaks is a line of the report.
pub(crate) fn run(args: &Args, common: &Common) -> Result<Vec<Section>, Failure> {
    let mut contenders = vec![(OURS, Contender::Ringspan)];
    let theirs = peers::rnacos(args.rnacos.as_deref());
    if let Some(program) = &theirs {
        contenders.push((THEIRS, Contender::Rnacos(program.clone())));
    }
    let wanted = |part: &str| args.part.as_ref().is_none_or(|only| only == part);
    let mut sections = Vec::new();
    type Part = fn(&Args, &Common, &[(&'static str, Contender)]) -> Section;
    for (part, measure) in
        [("writes", requests as Part), ("memory", memory), ("push", push), ("refused", refused::part)]
    {
        if wanted(part) {
            let mut section = measure(args, common, &contenders);
            if theirs.is_none() && part != "refused" {
                section.note("r-nacos is not there (scripts/peers rnacos)");
            }
            sections.push(section);
        }
    }
    if sections.is_empty() {
        return Err("--part: there are writes, memory, push and refused".into());
    }
    Ok(sections)
}

fn rounds(args: &Args) -> usize {
    if args.short { 1 } else { args.rounds }
}

fn requests(args: &Args, common: &Common, contenders: &[(&'static str, Contender)]) -> Section {
    let seconds = if args.short { 1 } else { args.seconds };
    let question = format!(
        "how many registrations and queries a second through the v1 API, {} kept connections, {SERVICE_SIZE} instances a \
         service?",
        args.connections
    );
    let columns = [
        (PERSISTENT, 0),
        ("p99 ms", 1),
        ("CPU us each", 1),
        (EPHEMERAL, 0),
        ("p99 ms ", 1),
        (QUERIES, 0),
        ("p99 ms  ", 1),
        ("CPU us each ", 1),
        ("errors", 0),
    ];
    let mut section = Section::new("registry-requests", question, &columns);
    for round in 0..rounds(args) {
        for (name, contender) in contenders {
            eprintln!("registry: requests, round {} of {}, {name}", round + 1, rounds(args));
            let load = |script: &str, prepare: &dyn Fn(&Server) -> Result<(), Failure>| {
                contender.with(common, |server, folder| {
                    prepare(server)?;
                    let file = folder.join("load.lua");
                    product::write(&file, script)?;
                    let cpu = server.process.cpu_seconds();
                    let result = wrk::run_script(server.http, args.connections, seconds, &file)?;
                    let each = (server.process.cpu_seconds() - cpu) / result.requests.max(1) as f64 * 1e6;
                    Ok((result, each))
                })
            };
            let nothing: &dyn Fn(&Server) -> Result<(), Failure> = &|_| Ok(());
            let one_service: &dyn Fn(&Server) -> Result<(), Failure> = &|server| {
                let register = |api: &mut Api, n| api.call("POST", &post(n, true)).map(drop);
                for_each(server.http, 1, SERVICE_SIZE, register)
            };
            let measure = || {
                let (persistent, cpu_write) = load(&registering(false), nothing)?;
                let (ephemeral, _) = load(&registering(true), nothing)?;
                let (queries, cpu_query) = load(QUERY, one_service)?;
                let errors = persistent.errors + ephemeral.errors + queries.errors;
                Ok([
                    persistent.requests_per_s,
                    persistent.p99_ms,
                    cpu_write,
                    ephemeral.requests_per_s,
                    ephemeral.p99_ms,
                    queries.requests_per_s,
                    queries.p99_ms,
                    cpu_query,
                    errors as f64,
                ])
            };
            section.record_or_fail(name, measure());
        }
    }
    section.compare(PERSISTENT, OURS, THEIRS, Some(Goal::AtLeast(2.0)));
    section.compare(QUERIES, OURS, THEIRS, Some(Goal::AtLeast(2.0)));
    section.compare(EPHEMERAL, OURS, THEIRS, None);
    section.promise(OURS, "errors", Goal::AtMost(0.0));
    section.note(
        "ringspan probes each persistent instance every 5 s from its registration on, and has each on disk (fsync) before \
         it says ok; r-nacos probes them every 60 s, and asks for no fsync",
    );
    section
}

fn post(n: usize, ephemeral: bool) -> String {
    format!("/nacos/v1/ns/instance?{}", instance(n, ephemeral))
}

/// One wrk thread, so one counter: every request another instance, as `api::instance` has it.
fn registering(ephemeral: bool) -> String {
    format!(
        "local n = -1\nwrk.method = 'POST'\nwrk.headers['Content-Length'] = '0'\nfunction request()\n  n = n + 1\n  \
         return wrk.format(nil, string.format('/nacos/v1/ns/instance?serviceName=bench-%d&ip=127.%d.%d.%d&port=1\
         &ephemeral={ephemeral}', math.floor(n / {SERVICE_SIZE}), 1 + math.floor(n / 65536), math.floor(n / 256) % 256, \
         n % 256))\nend\n"
    )
}

const QUERY: &str =
    "function request()\n  return wrk.format(nil, '/nacos/v1/ns/instance/list?serviceName=bench-0')\nend\n";

fn memory(args: &Args, common: &Common, contenders: &[(&'static str, Contender)]) -> Section {
    let count = if args.short { 5000 } else { args.instances };
    let question = format!("what do {count} persistent instances take in memory, {SERVICE_SIZE} a service?");
    let columns = [("MiB empty", 1), (WHOLE, 1), ("peak MiB", 1), ("bytes each", 0), ("registered/s", 0)];
    let mut section = Section::new("registry-memory", question, &columns);
    for round in 0..rounds(args) {
        for (name, contender) in contenders {
            eprintln!("registry: memory, round {} of {}, {name}", round + 1, rounds(args));
            let measured = contender.with(common, |server, _| {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let empty = server.process.rss_bytes();
                let started = std::time::Instant::now();
                for_each(server.http, 16, count, |api, n| api.call("POST", &post(n, false)).map(drop))?;
                let per_s = count as f64 / started.elapsed().as_secs_f64();
                thread::sleep(SETTLE);
                let (full, peak) = (server.process.rss_bytes(), server.process.rss_peak_bytes());
                let each = full.saturating_sub(empty) as f64 / count as f64;
                Ok([mib(empty), mib(full), mib(peak), each, per_s])
            });
            section.record_or_fail(name, measured);
        }
    }
    section.compare(WHOLE, OURS, THEIRS, Some(Goal::AtMost(0.5)));
    section
}

fn push(args: &Args, common: &Common, contenders: &[(&'static str, Contender)]) -> Section {
    let many = if args.short { args.subscribers.min(200) } else { args.subscribers };
    let question = format!("how soon are 1 and {many} subscribers of one service told of a change?");
    let columns = [
        ("one: p50 ms", 2),
        (ONE_P99, 2),
        ("one: max ms", 2),
        ("many: p50 ms", 2),
        (MANY_P99, 2),
        ("many: max ms", 2),
        ("missed", 0),
    ];
    let mut section = Section::new("registry-push", question, &columns);
    let changes = if args.short { [20, 5] } else { [100, 20] };
    for round in 0..rounds(args) {
        for (name, contender) in contenders {
            for (by, how) in [(By::Udp, "UDP"), (By::Grpc, "gRPC")] {
                // Its UDP push is written and switched off.
                if by == By::Udp && *name == THEIRS {
                    continue;
                }
                let row = format!("{name}, {how}");
                eprintln!("registry: push, round {} of {}, {row}", round + 1, rounds(args));
                let found = contender.with(common, |server, _| {
                    let (http, grpc) = (server.http, server.grpc);
                    if by == By::Grpc && TcpStream::connect_timeout(&grpc, Duration::from_secs(2)).is_err() {
                        return Ok(None);
                    }
                    let of =
                        |subscribers, changes| subscribers::in_a_child(&Plan { http, grpc, by, subscribers, changes });
                    let (one, all) = (of(1, changes[0])?, of(many, changes[1])?);
                    let missed = (one.missed + all.missed) as f64;
                    Ok(Some([one.p50_ms, one.p99_ms, one.max_ms, all.p50_ms, all.p99_ms, all.max_ms, missed]))
                });
                match found {
                    Ok(None) => section.note(format!("{name} does not speak gRPC")),
                    Ok(Some(figures)) => section.record(&row, &figures),
                    Err(e) => section.record_or_fail(&row, Err::<[f64; 7], _>(e)),
                }
            }
        }
    }
    for how in ["UDP", "gRPC"] {
        let ours = format!("{OURS}, {how}");
        section.promise(&ours, ONE_P99, Goal::AtMost(50.0));
        section.promise(&ours, "missed", Goal::AtMost(0.0));
        section.compare(MANY_P99, &ours, &format!("{THEIRS}, gRPC"), Some(Goal::AtMost(0.5)));
    }
    section
        .note("from before the change is asked for to the subscriber; r-nacos has no UDP push (written, switched off)");
    section
}
