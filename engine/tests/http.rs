//! HTTP and TLS checks against a real server, nginx, on io_uring (where the kernel allows it) and on epoll: what tables in
//! memory cannot show, that a server of the field answers as the conversations expect and logs no error about us.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use ringspan_engine::check::{
    CertificateFault, Check, Content, HttpCheck, HttpSettings, Method, Redirects, TlsCheck, TlsSettings, Trust,
};
use ringspan_engine::engine::{Engine, Options};
use ringspan_engine::health::Health;
use ringspan_engine::kernel::Backend;
use ringspan_engine::mailbox::Wake;
use ringspan_engine::outcome::Code;
use ringspan_engine::target::{Policy, Proxy, Sample, Target};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// A running nginx. Dropping it ends it.
struct Nginx {
    process: Child,
    folder: TempDir,
    http: SocketAddr,
    https: SocketAddr,
    /// Of the authority that signed the servers' certificates.
    ca_pem: Vec<u8>,
}

impl Nginx {
    /// Starts one on ports of the kernel's choice. The sockets are opened here and inherited there (nginx' own means of
    /// changing its binary, the variable NGINX), so nobody can take the ports in between and nobody has to wait.
    /// `listen`: options of the plain port.
    fn start(listen: &str) -> Nginx {
        let folder = tempfile::tempdir().expect("a folder");
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (plain, tls) = (bind(), bind());
        let [http, https] = [&plain, &tls].map(|socket| socket.local_addr().expect("bound"));
        let ca_pem = certificates(folder.path());
        fs::write(folder.path().join("large"), "x".repeat(300_000)).expect("a file");
        fs::write(folder.path().join("nginx.conf"), config(folder.path(), listen, http, https)).expect("a file");
        let process = Command::new("nginx")
            .args(["-e", "error.log", "-p"])
            .arg(folder.path())
            .args(["-c", "nginx.conf"])
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("NGINX", "0;1;")
            .stdin(Stdio::from(OwnedFd::from(plain)))
            .stdout(Stdio::from(OwnedFd::from(tls)))
            .spawn()
            .expect("nginx (scripts/setup installs it)");
        Nginx { process, folder, http, https, ca_pem }
    }

    /// What it has complained about: nothing of warning and above.
    fn complaints(&self) -> Vec<String> {
        let log = fs::read(self.folder.path().join("error.log")).expect("nginx keeps a log");
        // What it quotes may be a TLS record.
        let log = String::from_utf8_lossy(&log);
        let grave = ["[warn]", "[error]", "[crit]", "[alert]", "[emerg]"];
        log.lines().filter(|line| grave.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // TERM, so that it ends its worker as well.
        let told = Command::new("kill").arg(self.process.id().to_string()).status();
        assert!(told.is_ok_and(|status| status.success()), "kill (scripts/setup installs it)");
        self.process.wait().expect("it is our child");
    }
}

fn config(folder: &Path, listen: &str, http: SocketAddr, https: SocketAddr) -> String {
    let folder = folder.display();
    let secure = |names: &str, file: &str| {
        format!(
            "server {{ listen {https} ssl; server_name {names};
               ssl_certificate {file}.pem; ssl_certificate_key {file}.key;
               location / {{ return 200 '{file}'; }} }}"
        )
    };
    let (good, expired, other) =
        (secure("good.example", "good"), secure("expired.example", "expired"), secure("other.example", "wrong"));
    format!(
        "daemon off; worker_processes 1; pid pid; error_log error.log info;
         events {{ worker_connections 256; }}
         http {{
           access_log access.log; root {folder}; default_type text/plain;
           client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
           server {{ listen {http} {listen} default_server;
             location / {{ return 200 'ready'; }}
             location /large {{ }}
             location /moved {{ return 302 /ready; }}
             location /round {{ return 302 /round; }}
             location /away {{ return 302 http://elsewhere.example/; }}
             location /busy {{ return 503; }}
             location /empty {{ return 204; }}
             location /echo {{ return 200 '$request_method $http_x_key $http_host $http_user_agent'; }}
             location /chunked {{ gzip on; gzip_types text/plain; gzip_min_length 1; gzip_proxied any;
                                  sub_filter a b; sub_filter_types *; try_files /large =404; }} }}
           server {{ listen {http} {listen}; server_name named.example; location / {{ return 200 'named'; }} }}
           {good} {expired} {other}
         }}"
    )
}

/// Writes certificates and keys into `folder`; returns the authority's certificate, PEM.
fn certificates(folder: &Path) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca_pem = params.self_signed(&key).expect("a certificate").pem();
    let authority = Issuer::new(params, key);
    let leaf = |file: &str, name: &str, until: i32| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        fs::write(folder.join(format!("{file}.pem")), certificate.pem()).expect("a file");
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).expect("a file");
    };
    leaf("good", "good.example", 2090);
    leaf("expired", "expired.example", 2021);
    leaf("wrong", "nobody.example", 2090);
    ca_pem.into_bytes()
}

