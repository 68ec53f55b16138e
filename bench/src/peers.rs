//! The programs beside us, and nginx behind us: their configuration files and how they are started.
//! A peer that is not installed is a note in the report, never an error.

use crate::process::{self, Failure, Process};
use crate::product::write;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// How rathole guards its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RatholeTransport {
    /// Plain TCP.
    Plain,
    /// Noise_NK_25519_ChaChaPoly_BLAKE2s, its recommendation.
    Noise,
    /// native-tls with a certificate of its own, where it was built with it.
    Tls,
}

/// Where a program is that `scripts/peers` builds: the given path; its folder, of the checkout that this program was built
/// in or of the one that it is run in (a program that was copied away has only that); or the PATH.
fn find(name: &str, given: Option<&Path>) -> Option<PathBuf> {
    let own = process::own_program();
    let built_in = own.parent().and_then(Path::parent).map(|target| target.join("peers/bin").join(name));
    let run_in = std::env::current_dir().ok().map(|folder| folder.join("target/peers/bin").join(name));
    let candidates = [given.map(Path::to_path_buf), built_in, run_in, Some(PathBuf::from(name))];
    candidates.into_iter().flatten().find(|p| process::is_there(p))
}

/// Where rathole is.
pub(crate) fn rathole(given: Option<&Path>) -> Option<PathBuf> {
    find("rathole", given)
}

/// A key pair that `rathole --genkey` prints: private, then public.
fn noise_keys(program: &Path) -> Result<(String, String), Failure> {
    let out = process::run("rathole --genkey", process::command(program, &["--genkey"], None), &[0])?.stdout;
    let mut lines = out.lines().map(str::trim).filter(|l| !l.is_empty() && !l.ends_with("Key:"));
    match (lines.next(), lines.next()) {
        (Some(private), Some(public)) => Ok((private.to_owned(), public.to_owned())),
        _ => Err(format!("rathole --genkey printed no keys: {out}")),
    }
}

/// Whether it was built with TLS.
pub(crate) fn rathole_has_tls(program: &Path) -> bool {
    let version = process::run("rathole --version", process::command(program, &["--version"], None), &[0]);
    version.is_ok_and(|it| it.stdout.lines().any(|l| l.contains("Features") && l.contains("tls")))
}

/// A self-signed certificate for `localhost` in the folder: `cert.pem`, and `identity.pfx` with its key, password "bench".
fn self_signed(folder: &Path) -> Result<(), Failure> {
    let path = |file: &str| folder.join(file).to_string_lossy().into_owned();
    let (key, cert, pfx) = (path("key.pem"), path("cert.pem"), path("identity.pfx"));
    let make = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        &key,
        "-out",
        &cert,
    ];
    let pack = ["pkcs12", "-export", "-inkey", &key, "-in", &cert, "-out", &pfx, "-passout", "pass:bench"];
    for args in [&make[..], &pack[..]] {
        process::run("openssl", process::command(Path::new("openssl"), args, None), &[0])?;
    }
    Ok(())
}

/// Starts a rathole server and client that carry `listen` to `backend`; returns both.
///
/// # Errors
/// They do not come up; with the end of their logs.
pub(crate) fn start_rathole(
    program: &Path,
    folder: &Path,
    core: Option<usize>,
    transport: RatholeTransport,
    (link, listen, backend): (SocketAddr, SocketAddr, SocketAddr),
) -> Result<Vec<Process>, Failure> {
    let (server_transport, client_transport) = match transport {
        RatholeTransport::Plain => (String::new(), String::new()),
        RatholeTransport::Noise => {
            let (private, public) = noise_keys(program)?;
            let section = "type = \"noise\"\n";
            (
                format!("[server.transport]\n{section}[server.transport.noise]\nlocal_private_key = \"{private}\"\n"),
                format!("[client.transport]\n{section}[client.transport.noise]\nremote_public_key = \"{public}\"\n"),
            )
        }
        RatholeTransport::Tls => {
            self_signed(folder)?;
            let (pfx, cert) = (folder.join("identity.pfx"), folder.join("cert.pem"));
            (
                format!(
                    "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = {pfx:?}\n\
                     pkcs12_password = \"bench\"\n"
                ),
                format!(
                    "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = {cert:?}\n\
                     hostname = \"localhost\"\n"
                ),
            )
        }
    };
    let server = format!(
        "[server]\nbind_addr = \"{link}\"\ndefault_token = \"bench\"\n{server_transport}\
         [server.services.bench]\nbind_addr = \"{listen}\"\n"
    );
    let client = format!(
        "[client]\nremote_addr = \"{link}\"\ndefault_token = \"bench\"\n{client_transport}\
         [client.services.bench]\nlocal_addr = \"{backend}\"\n"
    );
    let mut started = Vec::new();
    for (role, text) in [("server", server), ("client", client)] {
        let file = folder.join(format!("rathole-{role}.toml"));
        write(&file, &text)?;
        let file = file.to_string_lossy().into_owned();
        let command = process::command(program, &[&format!("--{role}"), &file], core);
        let mut process = Process::start(&format!("rathole-{role}"), command, folder)?;
        if role == "server" {
            process.wait_listening(link)?;
        }
        started.push(process);
    }
    // It opens the visitors' port when its client has come.
    started[0].wait_listening(listen)?;
    Ok(started)
}

