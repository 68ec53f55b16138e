//! All targets of a run, compactly: a million of them cost this table about 50 bytes each.
//!
//! ```text
//! text:  "10.0.0.1:80\n10.0.0.2:80\n..."     one arena, a line each: what is shown, then a tab and the URL if it has a name
//! rows:  [36 bytes each]  ──► plans: check + sheet, shared ──► sheets: settings, policy, group
//! names: [row, address found]                only those that have a name to be looked up
//! ```
//! A row's number is the target's key in the engine. A row that is removed is used again.

use super::checks::{self, Settings};
use super::target::{self, Host, Written, Wrong};
use ringspan_engine::check::{Check, Detail};
use ringspan_engine::health::Health;
use ringspan_engine::outcome::Code;
use ringspan_engine::target::{Policy, TargetId, Transition};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Most targets one run takes: token indices are 24 bits per worker, and a list longer than this is a mistake.
pub(crate) const TARGETS_MAX: usize = 4_000_000;
/// No place in the arena, no target of the engine.
const NOWHERE: u32 = u32::MAX;
const NOBODY: u64 = u64::MAX;

/// What a number of targets have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sheet {
    /// Of the check.
    pub(crate) settings: Settings,
    /// How often, how long, how many.
    pub(crate) policy: Arc<Policy>,
    /// Histograms it counts in: a number of [`Roster::groups`], 0 for none.
    pub(crate) group: u16,
    /// What to believe before the first outcome.
    pub(crate) initial: Health,
}

/// A check and its sheet.
struct Plan {
    /// What the check was made of; with passwords, and never printed.
    key: Box<str>,
    check: Check,
    sheet: u32,
}

/// One target and what is believed of it.
#[derive(Clone, Copy)]
struct Row {
    /// The engine's name for it, in two halves: an alignment of 4 saves 4 bytes a row.
    id: [u32; 2],
    text_at: u32,
    plan: u32,
    /// When the belief began, hundredths of a second since the run did.
    since_cs: u32,
    rtt_us: u32,
    number: u32,
    cert_days: i16,
    /// [`Code`] + 1; 0: nothing has decided.
    code: u8,
    health: u8,
}

const _: () = assert!(size_of::<Row>() <= 36);

/// What is believed of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Belief {
    /// The belief.
    pub(crate) health: Health,
    /// What decided; `None`: nothing yet.
    pub(crate) code: Option<Code>,
    /// What the protocol said then.
    pub(crate) detail: Detail,
    /// The deciding probe's round trip. Microseconds.
    pub(crate) rtt_us: u32,
    /// When it began, hundredths of a second since the run did.
    pub(crate) since_cs: u32,
}

/// A target whose host is a name.
pub(crate) struct Named {
    /// Which.
    pub(crate) row: u32,
    /// What the name means at present.
    pub(crate) address: Option<IpAddr>,
    /// When it was asked for last, seconds since the run began.
    pub(crate) asked_s: u32,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Roster {
    text: Vec<u8>,
    rows: Vec<Row>,
    free: Vec<u32>,
    plans: Vec<Plan>,
    by_key: HashMap<(u32, Box<str>), u32>,
    sheets: Vec<Sheet>,
    /// Names of the groups, from 1 on; 0 is no group.
    pub(crate) groups: Vec<String>,
    /// In the order of their host names once [`Roster::sort_names`] was called.
    pub(crate) names: Vec<Named>,
}

impl Roster {
    /// A sheet for the targets that follow.
    pub(crate) fn sheet(&mut self, sheet: Sheet) -> u32 {
        self.sheets.push(sheet);
        u32::try_from(self.sheets.len() - 1).expect("sheets come from tables of a file that fits into memory")
    }

