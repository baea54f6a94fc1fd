//! Licences that a task will use, from what its runs used. They are counts, and few: the median and a rank of what was
//! seen say all there is. Pure.

use serde::Serialize;
use std::collections::BTreeMap;

/// Newest runs that are looked at.
pub const RUNS_MAX: usize = 20;

/// Licences of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LicenseEstimate {
    /// Name of the pool.
    pub license: String,
    /// The median of what runs used at once, rounded up.
    pub expected: u32,
    /// What a run exceeds with a probability of about the accepted risk, as far as so few runs can tell: with up to
    /// 19 of them and a risk of 0.05 the most that was seen.
    pub upper: u32,
    /// Runs behind it.
    pub samples: usize,
}

/// From the most licences of each pool that each run used at once; runs that used none of a pool count as 0. Pools of
/// which no run used any are left out.
pub fn learn(used: &BTreeMap<String, Vec<u32>>, risk: f64) -> Vec<LicenseEstimate> {
    let risk = if risk.is_finite() { risk.clamp(0.001, 0.5) } else { 0.05 };
    let estimate = |(license, used): (&String, &Vec<u32>)| {
        let mut sorted = used.clone();
        sorted.sort_unstable();
        let most = *sorted.last().filter(|most| **most > 0)?;
        // The next run is one more draw, which may lie anywhere: rank ⌈(n+1)·share⌉ (Vovk et al. 2005).
        let at = |share: f64| {
            let rank = (share * (sorted.len() + 1) as f64).ceil() as usize;
            rank.checked_sub(1).and_then(|place| sorted.get(place)).copied().unwrap_or(most)
        };
        Some(LicenseEstimate {
            license: license.clone(),
            expected: at(0.5),
            upper: at(1.0 - risk),
            samples: sorted.len(),
        })
    };
    used.iter().filter_map(estimate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(used: &[u32], risk: f64) -> Option<(u32, u32, usize)> {
        let estimates = learn(&BTreeMap::from([("cad".to_owned(), used.to_vec())]), risk);
        estimates.first().map(|estimate| (estimate.expected, estimate.upper, estimate.samples))
    }

    #[test]
    fn the_median_is_expected_and_the_most_is_the_bound_of_few() {
        assert_eq!(of(&[1, 1, 4, 1, 2], 0.05), Some((1, 4, 5)));
        assert_eq!(of(&[3], 0.05), Some((3, 3, 1)));
        assert_eq!(of(&[0, 0, 2], 0.05), Some((0, 2, 3)));
        assert_eq!(of(&[0, 0], 0.05), None);
        assert_eq!(of(&[], f64::NAN), None);
    }

    #[test]
    fn a_larger_risk_gives_a_lower_bound() {
        let used = [1, 1, 1, 1, 1, 1, 1, 1, 2, 9];
        assert_eq!((of(&used, 0.05), of(&used, 0.25)), (Some((1, 9, 10)), Some((1, 2, 10))));
    }
}