/// Where r-nacos is.
pub(crate) fn rnacos(given: Option<&Path>) -> Option<PathBuf> {
    find("rnacos", given)
}

/// Starts r-nacos with its defaults but for ports and folder; it writes no log of its own.
///
/// # Errors
/// It cannot be started.
pub(crate) fn start_rnacos(
    program: &Path,
    folder: &Path,
    (http, grpc, console): (SocketAddr, SocketAddr, SocketAddr),
) -> Result<Process, Failure> {
    let mut command = process::command(program, &[], None);
    command
        .current_dir(folder)
        .env("RNACOS_HTTP_PORT", http.port().to_string())
        .env("RNACOS_GRPC_PORT", grpc.port().to_string())
        .env("RNACOS_HTTP_CONSOLE_PORT", console.port().to_string())
        .env("RNACOS_DATA_DIR", folder.join("rnacos-data"))
        .env("RUST_LOG", "error");
    Process::start("rnacos", command, folder)
}

/// frp's two commands.
#[derive(Clone, Debug)]
pub(crate) struct Frp {
    frps: PathBuf,
    frpc: PathBuf,
}

/// Where frp is.
pub(crate) fn frp() -> Option<Frp> {
    Some(Frp { frps: find("frps", None)?, frpc: find("frpc", None)? })
}

impl Frp {
    /// Starts server and client that carry `listen` to `backend`, with their defaults (yamux on); returns both.
    ///
    /// # Errors
    /// They do not come up; with the end of their logs.
    pub(crate) fn start(
        &self,
        folder: &Path,
        core: Option<usize>,
        tls: bool,
        (link, listen, backend): (SocketAddr, SocketAddr, SocketAddr),
    ) -> Result<Vec<Process>, Failure> {
        let server = format!(
            "bindAddr = \"{}\"\nbindPort = {}\nproxyBindAddr = \"{}\"\nauth.token = \"bench\"\nlog.level = \"warn\"\n",
            link.ip(),
            link.port(),
            listen.ip()
        );
        let client = format!(
            "serverAddr = \"{}\"\nserverPort = {}\nauth.token = \"bench\"\nlog.level = \"warn\"\nloginFailExit = false\n\
             transport.tls.enable = {tls}\n[[proxies]]\nname = \"bench\"\ntype = \"tcp\"\nlocalIP = \"{}\"\n\
             localPort = {}\nremotePort = {}\n",
            link.ip(),
            link.port(),
            backend.ip(),
            backend.port(),
            listen.port()
        );
        let mut started = Vec::new();
        for (name, program, text) in [("frps", &self.frps, server), ("frpc", &self.frpc, client)] {
            let file = folder.join(format!("{name}.toml"));
            write(&file, &text)?;
            let file = file.to_string_lossy().into_owned();
            let mut process = Process::start(name, process::command(program, &["-c", &file], core), folder)?;
            if name == "frps" {
                process.wait_listening(link)?;
            }
            started.push(process);
        }
        // It opens the visitors' port when its client has come.
        started[0].wait_listening(listen)?;
        Ok(started)
    }
}

/// Where nginx is.
pub(crate) fn nginx() -> Option<PathBuf> {
    // Debian keeps it out of an ordinary user's PATH.
    ["nginx", "/usr/sbin/nginx"].into_iter().map(PathBuf::from).find(|p| process::is_there(p))
}

