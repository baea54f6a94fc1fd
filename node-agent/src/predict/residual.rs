//! What a base model got wrong so far: the ratios of what runs took to what the model had said *before* they ran,
//! sorted; and the multiplier that would have cost least on them.
//!
//! All costs are sums over the sorted ratios, so one pass over running sums prices every candidate.

use super::learner::RING_MAX;

/// One past error.
#[derive(Clone, Copy, Debug)]
struct Residual {
    /// What the run took ÷ what the model had said, and its logarithm.
    ratio: f64,
    log: f64,
    /// What one unit of ratio costs: the model's value × the time that it was held.
    price: f64,
    /// Which run.
    number: u64,
}

/// See the head of this file. At most [`RING_MAX`] errors; the oldest goes first.
#[derive(Clone, Debug, Default)]
pub(super) struct Residuals {
    sorted: Vec<Residual>,
}

/// An error with its weight for the run at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighted {
    pub(super) ratio: f64,
    /// Its logarithm.
    pub(super) log: f64,
    /// What one unit of ratio costs, weighed.
    pub(super) price: f64,
    /// How much the run counts.
    pub(super) weight: f64,
}

/// What being above or below costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Price {
    /// A reservation that kills: what is above the need is wasted; below it the failed attempt and what the retry
    /// reserves too much are, and `per_failure` times the need for the trouble.
    Kill { per_failure: f64 },
    /// A limit that grows by steps of this factor; each step costs this share of the need.
    Grow { step: f64, per_step: f64 },
    /// Pinball loss at this quantile (Koenker and Bassett 1978).
    Pinball { quantile: f64 },
}

/// A multiplier, and what it would have cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// Ratio to the model's value.
    pub(super) multiplier: f64,
    /// In the unit of the prices.
    pub(super) cost: f64,
    /// Share of past runs above it, weighed.
    pub(super) share_above: f64,
}

/// Most and fewest runs since a change that is looked for.
const SINCE_CHANGE_MAX: u64 = 32;
const SINCE_CHANGE_MIN: u64 = 2;
/// Runs that a change must have before it.
const RUNS_BEFORE_CHANGE: usize = 5;
/// Share at each end of the errors before that does not count.
const CHANGE_SHARE: f64 = 0.05;
/// Factor by which errors must lie beyond those before.
const CHANGE_LEAST: f64 = 1.1;
/// Runs from which a change downwards is believed.
const RUNS_BELOW: u64 = 8;

/// A retry reserves at least this times what failed.
pub(super) const LADDER_LEAST: f64 = 2.0;

