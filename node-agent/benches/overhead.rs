//! What the probes add to a context switch, and to a compile, in a cgroup that they track.
//!
//! Measured in pairs, without and with, whose order alternates, so that a host that changes its pace does so
//! for both; the difference is taken within a pair. A pair of twice nothing shows how far that can be
//! trusted. Other agents on the host count in both halves. Run by `cargo xtask bench overhead`, as root.
mod bpftrace;
mod compile;
mod empty_program;
mod libbpf_tools;
mod ping_pong;
mod quartiles;
mod tracked_cgroup;

use anyhow::{Context, Result, ensure};
use bpftrace::Bpftrace;
use compile::{Compile, Took};
use libbpf_tools::LibbpfTools;
use quartiles::Quartiles;
use std::any::Any;
use std::time::{Duration, Instant};
use tracked_cgroup::TrackedCgroup;

const SWITCH_PAIRS: usize = 15;
const COMPILE_PAIRS: usize = 30;
const ACCOUNTED_COMPILES: usize = 5;

/// What is attached in the second half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    Nothing,
    Empty,
    Standin,
    Bpftrace,
    LibbpfTools,
}

impl Attached {
    /// It stays attached until the result is dropped.
    fn attach(self, cgroup: &TrackedCgroup) -> Result<Box<dyn Any>> {
        Ok(match self {
            Self::Nothing => Box::new(()),
            Self::Empty => Box::new(empty_program::attach()?),
            Self::Standin => Box::new(cgroup.probes()?),
            Self::Bpftrace => Box::new(Bpftrace::start()?),
            Self::LibbpfTools => Box::new(LibbpfTools::start(cgroup.path())?),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing (how far this can be trusted)",
            Self::Empty => "a program that does nothing",
            Self::Standin => "standin, all probes",
            Self::Bpftrace => "bpftrace, bursts and waits",
            Self::LibbpfTools => "libbpf-tools cpudist and runqlat",
        }
    }
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(ping_pong::ARGUMENT) {
        return ping_pong::play();
    }
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for probes and cgroups");
    let cgroup = TrackedCgroup::new()?;
    switches(&cgroup)?;
    compiles(&cgroup)
}

/// Without and with, or with and without.
fn pair<T>(
    round: usize,
    cgroup: &TrackedCgroup,
    attached: Attached,
    measure: impl Fn() -> Result<T>,
) -> Result<(T, T)> {
    let with = || {
        let _attachment = attached.attach(cgroup)?;
        measure()
    };
    if round.is_multiple_of(2) {
        let with = with()?;
        Ok((measure()?, with))
    } else {
        Ok((measure()?, with()?))
    }
}

fn switches(cgroup: &TrackedCgroup) -> Result<()> {
    let mut contestants = vec![Attached::Nothing, Attached::Empty, Attached::Standin];
    for yardstick in [Attached::Bpftrace, Attached::LibbpfTools] {
        match yardstick.attach(cgroup) {
            Ok(_) => contestants.push(yardstick),
            Err(error) => println!("not measured: {}: {error:#}", yardstick.name()),
        }
    }
    let mut without = Vec::new();
    let mut added = vec![Vec::new(); contestants.len()];
    for round in 0..SWITCH_PAIRS {
        for place in 0..contestants.len() {
            let chosen = (place + round) % contestants.len();
            let (bare, with) = pair(round, cgroup, contestants[chosen], || ping_pong::measure(cgroup))?;
            without.push(bare);
            added[chosen].push(with - bare);
        }
    }
    print_switches(&contestants, &without, &added)
}

fn print_switches(contestants: &[Attached], without: &[f64], added: &[Vec<f64>]) -> Result<()> {
    let without = Quartiles::of(without).context("no pairs")?;
    let real_time =
        std::thread::spawn(ping_pong::become_real_time).join().is_ok_and(|allowed| allowed.is_ok());
    let class = if real_time { "SCHED_FIFO" } else { "no real-time priority allowed" };
    println!(
        "a context switch (pipe ping-pong on one CPU, {class}; {SWITCH_PAIRS} pairs of {} round trips)",
        ping_pong::ROUND_TRIPS
    );
    println!("takes {} ns of CPU, median [p25 p75]; added by\n", without.show(0));
    let medians: Vec<_> = added.iter().filter_map(|added| Quartiles::of(added)).collect();
    for (contestant, added) in contestants.iter().zip(&medians) {
        println!("{:<40}{:>24} ns", contestant.name(), added.show(0));
    }
    if let [_, empty, standin, rest @ ..] = &medians[..] {
        println!("\nstandin above a program that does nothing: {:.0} ns", standin.median - empty.median);
        for (yardstick, added) in contestants[3..].iter().zip(rest) {
            println!("{} / standin: {:.1}", yardstick.name(), added.median / standin.median);
        }
    }
    Ok(())
}

fn compiles(cgroup: &TrackedCgroup) -> Result<()> {
    let compile = Compile::new()?;
    compile.measure(cgroup)?;
    let contestants = [Attached::Nothing, Attached::Standin];
    let mut without = Vec::new();
    let mut added = [const { Vec::new() }; 2];
    for round in 0..COMPILE_PAIRS {
        for place in 0..contestants.len() {
            let chosen = (place + round) % contestants.len();
            let pair = pair(round, cgroup, contestants[chosen], || compile.measure(cgroup))?;
            without.push(pair.0);
            added[chosen].push(pair);
        }
    }
    print_compiles(&contestants, &without, &added)?;
    accounted(cgroup, &compile)
}

/// What the kernel itself says the programs took meanwhile: it has no noise, but the host's other switches in it.
fn accounted(cgroup: &TrackedCgroup, compile: &Compile) -> Result<()> {
    let probes = cgroup.probes()?;
    let stats = probes.count_costs()?;
    let started = Instant::now();
    let took = (0..ACCOUNTED_COMPILES).map(|_| compile.measure(cgroup)).collect::<Result<Vec<_>>>()?;
    let elapsed_s = started.elapsed().as_secs_f64();
    let costs = probes.costs(&stats);
    let programs_s: f64 = costs.iter().map(|cost| cost.runs_per_s * cost.ns_per_run / 1e9 * elapsed_s).sum();
    let runs: f64 = costs.iter().map(|cost| cost.runs_per_s * elapsed_s).sum();
    let cpu_s: f64 = took.iter().map(|took| took.cpu.as_secs_f64()).sum();
    println!(
        "\nthe kernel's own account of the programs over {ACCOUNTED_COMPILES} compiles, those of the whole host:"
    );
    println!(
        "{runs:.0} runs, {:.1} ms: {:.2} % of the compiles' CPU time (some 40 ns of each run are the accounting)",
        programs_s * 1e3,
        programs_s / cpu_s * 100.0
    );
    Ok(())
}

fn print_compiles(contestants: &[Attached], without: &[Took], added: &[Vec<(Took, Took)>]) -> Result<()> {
    let seconds = |of: fn(&Took) -> Duration| {
        Quartiles::of(&without.iter().map(|took| of(took).as_secs_f64()).collect::<Vec<_>>())
    };
    let cpu = seconds(|took| took.cpu).context("no pairs")?;
    let wall = seconds(|took| took.wall).context("no pairs")?;
    println!("\na compile (gcc -O2; {COMPILE_PAIRS} pairs)");
    println!("takes {} s of CPU and {} s; added by, percent\n", cpu.show(2), wall.show(2));
    println!("{:<40}{:>24}{:>24}", "", "CPU time", "elapsed");
    for (contestant, pairs) in contestants.iter().zip(added) {
        let percent = |of: fn(&Took) -> Duration| {
            let ratio = |pair: &(Took, Took)| of(&pair.1).as_secs_f64() / of(&pair.0).as_secs_f64();
            Quartiles::of(&pairs.iter().map(|pair| (ratio(pair) - 1.0) * 100.0).collect::<Vec<_>>())
        };
        if let (Some(cpu), Some(wall)) = (percent(|took| took.cpu), percent(|took| took.wall)) {
            println!("{:<40}{:>24}{:>24}", contestant.name(), cpu.show(2), wall.show(2));
        }
    }
    Ok(())
}