    /// The number of a group, from 1 on; a new one if there are fewer than `max`.
    pub(crate) fn group(&mut self, name: &str, max: usize) -> Option<u16> {
        let at = match self.groups.iter().position(|group| group == name) {
            Some(at) => at,
            None if self.groups.len() < max => {
                self.groups.push(name.to_owned());
                self.groups.len() - 1
            }
            None => return None,
        };
        u16::try_from(at + 1).ok()
    }

    /// Lets no interval be longer.
    pub(crate) fn cap_intervals(&mut self, max: Duration) {
        for sheet in &mut self.sheets {
            sheet.policy = Arc::new(Policy { interval: sheet.policy.interval.min(max), ..*sheet.policy });
        }
    }

    /// Adds a target as written, under a name of its own or none.
    pub(crate) fn push(&mut self, text: &str, name: Option<&str>, sheet: u32) -> Result<(), Wrong> {
        let written = target::parse(text)?;
        let wrong = |problem: String, remedy: &str| Wrong { problem, remedy: remedy.to_owned() };
        if self.rows.len() >= TARGETS_MAX {
            return Err(wrong(format!("more than {TARGETS_MAX} targets"), "several runs"));
        }
        let plan = self.plan(&written, sheet).map_err(|e| wrong(e, ""))?;
        let at = u32::try_from(self.text.len()).ok().filter(|at| *at < NOWHERE);
        let text_at = at.ok_or_else(|| wrong("more than 4 GiB of targets".into(), "several runs"))?;
        if let Some(name) = name {
            self.text.extend_from_slice(name.as_bytes());
            self.text.push(b'\t');
        }
        self.text.extend_from_slice(written.text.as_bytes());
        self.text.push(b'\n');
        let row = u32::try_from(self.rows.len()).expect("at most TARGETS_MAX");
        let health = of_health(self.sheets[sheet as usize].initial);
        self.rows.push(Row { text_at, plan, health, ..Row::EMPTY });
        if matches!(written.host, Host::Name(_)) {
            self.names.push(Named { row, address: None, asked_s: 0 });
        }
        Ok(())
    }

    fn plan(&mut self, written: &Written, sheet: u32) -> Result<u32, String> {
        let key = checks::key(written);
        // Neighbours in a file are alike.
        if let Some(last) = self.rows.last()
            && let Some(plan) = self.plans.get(last.plan as usize)
            && plan.sheet == sheet
            && *plan.key == *key
        {
            return Ok(last.plan);
        }
        let key: (u32, Box<str>) = (sheet, key.into());
        if let Some(plan) = self.by_key.get(&key) {
            return Ok(*plan);
        }
        let check = checks::check(written, &self.sheets[sheet as usize].settings)?;
        let number = u32::try_from(self.plans.len()).expect("at most one a target");
        self.plans.push(Plan { key: key.1.clone(), check, sheet });
        self.by_key.insert(key, number);
        Ok(number)
    }

    /// Everything is read: gives back what only reading needs, and puts names in order.
    pub(crate) fn close(&mut self) {
        self.by_key = HashMap::new();
        self.text.shrink_to_fit();
        self.rows.shrink_to_fit();
        let mut names = std::mem::take(&mut self.names);
        names.sort_by(|a, b| self.host(a.row).cmp(&self.host(b.row)).then(a.row.cmp(&b.row)));
        self.names = names;
    }

    /// Rows there are, removed ones included.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.rows.len()).expect("at most TARGETS_MAX")
    }

    /// Targets.
    pub(crate) fn count(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// Whether the row is a target.
    pub(crate) fn is_live(&self, row: u32) -> bool {
        self.rows.get(row as usize).is_some_and(|r| r.text_at != NOWHERE)
    }

    /// Every target.
    pub(crate) fn live(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).filter(|row| self.rows[*row as usize].text_at != NOWHERE)
    }

