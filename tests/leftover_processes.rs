//! Processes that outlive the command: left alone, killed, or waited for, as the user says.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Sandbox, is_root, stdout, wait_until};

/// Leaves a process behind that writes `done` after a second, in a session of its own.
fn leaves_one(file: &Path) -> String {
    leaves("sleep 1", file)
}

/// The same once `first` is over.
fn leaves(first: &str, file: &Path) -> String {
    format!(
        "setsid sh -c '{first}; echo done > {}' </dev/null >/dev/null 2>&1 & echo started",
        file.display()
    )
}

fn each_engine(test: impl Fn(&Sandbox, &dyn Fn(&[&str]) -> Command)) {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    test(&sandbox, &|options| sandbox.standin(["run", "--quiet", "--no-agent"].iter().chain(options)));
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    test(&sandbox, &|options| agent.standin(["run", "--quiet", "--require-agent"].iter().chain(options)));
}

fn run(command: &mut Command, script: &str) {
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    assert_eq!(stdout(&output), "started\n");
}

fn recorded(sandbox: &Sandbox) -> i64 {
    sandbox.wait_for_runs(1, "state = 'finished'");
    sandbox.sql("SELECT duration_ns FROM run")
}

#[test]
fn by_default_they_go_on() {
    each_engine(|sandbox, standin| {
        let (file, go) = (sandbox.path("file"), sandbox.path("go"));
        let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
        run(&mut standin(&[]), &leaves(&waits, &file));
        // The run has ended with its command.
        recorded(sandbox);
        std::fs::write(&go, "").unwrap();
        wait_until("it goes on", || file.exists());
    });
}

#[test]
fn they_can_be_killed() {
    each_engine(|sandbox, standin| {
        let file: PathBuf = sandbox.path("file");
        run(&mut standin(&["--leftover", "kill"]), &leaves_one(&file));
        recorded(sandbox);
        wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!file.exists());
    });
}

#[test]
fn they_can_be_waited_for() {
    each_engine(|sandbox, standin| {
        let file: PathBuf = sandbox.path("file");
        let begun = Instant::now();
        run(&mut standin(&["--wait-all"]), &leaves_one(&file));
        assert!(begun.elapsed() >= Duration::from_secs(1) && file.exists());
        assert!(recorded(sandbox) >= 1_000_000_000, "they belong to the run");
        wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
    });
}

#[test]
fn the_cgroups_of_those_left_alone_are_swept_up_later() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let file = sandbox.path("file");
    run(&mut sandbox.standin(["run", "--quiet", "--no-agent"]), &leaves_one(&file));
    assert_eq!(sandbox.run_cgroups().len(), 1);
    wait_until("it has ended", || {
        file.exists() && {
            let procs = std::fs::read_to_string(sandbox.run_cgroups()[0].join("cgroup.procs")).unwrap();
            procs.is_empty()
        }
    });
    assert!(sandbox.run(&["--quiet"], &["true"]).status.success());
    assert!(sandbox.run_cgroups().is_empty());
}
