//! What the probes may cost. Now and then the kernel counts for a second how long programs run; over the budget the
//! dearest probe is given up, and comes back after a while: after longer each time that it was too dear again.
//! The ends of processes are never given up, as runs could not be closed without.

use super::Agent;
use crate::probe::{ProgramCost, Stats};
use std::time::{Duration, Instant};

/// How long times are counted.
const COUNTED: Duration = Duration::from_secs(1);

/// How long a probe stays away at first, and at most.
const AWAY_MIN: Duration = Duration::from_secs(60);
const AWAY_MAX: Duration = Duration::from_secs(3600);

/// Probes that are never given up.
const KEPT: [&str; 2] = ["lifecycle", "oom"];

/// A probe that was given up at least once.
#[derive(Clone, Debug, PartialEq)]
struct Shed {
    probe: String,
    /// When it may come back; `None`: it is back.
    until: Option<Instant>,
    /// How long it stays away the next time.
    away: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    GiveUp { probe: String, share: f64, away: Duration },
    TakeBack(String),
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Budget {
    counting: Option<(Stats, Instant)>,
    counted_at: Option<Instant>,
    costs: Vec<ProgramCost>,
    shed: Vec<Shed>,
}

impl Budget {
    /// What the programs cost when it was counted last.
    pub(super) fn costs(&self) -> &[ProgramCost] {
        &self.costs
    }

    /// Decides by the costs that were counted last.
    fn decide(&mut self, budget: f64, now: Instant) -> Option<Action> {
        let total: f64 = self.costs.iter().map(|cost| cost.share).sum();
        if total > budget {
            let probe = dearest(&self.costs)?;
            let share = self.costs.iter().filter(|cost| cost.probe == probe).map(|cost| cost.share).sum();
            let known = self.shed.iter().position(|shed| shed.probe == probe);
            let index = known.unwrap_or_else(|| {
                self.shed.push(Shed { probe: probe.clone(), until: None, away: AWAY_MIN });
                self.shed.len() - 1
            });
            let shed = &mut self.shed[index];
            let away = shed.away;
            shed.until = Some(now + away);
            shed.away = (away * 2).min(AWAY_MAX);
            return Some(Action::GiveUp { probe, share, away });
        }
        let back = self.shed.iter_mut().find(|shed| shed.until.is_some_and(|until| until <= now))?;
        back.until = None;
        Some(Action::TakeBack(back.probe.clone()))
    }
}

/// The probe whose programs cost the most, of those that can be given up.
fn dearest(costs: &[ProgramCost]) -> Option<String> {
    let share =
        |probe: &str| costs.iter().filter(|cost| cost.probe == probe).map(|cost| cost.share).sum::<f64>();
    let may_go = costs.iter().map(|cost| cost.probe.as_str()).filter(|probe| !KEPT.contains(probe));
    may_go.max_by(|a, b| share(a).total_cmp(&share(b))).map(ToOwned::to_owned)
}

impl Agent {
    /// To be called about once a second.
    pub(super) fn keep_budget(&self) {
        let (mut engine, mut budget) = (self.engine.borrow_mut(), self.budget.borrow_mut());
        let now = Instant::now();
        if let Some((_, since)) = &budget.counting {
            if now.duration_since(*since) < COUNTED {
                return;
            }
            let counted = budget.counting.take();
            let costs = counted.and_then(|(stats, _)| Some(engine.probes().ok()?.costs(&stats)));
            budget.costs = costs.unwrap_or_default();
            match budget.decide(self.config().agent.budget_percent / 100.0, now) {
                Some(Action::GiveUp { probe, share, away }) => {
                    let why = format!(
                        "given up for {} s: it took {:.2} % of the CPUs, and all probes may take {} % (agent.budget_percent)",
                        away.as_secs(),
                        share * 100.0,
                        self.config().agent.budget_percent
                    );
                    tracing::warn!("probe {probe} is {why}");
                    engine.shed(&probe, &why);
                }
                Some(Action::TakeBack(probe)) => match engine.restore(&probe) {
                    Ok(()) => tracing::info!("probe {probe} is back"),
                    Err(error) => tracing::warn!("probe {probe} does not come back: {error}"),
                },
                None => {}
            }
            return;
        }
        let every = Duration::from_secs(self.config().agent.cost_interval_s);
        if budget.counted_at.is_none_or(|at| now.duration_since(at) >= every) {
            budget.counted_at = Some(now);
            budget.counting =
                engine.probes().ok().and_then(|probes| probes.count_costs().ok()).map(|stats| (stats, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(name: &str, probe: &str, share: f64) -> ProgramCost {
        ProgramCost { name: name.into(), probe: probe.into(), share, ..ProgramCost::default() }
    }

    fn budget(costs: Vec<ProgramCost>) -> Budget {
        Budget { costs, ..Budget::default() }
    }

    #[test]
    fn within_the_budget_nothing_happens() {
        let mut budget = budget(vec![cost("sched_switch", "sched", 0.01)]);
        assert_eq!(budget.decide(0.02, Instant::now()), None);
    }

    #[test]
    fn the_dearest_probe_goes_first_and_life_and_death_never() {
        let mut budget = budget(vec![
            cost("process_exit", "lifecycle", 0.5),
            cost("sched_switch", "sched", 0.02),
            cost("sock_send_length", "socket", 0.015),
            cost("sock_recv_length", "socket", 0.015),
        ]);
        let now = Instant::now();
        let Some(Action::GiveUp { probe, share, away }) = budget.decide(0.02, now) else { panic!() };
        assert_eq!((probe.as_str(), away), ("socket", AWAY_MIN));
        assert!((share - 0.03).abs() < 1e-9);
        budget.costs.retain(|cost| cost.probe == "lifecycle");
        assert_eq!(budget.decide(0.02, now), None, "too dear, but there is nothing that may go");
    }

    #[test]
    fn a_probe_comes_back_and_stays_away_longer_the_next_time() {
        let dear = vec![cost("page_fault_user", "faults", 0.1)];
        let mut budget = budget(dear.clone());
        let start = Instant::now();
        assert!(matches!(budget.decide(0.02, start), Some(Action::GiveUp { .. })));
        budget.costs.clear();
        assert_eq!(budget.decide(0.02, start + AWAY_MIN / 2), None);
        assert_eq!(budget.decide(0.02, start + AWAY_MIN), Some(Action::TakeBack("faults".into())));
        assert_eq!(budget.decide(0.02, start + AWAY_MIN), None);
        budget.costs = dear;
        let again = budget.decide(0.02, start + AWAY_MIN);
        assert!(matches!(again, Some(Action::GiveUp { away, .. }) if away == 2 * AWAY_MIN));
    }
}
