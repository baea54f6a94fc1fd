//! Strikes added up, and rows of them.

use crate::quartiles::Quartiles;
use crate::strike::Strike;
use std::time::Duration;

/// All strikes at one contestant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) strikes: u64,
    pub(crate) sent: u64,
    pub(crate) refused: u64,
    /// Lost, and no server had read it.
    pub(crate) unread: u64,
    /// Lost, and a server had read it.
    pub(crate) in_process: u64,
    /// Answered with a 5xx status.
    pub(crate) unserved: u64,
    pub(crate) usual_ms: Vec<f64>,
    pub(crate) first_answer_ms: Vec<f64>,
    /// The longest wait for an answer of each strike.
    pub(crate) longest_ms: Vec<f64>,
}

impl Sum {
    pub(crate) fn add(&mut self, strike: &Strike) {
        self.strikes += 1;
        self.sent += strike.fates.sent();
        self.refused += strike.fates.refused;
        self.unread += strike.unread();
        self.in_process += strike.in_process;
        self.unserved += strike.fates.unserved;
        self.usual_ms.push(milliseconds(strike.usual));
        self.first_answer_ms.push(milliseconds(strike.first_answer));
        self.longest_ms.push(strike.fates.latency_us(1.0) as f64 / 1e3);
    }

    /// `median [p25 p75] p99` of the first answer.
    pub(crate) fn first_answer(&self) -> String {
        spread(&self.first_answer_ms)
    }

    pub(crate) fn header() -> String {
        format!(
            "{:<26}{:>6}{:>8}{:>8}{:>8}{:>8}{:>6}{:>8}{:>34}{:>10}",
            "",
            "times",
            "sent",
            "refused",
            "unread",
            "read",
            "5xx",
            "usual",
            "first answer, ms [p25 p75] p99",
            "longest"
        )
    }

    pub(crate) fn row(&self, name: &str) -> String {
        let longest = Quartiles::of(&self.longest_ms).map_or(0.0, |quartiles| quartiles.median);
        format!(
            "{name:<26}{:>6}{:>8}{:>8}{:>8}{:>8}{:>6}{:>8.2}{:>34}{longest:>10.1}",
            self.strikes,
            self.sent,
            self.refused,
            self.unread,
            self.in_process,
            self.unserved,
            median(&self.usual_ms),
            self.first_answer()
        )
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) fn median(values: &[f64]) -> f64 {
    Quartiles::of(values).map_or(f64::NAN, |quartiles| quartiles.median)
}

/// `median [p25 p75] p99`; the last one is the largest of fewer than 100 values.
pub(crate) fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let most = sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1));
    match (Quartiles::of(values), most) {
        (Some(quartiles), Some(most)) => format!("{} {most:.2}", quartiles.show(2)),
        _ => "-".into(),
    }
}
