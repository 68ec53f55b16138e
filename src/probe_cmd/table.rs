//! The live table: the screen, what is on it, and what its keys do.

use super::pulse::Pulse;
use super::roster::Roster;
use super::screen::{Key, Screen};
use super::view::{self, Totals, Window};
use crate::cli::Sort;
use ringspan_engine::stats::Stats;
use ringspan_engine::target::Sample;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;

/// Frames: four a second are alive, and cheap.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// Targets above which the order is looked at once a second: sorting a hundred thousand takes tens of milliseconds.
const ORDER_EAGER_MAX: usize = 10_000;
const ORDER_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Table {
    screen: Screen,
    pulses: Vec<Pulse>,
    totals: Totals,
    sort: Sort,
    offset: usize,
    rows: Vec<u32>,
    ordered_at: Option<Duration>,
    drawn_at: Option<Duration>,
    /// Probes finished, and when: for the rate.
    before: (u64, Duration),
}

impl Table {
    /// Takes the terminal over.
    pub(super) fn open(sort: Sort) -> io::Result<Table> {
        Ok(Table {
            screen: Screen::open()?,
            pulses: vec![],
            totals: Totals::default(),
            sort,
            offset: 0,
            rows: vec![],
            ordered_at: None,
            drawn_at: None,
            before: (0, Duration::ZERO),
        })
    }

    /// Where keys come out; once.
    pub(super) fn keys(&mut self) -> Option<mpsc::Receiver<Key>> {
        self.screen.keys()
    }

    /// Another probe.
    pub(super) fn on_sample(&mut self, s: &Sample) {
        let Ok(row) = usize::try_from(s.key) else { return };
        if row >= self.pulses.len() {
            self.pulses.resize(row + 1, Pulse::default());
        }
        self.pulses[row].on_sample(s);
    }

    /// The rows may mean other targets now.
    pub(super) fn forget(&mut self) {
        self.pulses.clear();
        self.rows.clear();
        self.ordered_at = None;
    }

    /// Counters.
    pub(super) fn on_stats(&mut self, stats: &Stats, tally: [u64; 3], unresolved: u64, now: Duration) {
        let c = &stats.total.counters;
        let (probes, at) = self.before;
        let spent = now.saturating_sub(at).as_secs_f64();
        let rate = if spent > 0.0 { (c.finished().saturating_sub(probes)) as f64 / spent } else { 0.0 };
        self.before = (c.finished(), now);
        self.totals = Totals {
            tally,
            unresolved,
            probes: c.finished(),
            probes_per_s: rate,
            lateness_p99_us: stats.total.lateness.value_at_quantile(0.99),
            missed: c.missed,
            in_flight: c.in_flight,
            waiting: c.waiting,
            is_frozen: c.workers_frozen > 0,
            is_alarm: c.alarm > 0,
        };
    }

    /// Somebody pressed something.
    pub(super) fn on_key(&mut self, key: Key, targets: usize) {
        let window = self.window();
        let page = window.rows() as isize;
        let last = targets.saturating_sub(window.rows());
        let moved = |by: isize| self.offset.saturating_add_signed(by).min(last);
        self.offset = match key {
            Key::Scroll(rows) => moved(rows),
            Key::Page(pages) => moved(pages * page.max(1)),
            Key::Top => 0,
            Key::Bottom => last,
            Key::Sort | Key::Resize | Key::Quit => self.offset,
        };
        if key == Key::Sort {
            self.sort = match self.sort {
                Sort::State => Sort::Name,
                Sort::Name => Sort::Rtt,
                Sort::Rtt => Sort::State,
            };
        }
        (self.ordered_at, self.drawn_at) = (None, None);
    }

    fn window(&self) -> Window {
        let (width, height) = Screen::size();
        Window { width, height, sort: self.sort, offset: self.offset }
    }

    /// Shows how things are, if it is time.
    pub(super) fn draw(&mut self, roster: &Roster, now: Duration) {
        if self.drawn_at.is_some_and(|at| now < at + DRAW_EVERY) {
            return;
        }
        self.drawn_at = Some(now);
        let window = self.window();
        let is_eager = roster.count() <= ORDER_EAGER_MAX;
        if is_eager || self.rows.len() > window.rows() || self.ordered_at.is_none_or(|at| now >= at + ORDER_EVERY) {
            self.rows = view::visible(roster, &self.pulses, &window);
            self.ordered_at = Some(now);
        }
        let now_cs = u32::try_from(now.as_millis() / 10).unwrap_or(u32::MAX);
        let lines = view::frame(roster, &self.pulses, &self.rows, &self.totals, &window, now_cs);
        if let Err(error) = self.screen.draw(&lines) {
            tracing::debug!(%error, "the terminal takes no more");
        }
    }
}
