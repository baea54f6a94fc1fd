//! What holds for a task: the command line over the rules for its kind over the configuration; and what it is
//! promised, from that and its prediction.

use crate::config::{Config, Size, TaskRule};
use crate::host::Capacity;
use crate::predict::{Level, Prediction, Resource};
use crate::size::admission::{Licenses, Promise, Total, WhenFull};
use crate::size::{Manual, Policy};
use crate::wire::{Asked, Start};
use std::time::Duration;

/// What holds for a task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Terms {
    /// How hard predicted limits are.
    pub(super) policy: Policy,
    /// Limits and promises by hand.
    pub(super) manual: Manual,
    /// What happens when the host has no room.
    pub(super) when_full: WhenFull,
    /// How long it waits at most.
    pub(super) wait_max: Option<Duration>,
    /// Who waits less.
    pub(super) priority: i32,
    /// Licences that it takes; `None` leaves it to what past runs used.
    pub(super) licenses: Option<Licenses>,
}

/// What holds for the task that `start` asks for.
pub(super) fn terms(config: &Config, task_type: &str, start: &Start) -> Terms {
    let none = TaskRule::default();
    let rule = config.task.get(task_type).unwrap_or(&none);
    let asked: &Asked = &start.admission;
    let named = [&asked.licenses, &rule.licenses].into_iter().find(|licenses| !licenses.is_empty());
    Terms {
        policy: start.policy.or(rule.policy).unwrap_or(config.run.policy),
        manual: manual(&start.manual, rule, config.run.cpu_quota),
        when_full: asked.when_full.or(rule.when_full).unwrap_or(config.admission.when_full),
        wait_max: asked.wait_max_ms.map(Duration::from_millis),
        priority: asked.priority.or(rule.priority).unwrap_or(0),
        licenses: named.map(|licenses| {
            licenses
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| (name.clone(), *count))
                .collect()
        }),
    }
}

fn manual(asked: &Manual, rule: &TaskRule, cpu_quota: bool) -> Manual {
    let bytes = |asked: Option<u64>, rule: Option<Size>| asked.or(rule.map(|size| size.0));
    let memory_bytes = bytes(asked.memory_bytes, rule.limit_memory);
    let floor = bytes(asked.memory_floor_bytes, rule.reserve_memory);
    Manual {
        memory_bytes,
        cpu_cores: asked.cpu_cores.or(rule.limit_cpu),
        tasks: asked.tasks.or(rule.limit_tasks),
        io_read_bytes_per_s: bytes(asked.io_read_bytes_per_s, rule.limit_read),
        io_write_bytes_per_s: bytes(asked.io_write_bytes_per_s, rule.limit_write),
        memory_floor_bytes: floor.map(|floor| floor.min(memory_bytes.unwrap_or(u64::MAX))),
        cpu_floor_cores: asked.cpu_floor_cores.or(rule.reserve_cpu),
        cpu_quota: asked.cpu_quota.or(rule.cpu_quota).or(Some(cpu_quota)),
    }
}

/// What there is to promise.
pub(super) fn total(config: &Config, capacity: Capacity) -> Total {
    let reserve = config.host.reserve_memory.of(capacity.memory_bytes);
    Total {
        memory_bytes: capacity.memory_bytes - reserve,
        cpu_cores: capacity.cpus as f64 * config.admission.cpu_overcommit,
        licenses: config.license.iter().map(|(name, pool)| (name.clone(), pool.total)).collect(),
    }
}

/// What a task is promised: memory at its upper bound, which it must not exceed without the host having room;
/// cores as expected, which tasks share without harm.
pub(super) fn promise(
    prediction: &Prediction,
    terms: &Terms,
    licenses: Licenses,
    config: &Config,
) -> Promise {
    let own = |resource| prediction.estimate(resource).filter(|estimate| estimate.level != Level::Host);
    let manual = terms.manual;
    let memory = own(Resource::MemoryPeakBytes).map(|memory| memory.upper.clamp(0.0, 1e18) as u64);
    let memory = memory.unwrap_or(if manual.memory_floor_bytes.is_some() {
        0
    } else {
        config.admission.unknown_memory.0
    });
    let memory =
        memory.max(manual.memory_floor_bytes.unwrap_or(0)).min(manual.memory_bytes.unwrap_or(u64::MAX));
    let cores = own(Resource::CpuCoresMean).map_or(1.0, |cpu| cpu.expected.clamp(0.0, 1e6));
    let cores = cores.max(manual.cpu_floor_cores.unwrap_or(0.0)).min(manual.cpu_cores.unwrap_or(f64::MAX));
    Promise { memory_bytes: memory, cpu_cores: cores, licenses }
}

