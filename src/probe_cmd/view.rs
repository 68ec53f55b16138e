//! The live table as text: which rows are seen, and what stands in each. Pure: the roster in, styled lines out; of
//! 100,000 targets only the rows on the screen are sorted and written.

use super::pulse::Pulse;
use super::roster::Roster;
use super::{draw, lines};
use crate::cli::Sort;
use ringspan_engine::health::Health;
use std::cmp::Ordering;

/// Lines above the rows: totals, load, titles; and below: keys.
const LINES_ABOVE: u16 = 3;
const LINES_BELOW: u16 = 1;
/// Widths of the columns after the target's.
const WIDTHS: [usize; 8] = [7, 9, 13, 28, 9, 9, 8, 9];
const TITLES: [&str; 8] = ["kind", "state", "since", "last", "rtt p50", "rtt p99", "streak", "checks"];

/// How a line is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Title,
    Dim,
    Good,
    Bad,
    Doubt,
}

/// One line of the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) look: Look,
}

/// What the header says.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Up, down, unknown.
    pub(super) tally: [u64; 3],
    pub(super) unresolved: u64,
    pub(super) probes: u64,
    pub(super) probes_per_s: f64,
    pub(super) lateness_p99_us: u64,
    pub(super) missed: u64,
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    pub(super) is_frozen: bool,
    pub(super) is_alarm: bool,
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) sort: Sort,
    /// Rows above the screen.
    pub(super) offset: usize,
}

impl Window {
    /// Rows that fit.
    pub(super) fn rows(&self) -> usize {
        usize::from(self.height.saturating_sub(LINES_ABOVE + LINES_BELOW))
    }
}

/// The rows that are seen, in order.
pub(super) fn visible(roster: &Roster, pulses: &[Pulse], window: &Window) -> Vec<u32> {
    let mut rows: Vec<u32> = roster.live().collect();
    let rank = |row: u32| match roster.health(row) {
        Health::Down => 0,
        Health::Unknown => 1,
        Health::Up => 2,
    };
    let name = |a: u32, b: u32| roster.shown(a).cmp(roster.shown(b)).then(a.cmp(&b));
    let rtt = |row: u32| pulses.get(row as usize).and_then(|p| p.rtt_us(0.5)).unwrap_or(0);
    let order = |a: &u32, b: &u32| -> Ordering {
        match window.sort {
            Sort::State => rank(*a).cmp(&rank(*b)).then_with(|| name(*a, *b)),
            Sort::Name => name(*a, *b),
            Sort::Rtt => rtt(*b).cmp(&rtt(*a)).then_with(|| name(*a, *b)),
        }
    };
    let first = window.offset.min(rows.len().saturating_sub(window.rows()));
    let end = (first + window.rows()).min(rows.len());
    if first > 0 && first < rows.len() {
        rows.select_nth_unstable_by(first, order);
    }
    let rest = &mut rows[first..];
    if end - first < rest.len() && end > first {
        rest.select_nth_unstable_by(end - first, order);
    }
    let seen = &mut rest[..end - first];
    seen.sort_by(order);
    seen.to_vec()
}

/// The whole screen.
pub(super) fn frame(
    roster: &Roster,
    pulses: &[Pulse],
    rows: &[u32],
    totals: &Totals,
    window: &Window,
    now_cs: u32,
) -> Vec<Line> {
    let width = usize::from(window.width);
    let target_width = width.saturating_sub(WIDTHS.iter().sum::<usize>() + WIDTHS.len()).max(12);
    let line = |text: String, look| Line { text: clipped(&text, width), look };
    let [up, down, unknown] = totals.tally;
    let mut state =
        format!("{} targets: {} up, {} down", draw::count(up + down + unknown), draw::count(up), draw::count(down));
    if unknown > 0 {
        state += &format!(", {} unknown", draw::count(unknown));
    }
    if totals.unresolved > 0 {
        state += &format!(" ({} without an address)", draw::count(totals.unresolved));
    }
    let look = match (down, unknown) {
        (0, 0) => Look::Good,
        (0, _) => Look::Doubt,
        _ => Look::Bad,
    };
    let mut load = format!(
        "{} probes/s   lateness p99 {}   {} in flight   {} waiting   {} missed   {} probes",
        draw::count(totals.probes_per_s as u64),
        draw::time(totals.lateness_p99_us as f64),
        draw::count(totals.in_flight),
        draw::count(totals.waiting),
        draw::count(totals.missed),
        draw::count(totals.probes),
    );
    if totals.is_frozen {
        load = format!("FROZEN: the prober is sick, no failure is believed   {load}");
    }
    if totals.is_alarm {
        load = format!("ALARM: too many want to go down at once   {load}");
    }
    let load_look = if totals.is_frozen || totals.is_alarm { Look::Bad } else { Look::Dim };
    let titles = TITLES.map(str::to_owned);
    let mut all =
        vec![line(state, look), line(load, load_look), line(row_text("target", target_width, &titles), Look::Title)];
    all.extend(rows.iter().map(|row| {
        let belief = roster.belief(*row);
        let pulse = pulses.get(*row as usize);
        let kind = roster.check(*row).as_str();
        let last = match pulse {
            Some(pulse) => lines::reason(kind, pulse.code(), pulse.detail()),
            None => lines::reason(kind, belief.code, belief.detail),
        };
        let rtt = |quantile| pulse.and_then(|p| p.rtt_us(quantile)).map_or("-".into(), |us| draw::time(us as f64));
        let look = match belief.health {
            Health::Up => Look::Plain,
            Health::Down => Look::Bad,
            Health::Unknown => Look::Doubt,
        };
        let since = match belief.code {
            None => "-".into(),
            Some(_) => draw::span(u64::from(now_cs.saturating_sub(belief.since_cs)) / 100),
        };
        let cells = [
            kind.to_owned(),
            lines::health(belief.health).to_owned(),
            since,
            last,
            rtt(0.5),
            rtt(0.99),
            pulse.map_or("-".into(), |p| p.streak.to_string()),
            pulse.map_or("-".into(), |p| p.checks.to_string()),
        ];
        line(row_text(roster.shown(*row), target_width, &cells), look)
    }));
    all.resize(usize::from(window.height.saturating_sub(LINES_BELOW)), Line { text: String::new(), look: Look::Plain });
    let by = match window.sort {
        Sort::State => "state",
        Sort::Name => "name",
        Sort::Rtt => "rtt",
    };
    all.push(line(format!("q quit   s sort (by {by})   arrows, PgUp, PgDn, Home, End: scroll"), Look::Dim));
    all.truncate(usize::from(window.height));
    all
}

