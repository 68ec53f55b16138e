//! The head of a response: status, framing of the body, where a redirect leads. Bytes come in pieces; a head that comes
//! in one is never copied.

use crate::probe::http::body::Framing;
use httparse::{Header, ParserConfig, Response, Status};
use std::mem::MaybeUninit;

/// The most header lines a response may have. nginx, HAProxy and Go's clients are content with about a hundred.
const HEADERS_MAX: usize = 100;

/// What a head says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) framing: Framing,
    /// Text of the Location header of a redirect, where one was asked for.
    pub(super) location: Option<String>,
    /// The body is a stream of events without an end (text/event-stream).
    pub(super) endless: bool,
}

/// How far it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress<'a> {
    /// More bytes are needed; these are held.
    Partial,
    /// It is not the head of an HTTP/1 response, or too large.
    Malformed,
    /// The head, and what came behind it.
    Complete(Head, &'a [u8]),
}

/// Reads on. `held` keeps the pieces of a head that came in several, at most `max` bytes.
pub(super) fn read<'a>(held: &mut Vec<u8>, fresh: &'a [u8], max: usize, locate: bool) -> Progress<'a> {
    let before = held.len();
    let taken = &fresh[..fresh.len().min(max - before)];
    let (text, from) = if before == 0 {
        (taken, 0)
    } else {
        held.extend_from_slice(taken);
        (&held[..], before.saturating_sub(3))
    };
    // Whoever speaks something else may never send an empty line.
    let start = b"HTTP/1.";
    let shown = text.len().min(start.len());
    if text[..shown] != start[..shown] {
        return Progress::Malformed;
    }
    if let Some(end) = end_of_head(text, from) {
        return match parse(&text[..end], locate) {
            Some(head) => {
                held.clear();
                Progress::Complete(head, &fresh[end - before..])
            }
            None => Progress::Malformed,
        };
    }
    if text.len() >= max {
        return Progress::Malformed;
    }
    if before == 0 {
        held.extend_from_slice(taken);
    }
    Progress::Partial
}

/// Where the empty line ends, looked for from `from` on. A line may end in LF alone (RFC 9112, 2.2).
fn end_of_head(text: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &text[from..]).map(|place| from + place).find_map(|place| match &text[place + 1..] {
        [b'\n', ..] => Some(place + 2),
        [b'\r', b'\n', ..] => Some(place + 3),
        _ => None,
    })
}

fn parse(text: &[u8], locate: bool) -> Option<Head> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut response = Response::new(&mut []);
    let mut config = ParserConfig::default();
    // What servers of the field send and every client puts up with.
    config.allow_obsolete_multiline_headers_in_responses(true);
    config.allow_spaces_after_header_name_in_responses(true);
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    match config.parse_response_with_uninit_headers(&mut response, text, &mut headers) {
        Ok(Status::Complete(length)) if length == text.len() => {}
        _ => return None,
    }
    let status = response.code.filter(|code| (100..=999).contains(code))?;
    let mut head = Head { status, framing: Framing::UntilClose, location: None, endless: false };
    let mut length: Option<u64> = None;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            // RFC 9112, 6.3: a list of equal numbers is one number, anything else is an error.
            for part in std::str::from_utf8(header.value).ok()?.split(',') {
                let part = part.trim();
                let number = part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()?;
                if *length.get_or_insert(number) != number {
                    return None;
                }
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let last = header.value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                head.framing = Framing::chunked();
            }
        } else if header.name.eq_ignore_ascii_case("content-type") {
            let stream = b"text/event-stream";
            let kind = header.value.trim_ascii_start().get(..stream.len());
            head.endless = kind.is_some_and(|kind| kind.eq_ignore_ascii_case(stream));
        } else if locate && head.location.is_none() && header.name.eq_ignore_ascii_case("location") {
            head.location = std::str::from_utf8(header.value).ok().map(|value| value.trim().to_owned());
        }
    }
    if let (Framing::UntilClose, Some(length)) = (&head.framing, length) {
        head.framing = Framing::Length(length);
    }
    Some(head)
}
