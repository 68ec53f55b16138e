//! Claim: a bridge that others can reach asks who is there: the first administrator comes in with the password that was
//! shown once, whoever has no account does not; a lost password is replaced on the machine; certificates are served to HTTP
//! and gRPC alike and renewed while they are in use; no secret is in a log.
//! Method: the real binary, its own commands, curl and openssl.

mod common;

use common::{Running, parts, ringspan, run, run_with, until};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Bridge {
    process: Running,
    folder: tempfile::TempDir,
    http: String,
    grpc: String,
}

fn certificate(folder: &Path, name: &str) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), name.into()]).expect("a certificate");
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).expect("written");
}

impl Bridge {
    fn start(http: &str, registry: &str) -> Bridge {
        let folder = tempfile::tempdir().expect("a folder");
        certificate(folder.path(), "one.example");
        Bridge::start_in(folder, http, registry)
    }

    fn start_in(folder: tempfile::TempDir, http: &str, registry: &str) -> Bridge {
        let text = format!(
            "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\ngrpc_listen = \"127.0.0.1:0\"\n{http}\n\
             [link]\nlisten = \"127.0.0.1:0\"\n[registry]\n{registry}\n"
        );
        std::fs::write(folder.path().join("bridge.toml"), text).expect("written");
        let mut command = ringspan(&["bridge", "--config", "bridge.toml"]);
        command.current_dir(folder.path()).env("RINGSPAN_LOG", "debug");
        let process = Running::start(&mut command);
        let line = process.wait_line(&["bridge is up"]);
        let field = |name: &str| {
            let word = line.split_whitespace().find_map(|w| w.strip_prefix(name)).expect("the line has it");
            word.replace("127.0.0.1", "localhost")
        };
        let (http, grpc) = (field("http="), field("grpc="));
        Bridge { process, folder, http, grpc }
    }

