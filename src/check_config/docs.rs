//! Claim: what the documents show, the programs take; and what the migration page calls a key, is one.
//! Method: every block of TOML in docs/ and in the README is read as the program would read it, several columns one by
//! one. A block that is a part of a file is put where it belongs; files that it names are there.

use crate::config::{Document, agent, bridge, probe};
use crate::probe_cmd::roster::Roster;
use ringspan_engine::engine::GROUPS_MAX;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A part of a listener's section needs the section.
const LISTENER: &str = "[[listener]]\nname = \"x\"\ntype = \"http\"\nlisten = \"127.0.0.1:0\"\nservice = \"x\"\n";
/// An agent has something to offer.
const EXPOSE: &str = "[[expose]]\nservice = \"x\"\naddress = \"127.0.0.1:9\"\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).expect("it is part of the source");
    let mut all: Vec<PathBuf> = docs.map(|entry| entry.expect("it is readable").path()).collect();
    all.retain(|path| path.extension().is_some_and(|end| end == "md"));
    all.push(root().join("README.md"));
    all.sort();
    all
}

/// The blocks of a document, with the number of their first line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let (mut blocks, mut open) = (Vec::new(), None);
    for (number, line) in (1..).zip(text.lines()) {
        match &mut open {
            None if line.trim() == "```toml" => open = Some((number + 1, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some((_, block)) => *block += &format!("{line}\n"),
        }
    }
    blocks
}

/// Two or three files side by side, under a line of comments that names them.
fn columns(block: &str) -> Vec<String> {
    let first: Vec<char> = block.lines().next().unwrap_or_default().chars().collect();
    let starts = |at: &usize| first[*at] == '#' && (*at == 0 || first[at - 1] == ' ');
    let starts: Vec<usize> = (0..first.len()).filter(starts).collect();
    if starts.len() < 2 {
        return vec![block.to_owned()];
    }
    let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
    let column = |(from, to): (&usize, usize)| {
        let cut = |line: &str| line.chars().skip(*from).take(to - from).collect::<String>();
        block.lines().map(cut).collect::<Vec<_>>().join("\n")
    };
    starts.iter().zip(ends).map(column).collect()
}

/// The block as a whole file.
fn whole(block: &str) -> String {
    let mut text = block.to_owned();
    let has = |what: &str| block.lines().any(|line| line.trim_start().starts_with(what));
    if (has("[listener.") || has("[[listener.")) && !has("[[listener]]") {
        text = format!("{LISTENER}{text}");
    }
    let is_agents = has("token_file") || has("[[bridge]]") || has("websocket");
    if is_agents && !has("[[expose]]") && !has("[[visit]]") {
        text = format!("{text}\n{EXPOSE}");
    }
    // Whatever the environment has.
    while let Some(from) = text.find("${") {
        let to = text[from..].find('}').expect("it is closed") + from;
        text.replace_range(from..=to, "word-1234-word-1234");
    }
    text
}

/// What each program says of it; empty: one of them takes it.
fn complaints(folder: &Path, text: &str) -> Vec<String> {
    let file = folder.join("file.toml");
    let doc = Document::of(file.to_str().expect("UTF-8"), text);
    let results = [
        bridge::check(&doc).map(drop),
        agent::check(&doc).map(drop),
        probe::check(&doc, &mut Roster::default(), GROUPS_MAX).map(drop),
    ];
    if results.iter().any(Result::is_ok) {
        return Vec::new();
    }
    results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}

/// See the module.
#[test]
fn blocks_of_the_documents_are_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("db.key");
    std::fs::write(&key, "k".repeat(44)).expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    for stem in ["site", "shop", "edge"] {
        let made = rcgen::generate_simple_self_signed(vec![format!("{stem}.example.com")]).expect("a certificate");
        std::fs::write(folder.path().join(format!("{stem}.pem")), made.cert.pem()).expect("written");
        std::fs::write(folder.path().join(format!("{stem}.key")), made.signing_key.serialize_pem()).expect("written");
    }
    for (file, like) in [("cert.pem", "site.pem"), ("key.pem", "site.key")] {
        std::fs::copy(folder.path().join(like), folder.path().join(file)).expect("written");
    }
    for file in ["more-targets.txt", "gone.html", "sorry.html"] {
        std::fs::write(folder.path().join(file), "10.0.0.1:80\n").expect("written");
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for path in documents() {
        let text = std::fs::read_to_string(&path).expect("it is readable");
        for (line, block) in blocks(&text) {
            for column in columns(&block) {
                seen += 1;
                let complaints = complaints(folder.path(), &whole(&column));
                if !complaints.is_empty() {
                    wrong.push(format!("{}:{line}:\n{column}\n  {}", path.display(), complaints.join("\n  ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(seen >= 20, "only {seen} blocks were found");
    // A key that is none is found.
    assert!(!complaints(folder.path(), &whole("[listener.http]\nagent = \"/link\"\n")).is_empty());
}

/// Words in backquotes that stand before an equals sign, or alone.
fn keys(cell: &str) -> Vec<String> {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || "_.[]".contains(c));
    let quoted = cell.split('`').skip(1).step_by(2);
    let mut keys = Vec::new();
    for piece in quoted.filter(|piece| !piece.starts_with("ringspan")) {
        // What is inside of a string is no key.
        let bare: String = piece.split('"').step_by(2).collect::<Vec<_>>().join(" ");
        let words: Vec<&str> = bare.split([' ', '{', '}', ',', '[', ']']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2).filter(|pair| is_word(pair[0]) && pair[1] == "=") {
            keys.push(pair[0].to_owned());
        }
        if is_word(piece) {
            keys.push(piece.trim_matches(['[', ']']).to_owned());
        }
    }
    keys
}

/// Every row of the migration page has its five cells, and what it says of ours is documented as a key.
#[test]
fn the_migration_page_knows_our_keys() {
    let read = |name: &str| std::fs::read_to_string(root().join("docs").join(name)).expect("it is readable");
    let known = ["configuration.md", "limits.md", "balancing.md"].map(read).join("\n");
    let known: std::collections::HashSet<&str> =
        known.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let page = read("migration.md");
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with('|')).skip(2) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
        for key in keys(cells[4]) {
            let last = key.rsplit('.').next().expect("one at least");
            assert!(known.contains(last), "{key} of: {line}");
            rows += 1;
        }
    }
    assert!(rows > 40, "only {rows} keys were found");
    assert_eq!(keys("listener `type = \"x\"`, `a = { b = [\"c = 1\"] }`, `drain`"), ["type", "a", "b", "drain"]);
}
