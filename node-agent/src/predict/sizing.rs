//! Memory of one kind of task, learned run by run: the same engine as [`super::predict`] for those who keep its state,
//! as a replay does.

use super::base::Row;
use super::columns::Columns;
use super::estimate::{MEMORY_EXTRA_BYTES, MEMORY_LEAST_BYTES, PER_FAILURE};
use super::learner::{Learner, Objective};
use crate::fingerprint::key::Feature;
use std::collections::BTreeMap;

/// Price of raising a limit in place, as a share of memory × time.
const PER_RAISE: f64 = 0.05;

/// A user's request caps a reservation as long as no run needed this share of it.
const REQUEST_TRUSTED: f64 = 1.0 / 1.1;
/// After one run at least this times what it took is reserved.
const ONE_RUN_LEAST: f64 = 1.3;

/// What happens when a reservation is too small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TooSmall {
    /// The task is killed and starts again.
    Kills,
    /// The limit grows in place by this factor.
    Grows(f64),
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Sizing {
    objective: Objective,
    /// What columns are chosen from: as many as the ring holds.
    runs: Vec<(Vec<Feature>, f64, f64)>,
    columns: Columns,
    learner: Learner,
    /// What runs had that met their limit and have not ended well since.
    bounds: BTreeMap<usize, f64>,
    largest_bytes: f64,
}

impl Sizing {
    /// Knows nothing yet.
    pub fn new(too_small: TooSmall) -> Self {
        let objective = match too_small {
            TooSmall::Kills => Objective::Reserve { per_failure: PER_FAILURE },
            TooSmall::Grows(step) => Objective::Grow { step, per_step: PER_RAISE },
        };
        let columns = Columns::default();
        let learner = Learner::new(&columns.bases(), columns.main());
        Self { objective, runs: Vec::new(), columns, learner, bounds: BTreeMap::new(), largest_bytes: 0.0 }
    }

    /// Largest peak of a run that ended well, bytes; 0 before there is one.
    pub fn largest_bytes(&self) -> f64 {
        self.largest_bytes
    }

    /// What to reserve for a run whose user asked for `asked_bytes`; `None` before any has ended. The request caps it as
    /// long as no run needed nearly as much; after one run alone, the geometric mean of that run (once)
    /// and the request (twice) does.
    pub fn reserve_bytes(&self, features: &[Feature], asked_bytes: f64) -> Option<f64> {
        let bounds: Vec<_> = self.bounds.values().copied().collect();
        let candidates = self.learner.candidates(&self.columns.known(features), &bounds, self.objective);
        let best = candidates.first()?;
        let bytes = (best.amount() + MEMORY_EXTRA_BYTES).max(MEMORY_LEAST_BYTES);
        let trusted = self.largest_bytes < asked_bytes * REQUEST_TRUSTED;
        let cap = match self.learner.past().len() {
            _ if !trusted => f64::INFINITY,
            1 => (self.largest_bytes * asked_bytes * asked_bytes)
                .cbrt()
                .max(self.largest_bytes * ONE_RUN_LEAST),
            _ => asked_bytes,
        };
        Some(bytes.min(cap))
    }

    /// Run `id` met its limit of `bytes`: what to retry with. `None` where nothing is known.
    pub fn met_limit(&mut self, id: usize, features: &[Feature], bytes: f64) -> Option<f64> {
        self.bounds.insert(id, bytes);
        let bounds: Vec<_> = self.bounds.values().copied().collect();
        let candidates = self.learner.candidates(&self.columns.known(features), &bounds, self.objective);
        let best = candidates.first()?;
        Some(self.learner.ladder(best.base, best.value, bytes, &bounds))
    }

    /// Run `id` ended well.
    pub fn ended(&mut self, id: usize, features: &[Feature], peak_bytes: f64, seconds: f64) {
        self.bounds.remove(&id);
        self.largest_bytes = self.largest_bytes.max(peak_bytes);
        if self.runs.len() >= super::learner::RING_MAX {
            self.runs.remove(0);
        }
        self.runs.push((features.to_vec(), peak_bytes, seconds));
        let columns = Columns::choose(self.runs.iter().map(|(features, y, _)| (features.as_slice(), *y)));
        let same =
            columns.numbers.iter().map(|(name, _)| name).eq(self.columns.numbers.iter().map(|(n, _)| n))
                && columns.words == self.columns.words;
        self.columns = columns;
        if same {
            self.push(features, peak_bytes, seconds);
        } else {
            // Other features matter than before: all runs are judged anew.
            self.learner = Learner::new(&self.columns.bases(), self.columns.main());
            for (features, peak_bytes, seconds) in std::mem::take(&mut self.runs) {
                self.push(&features, peak_bytes, seconds);
                self.runs.push((features, peak_bytes, seconds));
            }
        }
    }

    fn push(&mut self, features: &[Feature], peak_bytes: f64, seconds: f64) {
        let row = Row { y: peak_bytes, known: self.columns.known(features) };
        self.learner.push(row, seconds.max(1.0));
    }
}
