//! Whatever goes wrong on the way to a copy, and wherever: the primary serves on, and no half-made copy is left.

use crate::support::{self, wait_until};
use crate::{Cgroup, Server, copy_by_steps, require, require_copies, waits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use standin::shadow::cow::{Busy, CowError, fork_frozen_by_steps};
use std::fs;
use std::io::{self, BufRead};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// More than a copy has steps.
const STEPS_MAX: u32 = 1000;

/// Processes that run the program of `of`, itself left out: copies.
fn copies(of: Pid) -> Vec<Pid> {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let original = program(&of.to_string()).unwrap();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // Other tests run the same program: those of the primary's own parent and port are meant.
    let descriptors = |pid: i32| fs::read_link(format!("/proc/{pid}/fd/3")).ok();
    let listener = descriptors(of.as_raw());
    pids.filter(|pid| *pid != of.as_raw())
        .filter(|pid| program(&pid.to_string()).as_ref() == Some(&original) && descriptors(*pid) == listener)
        .map(Pid::from_raw)
        .collect()
}

/// Fails after so many steps.
fn broken_off_after(server: &Server, into: &Cgroup, step: u32) -> Result<(), CowError> {
    let mut seen = 0;
    let mut on_step = |_| {
        seen += 1;
        if seen > step { Err(io::Error::other("a failure made by the test")) } else { Ok(()) }
    };
    fork_frozen_by_steps(server.process.pid(), &into.0, &mut on_step).map(drop)
}

#[test]
fn a_failure_at_any_step_leaves_the_primary_alone() {
    require_copies!();
    for mode in ["poll", "epoll"] {
        let into = Cgroup::new();
        let mut server = Server::start(mode, 1);
        let pid = server.process.pid();
        let mut kept = server.connect();
        assert_eq!(kept.ask(), pid);
        let mut step = 0;
        while let Err(error) = broken_off_after(&server, &into, step) {
            if matches!(error, CowError::Busy(_)) {
                continue;
            }
            assert!(error.to_string().contains("made by the test"), "{error}");
            assert!(server.process.is_free(), "{mode}, step {step}");
            assert_eq!(kept.ask(), pid, "{mode}, step {step}");
            // One that its tracer has not waited for yet ends at once.
            wait_until("no copy is left", || copies(pid).is_empty());
            step += 1;
            assert!(step < STEPS_MAX);
        }
        assert!(step > 30, "{mode}: {step} steps");
        assert!(server.process.is_free());
        assert_eq!(kept.ask(), pid);
    }
}

/// This program again, as the tracer of `server`. `how`: the number of steps after which it kills itself, or
/// `nobody` to do it as another user.
pub(crate) fn tracer(server: &Server, into: &Cgroup, how: &str) -> Command {
    tracer_of(server.process.pid(), into, how)
}

fn tracer_of(primary: Pid, into: &Cgroup, how: &str) -> Command {
    let mut command = Command::new(open_to_all());
    command.args(["--exact", "survival::as_a_tracer", "--ignored", "--nocapture"]);
    command.env("COW_PRIMARY", primary.to_string()).env("COW_INTO", &into.0).env("COW_HOW", how);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if how == "nobody" {
        command.uid(support::NOBODY).gid(support::NOBODY);
    }
    command
}

/// This test program where every user gets through to it.
fn open_to_all() -> PathBuf {
    static LINKED: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let link = || {
        let own = std::env::current_exe().unwrap();
        let linked = crate::program("tests").unwrap();
        if fs::hard_link(&own, &linked).is_err() {
            fs::copy(&own, &linked).unwrap();
        }
        linked
    };
    LINKED.get_or_init(link).clone()
}

#[test]
#[ignore = "no test: what the other tests start"]
fn as_a_tracer() {
    let Some(how) = std::env::var_os("COW_HOW") else { return };
    let how = how.to_str().unwrap().to_owned();
    let primary = Pid::from_raw(std::env::var("COW_PRIMARY").unwrap().parse().unwrap());
    let into = std::env::var("COW_INTO").unwrap();
    let mut left: Option<u32> = how.parse().ok();
    let mut on_step = |_| {
        if left == Some(0) {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
            loop {
                std::thread::park();
            }
        }
        left = left.map(|left| left - 1);
        Ok(())
    };
    match fork_frozen_by_steps(primary, Path::new(&into), &mut on_step) {
        Ok(copy) => println!("copied: {}", copy.pid),
        Err(CowError::Busy(busy)) => println!("busy: {busy}"),
        Err(error) => panic!("{error}"),
    }
}

/// Has tracers of `primary` killed after every one of their steps, until one lives to the end. Calls `check`
/// after each, with the step.
fn kill_the_tracer_at_every_step(primary: Pid, mut check: impl FnMut(u32)) -> u32 {
    let mut step = 0;
    loop {
        let into = Cgroup::new();
        let output = tracer_of(primary, &into, &step.to_string()).output().unwrap();
        let text = support::stdout(&output);
        if text.contains("copied: ") {
            return step;
        }
        if text.contains("busy: ") {
            continue;
        }
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(libc::SIGKILL), "{text} {}", support::stderr(&output));
        // One that was let go is kept frozen, and ends with its cgroup; all others end by themselves.
        if into.members().is_empty() {
            wait_until("no copy is left", || copies(primary).is_empty());
        }
        check(step);
        step += 1;
        assert!(step < STEPS_MAX);
    }
}

