//! What a run found: sections of contenders by columns, several rounds each, and the ratios that are the point.
//! Promise: every section states its question; a shown figure is the median of its rounds, with the range beside it in
//! the JSON; a ratio is taken within a round, so that both its sides met the same noise.
//! Pure: no socket, no clock.

use crate::machine::Machine;
use crate::process::Failure;
use serde::Serialize;
use std::fmt;

/// One whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Where and when.
    pub(crate) machine: Machine,
    /// What was asked and found, in the order it was run.
    pub(crate) sections: Vec<Section>,
}

/// One question with its contenders.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// Short name, the JSON's key for scripts.
    pub(crate) name: &'static str,
    /// The question in a sentence.
    pub(crate) question: String,
    /// What the figures are, in the order of each row's `samples`.
    pub(crate) columns: Vec<Column>,
    /// The contenders.
    pub(crate) rows: Vec<Row>,
    /// The answers.
    pub(crate) ratios: Vec<Ratio>,
    /// Promises that could not be judged: a side of theirs was not measured.
    pub(crate) unjudged: Vec<String>,
    /// Contenders that broke, once for each round that they did not finish.
    pub(crate) failed: Vec<String>,
    /// What a reader must know to believe it: skipped contenders, errors seen.
    pub(crate) notes: Vec<String>,
}

/// What one figure is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Column {
    /// With its unit: "CPU us/probe".
    pub(crate) name: &'static str,
    /// Digits after the point in the table.
    #[serde(skip)]
    pub(crate) decimals: usize,
}

/// One contender.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Who.
    pub(crate) contender: String,
    /// One list per column; one figure per round. NaN (null in JSON): this contender has no such figure.
    pub(crate) samples: Vec<Vec<f64>>,
}

/// One side over the other.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    /// "ringspan / floor reuse-half, CPU".
    pub(crate) what: String,
    /// One per round.
    pub(crate) rounds: Vec<f64>,
    /// Their median.
    pub(crate) median: f64,
    /// What the project promises, if it does.
    pub(crate) goal: Option<Goal>,
}

/// A promise about a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Goal {
    /// Whether the figure keeps it.
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Goal::AtMost(limit) => value <= limit,
            Goal::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtMost(limit) => write!(f, "<= {limit}"),
            Goal::AtLeast(limit) => write!(f, ">= {limit}"),
        }
    }
}

/// The middle of the figures; the mean of the middle two if they are even in number. None of nothing; NaN is nothing.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.iter().copied().filter(|figure| !figure.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len(), sorted.len() % 2) {
        (0, _) => None,
        (_, 1) => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

impl Section {
    /// An empty section.
    pub(crate) fn new(name: &'static str, question: impl Into<String>, columns: &[(&'static str, usize)]) -> Section {
        let columns = columns.iter().map(|&(name, decimals)| Column { name, decimals }).collect();
        let (rows, ratios, unjudged, failed, notes) = Default::default();
        Section { name, question: question.into(), columns, rows, ratios, unjudged, failed, notes }
    }

    /// Adds one round's figures of a contender, in the order of the columns.
    pub(crate) fn record(&mut self, contender: &str, figures: &[f64]) {
        assert_eq!(figures.len(), self.columns.len(), "one figure per column");
        let row = match self.rows.iter_mut().position(|r| r.contender == contender) {
            Some(i) => &mut self.rows[i],
            None => {
                self.rows.push(Row { contender: contender.to_owned(), samples: vec![Vec::new(); figures.len()] });
                self.rows.last_mut().expect("a row was just pushed")
            }
        };
        for (samples, figure) in row.samples.iter_mut().zip(figures) {
            samples.push(*figure);
        }
    }

    /// Adds what a contender found in a round, or that it broke: then it has no figures for the round, the run goes on with
    /// the others, and the section does not pass.
    pub(crate) fn record_or_fail(&mut self, contender: &str, outcome: Result<impl AsRef<[f64]>, Failure>) {
        match outcome {
            Ok(figures) => self.record(contender, figures.as_ref()),
            Err(story) => {
                eprintln!("{}: {contender} FAILED: {story}", self.name);
                self.note(format!("{contender} FAILED: {}", story.lines().next().unwrap_or_default()));
                self.failed.push(contender.to_owned());
                self.record(contender, &vec![f64::NAN; self.columns.len()]);
            }
        }
    }

    /// A remark for the reader, once.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Compares two contenders round by round. A goal is left unjudged if one of them was not measured.
    pub(crate) fn compare(&mut self, column: &'static str, ours: &str, theirs: &str, goal: Option<Goal>) {
        let index = self.columns.iter().position(|c| c.name == column).expect("a comparison names a column");
        let of = |who: &str| self.rows.iter().find(|r| r.contender == who).map(|r| &r.samples[index]);
        let rounds: Vec<f64> = match (of(ours), of(theirs)) {
            (Some(a), Some(b)) => a.iter().zip(b).map(|(a, b)| a / b).collect(),
            _ => Vec::new(),
        };
        self.judge(format!("{ours} / {theirs}, {column}"), rounds, goal);
    }

    /// Holds a contender's own figure against a promise. Unjudged if it was not measured.
    pub(crate) fn promise(&mut self, ours: &str, column: &'static str, goal: Goal) {
        let index = self.columns.iter().position(|c| c.name == column).expect("a promise names a column");
        let row = self.rows.iter().find(|r| r.contender == ours);
        let rounds = row.map_or(Vec::new(), |row| row.samples[index].clone());
        self.judge(format!("{ours}, {column}"), rounds, Some(goal));
    }

    fn judge(&mut self, what: String, mut rounds: Vec<f64>, goal: Option<Goal>) {
        rounds.retain(|figure| !figure.is_nan());
        match (median(&rounds), goal) {
            (Some(median), goal) => self.ratios.push(Ratio { what, rounds, median, goal }),
            (None, Some(goal)) => self.unjudged.push(format!("{what}, goal {goal}")),
            (None, None) => {}
        }
    }

    /// Holds any figure against a promise.
    pub(crate) fn hold(&mut self, what: &str, value: f64, goal: Goal) {
        self.ratios.push(Ratio { what: what.to_owned(), rounds: vec![value], median: value, goal: Some(goal) });
    }

    /// Whether every promise that was judged is kept, and nobody broke.
    pub(crate) fn goals_met(&self) -> bool {
        self.failed.is_empty() && self.ratios.iter().all(|r| r.goal.is_none_or(|g| g.is_met(r.median)))
    }
}

