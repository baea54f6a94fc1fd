//! Other programs, run to their end: what they print, or that they failed.
use std::{
    env,
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};

/// Runs a command and tells how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("failed to start {command:?}"))
}

/// Runs a command that must succeed.
pub(crate) fn done(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs a command that must succeed and gives what it prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("failed to start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program can be found.
pub(crate) fn has(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A cargo command in the workspace, with the cargo that runs us.
pub(crate) fn cargo(workspace: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo
}
