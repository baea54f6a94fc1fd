//! A machine without a free CPU: nobody has failed, so nothing should be moved.

use crate::contestant::{Contestant, Way};
use crate::load::Load;
use crate::proxy::{Kind, SILENCE_MS};
use crate::server::{Shape, numbers, request};
use crate::support::{Job, Sandbox, has};
use crate::{NICE, Settings, set_niceness};
use anyhow::Result;
use std::process::Command;
use std::time::Duration;

const RATE: u32 = 100;
const MINUTES: f64 = 0.4;
/// stress-ng's workers per CPU.
const HOGS: usize = 4;

pub(crate) fn run(settings: &Settings) -> Result<()> {
    if !has("stress-ng") {
        println!("\nnot measured: false alarms (stress-ng is not installed)");
        return Ok(());
    }
    // Nobody is preferred here.
    set_niceness(0);
    let outcome = measure(settings);
    set_niceness(NICE);
    outcome
}

fn measure(settings: &Settings) -> Result<()> {
    let minutes = settings.minutes.unwrap_or(MINUTES);
    let sandbox = Sandbox::with_config("probes = false");
    let shape = Shape { silence_ms: SILENCE_MS, ..Shape::light(sandbox.path("marks")) };
    let ways = Way::available(&[Way::Shadow, Way::Proxy(Kind::Nginx), Way::Proxy(Kind::Haproxy)]);
    let start = |way: &Way| Contestant::start(*way, &sandbox, "starve", &shape).map(Contestant::ordinary);
    let contestants = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let primaries: Vec<u32> = contestants.iter().map(Contestant::settle).collect();
    let cpus = std::thread::available_parallelism()?.get();
    let seconds = minutes * 60.0;
    let mut stress = Command::new("stress-ng");
    let limit = (seconds as u64 + 30).to_string();
    let hogs = Job::start(stress.args(["--quiet", "--cpu", &(HOGS * cpus).to_string(), "--timeout", &limit]));
    let load = |contestant: &Contestant<'_>| {
        let first = numbers((seconds as u64 + 60) * u64::from(RATE));
        Load::numbered(contestant.address(), RATE, first, request)
    };
    let loads: Vec<Load> = contestants.iter().map(load).collect();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let fates: Vec<_> = loads.into_iter().map(Load::finish).collect();
    drop(hogs);
    println!(
        "\n{HOGS} busy processes per CPU for {minutes} minutes, {RATE} new connections/s each, nobody has failed"
    );
    println!(
        "{:<26}{:>10}{:>10}{:>16}{:>14}{:>12}",
        "", "sent", "failed", "by the stand-in", "median, ms", "p99, ms"
    );
    for ((way, primary), fates) in ways.iter().zip(primaries).zip(&fates) {
        let moved: u64 =
            fates.by_pid.iter().filter(|(pid, _)| **pid != primary).map(|(_, count)| count).sum();
        let at = |quantile| fates.latency_us(quantile) as f64 / 1e3;
        println!(
            "{:<26}{:>10}{:>10}{moved:>16}{:>14.1}{:>12.1}",
            way.name(),
            fates.sent(),
            fates.failed(),
            at(0.5),
            at(0.99)
        );
    }
    let failovers = contestants[0].service().map_or(0, crate::service::Service::failovers);
    println!("false alarms of standin: {failovers}");
    Ok(())
}
