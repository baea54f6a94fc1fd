//! What a monitoring system scrapes: in come what the agent sees now and what it has added up, out goes Prometheus
//! text. Pure but for `http`, which speaks with the scraper; the agent wires both (`agent/server/metrics.rs`).
//!
//! [`names`] has every metric with its kind, labels and meaning; `docs/metrics.md` is held against it by a test.
//! Series are bounded: tasks by [`Tally`], services and kinds of events by [`SERVICES_MAX`] and [`KINDS_MAX`]. Labels
//! are names of tasks, users, services and licences, and words of standin's own; never a process or a command line.

mod encode;
pub mod http;
pub mod names;
mod tally;

pub use encode::encode;
pub use tally::{OTHER, Tally, TaskSeries};

use crate::live::Snapshot;
use crate::service::control::Status;
use std::collections::BTreeMap;
use std::time::Duration;

/// Most services that have series of their own; what happens to more is counted under [`OTHER`].
pub const SERVICES_MAX: usize = 50;

/// Most kinds of events, with their severities, that have series of their own.
pub const KINDS_MAX: usize = 100;

/// What the agent has to say.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All there is to see, without tasks and those who wait.
    pub snapshot: Snapshot,
    /// Tasks by kind and user.
    pub tasks: Vec<((String, String), TaskSeries)>,
    /// Runs that found no series of their own.
    pub overflowed: u64,
    /// Predictions that were held against what runs then did, by resource.
    pub accuracy: BTreeMap<&'static str, Accuracy>,
    /// How long whoever waits for the longest has waited, seconds; 0 if nobody does.
    pub longest_wait_s: f64,
    /// What was learnt of tasks takes in memory.
    pub learnt_bytes: usize,
    /// How long making the snapshot held the agent up.
    pub took: Duration,
}

/// How good predictions were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// How many could be judged.
    pub judged: u64,
    /// Of those, how often the bound was exceeded.
    pub exceeded: u64,
    /// Sum of |expected − actual| ÷ actual.
    pub error_ratio: f64,
}

/// What was read beside it: from the database and from services, on the scraper's thread.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Events since the agent started: by kind and severity.
    pub events: BTreeMap<(String, String), u64>,
    /// Failovers since the agent started: by service and cause.
    pub failovers: BTreeMap<(String, String), u64>,
    /// Services that answer this agent's user.
    pub services: Vec<Status>,
    /// Scrapes that were answered.
    pub scrapes: u64,
}

impl Beside {
    /// Counts events, of kinds beyond [`KINDS_MAX`] under [`OTHER`].
    pub fn add_events(&mut self, kind: String, severity: String, count: u64) {
        add(&mut self.events, (kind, severity), KINDS_MAX, count);
    }

    /// Counts failovers, of services beyond [`SERVICES_MAX`] under [`OTHER`].
    pub fn add_failovers(&mut self, service: String, cause: String, count: u64) {
        // A service has at most five causes.
        add(&mut self.failovers, (service, cause), SERVICES_MAX * 5, count);
    }
}

fn add(
    counts: &mut BTreeMap<(String, String), u64>,
    (name, word): (String, String),
    most: usize,
    count: u64,
) {
    let is_full = counts.len() >= most && !counts.contains_key(&(name.clone(), word.clone()));
    let key = if is_full { (OTHER.to_owned(), word) } else { (name, word) };
    *counts.entry(key).or_default() += count;
}

#[cfg(test)]
mod tests;
