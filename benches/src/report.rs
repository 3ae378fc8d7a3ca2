//! What was measured, as a table and as JSON.

use std::io::Write;

use anyhow::Context;
use serde::Serialize;

use crate::{
    child,
    figures::{Unit, largest, median, plain, smallest},
    proc,
    setup::{Output, RUNS, Setup},
};

/// Everything that was measured by one command.
#[derive(Serialize)]
pub struct Report {
    machine: proc::Machine,
    programs: Vec<String>,
    sections: Vec<Section>,
    /// Benches that could not be done, and why.
    failures: Vec<String>,
}

/// One bench.
#[derive(Serialize)]
pub struct Section {
    /// What was measured, in one line.
    pub title: String,
    /// How, and what was seen on the way.
    pub notes: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// Something that was measured once a run.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// The median of `runs`.
    pub median: f64,
    /// One value for each run, in the unit of the row.
    pub runs: Vec<f64>,
}

/// One figure beside its baseline.
#[derive(Serialize)]
pub struct Row {
    what: String,
    unit: Unit,
    measured: Series,
    baseline: Series,
    /// The median of the ratios, run by run.
    ratio: f64,
    ratios: Vec<f64>,
    must: Option<Checked>,
    aim: Option<Checked>,
    reproduce: String,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The median, in the unit of the row, is at most this.
    AtMost(f64),
}

#[derive(Serialize)]
struct Checked {
    target: Target,
    met: bool,
}

impl Series {
    /// What was measured under `name`, run by run.
    pub fn new(name: impl Into<String>, runs: Vec<f64>) -> Self {
        Self { name: name.into(), median: median(&runs), runs }
    }

    /// This less `other`, run by run.
    pub fn less(&self, name: impl Into<String>, other: &Self) -> Self {
        Self::new(name, self.runs.iter().zip(&other.runs).map(|(this, that)| this - that).collect())
    }
}

impl Row {
    /// `measured` beside `baseline`.
    pub fn new(what: impl Into<String>, unit: Unit, measured: &Series, baseline: &Series, reproduce: String) -> Self {
        let pairs = measured.runs.iter().zip(&baseline.runs).filter(|(_, base)| **base != 0.0);
        let ratios: Vec<f64> = pairs.map(|(value, base)| value / base).collect();
        Self {
            what: what.into(),
            unit,
            measured: measured.clone(),
            baseline: baseline.clone(),
            ratio: median(&ratios),
            ratios,
            must: None,
            aim: None,
            reproduce,
        }
    }

    /// It must reach `target`.
    pub fn must(mut self, target: Target) -> Self {
        self.must = Some(self.check(target));
        self
    }

    /// It should reach `target`.
    pub fn aim(mut self, target: Target) -> Self {
        self.aim = Some(self.check(target));
        self
    }

    fn check(&self, target: Target) -> Checked {
        let met = match target {
            Target::RatioAtLeast(least) => self.ratio >= least,
            Target::AtMost(most) => self.measured.median <= most,
        };
        Checked { target, met }
    }

    fn cells(&self) -> [String; 7] {
        let show = |value| self.unit.show(value);
        let target = |checked: &Option<Checked>| match checked {
            None => String::new(),
            Some(Checked { target, met }) => {
                let text = match target {
                    Target::RatioAtLeast(least) => format!("≥ {}×", plain(*least)),
                    Target::AtMost(most) => format!("≤ {}", show(*most)),
                };
                format!("{text} {}", if *met { "yes" } else { "NO" })
            }
        };
        let ratio = if self.ratios.is_empty() {
            "–".to_owned()
        } else {
            format!("{}× ({}–{})", plain(self.ratio), plain(smallest(&self.ratios)), plain(largest(&self.ratios)))
        };
        [
            self.what.clone(),
            show(self.measured.median),
            format!("{} {}", show(self.baseline.median), self.baseline.name),
            ratio,
            target(&self.must),
            target(&self.aim),
            self.reproduce.clone(),
        ]
    }
}

