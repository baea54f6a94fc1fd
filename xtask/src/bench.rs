//! `cargo xtask bench NAME`: what standin costs, measured on this host. The benchmarks themselves are
//! `node-agent/benches/`; they need root, and the more idle the host, the better.
use std::process::ExitCode;

use anyhow::Result;

use crate::{debian, process};

/// Programs that failover is measured with, and Debian's packages with them.
const FAILOVER_PROGRAMS: [(&str, &str); 8] = [
    ("curl", "curl"),
    ("haproxy", "haproxy"),
    ("java", "openjdk-17-jdk-headless"),
    ("nginx", "nginx-light"),
    ("node", "nodejs"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("stress-ng", "stress-ng"),
];

/// What the probes are measured against.
const OVERHEAD_PROGRAMS: [(&str, &str); 3] =
    [("bpftrace", "bpftrace"), ("cpudist", "libbpf-tools"), ("gcc", "gcc")];

/// What can be measured.
#[derive(Clone, clap::Subcommand)]
pub(crate) enum Bench {
    /// What a failure costs the clients of a service, next to proxies with a backup and to a restart loop
    Failover {
        /// PARTs of it (an unknown one prints their names), --kills N, --minutes N
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What `standin run` adds to starting a command, with an agent and without
    Launch,
    /// What the probes add to a context switch and to a compile
    Overhead,
    /// What the agent costs with hundreds and thousands of cgroups
    Scale,
    /// What a mix of jobs takes under presets, under nothing and under standin
    Consolidate,
    /// How good predictions are on traces (in the folder STANDIN_TRACES), and what they cost
    Predict,
}

impl Bench {
    fn name(&self) -> &'static str {
        match self {
            Self::Failover { .. } => "failover",
            Self::Launch => "launch",
            Self::Overhead => "overhead",
            Self::Scale => "scale",
            Self::Consolidate => "consolidate",
            Self::Predict => "predict",
        }
    }
}

/// Gives the exit code of the benchmark.
pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    let mut cargo = process::cargo(crate::workspace()?);
    cargo.args(["bench", "--package", "node-agent", "--bench", bench.name()]);
    if let Bench::Failover { arguments } = bench {
        // What is missing it says itself, where it would be used.
        debian::provide(&FAILOVER_PROGRAMS);
        cargo.arg("--").args(arguments);
    }
    if let Bench::Overhead = bench {
        debian::provide(&OVERHEAD_PROGRAMS);
    }
    let status = process::status(&mut cargo)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