#[test]
fn the_tracers_death_at_any_step_leaves_the_primary_alone() {
    require_copies!();
    for mode in ["poll", "epoll"] {
        let mut server = Server::start(mode, 1);
        let pid = server.process.pid();
        let mut kept = server.connect();
        assert_eq!(kept.ask(), pid);
        let steps = kill_the_tracer_at_every_step(pid, |step| {
            assert!(server.process.is_free(), "{mode}, step {step}");
            assert_eq!(kept.ask(), pid, "{mode}, step {step}");
        });
        assert!(steps > 30, "{mode}: {steps} steps");
    }
}

#[test]
fn the_tracers_death_changes_no_register() {
    require_copies!();
    const WAIT_MS: u64 = 60;
    let into = Cgroup::new();
    // One wait for each step, which ends on its own and compares.
    for step in 0..STEPS_MAX {
        let mut waiter = waits::start("registers", 20 * WAIT_MS);
        let output = tracer_of(waiter.pid(), &into, &step.to_string()).output().unwrap();
        let line = waiter.line();
        assert!(line.starts_with("primary 0 0 "), "step {step}: {line}");
        assert!(waiter.child.wait().unwrap().success());
        // Past the point where the primary was let go, nothing can happen to it.
        if support::stdout(&output).contains("copied: ") || step > 24 {
            assert!(step > 20, "{step} steps");
            return;
        }
    }
}

#[test]
fn a_signal_in_between_is_delivered_as_if_nothing_had_been() {
    require_copies!();
    for step in ["stopped", "call set up", "call entered", "call returned", "copy made"] {
        let into = Cgroup::new();
        let mut waiter = waits::start("signal", 2000);
        let pid = waiter.pid();
        let mut sent = false;
        let mut on_step = |now| {
            if now == step && !sent {
                sent = true;
                kill(pid, Signal::SIGUSR1)?;
            }
            Ok(())
        };
        let result = copy_by_steps(pid, &into, &mut on_step);
        assert!(sent, "{step}");
        let line = waiter.line();
        // The handler ran, and the wait ended with EINTR.
        assert!(line.starts_with(&format!("primary -1 {} ", libc::EINTR)), "{step}: {line}");
        match result {
            Ok(_) => {
                // The signal was the primary's; the copy waits to the end.
                into.thaw();
                let mut line = String::new();
                waiter.output.read_line(&mut line).unwrap();
                assert!(line.starts_with("copy 0 0 "), "{step}: {line}");
            }
            // After its wait the program ends.
            Err(error) => {
                assert!(matches!(error, CowError::Busy(Busy::Signal) | CowError::Ended), "{step}: {error}");
            }
        }
    }
}

#[test]
fn a_stop_in_between_stops_the_primary() {
    require_copies!();
    let into = Cgroup::new();
    // A stop ends epoll_wait with EINTR (signal(7)), which this server does not bear; poll goes on.
    let server = Server::start("poll", 1);
    let pid = server.process.pid();
    let mut sent = false;
    let mut on_step = |now| {
        if now == "call entered" && !sent {
            sent = true;
            kill(pid, Signal::SIGSTOP)?;
        }
        Ok(())
    };
    let result = copy_by_steps(pid, &into, &mut on_step);
    assert!(matches!(result, Err(CowError::Busy(Busy::Signal))), "{result:?}");
    wait_until("it is stopped", || {
        fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("State:\tT (stopped)")
    });
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(server.connect().ask(), pid);
}

#[test]
fn a_thread_that_waits_for_the_primary_takes_nothing_away() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    require_copies!();
    let into = Cgroup::new();
    let server = Server::start("poll", 1);
    let pid = server.process.pid();
    let done = std::sync::atomic::AtomicBool::new(false);
    let stops = std::thread::scope(|scope| {
        let wait = || {
            let mut stops = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => {}
                    Ok(
                        WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_) | WaitStatus::Stopped(..),
                    ) => {
                        stops += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            stops
        };
        let waiter = scope.spawn(wait);
        let copied = crate::copy(pid, &into);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        copied.unwrap();
        waiter.join().unwrap()
    });
    eprintln!("{stops} stops were taken by another thread");
    assert_eq!(server.connect().ask(), pid);
}

#[test]
fn a_primary_that_dies_in_between_leaves_no_copy() {
    require_copies!();
    for step in ["stopped", "call entered", "call returned", "copy made", "primary let go"] {
        let into = Cgroup::new();
        let mut server = Server::start("epoll", 1);
        let pid = server.process.pid();
        let mut on_step = |now| {
            if now == step {
                kill(pid, Signal::SIGKILL)?;
            }
            Ok(())
        };
        match copy_by_steps(pid, &into, &mut on_step) {
            // Killed when the copy was as good as made: it can take over.
            Ok(copy) => {
                assert_eq!(step, "primary let go");
                into.thaw();
                assert_eq!(server.connect().ask(), copy.pid);
            }
            // Or on its way to the end.
            Err(error) => {
                assert!(matches!(error, CowError::Ended | CowError::Busy(Busy::Signal)), "{step}: {error}");
            }
        }
        // Its end was not taken away from whoever waits for it.
        let status = server.process.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "{step}");
    }
}
