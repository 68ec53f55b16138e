//! The answer to a question: no rows, some rows, or an error, read to its end so that the server can be left in order.
//!
//! ```text
//! First ──OK──► over        First ──count──► Columns ──each, then EOF──► Rows ──rows, then EOF──► over
//!   any ──ERR──► over
//! ```
//! Promise: keeps nothing of an answer but whether its first row said what was wanted.

use super::settings::{MysqlAsk, MysqlCheck, MysqlColumn};
use crate::outcome::Code;
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::misc::raw::{RawInt, int::LenEnc};
use mysql_common::packets::{Column, ErrPacket, OkPacketDeserializer, OldEofPacket};
use mysql_common::value::{TextValue, Value, ValueDeserializer};

/// Columns that an answer may have: MySQL's own limit for a table.
const COLUMNS_MAX: u64 = 4096;

/// An answer being read.
#[derive(Debug, Default)]
pub(super) struct Answer {
    state: State,
    columns: u64,
    /// The place of the wanted column, from 0.
    wanted: Option<u64>,
    /// Whether the first row said what is wanted; `None`: no row yet.
    is_as_wanted: Option<bool>,
}

/// Where in the answer.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    First,
    Columns {
        seen: u64,
    },
    Rows,
}

/// What one more packet made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// There is more.
    More,
    /// It is over: `L7OK`, `L7CONT`, or `L7STS` with the error's number.
    Over(Code, u32),
    /// That was no answer.
    Nonsense,
}

/// What the first row must say.
struct Wanted<'a> {
    column: &'a MysqlColumn,
    value: &'a str,
}

/// `Variable_name | Value`.
const READ_ONLY_COLUMN: MysqlColumn = MysqlColumn::Number(std::num::NonZeroU16::new(2).expect("2 is not 0"));

impl MysqlAsk {
    /// The statement, if one is to be sent.
    pub(super) fn sql(&self) -> Option<&str> {
        match self {
            MysqlAsk::Nothing => None,
            MysqlAsk::IsPrimary => Some(MysqlCheck::READ_ONLY_SQL),
            MysqlAsk::Statement { sql, .. } => Some(sql),
        }
    }

    fn wanted(&self) -> Option<Wanted<'_>> {
        match self {
            MysqlAsk::Nothing => None,
            MysqlAsk::IsPrimary => Some(Wanted { column: &READ_ONLY_COLUMN, value: "OFF" }),
            MysqlAsk::Statement { expect, .. } => {
                expect.as_ref().map(|expected| Wanted { column: &expected.column, value: &expected.value })
            }
        }
    }
}

/// The number of an error packet; `None`: it is not one. Before the login servers leave the SQL state out.
pub(super) fn error_number(packet: &[u8]) -> Option<u32> {
    let capabilities = match packet.get(3) {
        Some(b'#') => CapabilityFlags::CLIENT_PROTOCOL_41,
        _ => CapabilityFlags::empty(),
    };
    match ParseBuf(packet).parse::<ErrPacket<'_>>(capabilities) {
        Ok(ErrPacket::Error(error)) => Some(u32::from(error.error_code())),
        Ok(ErrPacket::Progress(_)) | Err(_) => None,
    }
}

impl Answer {
    /// One more packet.
    pub(super) fn hear(&mut self, packet: &[u8], ask: &MysqlAsk) -> Heard {
        if packet.first() == Some(&0xff) {
            return error_number(packet).map_or(Heard::Nonsense, |number| Heard::Over(Code::L7Status, number));
        }
        match (self.state, packet) {
            (State::First, [0x00, ..]) => self.over(ask),
            // A request for a file of ours, or nothing at all.
            (State::First, [0xfb, ..] | []) => Heard::Nonsense,
            (State::First, count) => match ParseBuf(count).parse::<RawInt<LenEnc>>(()) {
                Ok(columns) if (1..=COLUMNS_MAX).contains(&*columns) => {
                    self.columns = *columns;
                    self.state = State::Columns { seen: 0 };
                    if let Some(Wanted { column: MysqlColumn::Number(number), .. }) = ask.wanted() {
                        self.wanted = Some(u64::from(number.get()) - 1).filter(|place| *place < self.columns);
                    }
                    Heard::More
                }
                Ok(_) | Err(_) => Heard::Nonsense,
            },
            (State::Columns { seen }, packet) if seen == self.columns => {
                if !is_eof(packet) {
                    return Heard::Nonsense;
                }
                self.state = State::Rows;
                Heard::More
            }
            (State::Columns { seen }, packet) => {
                let Ok(column) = ParseBuf(packet).parse::<Column>(()) else { return Heard::Nonsense };
                if let Some(Wanted { column: MysqlColumn::Name(name), .. }) = ask.wanted()
                    && self.wanted.is_none()
                    && column.name_ref().eq_ignore_ascii_case(name.as_bytes())
                {
                    self.wanted = Some(seen);
                }
                self.state = State::Columns { seen: seen + 1 };
                Heard::More
            }
            (State::Rows, packet) if is_eof(packet) => self.over(ask),
            (State::Rows, row) => {
                if self.is_as_wanted.is_none() {
                    let Some(is_as_wanted) = self.says_so(row, ask) else { return Heard::Nonsense };
                    self.is_as_wanted = Some(is_as_wanted);
                }
                Heard::More
            }
        }
    }

    /// Whether this row says what is wanted; `None`: it is no row.
    fn says_so(&self, row: &[u8], ask: &MysqlAsk) -> Option<bool> {
        let mut rest = ParseBuf(row);
        let mut says_so = false;
        for place in 0..self.columns {
            let value = rest.parse::<ValueDeserializer<TextValue>>(()).ok()?.0;
            if self.wanted == Some(place)
                && let (Some(wanted), Value::Bytes(bytes)) = (ask.wanted(), value)
            {
                says_so = bytes == wanted.value.as_bytes();
            }
        }
        rest.is_empty().then_some(says_so)
    }

    fn over(&self, ask: &MysqlAsk) -> Heard {
        match (ask.wanted(), self.is_as_wanted) {
            (None, _) | (Some(_), Some(true)) => Heard::Over(Code::L7Ok, 0),
            (Some(_), Some(false) | None) => Heard::Over(Code::L7Content, 0),
        }
    }
}

/// The end of columns or of rows. A row can begin with 0xfe only if it is longer (a value of 16 MB).
fn is_eof(packet: &[u8]) -> bool {
    packet.len() < 9
        && ParseBuf(packet).parse::<OkPacketDeserializer<'_, OldEofPacket>>(CapabilityFlags::empty()).is_ok()
}