impl Residuals {
    /// What they take in memory, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.sorted.capacity() * size_of::<Residual>()
    }

    /// The largest ratio.
    pub(super) fn largest(&self) -> Option<f64> {
        self.sorted.last().map(|residual| residual.ratio)
    }

    /// Takes the error of run `number` in.
    pub(super) fn push(&mut self, number: u64, ratio: f64, price: f64) {
        if self.sorted.len() >= RING_MAX {
            self.sorted.retain(|residual| residual.number + RING_MAX as u64 > number);
        }
        let place = self.sorted.partition_point(|residual| residual.ratio < ratio);
        self.sorted.insert(place, Residual { ratio, log: ratio.ln(), price, number });
    }

    /// The run since which the task behaves otherwise: all errors from it on lie above nearly all before it, or all
    /// below. Few above will do, since they may have been killed; more are needed below, where only waste is at
    /// stake.
    pub(super) fn changed_at(&self) -> Option<u64> {
        let newest = self.sorted.iter().map(|residual| residual.number).max()?;
        (SINCE_CHANGE_MIN..=self.longest_side(newest)).rev().find_map(|runs| {
            let from = newest.saturating_sub(runs - 1);
            let before = || self.sorted.iter().filter(|residual| residual.number < from);
            let count = before().count();
            if count < RUNS_BEFORE_CHANGE || (self.sorted.len() - count) as u64 != runs {
                return None;
            }
            let since = || self.sorted.iter().filter(|residual| residual.number >= from);
            let edge = (count as f64 * CHANGE_SHARE) as usize;
            let high = before().nth(count - 1 - edge)?.ratio;
            let low = before().nth(edge)?.ratio;
            let above = since().next()?.ratio > high * CHANGE_LEAST;
            let below = runs >= RUNS_BELOW && since().next_back()?.ratio * CHANGE_LEAST < low;
            (above || below).then_some(from)
        })
    }

    /// How many of the newest errors, at most [`SINCE_CHANGE_MAX`], lie on one side of the middle: no change can be longer.
    fn longest_side(&self, newest: u64) -> u64 {
        let middle = self.sorted[self.sorted.len() / 2].ratio;
        let mut sides = [0_i8; SINCE_CHANGE_MAX as usize];
        for residual in &self.sorted {
            if let Some(side) = sides.get_mut((newest - residual.number) as usize) {
                *side = if residual.ratio >= middle { 1 } else { -1 };
            }
        }
        let first = sides[0];
        sides.iter().take_while(|side| **side == first).count() as u64
    }

    /// The errors in order of ratio, with the weight that `weight` gives to each run.
    pub(super) fn weighted(&self, weight: impl Fn(u64) -> f64) -> Vec<Weighted> {
        self.sorted
            .iter()
            .map(|residual| {
                let weight = weight(residual.number);
                Weighted { ratio: residual.ratio, log: residual.log, price: residual.price * weight, weight }
            })
            .collect()
    }
}

/// Adds lower bounds: ratios of runs that met their limit and have not ended well yet. Each counts like a run that is
/// as near as can be, at a mean price.
pub(super) fn add_bounds(sorted: &mut Vec<Weighted>, ratios: impl Iterator<Item = f64>) {
    let prices = sorted.iter().filter(|w| w.weight > 0.0).map(|w| w.price / w.weight);
    let (sum, count) = prices.fold((0.0, 0.0), |(sum, count), price| (sum + price, count + 1.0));
    let price = if count > 0.0 { sum / count } else { 1.0 };
    let weight = 1.0;
    for ratio in ratios {
        let place = sorted.partition_point(|w| w.ratio < ratio);
        sorted.insert(place, Weighted { ratio, log: ratio.ln(), price, weight });
    }
}

/// Weighted sums over some errors: of the prices, of the needs, and of the needs times their logarithm.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    price: f64,
    need: f64,
    need_log: f64,
    weight: f64,
}

impl Sums {
    fn add(&mut self, residual: &Weighted, sign: f64) {
        let need = residual.price * residual.ratio * sign;
        self.price += residual.price * sign;
        self.need += need;
        self.weight += residual.weight * sign;
        self.need_log += need * residual.log;
    }
}

impl Price {
    /// What the multiplier `c` costs, where `below` are the errors that it covers and `above` those that it does
    /// not; `ladder` would have sufficed for all.
    fn of(self, c: f64, ladder: f64, below: &Sums, above: &Sums) -> f64 {
        let over = c * below.price - below.need;
        match self {
            Self::Kill { per_failure } => {
                over + (c + ladder.max(c * LADDER_COST)) * above.price + (per_failure - 1.0) * above.need
            }
            Self::Grow { step, per_step } => {
                // Half a step too much in the mean, and ln(need ÷ c) ÷ ln(step) steps.
                let steps = (above.need_log - c.ln() * above.need) / step.ln() + 0.5 * above.need;
                over + above.need * (step - 1.0) / 2.0 + per_step * steps
            }
            Self::Pinball { quantile } => over * (1.0 - quantile) + (above.need - c * above.price) * quantile,
        }
    }
}

/// A retry is taken to reserve at least this times what failed when it is priced.
const LADDER_COST: f64 = 1.3;

