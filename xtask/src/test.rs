//! `cargo xtask test`: everything that has to be set up, then all tests, then what could not be tested here.
//!
//! A test that lacks a program or a privilege passes, and writes why to the file that `STANDIN_SKIPPED`
//! names (`tests/support/skip.rs`): cargo does not count those.
use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result};

use crate::{debian, process};

/// Programs that tests use, and Debian's packages with them.
const PROGRAMS: [(&str, &str); 27] = [
    ("bash", "bash"),
    ("busybox", "busybox-static"),
    ("cc", "gcc libc6-dev"),
    ("chromium", "chromium"),
    ("crun", "crun"),
    ("curl", "curl"),
    ("fio", "fio"),
    ("fish", "fish"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("mount", "mount"),
    ("nginx", "nginx-light"),
    ("podman", "podman"),
    ("prometheus", "prometheus"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("script", "bsdutils"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("sqlite3", "sqlite3"),
    ("stress-ng", "stress-ng"),
    ("systemd-analyze", "systemd"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
    ("zsh", "zsh"),
];

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Passed on to cargo test: cargo xtask test -- --test second_run_is_predicted
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Gives the exit code of `cargo test`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    set_up();
    let workspace = crate::workspace()?;
    let skipped = workspace.join("target/skipped-tests.txt");
    start_empty(&skipped)?;
    let mut tests = process::cargo(workspace);
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(&options.arguments)
        .env("STANDIN_SKIPPED", &skipped);
    let status = process::status(&mut tests)?;
    report(&fs::read_to_string(&skipped)?);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Installs what tests use. What stays missing makes some of them skip.
fn set_up() {
    let missing = debian::provide(&PROGRAMS);
    if !missing.is_empty() {
        println!(
            "missing for some tests, which will skip: {} (as root on Debian this installs them)",
            missing.join(" ")
        );
    }
}

fn start_empty(skipped: &Path) -> Result<()> {
    if let Some(directory) = skipped.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(skipped, "").with_context(|| format!("failed to write {}", skipped.display()))
}

fn report(skipped: &str) {
    println!();
    skipped.lines().for_each(|line| println!("skipped: {line}"));
    let count = skipped.lines().count();
    println!("{count} {} skipped their checks", if count == 1 { "test" } else { "tests" });
}
