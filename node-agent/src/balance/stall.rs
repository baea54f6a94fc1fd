//! Hang or busy machine? An instance hangs if connections wait, none is accepted, and that is its own doing.
//!
//! A bare stall says little: on a starved machine a healthy server also leaves its queue alone. So time counts
//! only while the instance neither gained CPU time nor was waiting for a CPU, and while the observer itself was
//! on time. Three thresholds, by what the instance does meanwhile:
//!
//! | it | threshold |
//! |---|---|
//! | sleeps (deadlock, stopped) | three times the 99.9th percentile of its own pauses, at least [`FLOOR`] |
//! | waits for storage (state D) | ten times that, at least [`STORAGE_FLOOR`] |
//! | computes (livelock, one long request) | twenty times that, at least [`BUSY_FLOOR`] |
//!
//! Pauses are the stretches in which connections waited and then one was accepted after all: what this service
//! needs when it is well. Until [`LEARNT`] of them were seen the thresholds start from [`UNLEARNT`].

use std::fmt;
use std::time::Duration;

/// Least threshold for an instance that sleeps.
const FLOOR: Duration = Duration::from_millis(50);
/// Least threshold for one that waits for storage.
const STORAGE_FLOOR: Duration = Duration::from_secs(2);
/// Least threshold for one that computes.
const BUSY_FLOOR: Duration = Duration::from_secs(5);
/// Stands for the 99.9th percentile until pauses are known: a threshold of 300 ms.
const UNLEARNT: Duration = Duration::from_millis(100);
/// Pauses after which the service's own are trusted.
const LEARNT: u64 = 200;
/// After so many pauses the older half is forgotten.
const FORGET: u64 = 20_000;
/// Buckets of pauses: bucket `i` holds those up to `2^i` times 100 µs; the last one all longer ones.
const BUCKETS: usize = 20;
const BUCKET_0_NS: u64 = 100_000;
/// A look that comes later than this multiple of the interval says that the machine is starved.
const LATE: u32 = 3;

/// What is seen of the active instance at one moment. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Time since an arbitrary start.
    pub at: Duration,
    /// Connections that wait to be accepted.
    pub queue: u64,
    /// Connections that were accepted: those established, counted before the queue was, less the queue. May fall
    /// short by those that were established between the two, and by those in the queue that are not counted yet.
    pub accepted: u64,
    /// CPU time used.
    pub cpu_ns: u64,
    /// One of its tasks is running or waits for a CPU.
    pub is_runnable: bool,
    /// One of its tasks waits for storage (state D).
    pub waits_for_storage: bool,
    /// Its main process is stopped (SIGSTOP).
    pub is_stopped: bool,
}

/// Why an instance is taken to hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// For how long nothing was accepted, not counting the time in which the machine was to blame.
    pub stalled: Duration,
    /// From when on that is a hang.
    pub threshold: Duration,
    /// Connections that wait.
    pub queue: u64,
    /// What it does meanwhile.
    pub doing: Doing,
}

/// What an instance does while it accepts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Sleeping,
    /// It was stopped by a signal.
    Stopped,
    /// Waiting for storage.
    Storage,
    /// Using the CPU.
    Computing,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = match self.doing {
            Doing::Sleeping => "asleep",
            Doing::Stopped => "stopped",
            Doing::Storage => "waiting for storage",
            Doing::Computing => "computing",
        };
        let (stalled, threshold) = (self.stalled.as_millis(), self.threshold.as_millis());
        write!(
            f,
            "accepted nothing for {stalled} ms (threshold {threshold} ms), {} waiting, {doing}",
            self.queue
        )
    }
}

/// The observer of one service. Learns from all its instances; the clock of a stall starts anew with each.
#[derive(Clone, Debug)]
pub struct Stall {
    interval: Duration,
    pauses: [u64; BUCKETS],
    last: Option<Look>,
    /// The most that was seen accepted.
    accepted: u64,
    /// Since when connections have been waiting without one being accepted.
    waiting_since: Option<Duration>,
    asleep: Duration,
    stopped: Duration,
    storage: Duration,
    computing: Duration,
}

