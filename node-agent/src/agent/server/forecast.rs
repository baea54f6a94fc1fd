//! Predictions made ahead. Reading a long history and learning from it takes longer than all else of a start, so
//! it is done when a run has ended: the next one that starts with the same features finds its prediction ready.
//! Others have theirs made when they start, from what was learnt of the task by then ([`learnt`]).

use super::Agent;
use crate::agent::learnt;
use crate::fingerprint::key::{Feature, TaskKey};
use crate::predict::{Learnt, Prediction};
use crate::store::{Reader, StoreError};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most predictions that are kept; all are dropped when it is reached.
const FORECASTS_MAX: usize = 4096;

/// How long one is good: launchers that measure by themselves may have added runs since.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Forecasts {
    known: HashMap<TaskKey, Forecast>,
    /// Being made: many runs of a task that end at once need one prediction.
    under_way: HashSet<TaskKey>,
}

#[derive(Debug)]
struct Forecast {
    features: Vec<Feature>,
    prediction: Prediction,
    made: Instant,
}

impl Forecasts {
    fn find(&self, key: &TaskKey, features: &[Feature]) -> Option<Prediction> {
        let forecast = self.known.get(key)?;
        let is_good = forecast.features == features && forecast.made.elapsed() < GOOD_FOR;
        is_good.then(|| forecast.prediction.clone())
    }

    fn keep(&mut self, key: TaskKey, features: Vec<Feature>, prediction: Prediction) {
        if self.known.len() >= FORECASTS_MAX {
            self.known.clear();
        }
        self.known.insert(key, Forecast { features, prediction, made: Instant::now() });
    }
}

impl Agent {
    /// What a run that starts now will need. A prediction made ahead may lack the run that has just ended.
    pub(super) fn predict(&self, key: &TaskKey, features: &[Feature]) -> Result<Prediction, StoreError> {
        match self.forecasts.borrow().find(key, features) {
            Some(prediction) => Ok(prediction),
            None => self.predict_now(key, features),
        }
    }

    fn predict_now(&self, key: &TaskKey, features: &[Feature]) -> Result<Prediction, StoreError> {
        let reader = self.reader.borrow();
        let of_task = self.learnt.borrow_mut().of(&reader, key)?;
        learnt::predict(&reader, key, &of_task, features, self.config().run.risk)
    }

    /// Makes the prediction for the next run that is like the one that has just been recorded, on another
    /// thread. After one that did not end well the last prediction serves no more.
    pub(super) fn forecast(self: &Rc<Self>, key: TaskKey, features: Vec<Feature>, ended_well: bool) {
        if !ended_well {
            self.forecasts.borrow_mut().known.remove(&key);
        }
        if !self.forecasts.borrow_mut().under_way.insert(key.clone()) {
            return;
        }
        let agent = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let (database, risk) = (agent.database.clone(), agent.config().run.risk);
            let task = key.clone();
            let made = tokio::task::spawn_blocking(move || {
                let reader = Reader::open(&database)?;
                let (history, behind) = reader.history_of_task(&task)?;
                let of_task = Learnt::of(&history);
                let prediction = learnt::predict(&reader, &task, &of_task, &features, risk)?;
                Ok::<_, StoreError>((features, prediction, behind, of_task))
            });
            let made = made.await;
            agent.forecasts.borrow_mut().under_way.remove(&key);
            match made {
                Ok(Ok((features, prediction, behind, of_task))) => {
                    agent.learnt.borrow_mut().keep(key.clone(), behind, Arc::new(of_task));
                    agent.forecasts.borrow_mut().keep(key, features, prediction);
                }
                Ok(Err(error)) => tracing::warn!("no prediction made ahead: {error}"),
                Err(error) => tracing::error!("no prediction made ahead: {error}"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::key::FeatureValue;

    #[test]
    fn only_a_start_like_the_last_one_finds_it() {
        let key = |name: &str| TaskKey { task_type: name.into(), uid: 0 };
        let features =
            |bytes| vec![Feature { name: "input_bytes".into(), value: FeatureValue::Number(bytes) }];
        let mut forecasts = Forecasts::default();
        forecasts.keep(key("xz"), features(1.0), Prediction::default());
        assert!(forecasts.find(&key("xz"), &features(1.0)).is_some());
        assert!(forecasts.find(&key("xz"), &features(2.0)).is_none());
        assert!(forecasts.find(&key("gcc"), &features(1.0)).is_none());
    }

    #[test]
    fn they_are_bounded() {
        let mut forecasts = Forecasts::default();
        for uid in 0..3 * FORECASTS_MAX as u32 {
            forecasts.keep(TaskKey { task_type: "xz".into(), uid }, vec![], Prediction::default());
            assert!(forecasts.known.len() <= FORECASTS_MAX);
        }
    }
}
