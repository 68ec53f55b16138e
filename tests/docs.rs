//! Claim: the walks through docs/api.md and docs/security.md work as they are written, from nothing to the last line.
//! Method: their blocks of shell are run as they stand, by bash, in a fresh folder and a network namespace in which the
//! ports that they name are free; a command that fails ends the walk, and so the test. Namespaces take root: without it
//! these tests say so and check nothing.

mod common;

use common::{parts, run_with};
use std::path::Path;
use std::process::Command;

/// The blocks of one language in a document, in their order.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document);
    let text = std::fs::read_to_string(path).expect("it is part of the source");
    let fence = format!("```{language}");
    let (mut blocks, mut open) = (Vec::new(), None::<String>);
    for line in text.lines() {
        match &mut open {
            None if line.trim() == fence => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => *block += &format!("{line}\n"),
        }
    }
    assert!(!blocks.is_empty(), "{document} has no block of {language}");
    blocks
}

/// What a walk says on stdout; `None`: it cannot be walked here.
fn walk(folder: &Path, script: &str) -> Option<String> {
    let id = Command::new("id").arg("-u").output().expect("coreutils");
    if !id.stdout.starts_with(b"0\n") {
        eprintln!("NOT CHECKED: network namespaces take root. Try: sudo -E cargo test --test docs");
        return None;
    }
    // Whatever the walk has left running ends with it.
    let script = format!("trap 'kill $(jobs -p)' EXIT\nip link set lo up\n{script}");
    let built = Path::new(env!("CARGO_BIN_EXE_ringspan")).parent().expect("it is in a folder");
    let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", built.display());
    let mut command = Command::new("unshare");
    command.args(["--net", "bash", "-eux", "-o", "pipefail", "-c", &script]);
    let output = run_with(command.current_dir(folder).env("PATH", path), "");
    let (code, out, err) = parts(&output);
    assert_eq!(code, 0, "{out}\n{err}");
    Some(out)
}

#[test]
fn from_zero() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(said) = walk(folder.path(), &blocks("api.md", "bash").concat()) else { return };
    for part in [
        "registry finds it up",
        "registry finds it down",
        "it refuses",
        "1 of 2 instances are not well",
        "something is not well",
        "http / expects 2xx",
        "\"done\":true",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn from_nothing_to_a_client_that_logs_in() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("bridge.toml"), &blocks("security.md", "toml")[0]).expect("written");
    let shell = blocks("security.md", "bash");
    // The page shows the start with what it prints, and people read it before they go on.
    let start = "ringspan bridge --config bridge.toml 2> bridge.log &\n\
        curl -sf --cacert cert.pem --retry 9 --retry-connrefused https://localhost:8848/api/v1/health\n";
    let script = [&*shell[0], start, &shell[1..].concat(), "grep -A2 'user  *nacos' bridge.log\n"].concat();
    let Some(said) = walk(folder.path(), &script) else { return };
    for part in ["ok", "\"ip\":\"10.0.0.7\"", "password  "] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
