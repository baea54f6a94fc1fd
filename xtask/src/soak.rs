//! `cargo xtask soak --minutes N`: whether anything grows while jobs, failovers, containers and cgroups come and go
//! (`node-agent/benches/soak/`). Built with every overflow an error; needs root.
use std::process::ExitCode;

use anyhow::Result;

use crate::{debian, process};

/// Programs that come and go, and Debian's packages with them. Without a runtime there are no containers among them.
const PROGRAMS: [(&str, &str); 4] =
    [("python3", "python3"), ("crun", "crun"), ("busybox", "busybox-static"), ("unshare", "util-linux")];

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long; the first third is warm-up
    #[arg(long, default_value_t = 10.0, value_parser = parse_minutes)]
    minutes: f64,
}

fn parse_minutes(text: &str) -> Result<f64, String> {
    let minutes: Option<f64> = text.parse().ok();
    minutes.filter(|minutes| (1.0..=100_000.0).contains(minutes)).ok_or_else(|| "allowed is 1 or more".into())
}

/// Succeeds if nothing grew beyond its bound.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    debian::provide(&PROGRAMS);
    let mut cargo = process::cargo(crate::workspace()?);
    cargo.args(["bench", "--profile", "checked", "--package", "node-agent", "--bench", "soak", "--"]);
    let status = process::status(cargo.args(["--minutes", &options.minutes.to_string()]))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
