//! What both lanes of tests on an installed standin need: a small Debian with systemd, the package, and the test
//! program `tests/installed.rs`, which runs in there.
pub(crate) mod cache;
pub(crate) mod root;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    dist,
    process::{self, done},
};

/// The test program, and its parts that are not run with the others: one ends with the package gone, the other with the
/// machine.
pub(crate) const TESTS: &str = "installed";
pub(crate) const REMOVAL: &str = "removal";
pub(crate) const POWER_CUT: &str = "power_cut";

/// What is laid into a guest.
pub(crate) struct Payload {
    pub(crate) package: PathBuf,
    pub(crate) tests: PathBuf,
}

impl Payload {
    /// Builds package and test program with `profile`.
    pub(crate) fn build(profile: &str) -> Result<Self> {
        let package = dist::package(profile)?;
        Ok(Self { package, tests: test_program()? })
    }

    /// Copies it into a directory, with names that don't change.
    pub(crate) fn lay(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        fs::copy(&self.package, directory.join("standin.deb"))?;
        let tests = directory.join(TESTS);
        fs::copy(&self.tests, &tests)?;
        // Half of it is debug information.
        done(Command::new("strip").arg("--strip-debug").arg(tests))
    }
}

/// Builds `tests/installed.rs` and gives its path.
fn test_program() -> Result<PathBuf> {
    let mut cargo = process::cargo(crate::workspace()?);
    cargo.args(["test", "--no-run", "--package", "node-agent", "--test", TESTS, "--message-format=json"]);
    cargo.stderr(Stdio::inherit());
    let messages = process::output(&mut cargo)?;
    let is_ours =
        |message: &serde_json::Value| message["target"]["name"] == TESTS && message["executable"].is_string();
    let message = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find(is_ours);
    let message = message.context("cargo built no test program")?;
    Ok(message["executable"].as_str().unwrap_or_default().into())
}
