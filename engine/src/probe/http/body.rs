//! Where a response's body ends, and its bytes without the framing (RFC 9112, 6.3 and 7.1). Bytes come in pieces, cut
//! anywhere; nothing is held.

/// The longest chunk header or line of trailers, and all trailers together. Nobody needs more than a few bytes of them.
const LINE_MAX: u16 = 4096;

/// What is left of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Whatever comes before the peer closes.
    UntilClose,
}

/// Where in a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    place: Place,
    /// Of the present chunk: its size while that is read, then what is left of it.
    left: u64,
    /// Bytes of the present line or trailer so far.
    line: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Size,
    Extension,
    Data,
    /// Behind the data; CR and LF, or LF alone.
    DataEnd,
    /// At the start of a trailer line, and after its CR.
    Trailer,
    TrailerCr,
    /// Within one.
    TrailerLine,
    Over,
}

/// The bytes are not a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Framing {
    /// A chunked body from its beginning.
    pub(super) const fn chunked() -> Framing {
        Framing::Chunked(Chunks { place: Place::Size, left: 0, line: 0 })
    }

    /// Whether the body is over.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(chunks) => chunks.place == Place::Over,
            Framing::UntilClose => false,
        }
    }

    /// Reads on, and gives the body's own bytes to `sink`. What follows the body is not looked at.
    pub(super) fn read(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<(), Malformed> {
        match self {
            Framing::Length(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                sink(&bytes[..taken]);
                Ok(())
            }
            Framing::Chunked(chunks) => chunks.read(bytes, sink),
            Framing::UntilClose => {
                sink(bytes);
                Ok(())
            }
        }
    }
}

impl Chunks {
    fn read(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<(), Malformed> {
        while let [byte, rest @ ..] = bytes {
            if self.place == Place::Data {
                let taken = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                sink(&bytes[..taken]);
                bytes = &bytes[taken..];
                self.left -= taken as u64;
                if self.left == 0 {
                    (self.place, self.line) = (Place::DataEnd, 0);
                }
                continue;
            }
            if self.place == Place::Over {
                break;
            }
            self.line += 1;
            if self.line > LINE_MAX {
                return Err(Malformed);
            }
            self.place = self.step(*byte)?;
            bytes = rest;
        }
        Ok(())
    }

    /// One byte outside the data.
    fn step(&mut self, byte: u8) -> Result<Place, Malformed> {
        match (self.place, byte) {
            (Place::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                self.left = self.left.checked_mul(16).ok_or(Malformed)? + digit;
                Ok(Place::Size)
            }
            // A size has at least one digit.
            (Place::Size, _) if self.line == 1 => Err(Malformed),
            (Place::Size, b';' | b' ' | b'\t' | b'\r') => Ok(Place::Extension),
            (Place::Size | Place::Extension, b'\n') => {
                self.line = 0;
                Ok(if self.left == 0 { Place::Trailer } else { Place::Data })
            }
            (Place::Size, _) => Err(Malformed),
            (Place::Extension, _) => Ok(Place::Extension),
            (Place::DataEnd, b'\r') if self.line == 1 => Ok(Place::DataEnd),
            (Place::DataEnd, b'\n') => {
                (self.left, self.line) = (0, 0);
                Ok(Place::Size)
            }
            (Place::DataEnd, _) => Err(Malformed),
            (Place::Trailer | Place::TrailerCr, b'\n') => Ok(Place::Over),
            (Place::Trailer, b'\r') => Ok(Place::TrailerCr),
            (Place::TrailerCr, _) => Err(Malformed),
            (Place::TrailerLine, b'\n') => Ok(Place::Trailer),
            (Place::Trailer | Place::TrailerLine, _) => Ok(Place::TrailerLine),
            (Place::Data | Place::Over, _) => Ok(self.place),
        }
    }
}
