//! How often: failovers are bounded per minute, starts that fail are spaced out. A request that kills whoever
//! reads it, or a configuration that no instance survives, must not turn into a storm.

use std::collections::VecDeque;
use std::time::Duration;

/// Window over which failovers are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Pause after the first failed start; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Times are durations since an arbitrary start.
#[derive(Clone, Debug)]
pub struct Pace {
    failovers_max: usize,
    failovers: VecDeque<Duration>,
    failures: u32,
}

impl Pace {
    /// At most `failovers_max` failovers within a minute.
    pub fn new(failovers_max: usize) -> Self {
        Self { failovers_max, failovers: VecDeque::new(), failures: 0 }
    }

    /// How long a failover has to wait at `now`; zero if it may be at once.
    pub fn wait(&mut self, now: Duration) -> Duration {
        while self.failovers.front().is_some_and(|at| now.saturating_sub(*at) >= WINDOW) {
            self.failovers.pop_front();
        }
        match self.failovers.len().checked_sub(self.failovers_max) {
            None => Duration::ZERO,
            // Beyond the bound they are spaced out like failed starts.
            Some(over) => pause(u32::try_from(over).unwrap_or(u32::MAX)),
        }
    }

    /// A failover happened.
    pub fn failed_over(&mut self, now: Duration) {
        self.failovers.push_back(now);
    }

    /// An instance died before it served; gives the pause before the next start.
    pub fn start_failed(&mut self) -> Duration {
        let wait = pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// An instance serves.
    pub fn started(&mut self) {
        self.failures = 0;
    }

    /// Starts that failed since one succeeded.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// `100 ms * 2^n`, at most 30 s.
fn pause(n: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << n.min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failovers_beyond_the_bound_wait() {
        let mut pace = Pace::new(3);
        let second = Duration::from_secs;
        for at in 0..3 {
            assert_eq!(pace.wait(second(at)), Duration::ZERO);
            pace.failed_over(second(at));
        }
        assert_eq!(pace.wait(second(3)), FIRST_PAUSE);
        pace.failed_over(second(3));
        assert_eq!(pace.wait(second(4)), 2 * FIRST_PAUSE);
        assert_eq!(pace.wait(second(120)), Duration::ZERO, "a minute later all is forgotten");
    }

    #[test]
    fn failed_starts_are_spaced_out() {
        let mut pace = Pace::new(3);
        let pauses: Vec<Duration> = (0..12).map(|_| pace.start_failed()).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[11], LONGEST_PAUSE);
        pace.started();
        assert_eq!(pace.start_failed(), FIRST_PAUSE);
    }
}