impl Stall {
    /// For looks every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            pauses: [0; BUCKETS],
            last: None,
            accepted: 0,
            waiting_since: None,
            asleep: Duration::ZERO,
            stopped: Duration::ZERO,
            storage: Duration::ZERO,
            computing: Duration::ZERO,
        }
    }

    /// Another instance serves from now on.
    pub fn restart(&mut self) {
        self.last = None;
        self.accepted = 0;
        self.forgive();
    }

    fn forgive(&mut self) {
        self.waiting_since = None;
        self.asleep = Duration::ZERO;
        self.stopped = Duration::ZERO;
        self.storage = Duration::ZERO;
        self.computing = Duration::ZERO;
    }

    /// Takes a look in; `Some` if it shows a hang.
    pub fn observe(&mut self, look: Look) -> Option<Evidence> {
        let progressed = look.accepted > self.accepted;
        self.accepted = self.accepted.max(look.accepted);
        let last = self.last.replace(look)?;
        let passed = look.at.saturating_sub(last.at);
        if progressed || (look.queue == 0 && !look.is_stopped) {
            if let Some(since) = self.waiting_since
                && progressed
            {
                self.learn(look.at.saturating_sub(since));
            }
            self.forgive();
            if look.queue > 0 {
                self.waiting_since = Some(look.at);
            }
            return None;
        }
        self.waiting_since.get_or_insert(last.at);
        if passed > self.interval * LATE {
            // We were late ourselves: whoever kept us from running kept it from running too.
            return None;
        }
        self.charge(&last, look, passed);
        self.verdict(look.queue)
    }

    /// Books the time since the last look to what the instance did.
    fn charge(&mut self, last: &Look, look: Look, passed: Duration) {
        if look.is_stopped {
            self.stopped += passed;
        } else if look.cpu_ns > last.cpu_ns {
            self.computing += passed;
        } else if look.is_runnable {
            // It would if it could.
        } else if look.waits_for_storage {
            self.storage += passed;
        } else {
            self.asleep += passed;
        }
    }

    fn verdict(&self, queue: u64) -> Option<Evidence> {
        let threshold = self.threshold();
        let storage = (threshold * 10).max(STORAGE_FLOOR);
        let busy = (threshold * 20).max(BUSY_FLOOR);
        let all = self.asleep + self.storage + self.computing;
        let cases = [
            (self.stopped, threshold, Doing::Stopped),
            (self.asleep, threshold, Doing::Sleeping),
            (self.asleep + self.storage, storage, Doing::Storage),
            (all, busy, Doing::Computing),
        ];
        let (stalled, threshold, doing) =
            cases.into_iter().find(|(stalled, threshold, _)| stalled >= threshold)?;
        Some(Evidence { stalled, threshold, queue, doing })
    }

    /// How long an instance that sleeps may leave connections waiting.
    pub fn threshold(&self) -> Duration {
        (self.pause_p999() * 3).max(FLOOR)
    }

    fn learn(&mut self, pause: Duration) {
        let units = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX) / BUCKET_0_NS;
        let bucket = (u64::BITS - units.leading_zeros()) as usize;
        self.pauses[bucket.min(BUCKETS - 1)] += 1;
        if self.pauses.iter().sum::<u64>() > FORGET {
            self.pauses.iter_mut().for_each(|count| *count /= 2);
        }
    }

    /// The 99.9th percentile of pauses: the upper edge of its bucket.
    fn pause_p999(&self) -> Duration {
        let all: u64 = self.pauses.iter().sum();
        if all < LEARNT {
            return UNLEARNT;
        }
        let mut left = all - all / 1000;
        for (bucket, count) in self.pauses.iter().enumerate() {
            if *count >= left {
                return Duration::from_nanos(BUCKET_0_NS << bucket);
            }
            left -= count;
        }
        Duration::from_nanos(BUCKET_0_NS << (BUCKETS - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TICK: Duration = Duration::from_millis(5);

    /// Looks at a queue of 3 that nobody serves, every 5 ms; what it does is up to `shape`.
    fn until_hang(stall: &mut Stall, looks: u32, shape: impl Fn(u32, &mut Look)) -> Option<Evidence> {
        (0..looks).find_map(|number| {
            let mut look = Look { at: TICK * number, queue: 3, accepted: 10, ..Look::default() };
            shape(number, &mut look);
            stall.observe(look)
        })
    }

    #[test]
    fn a_deadlock_is_a_hang() {
        let evidence = until_hang(&mut Stall::new(TICK), 100, |_, _| {}).unwrap();
        assert_eq!(evidence.doing, Doing::Sleeping);
        assert_eq!(evidence.threshold, Duration::from_millis(300), "nothing is learnt yet");
        assert!(evidence.stalled >= evidence.threshold && evidence.stalled < evidence.threshold + 2 * TICK);
    }

    #[test]
    fn counters_that_are_read_one_after_the_other_are_no_progress() {
        // Every third look misses a connection that arrived between the two readings.
        let arrives = |number: u32, look: &mut Look| look.accepted -= u64::from(number % 3 == 1);
        let evidence = until_hang(&mut Stall::new(TICK), 100, arrives).unwrap();
        assert!(evidence.stalled < evidence.threshold + 2 * TICK);
    }

    #[test]
    fn a_stopped_process_is_one_without_anybody_waiting() {
        let stopped = |_, look: &mut Look| (look.queue, look.is_stopped) = (0, true);
        assert_eq!(until_hang(&mut Stall::new(TICK), 100, stopped).unwrap().doing, Doing::Stopped);
    }

    #[test]
    fn an_idle_server_is_none() {
        assert_eq!(until_hang(&mut Stall::new(TICK), 10_000, |_, look| look.queue = 0), None);
    }

    #[test]
    fn starvation_is_none() {
        let runnable = |_, look: &mut Look| look.is_runnable = true;
        assert_eq!(until_hang(&mut Stall::new(TICK), 100_000, runnable), None);
        let late = |number: u32, look: &mut Look| look.at = TICK * number * 10;
        assert_eq!(until_hang(&mut Stall::new(TICK), 100_000, late), None);
    }

    #[test]
    fn a_livelock_is_one_later() {
        let computes = |number: u32, look: &mut Look| look.cpu_ns = u64::from(number) * 1000;
        let evidence = until_hang(&mut Stall::new(TICK), 10_000, computes).unwrap();
        assert_eq!((evidence.doing, evidence.threshold), (Doing::Computing, Duration::from_secs(6)));
    }

    #[test]
    fn storage_has_time() {
        let waits = |_, look: &mut Look| look.waits_for_storage = true;
        let evidence = until_hang(&mut Stall::new(TICK), 10_000, waits).unwrap();
        assert_eq!((evidence.doing, evidence.threshold), (Doing::Storage, Duration::from_secs(3)));
    }

    #[test]
    fn learns_the_pauses_of_the_service() {
        let mut stall = Stall::new(TICK);
        // One accept every 20 ms with others waiting: a slow single-threaded server.
        for number in 0..4000u32 {
            let look =
                Look { at: TICK * number, queue: 3, accepted: u64::from(number / 4), ..Look::default() };
            assert_eq!(stall.observe(look), None);
        }
        let threshold = stall.threshold();
        assert!(
            threshold >= Duration::from_millis(60) && threshold <= Duration::from_millis(120),
            "{threshold:?}"
        );
        let mut quick = Stall::new(TICK);
        (0..1000).for_each(|_| quick.learn(Duration::from_millis(1)));
        assert_eq!(quick.threshold(), FLOOR);
    }

    proptest! {
        #[test]
        fn one_accept_within_the_threshold_keeps_it_well(gap in 1u32..50, looks in 1u32..2000) {
            let mut stall = Stall::new(TICK);
            for number in 0..looks {
                let look = Look { at: TICK * number, queue: 5, accepted: u64::from(number / gap), ..Look::default() };
                prop_assert_eq!(stall.observe(look), None);
            }
        }

        #[test]
        fn thresholds_are_bounded(pauses in proptest::collection::vec(0u64..10_000_000_000, 0..500)) {
            let mut stall = Stall::new(TICK);
            pauses.into_iter().for_each(|pause| stall.learn(Duration::from_nanos(pause)));
            prop_assert!(stall.threshold() >= FLOOR);
            prop_assert!(stall.threshold() <= Duration::from_secs(200));
        }
    }
}
