//! How many shadows a service should have: within the bounds that the user gave, more when it fails often or is
//! about to be busy, fewer when the host needs the memory.

use std::time::Duration;

/// Failures within this time ask for one more shadow.
const RECENT: Duration = Duration::from_secs(3600);
/// Share of the host's memory that must stay available beside a further shadow.
const RESERVE: f64 = 0.10;
/// The kernel's share of time in which some task waited for memory (PSI `some avg10`), percent, from which on
/// shadows are given up.
const PRESSURE_MAX: f64 = 10.0;
/// An hour that had so many times the usual traffic is a busy one.
const BUSY: f64 = 1.5;

/// Hours of the week that have to be known.
const HOURS_MIN: usize = 24;

/// What the number depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Failovers not asked for within the last hour.
    pub failures: usize,
    /// Connections in this and the next hour of the week, as a multiple of the mean of all hours; `None` as long as
    /// that is not known.
    pub demand: Option<f64>,
    /// Memory that is available on the host (`MemAvailable`), bytes.
    pub available_bytes: u64,
    /// All memory of the host, bytes.
    pub total_bytes: u64,
    /// What one shadow holds for itself, bytes.
    pub shadow_bytes: u64,
    /// PSI `some avg10` of memory, percent.
    pub pressure: f64,
}

/// Why it is that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The lower bound is enough.
    Usual,
    /// It failed within the last hour.
    Failures,
    /// This or the next hour is a busy one.
    Demand,
    /// The host is short of memory.
    Memory,
}

impl Reason {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Usual => "as asked for",
            Self::Failures => "it failed within the last hour",
            Self::Demand => "a busy hour",
            Self::Memory => "the host is short of memory",
        }
    }
}

/// How busy an hour and the one after it are as a rule: the larger of both, as a multiple of the mean of all hours
/// that are known. `None` until a day of them is.
pub fn demand(hours: &[(u32, f64)], hour_of_week: u32) -> Option<f64> {
    let mean = hours.iter().map(|(_, connections)| connections).sum::<f64>() / hours.len() as f64;
    if hours.len() < HOURS_MIN || mean <= 0.0 {
        return None;
    }
    let of =
        |hour: u32| hours.iter().find(|(known, _)| *known == hour % 168).map(|(_, connections)| *connections);
    let busiest = [of(hour_of_week), of(hour_of_week + 1)].into_iter().flatten().reduce(f64::max)?;
    Some(busiest / mean)
}

/// How long failures count.
pub fn recent() -> Duration {
    RECENT
}

/// The number of shadows, between `min` and `max`; below `min` only where the host is short of memory, for its
/// out-of-memory killer would take the shadows first anyway.
pub fn scale(min: usize, max: usize, now: usize, load: &Load) -> (usize, Reason) {
    let is_short = load.pressure > PRESSURE_MAX || load.available_bytes <= reserve(load);
    if is_short {
        // One at a time: giving one up may be enough.
        return (now.saturating_sub(1).min(max), Reason::Memory);
    }
    let is_busy = load.demand.is_some_and(|demand| demand >= BUSY);
    let (wished, reason) = match load.failures {
        0 if is_busy => (min + 1, Reason::Demand),
        0 => (min, Reason::Usual),
        // A second failure while the first successor is still warming is what the second shadow is for.
        failures => (min + failures.min(2), Reason::Failures),
    };
    let wished = wished.clamp(min, max.max(min));
    let room = now.saturating_add(fits(load));
    if wished > room { (room, Reason::Memory) } else { (wished, reason) }
}

fn reserve(load: &Load) -> u64 {
    (load.total_bytes as f64 * RESERVE) as u64
}

/// How many further shadows leave the reserve free.
fn fits(load: &Load) -> usize {
    let free = load.available_bytes.saturating_sub(reserve(load));
    usize::try_from(free / load.shadow_bytes.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn calm() -> Load {
        Load { available_bytes: 8 * GIB, total_bytes: 16 * GIB, shadow_bytes: GIB, ..Load::default() }
    }

    #[test]
    fn usually_the_lower_bound() {
        assert_eq!(scale(1, 3, 1, &calm()), (1, Reason::Usual));
        assert_eq!(scale(0, 3, 1, &calm()), (0, Reason::Usual));
    }

    #[test]
    fn failures_and_busy_hours_ask_for_more() {
        assert_eq!(scale(1, 3, 1, &Load { failures: 1, ..calm() }), (2, Reason::Failures));
        assert_eq!(scale(1, 3, 1, &Load { failures: 9, ..calm() }), (3, Reason::Failures));
        assert_eq!(scale(1, 3, 1, &Load { demand: Some(2.0), ..calm() }), (2, Reason::Demand));
        assert_eq!(
            scale(1, 1, 1, &Load { failures: 9, ..calm() }),
            (1, Reason::Failures),
            "not above the bound"
        );
    }

    #[test]
    fn busy_hours_are_known_after_a_day() {
        let mut hours: Vec<(u32, f64)> = (0..23).map(|hour| (hour, 100.0)).collect();
        assert_eq!(demand(&hours, 5), None);
        hours.push((167, 400.0));
        assert!(demand(&hours, 167).unwrap() > 3.0);
        assert_eq!(demand(&hours, 166), demand(&hours, 167), "the hour before prepares for it");
        assert!(demand(&hours, 3).unwrap() < 1.0);
        assert_eq!(demand(&hours, 100), None, "such an hour was never seen");
    }

    #[test]
    fn memory_decides_last() {
        assert_eq!(scale(2, 3, 2, &Load { pressure: 40.0, ..calm() }), (1, Reason::Memory));
        assert_eq!(scale(1, 3, 1, &Load { available_bytes: GIB, ..calm() }), (0, Reason::Memory));
        let tight = Load { failures: 2, available_bytes: 2 * GIB, ..calm() };
        assert_eq!(scale(1, 3, 1, &tight), (1, Reason::Memory), "a further one would eat the reserve");
    }

    proptest! {
        #[test]
        fn stays_within_bounds(
            min in 0usize..4, more in 0usize..4, now in 0usize..8, failures in 0usize..20,
            demand in proptest::option::of(0.0f64..100.0), available in 0u64..32 * GIB, shadow in 0u64..8 * GIB,
            pressure in 0.0f64..100.0,
        ) {
            let load = Load {
                failures, demand, available_bytes: available, total_bytes: 16 * GIB, shadow_bytes: shadow, pressure,
            };
            let (wanted, reason) = scale(min, min + more, now, &load);
            prop_assert!(wanted <= (min + more).max(now));
            prop_assert!(wanted >= min || reason == Reason::Memory);
        }
    }
}
