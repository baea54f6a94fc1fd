//! What the probes add to a context switch, and to a compile, in a cgroup that they track.
//!
//! Measured in pairs, without and with, whose order alternates, so that a host that changes its pace does so
//! for both; the difference is taken within a pair. A pair of twice nothing shows how far that can be
//! trusted. Other agents on the host count in both halves. Run by `cargo xtask bench overhead`, as root.
mod bpftrace;
mod compile;
mod empty_program;
mod ping_pong;
mod quartiles;
mod tracked_cgroup;

use anyhow::{Context, Result, ensure};
use bpftrace::Bpftrace;
use compile::{Compile, Took};
use quartiles::Quartiles;
use std::any::Any;
use std::time::Duration;
use tracked_cgroup::TrackedCgroup;

const SWITCH_PAIRS: usize = 15;
const COMPILE_PAIRS: usize = 10;

/// What is attached in the second half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    Nothing,
    Empty,
    Standin,
    Bpftrace,
}

impl Attached {
    /// It stays attached until the result is dropped.
    fn attach(self, cgroup: &TrackedCgroup) -> Result<Box<dyn Any>> {
        Ok(match self {
            Self::Nothing => Box::new(()),
            Self::Empty => Box::new(empty_program::attach()?),
            Self::Standin => Box::new(cgroup.probes()?),
            Self::Bpftrace => Box::new(Bpftrace::start()?),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing (how far this can be trusted)",
            Self::Empty => "a program that does nothing",
            Self::Standin => "standin, all probes",
            Self::Bpftrace => "bpftrace, bursts and waits",
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
    match Bpftrace::start() {
        Ok(_) => contestants.push(Attached::Bpftrace),
        Err(error) => println!("not measured: {error:#}"),
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
        if let [bpftrace] = rest {
            println!("bpftrace / standin: {:.1}", bpftrace.median / standin.median);
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
    print_compiles(&contestants, &without, &added)
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
