//! Too slow? A primary is, if in three windows in a row most of its answers came late, and it was not for want of
//! a CPU: a shadow on the same machine would be as slow then.

use std::time::Duration;

/// Length of a window.
const WINDOW: Duration = Duration::from_millis(500);
/// Windows in a row that have to be bad.
const WINDOWS: u32 = 3;
/// Least answers in a window that say anything.
const ANSWERS_MIN: u64 = 5;
/// Share of late answers that makes a window bad.
const LATE_SHARE: f64 = 0.5;
/// If its tasks together waited for a CPU for more than this share of a window, the machine is to blame.
const STARVED_SHARE: f64 = 0.3;

/// What windows say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is too slow: in words.
    Slow(String),
    /// A window was good.
    Well,
}

/// The observer of one primary. Counters only grow.
#[derive(Clone, Debug, Default)]
pub struct Slow {
    last: Option<(Duration, u64, u64, u64)>,
    bad: u32,
}

impl Slow {
    /// Whether a window is over at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        self.last.is_none_or(|(at, ..)| now.saturating_sub(at) >= WINDOW)
    }

    /// Takes in how many requests were answered, how many of those late, and how long its tasks waited for a CPU,
    /// all since the beginning.
    pub fn observe(&mut self, now: Duration, answered: u64, late: u64, waited_ns: u64) -> Option<Verdict> {
        let (at, answered_before, late_before, waited_before) =
            self.last.replace((now, answered, late, waited_ns))?;
        let passed_ns = now.saturating_sub(at).as_nanos() as f64;
        let (answered, late) = (answered.saturating_sub(answered_before), late.saturating_sub(late_before));
        let starved = waited_ns.saturating_sub(waited_before) as f64 > STARVED_SHARE * passed_ns;
        if answered < ANSWERS_MIN || starved {
            return None;
        }
        if (late as f64) < LATE_SHARE * answered as f64 {
            self.bad = 0;
            return Some(Verdict::Well);
        }
        self.bad += 1;
        (self.bad >= WINDOWS)
            .then(|| Verdict::Slow(format!("{late} of its last {answered} answers were late")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds windows of `(answered, late, waited_ns)`; the last verdict.
    fn windows(windows: &[(u64, u64, u64)]) -> Option<Verdict> {
        let (mut slow, mut sums) = (Slow::default(), (0, 0, 0));
        slow.observe(Duration::ZERO, 0, 0, 0);
        let mut verdict = None;
        for (number, (answered, late, waited_ns)) in windows.iter().enumerate() {
            sums = (sums.0 + answered, sums.1 + late, sums.2 + waited_ns);
            let now = WINDOW * (u32::try_from(number).unwrap() + 1);
            assert!(slow.is_due(now));
            verdict = slow.observe(now, sums.0, sums.1, sums.2);
        }
        verdict
    }

    #[test]
    fn three_bad_windows_are_slow() {
        assert_eq!(windows(&[(10, 9, 0); 2]), None);
        assert!(matches!(windows(&[(10, 9, 0); 3]), Some(Verdict::Slow(_))));
        assert_eq!(windows(&[(10, 9, 0), (10, 9, 0), (10, 1, 0), (10, 9, 0)]), None, "not in a row");
        assert_eq!(windows(&[(10, 4, 0); 9]), Some(Verdict::Well), "some late ones are no reason");
    }

    #[test]
    fn few_answers_and_a_starved_machine_say_nothing() {
        assert_eq!(windows(&[(2, 2, 0); 9]), None);
        assert_eq!(windows(&[(10, 10, 400_000_000); 9]), None);
    }
}