/// The multiplier, `margin` times one of the ratios, that would have cost least. `None` without errors.
pub(super) fn cheapest(sorted: &[Weighted], price: Price, margin: f64) -> Option<Choice> {
    let ladder = sorted.last()?.ratio * margin;
    let mut above = Sums::default();
    sorted.iter().for_each(|residual| above.add(residual, 1.0));
    let total = above.weight;
    let mut below = Sums::default();
    let mut best: Option<Choice> = None;
    for residual in sorted {
        below.add(residual, 1.0);
        above.add(residual, -1.0);
        let multiplier = residual.ratio * margin;
        let cost = price.of(multiplier, ladder, &below, &above);
        if best.is_none_or(|best| cost < best.cost) {
            let share_above = if total > 0.0 { (above.weight / total).clamp(0.0, 1.0) } else { 0.0 };
            best = Some(Choice { multiplier, cost, share_above });
        }
    }
    best
}

/// The cheapest multiplier drawn towards 1, as if `runs` more runs had needed just what the model said, and what that
/// would have cost. Few errors fit any multiplier: without this the model that can be corrected best after the fact
/// is chosen before the one that needs no correction. `None` without errors.
pub(super) fn cheapest_drawn_to_one(sorted: &[Weighted], price: Price, runs: f64) -> Option<Choice> {
    let count = sorted.len() as f64;
    let multiplier = cheapest(sorted, price, 1.0)?.multiplier.powf(count / (count + runs));
    let (mut below, mut above) = (Sums::default(), Sums::default());
    for residual in sorted {
        if residual.ratio <= multiplier { &mut below } else { &mut above }.add(residual, 1.0);
    }
    let total = below.weight + above.weight;
    let share_above = if total > 0.0 { above.weight / total } else { 0.0 };
    let cost = price.of(multiplier, sorted.last()?.ratio, &below, &above);
    Some(Choice { multiplier, cost, share_above })
}

/// Weighted standard deviation of the logarithms, drawn towards `prior` as if `prior_runs` had shown it.
pub(super) fn spread(sorted: &[Weighted], prior: f64, prior_runs: f64) -> f64 {
    let total: f64 = sorted.iter().map(|w| w.price).sum();
    let count = sorted.len() as f64;
    if total <= 0.0 {
        return prior;
    }
    let mean = sorted.iter().map(|w| w.price * w.log).sum::<f64>() / total;
    let variance = sorted.iter().map(|w| w.price * (w.log - mean).powi(2)).sum::<f64>() / total;
    ((prior_runs * prior * prior + count * variance) / (prior_runs + count)).sqrt()
}

/// An error that has not ended yet: a run that goes on has this ratio at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Running {
    pub(super) ratio: f64,
    pub(super) weight: f64,
}

/// The ratio that the next error stays under with probability `share`. The next error is one more draw, of weight 1,
/// that may lie anywhere (Vovk et al. 2005; weighted: Tibshirani et al. 2019), and of those that are `running`
/// only a lower bound is known: what is left above a ratio is the product-limit estimate of it (Kaplan and Meier 1958).
/// Where more is left above the largest error than may be, the logarithms of errors are taken to fall off
/// exponentially from there, with `spread` as their mean. `None` without errors.
pub(super) fn bound(sorted: &[Weighted], running: &mut [Running], share: f64, spread: f64) -> Option<f64> {
    let largest = sorted.last()?.ratio;
    running.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    let mut running = running.iter().peekable();
    let mut at_risk = 1.0
        + sorted.iter().map(|w| w.weight).sum::<f64>()
        + running.clone().map(|running| running.weight).sum::<f64>();
    let mut left = 1.0;
    let allowed = 1.0 - share + 1e-9;
    for error in sorted {
        while let Some(ended) = running.next_if(|running| running.ratio < error.ratio) {
            at_risk -= ended.weight;
        }
        left *= 1.0 - (error.weight / at_risk).min(1.0);
        at_risk -= error.weight;
        if left <= allowed {
            return Some(error.ratio);
        }
    }
    Some(largest * (spread * (left / allowed).ln()).min(TAIL_LOG_MAX).exp())
}

