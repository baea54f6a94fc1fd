//! Measurements that scatter: their median and how far they lie apart.

/// Median, lower and upper quartile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quartiles {
    pub(crate) median: f64,
    pub(crate) lower: f64,
    pub(crate) upper: f64,
}

impl Quartiles {
    /// `None` without values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| sorted[(last as f64 * share).round() as usize];
        Some(Self { median: at(0.5), lower: at(0.25), upper: at(0.75) })
    }

    /// `median [p25 p75]`.
    pub(crate) fn show(self, digits: usize) -> String {
        format!("{:.digits$} [{:.digits$} {:.digits$}]", self.median, self.lower, self.upper)
    }
}