/// How long it will probably run, milliseconds.
pub(super) fn duration_ms(prediction: &Prediction) -> Option<i64> {
    let duration =
        prediction.estimate(Resource::DurationS).filter(|duration| duration.level != Level::Host)?;
    Some((duration.expected.clamp(0.0, 1e9) * 1000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Estimate;
    use crate::size::admission::Ledger;
    use crate::wire::Leftover;
    use crate::wire::Request;
    use proptest::prelude::*;

    fn start() -> Start {
        Start {
            pid: None,
            task_type: "train".into(),
            command: Vec::new(),
            directory: String::new(),
            features: Vec::new(),
            policy: None,
            manual: Manual::default(),
            leftover: Leftover::Leave,
            admission: Asked::default(),
        }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.task.insert(
            "train".into(),
            TaskRule {
                policy: Some(Policy::Strict),
                when_full: Some(WhenFull::Wait),
                priority: Some(5),
                limit_memory: Some(Size(1000)),
                reserve_memory: Some(Size(500)),
                licenses: Licenses::from([("cad".into(), 2)]),
                ..TaskRule::default()
            },
        );
        config
    }

    #[test]
    fn the_command_line_wins_over_the_rule_over_the_configuration() {
        let plain = terms(&config(), "other", &start());
        assert_eq!((plain.policy, plain.when_full, plain.licenses), (Policy::Elastic, WhenFull::Start, None));
        let ruled = terms(&config(), "train", &start());
        assert_eq!((ruled.policy, ruled.when_full, ruled.priority), (Policy::Strict, WhenFull::Wait, 5));
        assert_eq!(ruled.manual.memory_bytes, Some(1000));
        assert_eq!(ruled.licenses, Some(Licenses::from([("cad".into(), 2)])));
        let mut asked = start();
        asked.policy = Some(Policy::Observe);
        asked.manual.memory_bytes = Some(200);
        asked.admission.when_full = Some(WhenFull::Fail);
        asked.admission.licenses = Licenses::from([("cad".into(), 0)]);
        let asked = terms(&config(), "train", &asked);
        assert_eq!((asked.policy, asked.when_full, asked.priority), (Policy::Observe, WhenFull::Fail, 5));
        assert_eq!(asked.manual.memory_floor_bytes, Some(200), "a floor is not above the limit");
        assert_eq!(asked.licenses, Some(Licenses::new()), "none at all, whatever past runs used");
    }

    #[test]
    fn a_promise_is_the_bound_within_what_was_said_by_hand() {
        let estimate = |resource, expected, upper| Estimate {
            resource,
            expected,
            upper,
            risk: 0.05,
            samples: 3,
            level: Level::Task,
            width: None,
            reason: String::new(),
        };
        let prediction = Prediction {
            estimates: vec![
                estimate(Resource::MemoryPeakBytes, 600.0, 800.0),
                estimate(Resource::CpuCoresMean, 1.5, 3.0),
                estimate(Resource::DurationS, 2.0, 9.0),
            ],
        };
        let of = |memory_bytes, floor, prediction: &Prediction| {
            let manual = Manual { memory_bytes, memory_floor_bytes: floor, ..Manual::default() };
            let terms = Terms { manual, ..terms(&Config::default(), "x", &start()) };
            let promise = promise(prediction, &terms, Licenses::new(), &Config::default());
            (promise.memory_bytes, promise.cpu_cores)
        };
        assert_eq!(of(None, None, &prediction), (800, 1.5));
        assert_eq!(of(Some(700), None, &prediction), (700, 1.5));
        assert_eq!(of(None, Some(900), &prediction), (900, 1.5));
        assert_eq!(of(None, None, &Prediction::default()), (128 << 20, 1.0));
        assert_eq!(of(None, Some(900), &Prediction::default()), (900, 1.0));
        assert_eq!(duration_ms(&prediction), Some(2000));
    }

    fn amounts() -> impl Strategy<Value = Manual> {
        let bytes = || prop::option::of(any::<u64>());
        let cores = || prop::option::of(any::<f64>());
        (bytes(), cores(), bytes(), bytes(), cores()).prop_map(|(memory, cores, tasks, floor, cpu_floor)| {
            Manual {
                memory_bytes: memory,
                cpu_cores: cores,
                tasks,
                memory_floor_bytes: floor,
                cpu_floor_cores: cpu_floor,
                ..Manual::default()
            }
        })
    }

    proptest! {
        /// Whatever gets past the border can be promised and taken back, and leaves nothing behind.
        #[test]
        fn hostile_promises(asked in proptest::collection::vec(amounts(), 1..6), since_ms in any::<i64>()) {
            let mut ledger = Ledger::new(total(&Config::default(), Capacity { cpus: 4, memory_bytes: 8 << 30 }));
            let nothing = ledger.promised();
            let mut tickets = Vec::new();
            for manual in asked {
                let start = Start { manual, ..start() };
                if Request::Start(Box::new(start.clone())).check().is_err() {
                    continue;
                }
                let terms = terms(&config(), "train", &start);
                let promise = promise(&Prediction::default(), &terms, Licenses::new(), &Config::default());
                prop_assert!(promise.cpu_cores.is_finite() && promise.cpu_cores >= 0.0);
                tickets.push(ledger.promise(promise.clone(), Some(since_ms)));
                let rank = (terms.priority, since_ms);
                tickets.extend(ledger.wait(promise, false, rank, Some(1)));
            }
            _ = ledger.queue(since_ms);
            tickets.into_iter().for_each(|ticket| ledger.release(ticket));
            prop_assert_eq!(ledger.promised().memory_bytes, nothing.memory_bytes);
            prop_assert!(ledger.promised().cpu_cores.abs() < 1e-3);
        }
    }
}
