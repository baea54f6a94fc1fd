//! The same mix of jobs on the same host, admitted and limited in different ways: presets as a user would write
//! them, nothing at all, and standin with a history of each job.
//!
//! Jobs are real programs on generated input: compiler, compressor, sort, database, and Python that holds memory. All
//! are submitted in the same second; tasks may have 2 GiB together. A job that is killed for want of memory is
//! submitted again with twice its limit, as a user would. What is told comes from the database: reserved is what a run
//! was promised times how long it ran, used is its course of memory. The first way is the yardstick of the ratios.
//! Run by `cargo xtask bench consolidate`, as root.
#[path = "../../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use support::{Agent, Sandbox};

/// Memory that all tasks may have together, bytes.
const HOST_BYTES: u64 = 2 << 30;

/// Submissions of each kind of job.
const COPIES: usize = 3;

/// Runs of each kind before the way that has a history.
const HISTORY: usize = 2;

/// Most times that a job is submitted again after it was killed.
const RETRIES: u32 = 4;

/// The jobs: a name, and a script that is given the directory of inputs.
const JOBS: [(&str, &str); 6] = [
    ("compile", "gcc -O2 -c \"$0/big.c\" -o /dev/null"),
    ("compress", "xz -T2 -6 -k -c \"$0/text\" > /dev/null"),
    ("sort", "sort -S 200M --parallel=2 \"$0/lines\" > /dev/null"),
    (
        "database",
        "sqlite3 :memory: 'CREATE TABLE t AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
         SELECT i, hex(randomblob(16)) AS h FROM n; CREATE INDEX x ON t (h); SELECT count(*) FROM t;' > /dev/null",
    ),
    ("hold-small", "exec python3 -c 'import time; b = bytearray(60 << 20); time.sleep(2)'"),
    ("hold-large", "exec python3 -c 'import time; b = bytearray(700 << 20); time.sleep(2)'"),
];

/// A way to run the mix.
struct Way {
    name: &'static str,
    /// Hard memory limit and promise that each job starts with, bytes; `None` leaves both to standin.
    preset_bytes: Option<u64>,
    options: &'static [&'static str],
    has_history: bool,
}

const WAYS: [Way; 4] = [
    Way {
        name: "preset 1 GiB, 1 core",
        preset_bytes: Some(1 << 30),
        options: &["--policy", "observe", "--wait", "--limit-cpu", "1"],
        has_history: false,
    },
    Way {
        name: "preset 256 MiB, 1 core",
        preset_bytes: Some(256 << 20),
        options: &["--policy", "observe", "--wait", "--limit-cpu", "1"],
        has_history: false,
    },
    Way {
        name: "all at once, no limits",
        preset_bytes: None,
        options: &["--policy", "observe"],
        has_history: false,
    },
    Way { name: "standin", preset_bytes: None, options: &["--wait"], has_history: true },
];

/// What came of a way.
struct Outcome {
    makespan_s: f64,
    kills: u32,
    lost: u32,
    reserved_gbh: f64,
    used_gbh: f64,
    /// Runs that a CPU quota held back in a good share of periods.
    throttled: f64,
}

fn main() -> Result<()> {
    ensure!(support::is_root(), "needs root, for cgroups");
    let inputs = tempfile::tempdir()?;
    make_inputs(inputs.path())?;
    let mut outcomes = Vec::new();
    for way in &WAYS {
        println!("{} …", way.name);
        outcomes.push((way.name, run(way, inputs.path())?));
    }
    print(&outcomes);
    Ok(())
}

fn make_inputs(directory: &Path) -> Result<()> {
    let mut source = String::new();
    for number in 0..700 {
        writeln!(
            source,
            "int f{number}(int a) {{ int s = a; for (int i = 0; i < {number}; i++) s = s * 31 + i; return s; }}"
        )?;
    }
    fs::write(directory.join("big.c"), source)?;
    // A linear congruential generator: the same text on every host.
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    let lines: String = (0..800_000).map(|_| format!("{:x} some words\n", next())).collect();
    fs::write(directory.join("lines"), &lines)?;
    fs::write(directory.join("text"), &lines[..6 << 20])?;
    Ok(())
}