    /// The password that was shown.
    fn first_password(&self) -> String {
        let line = self.process.wait_line(&["    password  "]);
        line.split_whitespace().last().expect("it is there").to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ringspan user ...`: exit code, stdout, stderr.
    fn user(&self, args: &[&str]) -> (i32, String, String) {
        parts(&run(&[&["user"][..], args, &["--config", "bridge.toml"]].concat(), self.folder.path()))
    }

    /// Status and body of what curl asks for.
    fn curl(&self, args: &[&str]) -> (String, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--cacert"]).arg(self.path("cert.pem"));
        command.args(["-w", "\n%{http_code}"]).args(args);
        let output = command.output().expect("curl is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        (status.to_owned(), body.to_owned())
    }

    fn log_in(&self, scheme: &str, user: &str, password: &str) -> Result<String, String> {
        let url = format!("{scheme}://{}/nacos/v1/auth/login", self.http);
        let (user, password) = (format!("username={user}"), format!("password={password}"));
        let (status, body) = self.curl(&["--data-urlencode", &user, "--data-urlencode", &password, &url]);
        if status != "200" {
            return Err(format!("{status} {body}"));
        }
        let said: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        Ok(said["accessToken"].as_str().expect("a token").to_owned())
    }

    /// What `openssl s_client` makes of a port.
    fn s_client(&self, address: &str, args: &[&str]) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", address, "-servername", "localhost", "-CAfile"]);
        command.arg(self.path("cert.pem")).args(args).stdin(Stdio::null());
        let output = command.output().expect("openssl is there");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

const TLS: &str = "cert = \"cert.pem\"\nkey = \"key.pem\"";

/// From nothing to a user who may change one namespace, over TLS; nobody else may do anything, whatever he claims to be.
#[test]
fn from_the_first_password_on() {
    let mut bridge = Bridge::start(TLS, "auth = \"required\"");
    let password = bridge.first_password();
    let list = format!("https://{}/nacos/v1/ns/instance/list?serviceName=web&namespaceId=dev", bridge.http);
    assert_eq!(bridge.curl(&[&list]).0, "403");
    let claims = ["-H", "serverIdentity: security", "-A", "Nacos-Server", &list];
    assert_eq!(bridge.curl(&claims).0, "403", "Nacos' servers are nobody here");
    for guess in ["nacos", "", "password"] {
        assert_eq!(bridge.log_in("https", "nacos", guess), Err("403 unknown user!".into()), "no default password");
    }
    let token = bridge.log_in("https", "nacos", &password).expect("the password that was shown");
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(bridge.curl(&["-H", &bearer, &list]).0, "200");
    assert_eq!(bridge.curl(&["--http2", "-H", &bearer, &list]).0, "200");

    let (code, secret, told) = bridge.user(&["add", "alice", "--grant", "dev:write"]);
    assert_eq!((code, secret.trim().len()), (0, 24), "{told}");
    let alice = bridge.log_in("https", "alice", secret.trim()).expect("her password");
    let post = |namespace: &str| {
        let at = format!("https://{}/nacos/v1/ns/instance", bridge.http);
        let form = format!("serviceName=web&ip=10.0.0.1&port=80&namespaceId={namespace}&accessToken={alice}");
        bridge.curl(&["-d", &form, &at])
    };
    assert_eq!((post("dev").0, post("prod").0), ("200".into(), "403".into()));
    let (code, api, _) = bridge.user(&["token", "alice", "--label", "ci", "--expires", "1d"]);
    assert_eq!(code, 0);
    let bearer = format!("Authorization: Bearer {}", api.trim());
    assert_eq!(bridge.curl(&["-H", &bearer, &list]).0, "200");
    let (_, listed, _) = bridge.user(&["list"]);
    assert!(listed.contains("alice") && listed.contains("dev:write") && listed.contains("ci"), "{listed}");

    // The administrator's password is lost: whoever owns the machine makes another one.
    let input = "a password of my own\n";
    let mut command = ringspan(&["user", "passwd", "nacos", "--password-stdin", "--config", "bridge.toml"]);
    assert!(run_with(command.current_dir(bridge.folder.path()), input).status.success());
    assert_eq!(bridge.log_in("https", "nacos", &password), Err("403 unknown user!".into()));
    assert!(bridge.log_in("https", "nacos", input.trim()).is_ok());
    assert_eq!(
        bridge.curl(&["-H", &format!("Authorization: Bearer {token}"), &list]).0,
        "403",
        "it ended with the password"
    );

    bridge.process.signal("TERM");
    assert_eq!(bridge.process.wait(), 0);
    let log = bridge.process.text();
    assert_eq!(log.matches(&password).count(), 1, "shown once");
    let audit = std::fs::read_to_string(bridge.path("data/audit.log")).expect("it is there");
    for (what, text) in [("the log", &log), ("the audit", &audit)] {
        for hidden in [token.as_str(), &alice, secret.trim(), api.trim(), input.trim(), "$argon2"] {
            assert!(!text.contains(hidden), "{what} holds {hidden:.8}...");
        }
    }
    let actions: Vec<String> = audit
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["action"].as_str().unwrap().to_owned()
        })
        .collect();
    for action in ["login", "denied", "user add", "user token", "user passwd", "register"] {
        assert!(actions.iter().any(|a| a == action), "{action}: {actions:?}");
    }

    // Without a bridge the commands work on the accounts themselves; after a restart nobody is made anew.
    let (code, _, told) = bridge.user(&["grant", "alice", "prod:read"]);
    assert_eq!(code, 0, "{told}");
    let Bridge { folder, .. } = bridge;
    let bridge = Bridge::start_in(folder, TLS, "auth = \"required\"");
    assert!(bridge.log_in("https", "nacos", input.trim()).is_ok());
    assert!(!bridge.process.text().contains("An administrator was made"));
    let list = format!("https://{}/nacos/v1/ns/instance/list?serviceName=web&namespaceId=prod", bridge.http);
    assert_eq!(bridge.curl(&["-H", &bearer, &list]).0, "200", "what was granted meanwhile");
}

/// Both ports speak TLS 1.2 and 1.3 and nothing older, HTTP/2 where it is asked for; who speaks plain HTTP is told; a
/// certificate that is replaced is served from then on.
#[test]
fn both_ports_speak_tls() {
    let bridge = Bridge::start(TLS, "auth = \"off\"");
    for address in [&bridge.http, &bridge.grpc] {
        for (version, protocol) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let said = bridge.s_client(address, &[version, "-alpn", "h2,http/1.1"]);
            assert!(said.contains("ALPN protocol: h2") && said.contains("Verify return code: 0"), "{said}");
            assert!(said.contains(protocol), "{said}");
        }
        let said = bridge.s_client(address, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
        // "Verification: OK" is what s_client says of nothing, too.
        assert!(said.contains("no peer certificate available"), "{said}");
    }
    let said = bridge.s_client(&bridge.http, &["-alpn", "http/1.1"]);
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    let (status, body) = bridge.curl(&[&format!("http://{}/api/v1/health", bridge.http)]);
    assert_eq!((&*status, body.contains("https only")), ("400", true), "{body}");
    assert_eq!(bridge.curl(&[&format!("https://{}/api/v1/health", bridge.http)]).0, "200");

    certificate(bridge.folder.path(), "two.example");
    until("the new certificate", || {
        let health = format!("https://{}/api/v1/health", bridge.http);
        (bridge.curl(&[&health]).0 == "200").then_some(())
    });
    let said = bridge.s_client(&bridge.grpc, &["-alpn", "h2"]);
    assert!(said.contains("Verify return code: 0"), "{said}");
}

/// On loopback nobody is asked, unless the file says so; and the log says which holds, and why.
#[test]
fn loopback_is_open() {
    let bridge = Bridge::start("", "");
    let line = bridge.process.wait_line(&["the registry's users have to log in"]);
    assert!(line.contains("required=false") && line.contains("only this machine"), "{line}");
    let list = format!("http://{}/nacos/v1/ns/instance/list?serviceName=web", bridge.http);
    assert_eq!(bridge.curl(&[&list]).0, "200");
    assert!(bridge.log_in("http", "nacos", "nacos").is_ok(), "as Nacos with its authentication off");
    assert!(!bridge.process.text().contains("An administrator was made"));
    assert!(!bridge.path("data/audit.log").exists());
    let (code, listed, _) = bridge.user(&["list"]);
    assert_eq!((code, listed.starts_with("No accounts")), (0, true), "{listed}");
}
