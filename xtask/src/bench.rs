//! `cargo xtask bench NAME`: what standin costs, measured on this host. The benchmarks themselves are
//! `node-agent/benches/`; they need root, and the more idle the host, the better.
use std::process::ExitCode;

use anyhow::Result;

use crate::process;

/// What can be measured.
#[derive(Clone, Copy, clap::Subcommand)]
pub(crate) enum Bench {
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
    fn name(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Overhead => "overhead",
            Self::Scale => "scale",
            Self::Consolidate => "consolidate",
            Self::Predict => "predict",
        }
    }
}

/// Gives the exit code of the benchmark.
pub(crate) fn run(bench: Bench) -> Result<ExitCode> {
    let mut cargo = process::cargo(crate::workspace()?);
    let status = process::status(cargo.args(["bench", "--package", "node-agent", "--bench", bench.name()]))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
