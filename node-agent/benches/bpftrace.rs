//! The yardstick: bpftrace, counting per cgroup what the scheduler probe counts.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Histograms and sums of bursts on a CPU and of waits for one. The interval tells that it has begun.
const SCRIPT: &str = r#"
tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @queued[args->pid] = nsecs; }
tracepoint:sched:sched_switch {
    $now = nsecs;
    $start = @start[cpu];
    if ($start && args->prev_pid) {
        @burst[cgroup] = hist($now - $start);
        @burst_sum[cgroup] = sum($now - $start);
    }
    if (args->prev_state == 0) { @queued[args->prev_pid] = $now; }
    @start[cpu] = $now;
    $queued = @queued[args->next_pid];
    if ($queued) {
        @wait[cgroup] = hist($now - $queued);
        @wait_sum[cgroup] = sum($now - $queued);
        delete(@queued[args->next_pid]);
    }
}
interval:s:1 { printf("counting\n"); }
"#;

/// bpftrace finds tracepoints in tracefs only. Where that is not mounted it is, for this process alone.
const WITH_TRACEFS: &str = r#"
test -d /sys/kernel/tracing/events || test -d /sys/kernel/debug/tracing/events ||
    mount -t debugfs debugfs /sys/kernel/debug
exec bpftrace -B none -e "$1""#;

/// The rest of what it attaches after the interval.
const ATTACH_WAIT: Duration = Duration::from_millis(300);

/// Counts until it is dropped.
pub(crate) struct Bpftrace(Child);

impl Bpftrace {
    pub(crate) fn start() -> Result<Self> {
        // Both programs before it execute the next one in place, so what is killed in the end is bpftrace.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", WITH_TRACEFS, "sh", SCRIPT]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut bpftrace = Self(command.spawn().context("failed to start unshare")?);
        let output = bpftrace.0.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        ensure!(lines.any(|line| line == "counting"), "bpftrace is not installed, or ended without counting");
        // It prints a line a second, which must find a reader.
        std::thread::spawn(move || lines.count());
        sleep(ATTACH_WAIT);
        Ok(bpftrace)
    }
}

impl Drop for Bpftrace {
    /// Killed, so that it does not print what it has counted.
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
