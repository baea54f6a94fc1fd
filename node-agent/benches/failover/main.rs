//! `cargo xtask bench failover [PART…]`: what a failure costs the clients of a service that standin keeps up, next
//! to nginx and HAProxy with a backup and to a restart loop, in the same run and in turn. Needs root.
//!
//! Clients run at real-time priority and everything else of this at a raised one, all contestants alike, so that
//! other work of the host counts little. Everything is on the loopback interface.
#![allow(clippy::unwrap_used, reason = "this is no library; it panics where it fails")]

mod contestant;
mod hang;
mod kept;
mod kill;
#[path = "../../../tests/support/load.rs"]
mod load;
mod own_view;
mod proxy;
#[path = "../quartiles.rs"]
mod quartiles;
mod real;
mod restart;
mod server;
#[path = "../../../tests/support/service.rs"]
mod service;
mod shadow;
mod soak;
mod starve;
mod steady;
mod strike;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod table;

use anyhow::{Context, Result, bail, ensure};

/// What can be measured.
const PARTS: [(&str, Part, Default); 10] = [
    ("kill", kill::small, true),
    ("queue", kill::queue, true),
    ("large", kill::large, true),
    ("kept", kept::run, true),
    ("servers", real::run, true),
    ("hang", hang::run, true),
    ("starve", starve::run, true),
    ("steady", steady::run, true),
    ("shadow", shadow::run, true),
    ("soak", soak::run, false),
];

type Part = fn(&Settings) -> Result<()>;
/// Whether it is measured where no part is named.
type Default = bool;

/// Niceness of all that is measured.
pub(crate) const NICE: i32 = -15;

/// How much is measured.
pub(crate) struct Settings {
    /// Kills of each contestant.
    pub(crate) kills: usize,
    /// Length of `starve` and `soak`.
    pub(crate) minutes: Option<f64>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == server::ARGUMENT) {
        return server::serve(&arguments[1..]);
    }
    let (settings, wanted) = parse(&arguments)?;
    ensure!(support::is_root(), "needs root, to steer connections");
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("{} CPUs, load {}", std::thread::available_parallelism()?, load.trim());
    set_niceness(NICE);
    load::be_prompt();
    for (name, part, _) in PARTS.iter().filter(|(name, _, default)| match wanted.is_empty() {
        true => *default,
        false => wanted.contains(&(*name).to_owned()),
    }) {
        part(&settings).with_context(|| format!("part {name}"))?;
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("\nload {}", load.trim());
    Ok(())
}

/// Where it is raised, everything that is measured runs before the host's ordinary work, standin and proxies and servers alike, so that
/// a busy host counts less.
pub(crate) fn set_niceness(niceness: i32) {
    // SAFETY: plain system call on this process; what it starts inherits it.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } != 0 {
        println!("niceness can't be raised: the host's other work counts in full");
    }
}

/// A cgroup of runs weighs as much as one ordinary process, whatever the niceness of what is in it: it gets the weight
/// of one process at [`NICE`] (`sched_prio_to_weight`, kernel/sched/core.c).
pub(crate) fn prefer_runs(sandbox: &support::Sandbox) {
    for line in std::fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        let Some(place) = line.split(' ').nth(1).filter(|_| line.contains(" cgroup")) else { continue };
        let cgroup = std::path::Path::new(place).join(&sandbox.parent);
        for (file, weight) in [("cpu.shares", "29154"), ("cpu.weight", "2847")] {
            _ = std::fs::write(cgroup.join(file), weight);
        }
    }
}

fn parse(arguments: &[String]) -> Result<(Settings, Vec<String>)> {
    let mut settings = Settings { kills: 20, minutes: None };
    let mut wanted = Vec::new();
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let mut value = || left.next().with_context(|| format!("{argument} needs a number"));
        match argument.as_str() {
            "--kills" => settings.kills = value()?.parse().context("--kills")?,
            "--minutes" => settings.minutes = Some(value()?.parse().context("--minutes")?),
            name if PARTS.iter().any(|(part, ..)| *part == name) => wanted.push(name.to_owned()),
            other => {
                let names: Vec<&str> = PARTS.iter().map(|(name, ..)| *name).collect();
                bail!("no part is called {other}; there are {}, --kills N, --minutes N", names.join(", "));
            }
        }
    }
    Ok((settings, wanted))
}