/// Wakes whoever waits for the feed.
struct Bell(Mutex<SyncSender<()>>);

impl Wake for Bell {
    fn wake(&self) {
        // Full: it rings already.
        let _ringing = self.0.lock().expect("nobody panics with it").try_send(());
    }
}

fn bell() -> (Arc<Bell>, Receiver<()>) {
    let (ring, heard) = sync_channel(1);
    (Arc::new(Bell(Mutex::new(ring))), heard)
}

/// One probe of each, and what came of it, in order.
fn probe(backend: Backend, checks: &[(SocketAddr, Check)], policy: Policy) -> Option<Vec<Sample>> {
    let (bell, heard) = bell();
    let options = Options { workers: 1, backend, pin: false, samples_max: 1024, ..Options::default() };
    let (engine, mut feed) = match Engine::start(&options, bell, |_| vec![]) {
        Ok(started) => started,
        Err(error) if backend == Backend::Ring => {
            eprintln!("not on io_uring: {error}");
            return None;
        }
        Err(error) => panic!("epoll must always run: {error}"),
    };
    let policy = Arc::new(policy);
    for (key, (address, check)) in checks.iter().enumerate() {
        let target = Target {
            address: *address,
            check: check.clone(),
            policy: policy.clone(),
            initial: Health::Unknown,
            count: Some(1),
            key: key as u64,
            group: 0,
        };
        assert!(engine.probes().add(target).is_ok(), "a new engine has room");
    }
    let mut samples = Vec::new();
    while samples.len() < checks.len() {
        heard.recv_timeout(Duration::from_secs(60)).expect("every probe ends");
        feed.samples(&mut samples);
    }
    samples.sort_by_key(|sample| sample.key);
    Some(samples)
}

fn policy() -> Policy {
    // Patient: nothing here is about time.
    Policy { interval: Duration::from_millis(100), timeout: Duration::from_secs(30), ..Policy::DEFAULT }
}

fn http(change: impl FnOnce(&mut HttpSettings)) -> Check {
    let mut settings = HttpSettings::default();
    change(&mut settings);
    Check::Http(Arc::new(HttpCheck::new(settings).expect("valid")))
}

/// Probes all with each backend and compares code and number.
fn expect(table: &[(SocketAddr, Check, Code, u32)], policy: &Policy) -> Vec<Vec<Sample>> {
    let checks: Vec<_> = table.iter().map(|(address, check, ..)| (*address, check.clone())).collect();
    let runs = [Backend::Ring, Backend::Epoll].into_iter().filter_map(|backend| {
        let samples = probe(backend, &checks, *policy)?;
        for (sample, (_, check, code, number)) in samples.iter().zip(table) {
            assert_eq!((sample.code, sample.detail.number), (*code, *number), "{backend:?} {check:?} {sample:?}");
            assert!(sample.phases.connect_us > 0 && sample.phases.first_byte_us > 0, "{sample:?}");
        }
        Some(samples)
    });
    runs.collect()
}

