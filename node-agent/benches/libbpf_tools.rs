//! Another yardstick: the libbpf tools `cpudist` and `runqlat`, which together draw two of standin's histograms.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Longer than any measurement: they print only when they have counted for so many seconds.
const INTERVAL_S: &str = "3600";

/// They tell that they trace a moment before all is attached.
const ATTACH_WAIT: Duration = Duration::from_millis(500);

/// Both count, for this cgroup alone, until this is dropped.
pub(crate) struct LibbpfTools(Vec<Child>);

impl LibbpfTools {
    pub(crate) fn start(cgroup: &Path) -> Result<Self> {
        let mut tools = Self(Vec::new());
        for name in ["cpudist", "runqlat"] {
            // Line by line, or the line that it waits for stays in a buffer.
            let mut command = Command::new("stdbuf");
            command.args(["-oL", name, "-c"]).arg(cgroup).arg(INTERVAL_S);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut tool = command.spawn().with_context(|| format!("failed to start {name}"))?;
            let output = tool.stdout.take();
            tools.0.push(tool);
            let mut lines =
                BufReader::new(output.context("its output is piped")?).lines().map_while(Result::ok);
            let begins = lines.any(|line| line.starts_with("Tracing"));
            ensure!(
                begins,
                "{name} (Debian: libbpf-tools) is not installed, or does not work on this kernel"
            );
            std::thread::spawn(move || lines.count());
        }
        sleep(ATTACH_WAIT);
        Ok(tools)
    }
}

impl Drop for LibbpfTools {
    /// Killed, so that they do not print.
    fn drop(&mut self) {
        for tool in &mut self.0 {
            _ = tool.kill();
            _ = tool.wait();
        }
    }
}