/// Starts nginx in one process (so that kill -9 kills all of it): `/` answers its `name`, other paths are files of `root`.
///
/// # Errors
/// It does not come up; with the end of its log.
pub(crate) fn start_nginx(name: &str, folder: &Path, listen: SocketAddr, root: &Path) -> Result<Process, Failure> {
    process::until_free(listen)?;
    start_one_nginx(name, folder, (listen, ""), root)
}

/// Starts so many of them on one port, which share its connections (SO_REUSEPORT): what `worker_processes` is, and still
/// no master to outlive.
///
/// # Errors
/// As [`start_nginx`].
pub(crate) fn start_nginxes(count: usize, folder: &Path, listen: SocketAddr) -> Result<Vec<Process>, Failure> {
    process::until_free(listen)?;
    (0..count).map(|n| start_one_nginx(&format!("nginx-{n}"), folder, (listen, "reuseport"), folder)).collect()
}

fn start_one_nginx(
    name: &str,
    folder: &Path,
    (listen, shared): (SocketAddr, &str),
    root: &Path,
) -> Result<Process, Failure> {
    let program = nginx().ok_or("nginx is not installed. Try: scripts/setup")?;
    let own = folder.join(name);
    std::fs::create_dir_all(&own).map_err(|e| format!("{}: {e}", own.display()))?;
    let own = own.display();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {own}/pid;\nerror_log {own}/error.log;\nworker_rlimit_nofile 16384;\n\
         events {{ worker_connections 12000; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 75s;\n\
           client_body_temp_path {own}/body;\n  proxy_temp_path {own}/proxy;\n  fastcgi_temp_path {own}/fastcgi;\n\
           uwsgi_temp_path {own}/uwsgi;\n  scgi_temp_path {own}/scgi;\n\
           server {{\n    listen {listen} backlog=4096 {shared};\n    root {root:?};\n\
             location = / {{ default_type text/plain; return 200 \"{name}\\n\"; }}\n  }}\n}}\n"
    );
    let file = folder.join(format!("{name}.conf"));
    write(&file, &text)?;
    let file = file.to_string_lossy().into_owned();
    let mut process = Process::start(name, process::command(&program, &["-c", &file], None), folder)?;
    process.wait_listening(listen)?;
    Ok(process)
}

/// Where HAProxy is.
pub(crate) fn haproxy() -> Option<PathBuf> {
    ["haproxy", "/usr/sbin/haproxy"].into_iter().map(PathBuf::from).find(|p| process::is_there(p))
}

/// What HAProxy is to check, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HaproxyCheck<'a> {
    /// `None`: TCP; else GET of this path, 200 is well.
    pub(crate) http_path: Option<&'a str>,
    /// Of each server.
    pub(crate) interval_ms: u32,
}

/// Starts HAProxy with one thread on a core, doing nothing but checks of `servers` servers, all over the given
/// addresses, more often than it can: so it runs saturated.
///
/// # Errors
/// It cannot be started.
pub(crate) fn start_haproxy_checks(
    program: &Path,
    folder: &Path,
    core: usize,
    check: &HaproxyCheck<'_>,
    targets: &[SocketAddr],
    servers: usize,
) -> Result<Process, Failure> {
    // It refuses to run without a listener; nobody comes to this one.
    let nobody = folder.join("haproxy.sock");
    let how = check.http_path.map_or(String::new(), |path| {
        format!(
            "  timeout check 5s\n  option httpchk\n  http-check send meth GET uri {path} ver HTTP/1.1 hdr Host bench \
             hdr Connection close\n  http-check expect status 200\n"
        )
    });
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn 100\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1s\n  timeout server 1s\n\
         listen checked\n  bind {}\n{how}",
        nobody.display()
    );
    for (i, target) in targets.iter().cycle().take(servers).enumerate() {
        writeln!(text, "  server s{i} {target} check inter {}ms", check.interval_ms)
            .expect("a String takes everything");
    }
    let file = folder.join("haproxy.cfg");
    write(&file, &text)?;
    let file = file.to_string_lossy().into_owned();
    Process::start("haproxy", process::command(program, &["-db", "-f", &file], Some(core)), folder)
}

/// The HTTP probers of bench/peers: what each is called in a report, and its program, if it is there.
pub(crate) fn probers() -> Vec<(&'static str, Option<PathBuf>)> {
    [("tokio/hyper", "peer-hyper"), ("tokio-uring", "peer-tokio-uring"), ("Go net/http", "peer-go")]
        .into_iter()
        .map(|(name, program)| (name, find(program, None)))
        .collect()
}
