//! What tests of http and https listeners have in common: a listener's text, curl, certificates.

use super::origin::hex;
use super::{parts, run_with};
use ring::digest::{Context, SHA256};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

/// A port that was free a moment ago.
pub(crate) fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// An http listener called `site`, with more of its keys.
pub(crate) fn site(more: &str) -> String {
    format!("[[listener]]\nname = \"site\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\n{more}")
}

/// Exit code, stdout and stderr of curl.
pub(crate) fn curl(args: &[&str]) -> (i32, String, String) {
    parts(&run_with(Command::new("curl").args(["-sS", "--max-time", "60"]).args(args), ""))
}

/// The status of an answer.
pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("a status in {head:?}"))
}

/// A key and a certificate for these names, by openssl.
pub(crate) fn certificate(folder: &Path, stem: &str, names: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '));
    command.args(["-subj", &format!("/CN={stem}"), "-addext", &format!("subjectAltName={names}")]);
    command.args(["-keyout", &format!("{stem}.key.new"), "-out", &format!("{stem}.pem.new")]);
    assert!(command.output().expect("openssl is installed: scripts/setup").status.success());
    for end in ["key", "pem"] {
        std::fs::rename(folder.join(format!("{stem}.{end}.new")), folder.join(format!("{stem}.{end}")))
            .expect("renamed");
    }
}

/// SHA-256 of a file, in hexadecimal digits.
pub(crate) fn digest_of(path: &str) -> String {
    let mut sum = Context::new(&SHA256);
    sum.update(&std::fs::read(path).expect("it was written"));
    hex(sum)
}