    fn line(&self, row: u32) -> &str {
        let at = self.rows[row as usize].text_at as usize;
        let rest = self.text.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).expect("whole strings were put in")
    }

    /// What the target is called: its name, or its URL.
    pub(crate) fn shown(&self, row: u32) -> &str {
        self.line(row).split('\t').next().unwrap_or_default()
    }

    /// The URL.
    pub(crate) fn url(&self, row: u32) -> &str {
        self.line(row).rsplit('\t').next().unwrap_or_default()
    }

    fn written(&self, row: u32) -> Written {
        target::parse(self.url(row)).expect("what a target is shown as reads back")
    }

    /// The name to look up, if its host is one.
    pub(crate) fn host(&self, row: u32) -> Option<String> {
        match self.written(row).host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    /// Where it is: its literal, or what its name means at present.
    pub(crate) fn address(&self, row: u32) -> Option<SocketAddr> {
        let written = self.written(row);
        written.address().or_else(|| {
            let Host::Name(host) = &written.host else { return None };
            let first = self.names.partition_point(|named| self.host(named.row).as_deref() < Some(host));
            // Rows of one name stand together, in their own order, and mean the same.
            Some(SocketAddr::new(self.names.get(first)?.address?, written.port))
        })
    }

    /// Its check.
    pub(crate) fn check(&self, row: u32) -> &Check {
        &self.plans[self.rows[row as usize].plan as usize].check
    }

    /// Its sheet.
    pub(crate) fn sheet_of(&self, row: u32) -> &Sheet {
        &self.sheets[self.plans[self.rows[row as usize].plan as usize].sheet as usize]
    }

    /// The engine's name for it, while it has one.
    pub(crate) fn id(&self, row: u32) -> Option<TargetId> {
        let [high, low] = self.rows[row as usize].id;
        let id = u64::from(high) << 32 | u64::from(low);
        (id != NOBODY).then_some(TargetId(id))
    }

    /// The engine has it, or no longer.
    pub(crate) fn set_id(&mut self, row: u32, id: Option<TargetId>) {
        let id = id.map_or(NOBODY, |id| id.0);
        self.rows[row as usize].id = [(id >> 32) as u32, id as u32];
    }

    /// Takes over what the engine thinks; the belief before it. `None`: it speaks of a target that is gone.
    pub(crate) fn on_transition(&mut self, t: &Transition, now_cs: u32) -> Option<Belief> {
        let row = u32::try_from(t.key).ok().filter(|row| self.is_live(*row) && self.id(*row) == Some(t.id))?;
        let before = self.belief(row);
        let row = &mut self.rows[row as usize];
        row.health = of_health(t.to);
        row.code = t.code as u8 + 1;
        // A target that is held down is told of without a change.
        row.since_cs = if t.from == t.to { row.since_cs } else { now_cs };
        row.rtt_us = u32::try_from(t.rtt_ns / 1000).unwrap_or(u32::MAX);
        row.number = t.detail.number;
        row.cert_days = t.detail.cert_days.unwrap_or(i16::MIN);
        Some(before)
    }

    /// What is believed of it.
    pub(crate) fn belief(&self, row: u32) -> Belief {
        let row = &self.rows[row as usize];
        Belief {
            health: to_health(row.health),
            code: row.code.checked_sub(1).and_then(|n| Code::ALL.get(usize::from(n)).copied()),
            detail: Detail { number: row.number, cert_days: (row.cert_days != i16::MIN).then_some(row.cert_days) },
            rtt_us: row.rtt_us,
            since_cs: row.since_cs,
        }
    }

    /// Whether it is believed so; cheaper than [`Roster::belief`].
    pub(crate) fn health(&self, row: u32) -> Health {
        to_health(self.rows[row as usize].health)
    }

    /// Up, down and neither, of all targets.
    pub(crate) fn tally(&self) -> [u64; 3] {
        let mut tally = [0; 3];
        for row in self.rows.iter().filter(|row| row.text_at != NOWHERE) {
            tally[match to_health(row.health) {
                Health::Up => 0,
                Health::Down => 1,
                Health::Unknown => 2,
            }] += 1;
        }
        tally
    }
}

