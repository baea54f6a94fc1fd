//! An everyday load: the C compiler at work on a file of many functions.

use crate::tracked_cgroup::TrackedCgroup;
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FUNCTIONS: usize = 200;

/// What one compile took.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
}

/// A C file in a temporary directory.
pub(crate) struct Compile {
    directory: tempfile::TempDir,
    source: PathBuf,
}

impl Compile {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let source = directory.path().join("many.c");
        fs::write(&source, source_text()?)?;
        Ok(Self { directory, source })
    }

    pub(crate) fn measure(&self, cgroup: &TrackedCgroup) -> Result<Took> {
        let mut command = Command::new("gcc");
        command.args(["-O2", "-c", "-o"]).arg(self.directory.path().join("many.o")).arg(&self.source);
        cgroup.enclose(command.stdin(Stdio::null()))?;
        let (cpu_before, started) = (cpu_of_children()?, Instant::now());
        let status = command.status().context("failed to start gcc")?;
        let took = Took { wall: started.elapsed(), cpu: cpu_of_children()? - cpu_before };
        ensure!(status.success(), "gcc ended with {status}");
        Ok(took)
    }
}

fn source_text() -> Result<String> {
    let mut text = String::new();
    for number in 0..FUNCTIONS {
        writeln!(
            text,
            "unsigned f{number}(unsigned *v, unsigned n) {{
    unsigned i, j, s = {number};
    for (i = 0; i < n; i++) {{
        for (j = i; j < n; j += {step}) s += v[i] * v[j] ^ (s >> {shift});
        switch (s % 5) {{ case 0: v[i] += s; break; case 1: s ^= v[n - i - 1]; break; case 2: s *= 3; break; default: s -= i; }}
    }}
    return s;
}}",
            step = number % 7 + 1,
            shift = number % 13 + 1,
        )?;
    }
    Ok(text)
}

/// User and system time of all children that were waited for.
fn cpu_of_children() -> Result<Duration> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let sum_us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(sum_us.try_into()?))
}
