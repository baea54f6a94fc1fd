//! The peak of the next hour on the series of the Crane project, beside simple recipes.

use standin::predict::HISTORY_MAX;
use standin::predict::seasonal::next_hour;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What the study of these series measured for its own engine, in the unit below.
const BAR: f64 = 6.61;
const QUANTILE: f64 = 0.9;
/// Hours that come before the first that counts: a week.
const FIRST: usize = 168;

/// A recipe: the bound on the next hour, from the hours before it.
type Recipe = fn(&[f64]) -> f64;

pub(crate) fn on_all(folder: &Path) {
    let archive = folder.join("crane/crane.tar.xz");
    let unpacked = tempfile::tempdir().unwrap();
    let tar = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(unpacked.path()).status();
    if !tar.is_ok_and(|status| status.success()) {
        return println!("crane: skipped: no such series");
    }
    let series: Vec<_> = (0..16).map(|n| peaks(&unpacked.path().join(format!("input{n}.csv")))).collect();
    println!(
        "crane, 16 series: bound of the peak of the next hour at {QUANTILE}: pinball loss in percent of the mean peak, mean \
         over series (study's engine: {BAR})"
    );
    let recipes: [(&str, Recipe); 3] = [
        ("standin", |hours| {
            next_hour(&hours[hours.len().saturating_sub(HISTORY_MAX)..], QUANTILE).unwrap().value
        }),
        ("hour before × 1.15", |hours| hours[hours.len() - 1] * 1.15),
        ("day's largest × 1.1", |hours| {
            hours[hours.len() - 24..].iter().fold(0.0, |a: f64, b| a.max(*b)) * 1.1
        }),
    ];
    for (name, recipe) in recipes {
        let costs: Vec<_> = series.iter().map(|hours| replay(hours, recipe)).collect();
        let mean = |of: fn(&Cost) -> f64, from: usize, step: usize| {
            let chosen: Vec<_> = costs.iter().skip(from).step_by(step).map(of).collect();
            chosen.iter().sum::<f64>() / chosen.len() as f64
        };
        println!(
            "  {name:19} {:5.2} (even series {:.2}, odd ones {:.2}), above it {:.1} % of hours, {:.0} % reserved in vain",
            mean(|cost| cost.loss, 0, 1),
            mean(|cost| cost.loss, 0, 2),
            mean(|cost| cost.loss, 1, 2),
            mean(|cost| cost.above, 0, 1),
            mean(|cost| cost.over, 0, 1)
        );
    }
    println!();
}

/// All in percent.
struct Cost {
    loss: f64,
    above: f64,
    over: f64,
}

fn replay(hours: &[f64], recipe: Recipe) -> Cost {
    let (mut loss, mut above, mut over, mut used) = (0.0, 0.0, 0.0, 0.0);
    for at in FIRST..hours.len() {
        let (bound, actual) = (recipe(&hours[..at]), hours[at]);
        loss += (QUANTILE * (actual - bound)).max((QUANTILE - 1.0) * (actual - bound));
        above += f64::from(u8::from(actual > bound));
        over += bound - actual;
        used += actual;
    }
    let count = (hours.len() - FIRST) as f64;
    Cost { loss: 100.0 * loss / used, above: 100.0 * above / count, over: 100.0 * over / used }
}

/// The largest value of each hour.
fn peaks(path: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut hours: BTreeMap<i64, f64> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (at_s, value) = line.split_once(',').unwrap();
        let peak = hours.entry(at_s.parse::<i64>().unwrap() / 3600).or_insert(0.0);
        *peak = peak.max(value.trim().parse().unwrap());
    }
    hours.into_values().collect()
}
