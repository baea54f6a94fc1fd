//! What is learnt of a task from its own runs, which may be kept from one prediction to the next: it takes a hundred times
//! longer to learn than to tell. It is made from rows alone, never changed, and made anew when the rows are others; so
//! what is kept tells exactly what is made anew.

use super::estimate::{self, Evidence};
use super::{History, Prediction, RESOURCES, Resource};
use crate::fingerprint::key::Feature;

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// In the order of [`Resource::ALL`]; `None` where no run of the task says anything.
    evidence: [Option<Evidence>; RESOURCES],
}

impl Learnt {
    /// From the runs of the task in `history`.
    pub fn of(history: &History) -> Self {
        Self { evidence: Resource::ALL.map(|resource| estimate::of_task(history, resource)) }
    }

    /// Whether its runs say something about every resource, so that those of other tasks need not be read.
    pub fn is_complete(&self) -> bool {
        self.evidence.iter().all(Option::is_some)
    }

    /// As [`super::predict`]; of `history` only runs of other tasks, what goes on and what became of predictions is
    /// looked at.
    pub fn predict(&self, history: &History, features: &[Feature], risk: f64) -> Prediction {
        let estimate = |resource: Resource| match &self.evidence[resource as usize] {
            Some(own) => Some(own.estimate(features, history, resource, risk)),
            None => Some(estimate::of_host(history, resource)?.estimate(features, history, resource, risk)),
        };
        Prediction { estimates: Resource::ALL.into_iter().filter_map(estimate).collect() }
    }

    /// What it takes in memory, bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.evidence.iter().flatten().map(Evidence::bytes).sum::<usize>()
    }
}
