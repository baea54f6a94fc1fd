//! The next hour of what goes on for long: a service or a cgroup of which every hour is a run of its own. Pure.
//!
//! The engine is that of the other models ([`super::learner`]): a few base models, each with the multiplier that would have
//! cost least on its own past errors, and of them the one that then would have cost least. The models here know
//! of days: the hour before, the same hour yesterday, the median of that hour over seven days, the median of the week, the
//! mean of the first two, and the hour before times what the step to this hour of the day was in the median. Cost is
//! the pinball loss (Koenker and Bassett 1978). Errors of hours that are near by the clock count more.

use super::residual::{Price, Weighted, cheapest};
use super::{Observation, Resource};
use crate::fingerprint::key::{Feature, FeatureValue};

/// Hours from which a day can be known.
pub const HOURS_LEAST: usize = 48;
/// Hours of a day.
const DAY: usize = 24;
/// Days that are looked back to.
const DAYS: usize = 7;
/// An hour counts this much of the one after it.
const DECAY: f64 = 0.99;
/// What an error at the other end of the day still counts.
const FAR_WEIGHT: f64 = 0.1;
/// Hours of the clock after which an error counts half of what is above that.
const LOCALITY_HOURS: f64 = 2.0;
/// Bounds on the step from one hour to the next.
const STEP: (f64, f64) = (0.25, 4.0);
/// How long a run is that stands for an hour, seconds.
const HOUR_S: (f64, f64) = (3300.0, 3900.0);

/// A rule for the next hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The hour before.
    HourBefore,
    /// The same hour yesterday.
    Yesterday,
    /// The median of this hour over seven days.
    HourOfDay,
    /// The median of the week.
    Week,
    /// The mean of the hour before and the same hour yesterday.
    Mix,
    /// The hour before, times the median step to this hour of the day.
    Step,
}

const MODELS: [Model; 6] =
    [Model::HourBefore, Model::Yesterday, Model::HourOfDay, Model::Week, Model::Mix, Model::Step];

impl Model {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::HourBefore => "the hour before",
            Self::Yesterday => "the same hour yesterday",
            Self::HourOfDay => "the median of this hour over a week",
            Self::Week => "the median of the week",
            Self::Mix => "the mean of the hour before and the same hour yesterday",
            Self::Step => "the hour before, with the step that this hour of the day brings",
        }
    }

    /// What it says of hour `at`, from the hours before it.
    fn value(self, hours: &[f64], at: usize) -> Option<f64> {
        let before = || Some(hours[at.checked_sub(1)?]);
        let yesterday = || Some(hours[at.checked_sub(DAY)?]);
        let days = || (1..=DAYS).map_while(|days| at.checked_sub(days * DAY));
        match self {
            Self::HourBefore => before(),
            Self::Yesterday => yesterday(),
            Self::HourOfDay => median(days().map(|at| hours[at])),
            Self::Week => median(hours[at.saturating_sub(DAYS * DAY)..at].iter().copied()),
            Self::Mix => Some((before()? + yesterday()?) / 2.0),
            Self::Step => {
                let steps = days().filter_map(|at| Some((hours[at], hours[at.checked_sub(1)?])));
                let steps = steps.filter(|(_, before)| *before > 0.0).map(|(here, before)| here / before);
                Some(before()? * median(steps)?.clamp(STEP.0, STEP.1))
            }
        }
    }
}

/// What the next hour will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NextHour {
    /// In the unit of the hours.
    pub value: f64,
    /// The model behind it.
    pub model: Model,
    /// What its word is multiplied with.
    pub multiplier: f64,
}

/// The `quantile` of the hour that comes after `hours`, the oldest first; `None` where they are fewer than two days, or
/// nothing but zeros. Negative values and such that are not finite count as 0.
pub fn next_hour(hours: &[f64], quantile: f64) -> Option<NextHour> {
    let hours: Vec<f64> =
        hours.iter().map(|hour| if hour.is_finite() { hour.max(0.0) } else { 0.0 }).collect();
    if hours.len() < HOURS_LEAST {
        return None;
    }
    let quantile = if quantile.is_finite() { quantile.clamp(0.01, 0.999) } else { 0.95 };
    let choices = MODELS.into_iter().filter_map(|model| {
        let value = model.value(&hours, hours.len()).filter(|value| *value > 0.0)?;
        let errors = errors(&hours, model);
        let choice = cheapest(&errors, Price::Pinball { quantile }, 1.0)?;
        let weight: f64 = errors.iter().map(|error| error.weight).sum();
        let next = NextHour { value: value * choice.multiplier, model, multiplier: choice.multiplier };
        Some((choice.cost / weight, next))
    });
    choices.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, next)| next)
}