/// Plain HTTP: statuses, bodies, redirects, names, requests; and nginx has nothing to complain about.
#[test]
fn nginx_is_asked() {
    let nginx = Nginx::start("");
    let at = |path: &'static str| move |s: &mut HttpSettings| s.path = path.into();
    let with = |path: &'static str, content: Content| http(|s| (s.path, s.content) = (path.into(), Some(content)));
    let follow = |path: &'static str| {
        http(|s| {
            s.path = path.into();
            s.redirects = Redirects::Follow { max: 3, any_host: false };
        })
    };
    let here = nginx.http;
    let table = [
        (here, http(|_| ()), Code::L7Ok, 200),
        (here, http(at("/busy")), Code::L7Status, 503),
        (here, http(at("/empty")), Code::L7Ok, 204),
        (here, http(at("/large")), Code::L7Ok, 200),
        (here, with("/", Content::Contains("ready".into())), Code::L7Ok, 200),
        (here, with("/", Content::Lacks("ready".into())), Code::L7Content, 200),
        (here, with("/", Content::Matches("^rea.y$".into())), Code::L7Ok, 200),
        (here, with("/large", Content::Lacks("ready".into())), Code::L7Response, 200),
        (here, with("/chunked", Content::Contains("xxxx".into())), Code::L7Ok, 200),
        (here, http(at("/moved")), Code::L7Ok, 302),
        (here, follow("/moved"), Code::L7Ok, 200),
        (here, follow("/round"), Code::L7Status, 302),
        (here, follow("/away"), Code::L7Ok, 302),
        (here, http(|s| s.method = Method::Head), Code::L7Ok, 200),
        (
            here,
            http(|s| (s.host, s.content) = (Some("named.example".into()), Some(Content::Contains("named".into())))),
            Code::L7Ok,
            200,
        ),
        (
            here,
            http(|s| {
                s.path = "/echo".into();
                s.method = Method::Post;
                s.body = b"{}".to_vec();
                s.headers = vec![("X-Key".into(), "k1".into())];
                s.content = Some(Content::Contains(format!("POST k1 {} ringspan/", nginx.http)));
            }),
            Code::L7Ok,
            200,
        ),
        // TLS spoken to, and not spoken to.
        (nginx.https, http(|_| ()), Code::L7Status, 400),
    ];
    expect(&table, &policy());
    assert_eq!(nginx.complaints(), Vec::<String>::new());
}

/// A PROXY header comes before everything else; without it nobody is served.
#[test]
fn nginx_behind_a_proxy() {
    let nginx = Nginx::start("proxy_protocol");
    let check = || http(|s| s.content = Some(Content::Contains("ready".into())));
    for proxy in [Proxy::V1, Proxy::V2] {
        expect(&[(nginx.http, check(), Code::L7Ok, 200)], &Policy { proxy: Some(proxy), ..policy() });
    }
    assert_eq!(nginx.complaints(), Vec::<String>::new());
    let runs = [Backend::Ring, Backend::Epoll].map(|backend| probe(backend, &[(nginx.http, check())], policy()));
    assert!(runs.iter().flatten().flatten().all(|sample| sample.code == Code::L7Response));
}

/// HTTPS and TLS alone: names choose certificates, and each reason to refuse one is told apart.
#[test]
fn nginx_speaks_tls() {
    let nginx = Nginx::start("");
    let trust = || Trust::CaPem(nginx.ca_pem.clone());
    let tls = |name: &str, trust: Trust| TlsSettings { name: Some(name.into()), trust, ..TlsSettings::default() };
    let handshake = |name: &str, trust: Trust| Check::Tls(Arc::new(TlsCheck::new(tls(name, trust)).expect("valid")));
    let https = |name: &str, trust: Trust, answer: &str| {
        http(|s| {
            s.host = Some(name.into());
            s.content = Some(Content::Contains(answer.into()));
            s.tls = Some(TlsSettings { trust, ..TlsSettings::default() });
        })
    };
    let refused = |fault: CertificateFault| (Code::L6Certificate, fault.number());
    let here = nginx.https;
    let row = |check: Check, (code, number): (Code, u32)| (here, check, code, number);
    let table = [
        row(handshake("good.example", trust()), (Code::L6Ok, 0)),
        row(handshake("expired.example", trust()), refused(CertificateFault::Expired)),
        row(handshake("other.example", trust()), refused(CertificateFault::WrongName)),
        row(handshake("expired.example", Trust::Insecure), (Code::L6Ok, 0)),
        row(https("good.example", trust(), "good"), (Code::L7Ok, 200)),
        row(https("other.example", Trust::Insecure, "wrong"), (Code::L7Ok, 200)),
        row(https("expired.example", trust(), "expired"), refused(CertificateFault::Expired)),
        (nginx.http, handshake("good.example", trust()), Code::L6Response, 0),
    ];
    for samples in expect(&table, &policy()) {
        for (sample, (_, check, code, _)) in samples.iter().zip(&table) {
            match code {
                Code::L6Response => assert_eq!(sample.detail.cert_days, None),
                _ => assert!(sample.detail.cert_days.is_some(), "{check:?}"),
            }
            let is_open = matches!(code, Code::L6Ok | Code::L7Ok);
            assert_eq!(sample.phases.tls_us > 0, is_open, "{sample:?}");
        }
        assert!(samples[0].detail.cert_days > Some(10_000) && samples[1].detail.cert_days < Some(0));
    }
    // A garbled request on the plain port is a client's fault in its eyes, and an alert is information.
    assert_eq!(nginx.complaints(), Vec::<String>::new());
}
