//! Two processes on one CPU that pass a byte to and fro: nothing but context switches, two a round trip.
//!
//! They run in a process of their own, which is this benchmark again with [`ARGUMENT`], so that it can be put
//! into a cgroup. What is measured is the CPU time of both, of which other processes take nothing.

use crate::tracked_cgroup::TrackedCgroup;
use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe, read, write};
use std::os::fd::OwnedFd;
use std::process::Command;

/// First argument of a benchmark process that is to play.
pub(crate) const ARGUMENT: &str = "--ping-pong";

pub(crate) const ROUND_TRIPS: usize = 40_000;
const WARM_UP_ROUND_TRIPS: usize = 1_000;
const SWITCHES_PER_ROUND_TRIP: f64 = 2.0;

/// Above ordinary processes, so that these do not interrupt.
const FIFO_PRIORITY: i32 = 40;

/// Plays in the cgroup: CPU nanoseconds per switch.
pub(crate) fn measure(cgroup: &TrackedCgroup) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ARGUMENT);
    cgroup.enclose(&mut command)?;
    let output = command.output()?;
    ensure!(output.status.success(), "ping-pong failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("ping-pong printed {text:?}"))
}

/// What the process with [`ARGUMENT`] does.
pub(crate) fn play() -> Result<()> {
    pin_to_last_cpu()?;
    // Refused where real-time scheduling is not allowed: then the numbers scatter more.
    _ = become_real_time();
    let (ping_read, ping_write) = pipe()?;
    let (pong_read, pong_write) = pipe()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let time_ns = volley(&ping_read, &pong_write, false)?;
            write(&pong_write, &time_ns.to_ne_bytes())?;
        }
        ForkResult::Parent { child } => {
            let own_ns = volley(&pong_read, &ping_write, true)?;
            let mut bytes = [0; 8];
            ensure!(read(&pong_read, &mut bytes)? == bytes.len(), "the other player ended early");
            waitpid(child, None)?;
            let sum_ns = (own_ns + i64::from_ne_bytes(bytes)) as f64;
            println!("{}", sum_ns / (ROUND_TRIPS as f64 * SWITCHES_PER_ROUND_TRIP));
        }
    }
    Ok(())
}

fn pin_to_last_cpu() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU is allowed")?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Whether both may have a real-time priority.
pub(crate) fn become_real_time() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: FIFO_PRIORITY };
    // SAFETY: reads one sched_param.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        bail!("no real-time priority: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// All round trips of one player: CPU time in nanoseconds after the warm-up.
fn volley(from: &OwnedFd, to: &OwnedFd, serves: bool) -> Result<i64> {
    let mut started_ns = 0;
    for number in 0..WARM_UP_ROUND_TRIPS + ROUND_TRIPS {
        if number == WARM_UP_ROUND_TRIPS {
            started_ns = cpu_time_ns()?;
        }
        if serves {
            write(to, &[0])?;
        }
        ensure!(read(from, &mut [0])? == 1, "the other player ended early");
        if !serves {
            write(to, &[0])?;
        }
    }
    Ok(cpu_time_ns()? - started_ns)
}

fn cpu_time_ns() -> Result<i64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0 {
        bail!("no CPU time: {}", std::io::Error::last_os_error());
    }
    Ok(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}