fn run(way: &Way, inputs: &Path) -> Result<Outcome> {
    let total = standin::host::capacity().memory_bytes;
    let reserve = total.saturating_sub(HOST_BYTES);
    let sandbox = Sandbox::with_config(&format!("[host]\nreserve_memory = {reserve}\n"));
    let agent = sandbox.agent();
    if way.has_history {
        learn(&sandbox, &agent, inputs)?;
    }
    let first = sandbox.sql::<i64>("SELECT ifnull(max(id), 0) FROM run");
    let started = Instant::now();
    let results = std::thread::scope(|scope| {
        let (agent, way) = (&agent, &way);
        let submissions: Vec<_> = (0..COPIES)
            .flat_map(|_| JOBS)
            .map(|job| scope.spawn(move || submit(agent, way, job, inputs)))
            .collect();
        submissions
            .into_iter()
            .map(|job| job.join().expect("a submission does not panic"))
            .collect::<Vec<_>>()
    });
    let makespan_s = started.elapsed().as_secs_f64();
    sandbox.wait_for_runs(0, "state = 'running'");
    let mut outcome = Outcome { makespan_s, kills: 0, lost: 0, ..measured(&sandbox, first) };
    for result in results {
        let (kills, ended_well) = result?;
        outcome.kills += kills;
        outcome.lost += u32::from(!ended_well);
    }
    Ok(outcome)
}

fn learn(sandbox: &Sandbox, agent: &Agent<'_>, inputs: &Path) -> Result<()> {
    for (name, script) in (0..HISTORY).flat_map(|_| JOBS) {
        let status = command(agent, name, &[], script, inputs).status()?;
        ensure!(status.success(), "{name} ended with {status}");
    }
    sandbox.wait_for_runs(0, "state = 'running'");
    Ok(())
}

/// A job, until it ends well: how often it was killed, and whether it did.
fn submit(agent: &Agent<'_>, way: &Way, (name, script): (&str, &str), inputs: &Path) -> Result<(u32, bool)> {
    let mut preset = way.preset_bytes;
    for kills in 0..=RETRIES {
        let mut options: Vec<String> = way.options.iter().map(|option| (*option).to_owned()).collect();
        if let Some(bytes) = preset {
            let bytes = bytes.to_string();
            options.extend(["--limit-memory".into(), bytes.clone(), "--reserve-memory".into(), bytes]);
        }
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let status = command(agent, name, &options, script, inputs).status().context("failed to submit")?;
        if status.success() {
            return Ok((kills, true));
        }
        preset = preset.map(|bytes| bytes * 2);
    }
    Ok((RETRIES + 1, false))
}

fn command(agent: &Agent<'_>, name: &str, options: &[&str], script: &str, inputs: &Path) -> Command {
    let mut command = agent.standin(["run", "--quiet", "--require-agent", "--name", name]);
    command.args(options).args(["--", "sh", "-e", "-c", script]).arg(inputs);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What the database tells of the runs after `first`.
fn measured(sandbox: &Sandbox, first: i64) -> Outcome {
    let sum = |expression: &str, table: &str| -> f64 {
        sandbox.sql(&format!("SELECT ifnull(sum({expression}), 0.0) FROM {table} WHERE run_id > {first}"))
    };
    let gbh = 1e9 * 3600.0;
    Outcome {
        makespan_s: 0.0,
        kills: 0,
        lost: 0,
        reserved_gbh: sum(
            "1.0 * promised_memory_bytes * duration_ns / 1e9",
            "run_admission JOIN run ON run.id = run_id",
        ) / gbh,
        used_gbh: sum("1.0 * memory_bytes * length_ms / 1e3", "run_series") / gbh,
        throttled: sum("1.0 * throttled", "(SELECT id AS run_id, throttled FROM run)"),
    }
}

fn print(outcomes: &[(&str, Outcome)]) {
    let Some((_, yardstick)) = outcomes.first() else { return };
    println!(
        "\n{:<24}{:>12}{:>7}{:>7}{:>7}{:>12}{:>7}{:>10}{:>10}{:>12}",
        "", "makespan", "ratio", "kills", "lost", "reserved", "ratio", "used", "of it", "throttled"
    );
    for (name, outcome) in outcomes {
        println!(
            "{name:<24}{:>10.1} s{:>7.2}{:>7}{:>7}{:>7.4} GB·h{:>7.2}{:>10.4}{:>8.0} %{:>7.0} runs",
            outcome.makespan_s,
            outcome.makespan_s / yardstick.makespan_s,
            outcome.kills,
            outcome.lost,
            outcome.reserved_gbh,
            outcome.reserved_gbh / yardstick.reserved_gbh,
            outcome.used_gbh,
            100.0 * outcome.used_gbh / outcome.reserved_gbh,
            outcome.throttled,
        );
    }
}
