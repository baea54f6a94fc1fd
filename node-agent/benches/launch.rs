//! What `standin run` adds to starting a command: with an agent, without one, and beside `systemd-run --scope`.
//!
//! Started is `/bin/true`, from its fork to its end, one way after the other in rounds whose order rotates, so
//! that whatever else the host does meets all of them alike. `added` is taken within a round. The agent is one
//! of our own, in a sandbox that the tests use too. Run by `cargo xtask bench launch`, as root.
mod quartiles;
#[path = "../../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, ensure};
use quartiles::Quartiles;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Agent, Sandbox};

const COMMAND: &str = "/bin/true";
const ROUNDS: usize = 200;
/// Ways that take long run in every so manieth round only.
const SLOW_EVERY: usize = 5;
/// Rounds before those that count: pages, caches, a first history.
const WARM_UP_ROUNDS: usize = 5;
/// After each start: the agent still records, and that should not fall into the next one's time.
const PAUSE: Duration = Duration::from_millis(8);

/// A way to start the command.
struct Way {
    name: &'static str,
    command: Command,
    every: usize,
    /// Milliseconds.
    took: Vec<f64>,
    /// Milliseconds more than the bare command took in the same round.
    added: Vec<f64>,
}

impl Way {
    fn new(name: &'static str, every: usize, mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self { name, command, every, took: Vec::new(), added: Vec::new() }
    }

    fn start(&mut self) -> Result<f64> {
        let started = Instant::now();
        let status = self.command.status().with_context(|| format!("failed to start {:?}", self.command))?;
        let took = started.elapsed();
        ensure!(status.success(), "{:?} ended with {status}", self.command);
        std::thread::sleep(PAUSE);
        Ok(took.as_secs_f64() * 1e3)
    }

    fn row(&self, bare: &Self) -> Option<String> {
        let (took, added) = (Quartiles::of(&self.took)?, Quartiles::of(&self.added)?);
        let ratio = took.median / Quartiles::of(&bare.took)?.median;
        let name = self.name;
        let count = self.took.len();
        Some(format!("{name:<32}{count:>7}{:>24}{:>24}{ratio:>8.1}", took.show(2), added.show(2)))
    }
}

fn main() -> Result<()> {
    ensure!(support::is_root(), "needs root, for probes and cgroups");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut ways = ways(&sandbox, &agent);
    match systemd_run() {
        Ok(command) => ways.push(Way::new("systemd-run --scope", SLOW_EVERY, command)),
        Err(why) => println!("not measured: systemd-run --scope ({why})"),
    }
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        measure(&mut ways, round)?;
    }
    print(&ways);
    Ok(())
}

/// The bare command first: the others are compared with it.
fn ways(sandbox: &Sandbox, agent: &Agent<'_>) -> Vec<Way> {
    let mut itself = sandbox.standin(["db", "path"]);
    itself.stdout(Stdio::null());
    vec![
        Way::new("bare", 1, Command::new(COMMAND)),
        Way::new("standin run, agent", 1, agent.standin(["run", "-q", "--require-agent", "--", COMMAND])),
        Way::new(
            "standin run, embedded",
            SLOW_EVERY,
            sandbox.standin(["run", "-q", "--no-agent", "--", COMMAND]),
        ),
        Way::new("standin db path (no run at all)", SLOW_EVERY, itself),
    ]
}

/// The command in a scope, if there is a systemd that makes one.
fn systemd_run() -> Result<Command, String> {
    let mut command = Command::new("systemd-run");
    command.args(["--scope", "--quiet", "--collect", COMMAND]);
    match command.output() {
        Ok(output) if output.status.success() => Ok(command),
        Ok(output) => Err(support::stderr(&output)
            .lines()
            .next()
            .unwrap_or("it fails, and does not say why")
            .to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn measure(ways: &mut [Way], round: usize) -> Result<()> {
    let mut took = vec![None; ways.len()];
    for place in 0..ways.len() {
        let chosen = (place + round) % ways.len();
        // The quick ones warm up every time, the slow ones need not.
        if round.is_multiple_of(ways[chosen].every) {
            took[chosen] = Some(ways[chosen].start()?);
        }
    }
    if round < WARM_UP_ROUNDS {
        return Ok(());
    }
    let bare = took[0].context("the bare command is part of every round")?;
    for (way, took) in ways.iter_mut().zip(took) {
        way.took.extend(took);
        way.added.extend(took.map(|took| took - bare));
    }
    Ok(())
}

fn print(ways: &[Way]) {
    println!("starting {COMMAND}: milliseconds from fork to end, median [p25 p75]\n");
    println!("{:<32}{:>7}{:>24}{:>24}{:>8}", "", "rounds", "took", "added", "ratio");
    ways.iter().filter_map(|way| way.row(&ways[0])).for_each(|row| println!("{row}"));
    println!("\ntargets: 3 ms more with an agent, 150 ms more embedded");
}
