//! Where targets come from: arguments and files of one target a line, read once and never held whole.
//! Promise: an error names the file and line (or the argument) and what would be right; up to ten are shown at once.

use super::roster::Roster;
use std::io::{BufRead, Read};
use std::path::Path;

/// Longest line: a host name has at most 253 bytes (RFC 1035 §2.3.4), a URL has a query.
const LINE_BYTES_MAX: usize = 4096;
/// Errors shown of one run; the rest is counted.
const ERRORS_SHOWN: usize = 10;

/// Adds the targets of the command line.
pub(crate) fn arguments(roster: &mut Roster, sheet: u32, texts: &[String]) -> Result<(), String> {
    let mut errors = Errors::default();
    for text in texts {
        errors.keep(roster.push(text, None, sheet).map_err(|wrong| wrong.of(text)));
    }
    errors.into_result()
}

/// Adds the targets of a file; "-" is stdin.
pub(crate) fn file(roster: &mut Roster, sheet: u32, path: &Path) -> Result<(), String> {
    if path.as_os_str() == "-" {
        return lines(std::io::stdin().lock(), "-", roster, sheet);
    }
    let name = path.display().to_string();
    let file = std::fs::File::open(path)
        .map_err(|e| format!("--file {name}: {e}. Try: a readable file of targets, or - for stdin"))?;
    lines(std::io::BufReader::with_capacity(1 << 18, file), &name, roster, sheet)
}

fn lines(mut from: impl BufRead, name: &str, roster: &mut Roster, sheet: u32) -> Result<(), String> {
    let mut errors = Errors::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = from
            .by_ref()
            .take(LINE_BYTES_MAX as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| format!("--file {name}: {e}"))?;
        if n == 0 {
            break;
        }
        if n > LINE_BYTES_MAX {
            return Err(format!(
                "{name}:{number}: the line has more than {LINE_BYTES_MAX} bytes. Try: one target a line"
            ));
        }
        let text = String::from_utf8_lossy(&line);
        let text = without_comment(&text).trim();
        if !text.is_empty() {
            errors.keep(roster.push(text, None, sheet).map_err(|wrong| format!("{name}:{number}: {}", wrong.of(text))));
        }
    }
    errors.into_result()
}

/// What stands before a # that begins the line or follows a space.
fn without_comment(line: &str) -> &str {
    let starts = |(at, _): &(usize, &str)| *at == 0 || line[..*at].ends_with([' ', '\t']);
    line.match_indices('#').find(starts).map_or(line, |(at, _)| &line[..at])
}

/// Collects what is wrong, so that a file is mended in one go.
#[derive(Default)]
struct Errors {
    shown: Vec<String>,
    more: usize,
}

impl Errors {
    fn keep(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {}
            Err(e) if self.shown.len() < ERRORS_SHOWN => self.shown.push(e),
            Err(_) => self.more += 1,
        }
    }

    fn into_result(mut self) -> Result<(), String> {
        if self.shown.is_empty() {
            return Ok(());
        }
        if self.more > 0 {
            self.shown.push(format!("... and {} more", self.more));
        }
        Err(self.shown.join("\nringspan: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe_cmd::roster::tests::sheet;

    /// A file: comments, empty lines, and every mistake with its line.
    #[test]
    fn files() {
        let mut roster = Roster::default();
        let sheet = roster.sheet(sheet());
        let text = "# mine\n\n127.0.0.1:1 # first\n  [::1]:2\r\nbad\nhttp://a:3/x#top\nworse\n";
        let error = lines(text.as_bytes(), "t.txt", &mut roster, sheet).expect_err("two are bad");
        let shown: Vec<&str> = roster.live().map(|row| roster.shown(row)).collect();
        assert_eq!(shown, ["127.0.0.1:1", "[::1]:2", "http://a:3/x#top"]);
        assert_eq!(
            error,
            "t.txt:5: target \"bad\": it has no port. Try: bad:80\nringspan: t.txt:7: target \"worse\": it has no port. Try: worse:80"
        );
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let error = lines(long.as_bytes(), "t.txt", &mut roster, sheet).expect_err("too long");
        assert_eq!(error, "t.txt:1: the line has more than 4096 bytes. Try: one target a line");
    }
}