/// Largest logarithm by which a bound goes beyond the largest error.
const TAIL_LOG_MAX: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ratios: &[f64]) -> Vec<Weighted> {
        let mut residuals = Residuals::default();
        ratios.iter().enumerate().for_each(|(number, ratio)| residuals.push(number as u64, *ratio, 1.0));
        residuals.weighted(|_| 1.0)
    }

    #[test]
    fn one_outlier_in_many_is_not_reserved_for_if_it_is_far() {
        let kill = Price::Kill { per_failure: 2.0 };
        let mut ratios = vec![1.0; 50];
        ratios.push(40.0);
        assert_eq!(cheapest(&of(&ratios), kill, 1.0).unwrap().multiplier, 1.0);
        ratios[50] = 1.05;
        assert_eq!(cheapest(&of(&ratios), kill, 1.0).unwrap().multiplier, 1.05);
        assert_eq!(cheapest(&[], kill, 1.0), None);
    }

    #[test]
    fn a_failure_that_costs_more_is_avoided_more() {
        let mut ratios = vec![1.0; 50];
        ratios.push(3.0);
        let at = |per_failure| cheapest(&of(&ratios), Price::Kill { per_failure }, 1.0).unwrap();
        assert_eq!((at(0.0).multiplier, at(50.0).multiplier), (1.0, 3.0));
        assert!(at(0.0).share_above > at(50.0).share_above);
    }

    #[test]
    fn few_errors_correct_little_and_many_all() {
        let pinball = Price::Pinball { quantile: 0.5 };
        let at = |runs| cheapest_drawn_to_one(&of(&vec![4.0; runs]), pinball, 2.0).unwrap();
        assert!((at(2).multiplier - 2.0).abs() < 1e-9 && at(100).multiplier > 3.85);
        // Two errors of 2 are left over, at half a unit each.
        assert!((at(2).cost - 2.0).abs() < 1e-9 && at(2).share_above == 1.0, "{:?}", at(2));
        let errors = of(&[0.5, 1.0, 3.0, 4.0, 5.0]);
        let not_drawn = cheapest_drawn_to_one(&errors, pinball, 0.0).unwrap();
        assert_eq!(not_drawn, cheapest(&errors, pinball, 1.0).unwrap());
        assert_eq!(cheapest_drawn_to_one(&[], pinball, 2.0), None);
    }

    #[test]
    fn a_change_is_noticed_and_an_outlier_is_not() {
        let mut residuals = Residuals::default();
        (0..60).for_each(|number| residuals.push(number, 1.0 + (number % 7) as f64 / 100.0, 1.0));
        assert_eq!(residuals.changed_at(), None);
        residuals.push(60, 4.0, 1.0);
        assert_eq!(residuals.changed_at(), None);
        residuals.push(61, 4.0, 1.0);
        assert_eq!(residuals.changed_at(), Some(60));
        for number in 62..80 {
            residuals.push(number, 4.0, 1.0);
            assert_eq!(residuals.changed_at(), Some(60), "at run {number}");
        }
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut residuals = Residuals::default();
        residuals.push(0, 9.0, 1.0);
        (1..=RING_MAX as u64).for_each(|number| residuals.push(number, 1.0, 1.0));
        assert_eq!((residuals.sorted.len(), residuals.largest()), (RING_MAX, Some(1.0)));
    }

    #[test]
    fn a_conformal_bound_lies_at_its_rank_or_beyond() {
        let sorted = of(&(1..=99).map(f64::from).collect::<Vec<_>>());
        let at = |share| bound(&sorted, &mut [], share, 0.1);
        assert_eq!((at(0.5), at(0.95)), (Some(50.0), Some(95.0)));
        let beyond = at(0.999).unwrap();
        assert!((beyond - 99.0 * 10_f64.powf(0.1)).abs() < 1e-4, "{beyond}");
        assert_eq!(bound(&[], &mut [], 0.5, 0.1), None);
    }
}
