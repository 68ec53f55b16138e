//! Claim: against a real server each check finds what is there, and the server counts no aborted connection for any check
//! that can log in, no broken handshake for any that cannot. Method: MariaDB in a scratch folder, one engine, one probe at a
//! time, the server's own counters before and after. Needs mariadbd (Debian: mariadb-server); `scripts/setup` installs it.

mod common;

use common::{PATIENCE, Prober};
use ringspan_engine::check::{
    Check, Expect, MysqlAsk, MysqlCheck, MysqlColumn, MysqlTls, MysqlValue, Pattern, Secret, TlsClient, TlsSettings,
    Trust,
};
use ringspan_engine::kernel::Backend;
use ringspan_engine::outcome::Code;
use ringspan_engine::target::Sample;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Otherwise it reserves 8 TiB of addresses, more than a process on user-mode Linux has. Older servers have no such option:
/// `loose-` lets them pass over it.
const BUFFERS_MAX: &str = "--loose-innodb-buffer-pool-size-max=64M";

/// A MariaDB of our own on loopback; killed and swept away when dropped.
struct Server {
    process: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
    certificate: String,
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path();
        let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let certificate = signed.cert.pem();
        std::fs::write(path.join("cert.pem"), &certificate).expect("written");
        std::fs::write(path.join("key.pem"), signed.signing_key.serialize_pem()).expect("written");

