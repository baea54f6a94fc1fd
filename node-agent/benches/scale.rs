//! What the agent costs with many cgroups: its own CPU time and memory per second, and how long it looks at the
//! probes, for 200 and 2,000 cgroups that are busy, and 2,000 that are idle. Cost is to follow activity, not the number
//! of cgroups. Run by `cargo xtask bench scale`, as root.

use anyhow::{Context, Result, ensure};
use standin::cgroup::Hierarchies;
use standin::wire::{self, Reply, Request};
use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Makes this program a worker: the argument is the pause between two bursts, milliseconds; 0: it never works.
const WORKER: &str = "--worker";

/// How long an arrangement is looked at, after it has settled.
const SETTLE: Duration = Duration::from_secs(5);
const MEASURE: Duration = Duration::from_secs(20);

/// CPU per burst of a busy worker.
const BURST: Duration = Duration::from_micros(200);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, worker, pause] = &arguments[..]
        && worker == WORKER
    {
        work(pause.parse()?);
    }
    ensure!(nix::unistd::geteuid().is_root(), "needs root, for probes and cgroups");
    println!(
        "the agent, over {} s: {BURST:?} of CPU per cgroup and second where they are busy\n",
        MEASURE.as_secs()
    );
    println!("{:<28}{:>14}{:>14}{:>14}", "cgroups", "CPU, % of one", "RSS, MiB", "look, us/s");
    for (name, cgroups, pause_ms) in
        [("none", 0, 0), ("200 busy", 200, 1000), ("2000 idle", 2000, 0), ("2000 busy", 2000, 1000)]
    {
        let (cpu, rss, look) = measure(cgroups, pause_ms)?;
        println!("{name:<28}{cpu:>14.2}{rss:>14.1}{look:>14}");
    }
    Ok(())
}

fn work(pause_ms: u64) -> ! {
    loop {
        if pause_ms == 0 {
            std::thread::sleep(Duration::from_secs(3600));
            continue;
        }
        let end = Instant::now() + BURST;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
}

/// A folder for the agent, its cgroups and its workers; all gone when dropped.
struct Stage {
    directory: tempfile::TempDir,
    slice: PathBuf,
    agent: Option<Child>,
    workers: Vec<Child>,
}

impl Stage {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let slice =
            Hierarchies::detect()?.unified.join(format!("standin-bench-{}.slice", std::process::id()));
        fs::create_dir(&slice)?;
        Ok(Self { directory, slice, agent: None, workers: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_agent(&mut self) -> Result<()> {
        let config = self.path("config.toml");
        let text = format!(
            "[agent]\ncgroup_parent = \"standin-bench-{}\"\nbpffs = {:?}\nhost_cgroups = 2100\ntasks_max = 4300\ncost_interval_s = 3600\n",
            std::process::id(),
            self.path("bpf")
        );
        fs::write(&config, text)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
        command.arg("agent").stderr(Stdio::null());
        command.env("STANDIN_CONFIG", config).env("STANDIN_DB", self.path("standin.db"));
        self.agent = Some(command.env("STANDIN_SOCKET", self.path("agent.sock")).spawn()?);
        let patience = Instant::now() + Duration::from_secs(20);
        while self.status().is_err() {
            ensure!(Instant::now() < patience, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn status(&self) -> Result<wire::AgentStatus> {
        let mut stream = UnixStream::connect(self.path("agent.sock"))?;
        wire::send(&mut stream, &Request::Status)?;
        match wire::receive(&mut stream)? {
            Reply::Status(status) => Ok(status),
            other => anyhow::bail!("not a status: {other:?}"),
        }
    }

    fn start_worker(&mut self, number: usize, pause_ms: u64) -> Result<()> {
        let cgroup = self.slice.join(format!("unit-{number}.service"));
        fs::create_dir(&cgroup)?;
        let entrance = cgroup.join("cgroup.procs");
        let mut command = Command::new(std::env::current_exe()?);
        command.args([WORKER, &pause_ms.to_string()]);
        // SAFETY: between fork and exec; the path is made before.
        unsafe { command.pre_exec(move || fs::write(&entrance, "0")) };
        self.workers.push(command.spawn()?);
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain(&mut self.agent) {
            _ = child.kill();
            _ = child.wait();
        }
        let entries = fs::read_dir(&self.slice).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(remove);
        remove(self.slice.clone());
        _ = nix::mount::umount2(&self.path("bpf"), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn remove(path: impl AsRef<Path>) {
    for _ in 0..200 {
        if fs::remove_dir(&path).is_ok() || !path.as_ref().exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// CPU of the agent in percent of one CPU, its resident set in MiB, and how long it looks at the probes a second.
fn measure(cgroups: usize, pause_ms: u64) -> Result<(f64, f64, u64)> {
    let mut stage = Stage::new()?;
    stage.start_agent()?;
    for number in 0..cgroups {
        stage.start_worker(number, pause_ms).context("failed to start a worker")?;
    }
    std::thread::sleep(SETTLE);
    let before = stage.status()?.own;
    std::thread::sleep(MEASURE);
    let after = stage.status()?.own;
    let share = (after.cpu_ms - before.cpu_ms) as f64 / (after.elapsed_ms - before.elapsed_ms) as f64;
    Ok((share * 100.0, after.rss_bytes as f64 / 1_048_576.0, after.drain_us))
}