impl Report {
    /// An empty report about this machine.
    pub fn new(setup: &Setup) -> Self {
        let mut programs = vec![child::version(&setup.pillion), child::version(&setup.wasmtime)];
        // The plain hyper server is this program: as a debug build it would be too easy a baseline.
        let build = if cfg!(debug_assertions) { " (DEBUG BUILD: not for publishing)" } else { "" };
        programs.push(format!("pillion-bench {}{build}", env!("CARGO_PKG_VERSION")));
        Self { machine: proc::Machine::read(), programs, sections: Vec::new(), failures: Vec::new() }
    }

    /// Adds a bench. One that failed is kept as a failure, so that what was measured before it is not lost.
    pub fn add(&mut self, bench: &str, section: anyhow::Result<Section>) {
        match section {
            Ok(section) => self.sections.push(section),
            Err(error) => {
                eprintln!("pillion-bench: {bench}: {error:#}");
                self.failures.push(format!("{bench}: {error:#}"));
            }
        }
    }

    /// Whether a bench could not be done.
    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Whether a figure misses what it must reach.
    pub fn missed(&self) -> bool {
        let mut rows = self.sections.iter().flat_map(|section| &section.rows);
        rows.any(|row| row.must.as_ref().is_some_and(|must| !must.met))
    }

    /// To standard output, and to the file that was asked for.
    ///
    /// # Errors
    ///
    /// What cannot be written.
    pub fn print(&self, setup: &Setup) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        if let Some(path) = &setup.json {
            std::fs::write(path, format!("{json}\n")).with_context(|| format!("{}: write", path.display()))?;
        }
        let text = match setup.output {
            Output::Json => json,
            Output::Table => self.table(setup),
        };
        writeln!(std::io::stdout(), "{text}").context("standard output cannot be written")
    }

    fn table(&self, setup: &Setup) -> String {
        let mut text = format!("{}\n{}\n", self.machine, self.programs.join(" · "));
        let runs = setup.runs;
        text += &format!("Medians of {runs} runs in turns; ratios run by run: median (smallest–largest).\n");
        if runs < RUNS {
            text += &format!("Fewer than {RUNS} runs: for trying out, not for publishing.\n");
        }
        for section in &self.sections {
            text += &format!("\n{}\n", section.title);
            for note in &section.notes {
                text += &format!("  {note}\n");
            }
            text += &columns(&section.rows);
        }
        for failure in &self.failures {
            text += &format!("\nFAILED {failure}\n");
        }
        text
    }
}

fn columns(rows: &[Row]) -> String {
    let head = ["", "measured", "baseline", "ratio", "must", "aim", "reproduce with"].map(str::to_owned);
    let lines: Vec<[String; 7]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .filter(|(_, width)| *width > 0)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_run_by_run_so_that_drift_does_not_count() {
        let measured = Series::new("pillion", vec![40.0, 20.0, 80.0]);
        let baseline = Series::new("wasmtime serve", vec![10.0, 5.0, 20.0]);
        let row = Row::new("requests", Unit::PerSecond, &measured, &baseline, String::new());
        assert_eq!(row.ratios, [4.0, 4.0, 4.0]);
        let row = row.must(Target::RatioAtLeast(4.0)).aim(Target::RatioAtLeast(5.0));
        assert!(row.must.as_ref().unwrap().met && !row.aim.as_ref().unwrap().met);
        assert_eq!(row.cells()[3..6], ["4.00× (4.00–4.00)", "≥ 4.00× yes", "≥ 5.00× NO"]);
    }

    #[test]
    fn a_baseline_of_nothing_has_no_ratio() {
        let row = Row::new(
            "memory",
            Unit::Bytes,
            &Series::new("pillion", vec![12e6]),
            &Series::new("nothing", vec![0.0]),
            String::new(),
        );
        assert_eq!(row.cells()[3], "–");
    }
}