        // A server that runs as root wants to be told so; an ordinary user's runs as he is.
        let is_root = path.metadata().is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0);
        let user: &[&str] = if is_root { &["--user=root"] } else { &[] };
        let data = format!("--datadir={}", path.join("data").display());
        let installed = command("mariadb-install-db")
            .args(["--no-defaults", &data, "--auth-root-authentication-method=normal", "--skip-test-db", BUFFERS_MAX])
            .args(user)
            .output()
            .expect("mariadb-install-db runs; scripts/setup installs it");
        assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stdout));

        // mariadbd cannot be asked to choose a port; one that was free a moment ago nearly always still is.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let file = |key: &str, name: &str| format!("--{key}={}", path.join(name).display());
        let mut process = command("mariadbd")
            .args([
                "--no-defaults",
                &data,
                "--bind-address=127.0.0.1",
                "--connect-timeout=60",
                "--performance-schema=OFF",
                BUFFERS_MAX,
            ])
            .args(["--innodb-buffer-pool-size=8M", "--max-connect-errors=1", &format!("--port={}", address.port())])
            .args([file("socket", "socket"), file("pid-file", "pid")])
            .args([file("ssl-cert", "cert.pem"), file("ssl-key", "key.pem")])
            .args(user)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mariadbd runs; scripts/setup installs it");
        let mut log = BufReader::new(process.stderr.take().expect("piped")).lines();
        let mut words = Vec::new();
        let is_ready = log.by_ref().map_while(Result::ok).any(|line| {
            words.push(line.clone());
            line.contains("ready for connections")
        });
        assert!(is_ready, "mariadbd did not start: {words:#?}");
        // It must never wait for a reader.
        std::thread::spawn(move || log.for_each(drop));
        let server = Server { process, folder, address, certificate };
        server.sql(
            "delete from mysql.global_priv where user=''; flush privileges; \
             create user 'ok'@'%' identified by 'secret'; \
             create user 'bare'@'%'; \
             create user 'tls'@'%' identified by 'secret' require ssl; \
             create user 'locked'@'%' identified by 'secret' account lock; \
             install soname 'auth_ed25519'; \
             create user 'curve'@'%' identified via ed25519 using password('secret')",
        );
        server
    }

    /// As root over the unix socket, which does not count as what is counted.
    fn sql(&self, statement: &str) -> String {
        let socket = format!("--socket={}", self.folder.path().join("socket").display());
        let output = command("mariadb")
            .args(["--no-defaults", &socket, "--user=root", "--batch", "--skip-column-names", "--execute", statement])
            .output()
            .expect("mariadb runs");
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The server's counters of what went wrong with connections, without zeroes.
    fn counters(&self) -> BTreeMap<String, u64> {
        let rows = self.sql(
            "show global status where variable_name in ('Aborted_clients', 'Aborted_connects', \
             'Aborted_connects_preauth') or variable_name like 'Connection_errors%'",
        );
        let pairs = rows.lines().filter_map(|row| row.split_once('\t'));
        pairs
            .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
            .filter(|(_, value)| *value > 0)
            .collect()
    }

    /// A connection that says nothing, and the first byte of the greeting's packet.
    fn silent_guest(&self) -> (TcpStream, u8) {
        let mut guest = TcpStream::connect(self.address).expect("connects");
        let mut head = [0; 5];
        guest.read_exact(&mut head).expect("a greeting or an error");
        (guest, head[4])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian keeps servers where an ordinary user's PATH does not look.
fn command(name: &str) -> Command {
    let debian = Path::new("/usr/sbin").join(name);
    Command::new(if debian.exists() { debian } else { name.into() })
}

/// About 12 KB of answer: several reads.
const MANY_ROWS: &str =
    "with recursive n as (select 1 as i union all select i + 1 from n where i < 900) select i, 'row' from n";

/// One probe.
fn ask(prober: &mut Prober, server: &Server, check: MysqlCheck, source: Option<IpAddr>) -> Sample {
    prober.probe(server.address, Check::Mysql(Arc::new(check)), source, PATIENCE)
}

fn user(name: &str, password: &str) -> MysqlCheck {
    MysqlCheck::new(name, Secret::new(password)).expect("a check")
}

fn asking(sql: &str, expect: Option<&str>) -> MysqlCheck {
    let column = MysqlColumn::Number(NonZeroU16::MIN);
    let expect = expect.map(|value| MysqlValue { column, value: value.into() });
    user("ok", "secret").asking(MysqlAsk::Statement { sql: sql.into(), expect }).expect("a check")
}

fn tls(trust: Trust) -> MysqlTls {
    MysqlTls::Required(TlsClient::new(TlsSettings { trust, ..TlsSettings::default() }).expect("settings"))
}

/// See the module. One test, because the counters are the server's, and starting one takes seconds.
#[test]
fn a_real_server_is_found_as_it_is_and_counts_nothing() {
    let server = Server::start();
    let mut prober = Prober::start(Backend::Auto);
    let primary = || user("ok", "secret").asking(MysqlAsk::IsPrimary).expect("a check");
    let nacos = |cmd| MysqlCheck::nacos("ok", Secret::new("secret"), cmd).expect("a check");
    let trusted = || Trust::CaPem(server.certificate.clone().into_bytes());
    let read_only = MysqlCheck::READ_ONLY_SQL;

    // Whoever can log in leaves no trace, whatever is asked and whatever comes of it.
    assert_eq!(server.counters(), BTreeMap::new());
    let table = [
        ("alive", user("ok", "secret"), Code::L7Ok, 0),
        ("no password", user("bare", ""), Code::L7Ok, 0),
        ("primary", primary(), Code::L7Ok, 0),
        ("as nacos asks", nacos(read_only), Code::L7Ok, 0),
        ("as nacos asks others", nacos("select 1"), Code::L7Ok, 0),
        ("value", asking("select 'a', 'b' union select 'c', 'd'", Some("a")), Code::L7Ok, 0),
        ("another value", asking("select 'b'", Some("a")), Code::L7Content, 0),
        ("null", asking("select null", Some("")), Code::L7Content, 0),
        ("no rows", asking("do 1", None), Code::L7Ok, 0),
        ("many rows", asking(MANY_ROWS, Some("1")), Code::L7Ok, 0),
        ("no such table", asking("select * from mysql.nosuch", None), Code::L7Status, 1142),
        ("wrong grammar", asking("selekt", None), Code::L7Status, 1064),
        ("secured", user("tls", "secret").over(tls(Trust::Insecure)), Code::L7Ok, 0),
        ("secured and trusted", user("tls", "secret").over(tls(trusted())), Code::L7Ok, 0),
        ("secured question", primary().over(tls(trusted())), Code::L7Ok, 0),
    ];
    for (row, check, code, number) in table {
        let is_secured = matches!(check.tls(), MysqlTls::Required(_));
        let sample = ask(&mut prober, &server, check, None);
        assert_eq!((sample.code, sample.detail.number), (code, number), "{row}");
        assert_eq!(sample.detail.cert_days.is_some(), is_secured, "{row}");
    }
    server.sql("set global read_only=1");
    let replica = ask(&mut prober, &server, primary(), None);
    server.sql("set global read_only=0");
    assert_eq!(replica.code, Code::L7Content, "a replica is no primary");
    assert_eq!(server.counters(), BTreeMap::new(), "nobody who logged in is counted");

    // Whoever cannot log in finds a living server, and is counted as refused: more often than the server would take
    // broken handshakes from one host (one).
    let refused = [
        ("wrong password", user("ok", "wrong"), Code::L7OkLogin, 1045),
        // The server hides who is not there: it asks by the plugin of some account, chosen by a hash of the name.
        ("no such user", user("nobody", ""), Code::L7OkLogin, 1045),
        ("locked", user("locked", "secret"), Code::L7OkLogin, 4151),
        ("no such database", user("ok", "secret").in_database("nosuch").expect("a check"), Code::L7OkLogin, 1044),
        ("must use TLS", user("tls", "secret"), Code::L7OkLogin, 1045),
        ("a plugin that we lack", user("curve", "secret"), Code::L7OkLogin, 2059),
        ("is it the primary?", user("ok", "wrong").asking(MysqlAsk::IsPrimary).expect("a check"), Code::L7Status, 1045),
    ];
    let count = refused.len() as u64;
    let elsewhere = Some(IpAddr::from([127, 0, 0, 2])); // the server does not block 127.0.0.1
    for (row, check, code, number) in refused {
        let sample = ask(&mut prober, &server, check, elsewhere);
        assert_eq!((sample.code, sample.detail.number), (code, number), "{row}");
    }
    // The server writes an error before it counts it.
    let counted = until(|| Some(server.counters()).filter(|counters| counters.get("Aborted_connects") == Some(&count)));
    assert_eq!(counted.get("Aborted_connects_preauth"), None, "{counted:?}");
    assert!(!counted.keys().any(|name| name.starts_with("Connection_errors")), "{counted:?}");
    assert_eq!(ask(&mut prober, &server, user("ok", "secret"), elsewhere).code, Code::L7Ok, "not blocked");

    // A certificate that is not trusted is told apart from a server that is down.
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate").cert.pem();
    let sample = ask(&mut prober, &server, user("tls", "secret").over(tls(Trust::CaPem(stranger.into_bytes()))), None);
    assert_eq!(sample.code, Code::L6Certificate);

    // A server that is full says so.
    server.sql("set global max_connections=10");
    let mut guests = Vec::new();
    let is_full = (0..20).any(|_| {
        let (guest, first) = server.silent_guest();
        guests.push(guest);
        first == 0xff
    });
    assert!(is_full);
    let sample = ask(&mut prober, &server, user("ok", "secret"), None);
    assert_eq!((sample.code, sample.detail.number), (Code::L7Status, 1040));
    drop(guests);
    server.sql("set global max_connections=100");

    // A host that has broken off too many connections (here: two) is blocked, and told so. An expect check that looks
    // at the greeting and leaves is such a breaker.
    let banner = Expect::new(Vec::new(), Some(Pattern::bytes(b"MariaDB").expect("a pattern"))).expect("a check");
    let banner = Check::Expect(Arc::new(banner));
    until(|| (prober.probe(server.address, banner.clone(), elsewhere, PATIENCE).code != Code::L7Ok).then_some(()));
    let sample = ask(&mut prober, &server, user("ok", "secret"), elsewhere);
    assert_eq!((sample.code, sample.detail.number), (Code::L7Status, 1129));
    server.sql("flush hosts");
    assert_eq!(ask(&mut prober, &server, user("ok", "secret"), elsewhere).code, Code::L7Ok);
}

/// What `found` finds, as soon as it does. Panics after some thousand looks.
fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    (0..2000).find_map(|_| found()).expect("found in time")
}