impl fmt::Display for Report {
    /// The verdicts alone, as the last lines of a run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.sections {
            let goals = section.ratios.iter().filter_map(|r| r.goal.map(|goal| (r, goal)));
            let missed: Vec<_> = goals.clone().filter(|(r, goal)| !goal.is_met(r.median)).collect();
            let (all, unjudged) = (goals.count(), section.unjudged.len());
            write!(f, "{}: {} of {all} promises kept", section.name, all - missed.len())?;
            if unjudged > 0 {
                write!(f, ", {unjudged} not judged")?;
            }
            if !section.failed.is_empty() {
                write!(f, ", broke: {}", section.failed.join("; "))?;
            }
            writeln!(f)?;
            for (r, goal) in missed {
                writeln!(f, "  MISSED: {} = {:.2}, goal {goal}", r.what, r.median)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}: {}", self.name, self.question)?;
        let cell = |row: &Row, i: usize| match median(&row.samples[i]) {
            Some(figure) if figure.is_finite() => format!("{figure:.*}", self.columns[i].decimals),
            _ => "-".to_owned(),
        };
        let first = self.rows.iter().map(|r| r.contender.len()).max().unwrap_or(0).max(9);
        let width = |i: usize| {
            let cells = self.rows.iter().map(|r| cell(r, i).len()).max().unwrap_or(0);
            cells.max(self.columns[i].name.len())
        };
        write!(f, "{:first$}", "contender")?;
        for (i, column) in self.columns.iter().enumerate() {
            write!(f, "  {:>1$}", column.name, width(i))?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:first$}", row.contender)?;
            for i in 0..self.columns.len() {
                write!(f, "  {:>1$}", cell(row, i), width(i))?;
            }
            writeln!(f)?;
        }
        for ratio in &self.ratios {
            let low = ratio.rounds.iter().copied().fold(f64::INFINITY, f64::min);
            let high = ratio.rounds.iter().copied().fold(0.0, f64::max);
            write!(f, "  {} = {:.2} ({low:.2} to {high:.2})", ratio.what, ratio.median)?;
            match ratio.goal {
                Some(goal) if goal.is_met(ratio.median) => writeln!(f, ", goal {goal}: met")?,
                Some(goal) => writeln!(f, ", goal {goal}: MISSED")?,
                None => writeln!(f)?,
            }
        }
        for what in &self.unjudged {
            writeln!(f, "  {what}: NOT JUDGED, a side was not measured")?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle, whatever the order.
    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    /// A contender that breaks in one round is judged by the others, is told, and fails the run; one that breaks in all leaves
    /// its promises unjudged.
    #[test]
    fn a_broken_round_is_left_out_and_told() {
        let mut section = Section::new("t", "does it break?", &[("us", 1)]);
        for ours in [Ok([1.0]), Err("alas\nits log".to_owned()), Ok([3.0])] {
            section.record_or_fail("ours", ours);
            section.record("theirs", &[2.0]);
            section.record_or_fail("gone", Err::<[f64; 1], _>("no".to_owned()));
        }
        section.compare("us", "ours", "theirs", Some(Goal::AtMost(2.0)));
        assert_eq!(section.ratios[0].rounds, [0.5, 1.5]);
        section.compare("us", "ours", "gone", Some(Goal::AtMost(2.0)));
        section.promise("gone", "us", Goal::AtMost(2.0));
        assert_eq!((section.ratios.len(), section.unjudged.len()), (1, 2));
        assert!(!section.goals_met(), "who breaks does not pass");
        let shown = section.to_string();
        assert!(shown.contains("ours FAILED: alas") && shown.contains("NOT JUDGED"), "{shown}");
        section.failed.clear();
        assert!(section.goals_met());
    }

    /// A ratio is taken round by round: one noisy round does not meet a quiet one.
    #[test]
    fn ratios_pair_rounds() {
        let mut section = Section::new("t", "does it pair?", &[("us", 1)]);
        for (ours, theirs) in [(1.0, 2.0), (10.0, 20.0), (3.0, 3.0)] {
            section.record("ours", &[ours]);
            section.record("theirs", &[theirs]);
        }
        section.compare("us", "ours", "theirs", Some(Goal::AtMost(0.5)));
        section.compare("us", "ours", "nobody", Some(Goal::AtMost(0.0)));
        assert_eq!(section.ratios.len(), 1, "a contender that was not measured makes no ratio");
        assert_eq!(section.unjudged, ["ours / nobody, us, goal <= 0"]);
        assert_eq!(section.ratios[0].rounds, [0.5, 0.5, 1.0]);
        assert_eq!(section.ratios[0].median, 0.5);
        assert!(section.goals_met());
        section.compare("us", "ours", "theirs", Some(Goal::AtLeast(0.6)));
        assert!(!section.goals_met());
        assert!(section.to_string().contains("goal >= 0.6: MISSED"));
    }
}