fn row_text(target: &str, target_width: usize, cells: &[String; 8]) -> String {
    let mut text = format!("{:<target_width$}", clipped(target, target_width));
    for (cell, width) in cells.iter().zip(WIDTHS) {
        text.push(' ');
        text += &format!("{:<width$}", clipped(cell, width));
    }
    text.trim_end().to_owned()
}

/// At most so many characters, the last one … if any are left out.
fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe_cmd::roster::tests::sheet;
    use ringspan_engine::check::Detail;
    use ringspan_engine::health::Held;
    use ringspan_engine::outcome::Code;
    use ringspan_engine::target::{TargetId, Transition};

    fn world(n: u32) -> Roster {
        let mut roster = Roster::default();
        let sheet = roster.sheet(sheet());
        (0..n).for_each(|i| {
            roster.push(&format!("10.{}.{}.{}:80", i >> 16, i >> 8 & 255, i & 255), None, sheet).expect("one")
        });
        roster.close();
        (0..n).for_each(|row| roster.set_id(row, Some(TargetId(row.into()))));
        roster
    }

    fn turn(roster: &mut Roster, row: u32, to: Health) {
        let (from, held, code) =
            (Health::Unknown, Held::No, if to == Health::Up { Code::L4Ok } else { Code::L4Refused });
        let (id, detail) = (TargetId(row.into()), Detail::default());
        let (rtt_ns, due) = (1000, ringspan_engine::time::Instant::ZERO);
        let t = Transition { id, key: row.into(), from, to, held, code, errno: 0, detail, rtt_ns, due, streak: 1 };
        roster.on_transition(&t, 100).expect("its target");
    }

    /// Whatever the window, what is seen is what a full sort would show there.
    #[test]
    fn the_window_is_a_part_of_the_whole() {
        let mut roster = world(500);
        (0..500).step_by(7).for_each(|row| turn(&mut roster, row, Health::Down));
        (1..500).step_by(7).for_each(|row| turn(&mut roster, row, Health::Up));
        for sort in [Sort::State, Sort::Name, Sort::Rtt] {
            let window = |offset, height| Window { width: 120, height, sort, offset };
            let whole = visible(&roster, &[], &window(0, 504));
            assert_eq!(whole.len(), 500);
            for (offset, rows) in [(0, 20), (13, 20), (490, 20), (9999, 3), (0, 0), (480, 20)] {
                let first = offset.min(500 - rows);
                let seen = visible(&roster, &[], &window(offset, rows as u16 + 4));
                assert_eq!(seen, whole[first..first + rows], "{sort:?} {offset} {rows}");
            }
        }
        let first = visible(&roster, &[], &Window { width: 80, height: 5, sort: Sort::State, offset: 0 })[0];
        assert_eq!(roster.health(first), Health::Down);
    }

    /// The screen is as high and at most as wide as it is, and says what is so.
    #[test]
    fn a_frame_fits() {
        let mut roster = world(3);
        turn(&mut roster, 1, Health::Down);
        for (width, height) in [(150, 10), (20, 4), (1, 1), (80, 2)] {
            let window = Window { width, height, sort: Sort::State, offset: 0 };
            let rows = visible(&roster, &[], &window);
            let totals = Totals { tally: [0, 1, 2], is_frozen: true, ..Totals::default() };
            let lines = frame(&roster, &[], &rows, &totals, &window, 700);
            assert_eq!(lines.len(), usize::from(height));
            assert!(lines.iter().all(|l| l.text.chars().count() <= usize::from(width)), "{lines:?}");
            if width == 150 {
                assert!(
                    lines[0].text.contains("3 targets: 0 up, 1 down, 2 unknown") && lines[1].text.contains("FROZEN")
                );
                assert!(lines[3].text.contains("10.0.0.1:80") && lines[3].text.contains("down      6 s"), "{lines:?}");
                assert_eq!(lines[3].look, Look::Bad);
            }
        }
    }
}
