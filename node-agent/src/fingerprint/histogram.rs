//! What can be said of a log2 histogram of nanoseconds: bucket `i` counts what lies in `[2^i, 2^(i+1))`, the
//! first one from 0, the last one without an end.

use super::{HISTOGRAM_BUCKETS, Histogram};

/// How many values it has.
pub fn total(histogram: &Histogram) -> u64 {
    histogram.iter().sum()
}

/// Lower edge of a bucket, seconds.
pub fn lower_s(bucket: usize) -> f64 {
    if bucket == 0 { 0.0 } else { 2.0_f64.powi(i32::try_from(bucket).unwrap_or(i32::MAX)) / 1e9 }
}

/// A time that at least a share `q` of the values does not exceed: the upper edge of the bucket in which that share
/// is reached, seconds. `None` without values, or where it is reached in the last bucket, which has no end.
pub fn quantile_s(histogram: &Histogram, q: f64) -> Option<f64> {
    let wanted = (q * total(histogram) as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return (bucket + 1 < HISTOGRAM_BUCKETS).then(|| lower_s(bucket + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_edges() {
        let mut histogram = [0; HISTOGRAM_BUCKETS];
        assert_eq!(quantile_s(&histogram, 0.5), None);
        histogram[10] = 99;
        histogram[20] = 1;
        assert_eq!(quantile_s(&histogram, 0.5), Some(2048e-9));
        assert_eq!(quantile_s(&histogram, 0.99), Some(2048e-9));
        assert_eq!(quantile_s(&histogram, 1.0), Some(lower_s(21)));
        histogram[31] = 1000;
        assert_eq!(quantile_s(&histogram, 0.99), None);
        assert_eq!((lower_s(0), total(&histogram)), (0.0, 1100));
    }
}
