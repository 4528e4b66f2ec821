//! Figures with their spread, and the table that is printed.

use std::{fmt::Write as _, io::Write as _, time::Duration};

/// Runs of each figure, in turns with its peers.
pub(crate) const RUNS: usize = 5;

/// Anything that keeps a figure from being measured.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Values of one figure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> String {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => format!("{} to {}", number(*first), number(*last)),
            _ => "–".to_owned(),
        }
    }
}

/// Three digits, thousands apart.
fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Whether a figure is where it should be.
pub(crate) enum Aim<'a> {
    /// A peer: there for comparison.
    None,
    /// What is wanted, whether it is met, and what bounds it if not.
    Of(&'a str, bool, &'a str),
}

/// The result.
#[derive(Default)]
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn row(&mut self, what: &str, unit: &str, series: &Series, aim: &Aim<'_>) {
        let median = number(series.median());
        let spread = series.spread();
        let verdict = match aim {
            Aim::None => "–".to_owned(),
            Aim::Of(aim, true, _) => format!("{aim}: met"),
            Aim::Of(aim, false, why) => format!("{aim}: **missed**; {why}"),
        };
        let line = format!("| {what} | {median} {unit} | {spread} | {verdict} |");
        progress(&line);
        writeln!(self.0, "{line}").expect("a String takes everything");
    }

    pub(crate) fn print(&self) {
        let mut out = std::io::stdout().lock();
        let head = "| what | median of 5 | least to most | aim |\n|---|---|---|---|\n";
        // Whoever closed the output does not want it.
        let _ = write!(out, "{head}{}", self.0);
    }
}

pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// So many per second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// A small random generator: the same numbers in every run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Less than `n`. SplitMix64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
