//! `cargo xtask fuzz`: the property tests that feed parsers with what means harm (`hostile_…` in node-agent), with very
//! many cases each. Every overflow is an error there. An input that fails is shrunk and written to
//! `node-agent/proptest-regressions/`, which belongs into the commit that mends it: all tests try those first.
use std::{process::ExitCode, time::Instant};

use anyhow::Result;

use crate::process;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Cases per property
    #[arg(long, default_value_t = 1_000_000)]
    cases: u32,
    /// Only properties with this in their name
    #[arg(default_value = "hostile_")]
    only: String,
}

/// Gives the exit code of the tests.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut tests = process::cargo(crate::workspace()?);
    tests
        .args(["test", "--profile", "checked", "--package", "node-agent", "--lib", "--", &options.only])
        .env("PROPTEST_CASES", options.cases.to_string());
    let begun = Instant::now();
    let status = process::status(&mut tests)?;
    println!("{} cases of each property in {:.0} s", options.cases, begun.elapsed().as_secs_f64());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
