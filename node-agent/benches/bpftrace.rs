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

/// The rest of what it attaches after the interval.
const ATTACH_WAIT: Duration = Duration::from_millis(300);

/// Counts until it is dropped.
pub(crate) struct Bpftrace(Child);

impl Bpftrace {
    pub(crate) fn start() -> Result<Self> {
        let mut command = Command::new("bpftrace");
        command.args(["-B", "none", "-e", SCRIPT]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut bpftrace = Self(command.stderr(Stdio::null()).spawn().context("failed to start bpftrace")?);
        let output = bpftrace.0.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        ensure!(lines.any(|line| line == "counting"), "bpftrace ended without counting");
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
