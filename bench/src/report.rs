//! What a run found: sections of contenders by columns, several rounds each, and the ratios that are the point.
//! Promise: every section states its question; a shown figure is the median of its rounds, with the range beside it in
//! the JSON; a ratio is taken within a round, so that both its sides met the same noise.
//! Pure: no socket, no clock.

use crate::machine::Machine;
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

/// The middle of the figures; the mean of the middle two if they are even in number. None of nothing.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
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
        Section { name, question: question.into(), columns, rows: Vec::new(), ratios: Vec::new(), notes: Vec::new() }
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

    /// A remark for the reader, once.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Compares two contenders round by round. Nothing if one of them was not measured.
    pub(crate) fn compare(&mut self, column: &'static str, ours: &str, theirs: &str, goal: Option<Goal>) {
        let index = self.columns.iter().position(|c| c.name == column).expect("a comparison names a column");
        let of = |who: &str| self.rows.iter().find(|r| r.contender == who).map(|r| &r.samples[index]);
        let (Some(a), Some(b)) = (of(ours), of(theirs)) else { return };
        let rounds: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        let Some(median) = median(&rounds) else { return };
        self.ratios.push(Ratio { what: format!("{ours} / {theirs}, {column}"), rounds, median, goal });
    }

    /// Holds a contender's own figure against a promise. Nothing if it was not measured.
    pub(crate) fn promise(&mut self, ours: &str, column: &'static str, goal: Goal) {
        let index = self.columns.iter().position(|c| c.name == column).expect("a promise names a column");
        let Some(row) = self.rows.iter().find(|r| r.contender == ours) else { return };
        let rounds = row.samples[index].clone();
        let Some(median) = median(&rounds) else { return };
        self.ratios.push(Ratio { what: format!("{ours}, {column}"), rounds, median, goal: Some(goal) });
    }

    /// Holds any figure against a promise.
    pub(crate) fn hold(&mut self, what: &str, value: f64, goal: Goal) {
        self.ratios.push(Ratio { what: what.to_owned(), rounds: vec![value], median: value, goal: Some(goal) });
    }

    /// Whether every promise is kept.
    pub(crate) fn goals_met(&self) -> bool {
        self.ratios.iter().all(|r| r.goal.is_none_or(|g| g.is_met(r.median)))
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
        assert_eq!(section.ratios[0].rounds, [0.5, 0.5, 1.0]);
        assert_eq!(section.ratios[0].median, 0.5);
        assert!(section.goals_met());
        section.compare("us", "ours", "theirs", Some(Goal::AtLeast(0.6)));
        assert!(!section.goals_met());
        assert!(section.to_string().contains("goal >= 0.6: MISSED"));
    }
}
