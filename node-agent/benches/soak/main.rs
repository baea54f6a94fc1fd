//! Whether anything grows: jobs, a service whose primary is killed again and again, and containers and cgroups that come
//! and go, for as long as asked, while everything that could grow is looked at every few seconds. What still grows after a warm-up by
//! more than `bounds.rs` allows fails. Run by `cargo xtask soak --minutes N`, as root.

mod bounds;
#[path = "../../../tests/support/bundle.rs"]
mod bundle;
mod churn;
mod sample;
#[path = "../../../tests/support/service.rs"]
mod service;
#[path = "../../../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, bail, ensure};
use bounds::Verdict;
use sample::Sample;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Pause between two lines that say how far it is.
const WORD_EVERY: Duration = Duration::from_secs(60);

/// What is not looked at: caches fill, the first runs are kept, pages are touched for the first time.
const WARM_UP_SHARE: f64 = 0.3;

/// The sandbox's own settings: few runs are kept, so that retention is at work long before the end.
const CONFIG: &str =
    "host_cgroups = 64\ncheckpoint_s = 1\n[retention]\nruns_per_task = 300\nruns = 1500\nevents = 3000\n";

fn main() -> Result<ExitCode> {
    let minutes = minutes().context("usage: soak --minutes N")?;
    ensure!(support::is_root(), "needs root, for probes and cgroups");
    let sandbox = support::Sandbox::with_config(CONFIG);
    let agent = sandbox.agent();
    let service = churn::service(&sandbox, &agent);
    let bundle = churn::bundle(&sandbox, &agent);
    let stop = AtomicBool::new(false);
    let (samples, done) = std::thread::scope(|scope| {
        let churn = churn::start(scope, &sandbox, bundle.as_ref(), &service, &stop);
        let samples = watch(&sandbox, &agent, &service, Duration::from_secs_f64(minutes * 60.0));
        stop.store(true, Relaxed);
        let done = churn.into_iter().map(|(what, thread)| Ok((what, thread.join().map_err(|_| what)?)));
        (samples, done.collect::<Result<Vec<_>, &str>>())
    });
    let done = match done {
        Ok(done) => done,
        Err(what) => bail!("{what} broke off: see above"),
    };
    for (what, count) in done {
        println!("{count:>8} {what}");
    }
    let warm = (samples.len() as f64 * WARM_UP_SHARE) as usize;
    let verdict = Verdict::of(&samples[warm..]);
    println!("\n{verdict}");
    Ok(if verdict.is_bounded() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `--minutes N` of the command line; cargo adds words of its own.
fn minutes() -> Option<f64> {
    let arguments: Vec<String> = std::env::args().collect();
    let place = arguments.iter().position(|argument| argument == "--minutes")?;
    arguments.get(place + 1)?.parse().ok().filter(|minutes| *minutes >= 1.0)
}

fn watch(
    sandbox: &support::Sandbox,
    agent: &support::Agent<'_>,
    service: &service::Service<'_>,
    span: Duration,
) -> Vec<Sample> {
    let began = Instant::now();
    let (mut samples, mut said) = (Vec::new(), began);
    while began.elapsed() < span {
        std::thread::sleep(LOOK_EVERY);
        let sample = Sample::take(sandbox, agent.pid(), service.child.id(), began.elapsed());
        if said.elapsed() >= WORD_EVERY {
            said = Instant::now();
            println!("{sample}");
        }
        samples.push(sample);
    }
    samples
}