/// What a model was wrong by, hour by hour, smallest first.
fn errors(hours: &[f64], model: Model) -> Vec<Weighted> {
    let now = hours.len();
    let errors = (1..now).filter_map(|at| {
        let value = model.value(hours, at).filter(|value| *value > 0.0)?;
        let ratio = (hours[at] / value).max(1e-6);
        let apart = (now - at) % DAY;
        let apart = apart.min(DAY - apart) as f64 / LOCALITY_HOURS;
        let near = FAR_WEIGHT + (1.0 - FAR_WEIGHT) / (1.0 + apart * apart);
        let weight = near * DECAY.powi(i32::try_from(now - 1 - at).unwrap_or(i32::MAX));
        Some(Weighted { ratio, log: ratio.ln(), price: value * weight, weight })
    });
    let mut errors: Vec<_> = errors.collect();
    errors.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    errors
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Of runs, which are newest first, those up to the first that is no hour or was not measured: hour of the week and value.
pub(super) fn hours(runs: &[Observation], resource: Resource) -> Vec<(u32, f64)> {
    let hour = |run: &Observation| {
        let lasted = run.values[Resource::DurationS as usize].unwrap_or(0.0);
        let hour = hour_of_week(&run.features).filter(|_| (HOUR_S.0..=HOUR_S.1).contains(&lasted))?;
        Some((hour, super::estimate::value(run, resource)?))
    };
    runs.iter().map_while(hour).collect()
}

/// Of hours, the newest first, those that followed one another up to the one at hand: the oldest first.
pub(super) fn series(hours: &[(u32, f64)], features: &[Feature]) -> Vec<f64> {
    let Some(mut next) = hour_of_week(features) else { return Vec::new() };
    // They begin a little later each time, so that one may skip an hour of the clock.
    let follows = |(hour, _): &&(u32, f64)| {
        let follows = (next + 168 - hour) % 168 <= 2;
        next = *hour;
        follows
    };
    let mut series: Vec<f64> = hours.iter().take_while(follows).map(|(_, value)| *value).collect();
    series.reverse();
    series
}

fn hour_of_week(features: &[Feature]) -> Option<u32> {
    features.iter().find_map(|feature| match feature.value {
        FeatureValue::Number(hour) if feature.name == "hour_of_week" && (0.0..168.0).contains(&hour) => {
            Some(hour as u32)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Busy from 9 to 17.
    fn office(hours: usize) -> Vec<f64> {
        (0..hours).map(|hour| if (9..17).contains(&(hour % DAY)) { 100.0 } else { 10.0 }).collect()
    }

    #[test]
    fn the_step_in_the_morning_is_seen_before_it_comes() {
        let next = next_hour(&office(10 * DAY + 9), 0.9).unwrap();
        assert!((next.value - 100.0).abs() < 1.0, "{next:?}");
        let next = next_hour(&office(10 * DAY + 17), 0.9).unwrap();
        assert!((next.value - 10.0).abs() < 1.0, "{next:?}");
    }

    #[test]
    fn less_than_two_days_tell_nothing() {
        assert_eq!(next_hour(&office(47), 0.9), None);
        assert_eq!(next_hour(&[0.0; 100], 0.9), None);
    }

    #[test]
    fn hours_that_follow_one_another_are_a_series() {
        let run = |hour: u32, value: f64| {
            let mut run = Observation { features: at(hour), ..Observation::default() };
            run.values[Resource::DurationS as usize] = Some(3600.0);
            run.values[Resource::TasksPeak as usize] = Some(value);
            run
        };
        fn at(hour: u32) -> Vec<Feature> {
            vec![Feature { name: "hour_of_week".into(), value: FeatureValue::Number(f64::from(hour)) }]
        }
        let runs = [run(0, 3.0), run(167, 2.0), run(166, 1.0), run(160, 9.0)];
        let hours = hours(&runs, Resource::TasksPeak);
        assert_eq!(series(&hours, &at(1)), [1.0, 2.0, 3.0]);
        assert!(series(&hours, &at(5)).is_empty(), "hours are missing");
        assert!(series(&hours, &[]).is_empty());
        assert!(super::hours(&runs, Resource::DurationS).iter().all(|(_, lasted)| *lasted == 3600.0));
        assert!(super::hours(&runs, Resource::CpuCoresMean).is_empty(), "not measured");
    }

    proptest! {
        #[test]
        fn whatever_was_the_next_hour_is_a_number(hours in prop::collection::vec(any::<f64>(), 0..120), q in any::<f64>()) {
            if let Some(next) = next_hour(&hours, q) {
                prop_assert!(next.value >= 0.0 && !next.value.is_nan(), "{:?}", next);
            }
        }
    }
}