impl Row {
    const EMPTY: Row = Row {
        id: [NOWHERE; 2],
        text_at: NOWHERE,
        plan: 0,
        since_cs: 0,
        rtt_us: 0,
        number: 0,
        cert_days: i16::MIN,
        code: 0,
        health: 0,
    };
}

fn of_health(health: Health) -> u8 {
    match health {
        Health::Unknown => 0,
        Health::Up => 1,
        Health::Down => 2,
    }
}

fn to_health(byte: u8) -> Health {
    match byte {
        1 => Health::Up,
        2 => Health::Down,
        _ => Health::Unknown,
    }
}

/// What a new roster asks of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Probe it no more.
    Remove(TargetId),
    /// Probe it. What was believed of it stays.
    Add(u32),
    /// Another policy.
    Update(u32),
}

impl Roster {
    /// Becomes `new`, keeping the rows and beliefs of the targets that stay. What stays as it was is not mentioned in
    /// the answer.
    pub(crate) fn become_like(&mut self, mut new: Roster) -> Vec<Step> {
        let mut steps = Vec::new();
        let order = |roster: &Roster| {
            let mut rows: Vec<u32> = roster.live().collect();
            rows.sort_by(|a, b| roster.line(*a).cmp(roster.line(*b)).then(a.cmp(b)));
            rows
        };
        let (mine, theirs) = (order(self), order(&new));
        // For each of the new rows, the old one that it continues.
        let mut continues: Vec<u32> = vec![NOWHERE; new.rows.len()];
        let mut ahead = theirs.iter().copied().peekable();
        let mut gone = Vec::new();
        for row in mine {
            while let Some(next) = ahead.peek()
                && new.line(*next) < self.line(row)
            {
                ahead.next();
            }
            match ahead.peek() {
                Some(next) if new.line(*next) == self.line(row) => {
                    continues[*next as usize] = row;
                    ahead.next();
                }
                _ => gone.push(row),
            }
        }
        for row in gone {
            steps.extend(self.id(row).map(Step::Remove));
            self.rows[row as usize] = Row::EMPTY;
            self.free.push(row);
        }
        let addresses: HashMap<u32, (Option<IpAddr>, u32)> =
            self.names.iter().map(|named| (named.row, (named.address, named.asked_s))).collect();
        for (their, mine) in continues.iter_mut().enumerate() {
            let theirs = new.rows[their];
            if *mine == NOWHERE {
                *mine = self.free.pop().unwrap_or(self.len());
                if *mine == self.len() {
                    self.rows.push(Row::EMPTY);
                }
                self.rows[*mine as usize] = theirs;
                steps.push(Step::Add(*mine));
                continue;
            }
            let (old, plan) = (&self.plans[self.rows[*mine as usize].plan as usize], &new.plans[theirs.plan as usize]);
            let (old_sheet, sheet) = (&self.sheets[old.sheet as usize], &new.sheets[plan.sheet as usize]);
            let is_same = old.key == plan.key && old_sheet.settings == sheet.settings && old_sheet.group == sheet.group;
            let id = self.id(*mine);
            if !is_same {
                steps.extend(id.map(Step::Remove));
                steps.push(Step::Add(*mine));
                self.set_id(*mine, None);
            } else if old_sheet.policy != sheet.policy && id.is_some() {
                steps.push(Step::Update(*mine));
            }
            let row = &mut self.rows[*mine as usize];
            (row.text_at, row.plan) = (theirs.text_at, theirs.plan);
        }
        for named in &mut new.names {
            named.row = continues[named.row as usize];
            (named.address, named.asked_s) = addresses.get(&named.row).copied().unwrap_or_default();
        }
        (self.text, self.plans, self.sheets) = (new.text, new.plans, new.sheets);
        (self.names, self.groups) = (new.names, new.groups);
        steps
    }
}

#[cfg(test)]
pub(crate) mod tests;
