//! Quantiles of a weighted sample, and the bound that the *next* value stays under with a given probability.

/// A value and how much it counts (more than 0).
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighted {
    pub(super) value: f64,
    pub(super) weight: f64,
}

/// Sorts by value: what the functions below expect.
pub(super) fn sort(sample: &mut [Weighted]) {
    sample.sort_unstable_by(|a, b| a.value.total_cmp(&b.value));
}

/// The smallest value that at least `share` of the weight is at or below. 0 for an empty sample.
pub(super) fn quantile(sorted: &[Weighted], share: f64) -> f64 {
    let total: f64 = sorted.iter().map(|w| w.weight).sum();
    reach(sorted, share * total).unwrap_or_else(|| sorted.last().map_or(0.0, |w| w.value))
}

/// Conformal upper bound: the next value is one more draw, of weight 1, that may lie anywhere. So the rank
/// is taken in a sample with that draw at infinity, ⌈(n+1)·share⌉ for equal weights (Vovk et al. 2005; weighted:
/// Tibshirani et al. 2019). Where that is beyond the largest value, the bound is the largest plus
/// the mean gap between neighbours.
pub(super) fn upper_bound(sorted: &[Weighted], share: f64) -> f64 {
    let total: f64 = sorted.iter().map(|w| w.weight).sum();
    reach(sorted, share * (total + 1.0)).unwrap_or_else(|| beyond(sorted))
}

/// First value at which the weight so far reaches `weight`. Additions round, so a hair less will do.
fn reach(sorted: &[Weighted], weight: f64) -> Option<f64> {
    let mut sum = 0.0;
    sorted
        .iter()
        .find(|w| {
            sum += w.weight;
            sum >= weight - 1e-9
        })
        .map(|w| w.value)
}

fn beyond(sorted: &[Weighted]) -> f64 {
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
        return 0.0;
    };
    let gaps = (sorted.len() - 1).max(1) as f64;
    last.value + (last.value - first.value) / gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(values: &[f64]) -> Vec<Weighted> {
        let mut sample: Vec<_> = values.iter().map(|&value| Weighted { value, weight: 1.0 }).collect();
        sort(&mut sample);
        sample
    }

    #[test]
    fn quantiles_of_equal_weights() {
        let sample = equal(&[3.0, 1.0, 2.0]);
        assert_eq!(quantile(&sample, 0.5), 2.0);
        assert_eq!(quantile(&sample, 0.0), 1.0);
        assert_eq!(quantile(&sample, 1.0), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn heavy_values_count_more() {
        let sample = [(1.0, 0.1), (2.0, 0.1), (9.0, 5.0)].map(|(value, weight)| Weighted { value, weight });
        assert_eq!(quantile(&sample, 0.5), 9.0);
    }

    #[test]
    fn the_bound_is_the_conformal_rank_or_lies_beyond() {
        let many = equal(&(1..=99).map(f64::from).collect::<Vec<_>>());
        assert_eq!(upper_bound(&many, 0.95), 95.0);
        assert_eq!(upper_bound(&equal(&[10.0, 20.0]), 0.95), 30.0);
        assert_eq!(upper_bound(&equal(&[10.0]), 0.95), 10.0);
    }

    /// What the bound promises: draws exceed it about as often as `1 - share` says.
    #[test]
    fn the_bound_holds_as_often_as_it_says() {
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as f64
        };
        let exceeded = (0..2000)
            .filter(|_| {
                let sample = equal(&(0..40).map(|_| draw()).collect::<Vec<_>>());
                draw() > upper_bound(&sample, 0.9)
            })
            .count();
        assert!((120..280).contains(&exceeded), "{exceeded} of 2000");
    }
}
