//! The applications of the made-up network: what a host says to whom it has accepted. Pure: bytes in, bytes out, and
//! how long each takes; no socket and no clock, so the same host can be served on a real one.

use std::fmt::Debug;
use std::time::Duration;

/// An application that is called again and again. Each call gets a [`Speaker`] of its own.
pub trait Host: Debug + Send + Sync {
    /// A call came in.
    fn answer(&self) -> Box<dyn Speaker>;
}

/// One side of one conversation.
pub trait Speaker: Send {
    /// The call has come in: what it says before it has heard anything. Not asked of datagrams.
    fn greet(&mut self, says: &mut Vec<Said>);

    /// Bytes came (or one datagram): what it says to that.
    fn hear(&mut self, heard: &[u8], says: &mut Vec<Said>);
}

/// One thing a host says, so long after the one before it, or after what it heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// How long it takes.
    pub after: Duration,
    /// What it is.
    pub word: Word,
}

/// What can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// These bytes; one datagram of them.
    Bytes(Vec<u8>),
    /// The end of a stream: FIN. Nothing may follow. Datagrams have none.
    Close,
    /// The stream is reset: RST. Nothing may follow. To a datagram: ICMP port unreachable.
    Reset,
}

/// A host that follows a script and then is silent. Each datagram lane hears it from the beginning.
#[derive(Clone, Debug, Default)]
pub struct Script {
    lines: Vec<Line>,
}

/// One line of a [`Script`].
#[derive(Clone, Debug)]
enum Line {
    /// Waits until it has heard so many more bytes, whichever they are.
    Expects(usize),
    /// Waits until it has heard exactly these; anything else ends the script with [`Word::Reset`].
    Wants(Vec<u8>),
    /// Waits until it has heard anything, and forgets it.
    Hears,
    /// Waits until what it has heard since the last such line ends with these.
    Until(Vec<u8>),
    Says(Said),
}

impl Script {
    /// A host that says nothing.
    pub fn new() -> Script {
        Script::default()
    }

    /// Then: waits until it has heard `bytes` bytes more.
    pub fn expects(self, bytes: usize) -> Script {
        self.line(Line::Expects(bytes))
    }

    /// Then: waits until it has heard exactly these bytes, and resets whoever says anything else.
    pub fn wants(self, bytes: impl Into<Vec<u8>>) -> Script {
        self.line(Line::Wants(bytes.into()))
    }

    /// Then: waits until what it has heard ends with `end`, as an HTTP head ends with an empty line.
    pub fn until(self, end: impl Into<Vec<u8>>) -> Script {
        self.line(Line::Until(end.into()))
    }

    /// Then: waits until it has heard anything at all, and forgets all of it.
    pub fn hears(self) -> Script {
        self.line(Line::Hears)
    }

    /// Then: says these bytes after so long.
    pub fn says(self, after: Duration, bytes: impl Into<Vec<u8>>) -> Script {
        self.line(Line::Says(Said { after, word: Word::Bytes(bytes.into()) }))
    }

    /// Then: closes.
    pub fn closes(self, after: Duration) -> Script {
        self.line(Line::Says(Said { after, word: Word::Close }))
    }

    /// Then: resets.
    pub fn resets(self, after: Duration) -> Script {
        self.line(Line::Says(Said { after, word: Word::Reset }))
    }

    fn line(mut self, line: Line) -> Script {
        self.lines.push(line);
        self
    }
}

impl Host for Script {
    fn answer(&self) -> Box<dyn Speaker> {
        Box::new(Reading { lines: self.lines.clone(), next: 0, heard: Vec::new() })
    }
}

/// A script and how far it has come.
struct Reading {
    lines: Vec<Line>,
    next: usize,
    /// Heard, and not yet accounted for by a line.
    heard: Vec<u8>,
}

impl Reading {
    fn read_on(&mut self, says: &mut Vec<Said>) {
        while let Some(line) = self.lines.get(self.next) {
            let used = match line {
                Line::Says(said) => {
                    says.push(said.clone());
                    0
                }
                Line::Expects(bytes) if self.heard.len() >= *bytes => *bytes,
                Line::Wants(bytes) if self.heard.starts_with(bytes) => bytes.len(),
                Line::Wants(bytes) if !bytes.starts_with(&self.heard) => {
                    self.lines.truncate(self.next);
                    says.push(Said { after: Duration::ZERO, word: Word::Reset });
                    return;
                }
                Line::Hears if !self.heard.is_empty() => self.heard.len(),
                Line::Until(end) if self.heard.ends_with(end) => self.heard.len(),
                Line::Expects(_) | Line::Wants(_) | Line::Hears | Line::Until(_) => return,
            };
            self.heard.drain(..used);
            self.next += 1;
        }
    }
}

impl Speaker for Reading {
    fn greet(&mut self, says: &mut Vec<Said>) {
        self.read_on(says);
    }

    fn hear(&mut self, heard: &[u8], says: &mut Vec<Said>) {
        self.heard.extend_from_slice(heard);
        self.read_on(says);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn said(word: Word) -> Said {
        Said { after: NOW, word }
    }

    /// Each line waits for its own, however the bytes are cut, and what one line does not need is left for the next.
    #[test]
    fn a_script_is_followed() {
        let script =
            Script::new().says(NOW, *b"hi").wants(*b"ab").expects(2).says(NOW, *b"ok").until(*b"\n").closes(NOW);
        for cut in 1..8 {
            let (mut speaker, mut says) = (script.answer(), Vec::new());
            speaker.greet(&mut says);
            assert_eq!(says, [said(Word::Bytes(b"hi".to_vec()))]);
            for piece in b"abcdefg\n".chunks(cut) {
                speaker.hear(piece, &mut says);
            }
            assert_eq!(says[1..], [said(Word::Bytes(b"ok".to_vec())), said(Word::Close)], "cut {cut}");
        }
    }

    /// Who says something else than wanted is reset, and hears nothing more.
    #[test]
    fn a_stranger_is_reset() {
        let (mut speaker, mut says) = (Script::new().wants(*b"ab").says(NOW, *b"ok").answer(), Vec::new());
        speaker.hear(b"a", &mut says);
        assert!(says.is_empty());
        speaker.hear(b"x", &mut says);
        speaker.hear(b"ab", &mut says);
        assert_eq!(says, [said(Word::Reset)]);
    }
}
