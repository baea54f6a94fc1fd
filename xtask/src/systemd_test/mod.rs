//! `cargo xtask systemd-test`: the package under a real systemd, natively and within seconds.
//!
//! systemd is process 1 of own namespaces (processes, mounts, host name, IPC, network, cgroups) on a throw-away copy of
//! a small Debian, in own cgroups of every hierarchy that this host has; so limits are enforced where the host
//! enforces any, and the kernel, its probes and its BPF are the host's. What needs cgroup v2 controllers or another
//! kernel is for `cargo xtask vm-test`.
mod cgroups;
pub(crate) mod namespace;

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    debian,
    guest::{self, POWER_CUT, Payload, REMOVAL, TESTS},
    process::{done, status},
};
use cgroups::Cgroups;

/// Programs that make the namespaces, and Debian's packages with them.
const PROGRAMS: [(&str, &str); 2] = [("nsenter", "util-linux"), ("unshare", "util-linux")];

/// How long systemd may take to come up on a busy host.
const BOOT_MAX: Duration = Duration::from_secs(300);

/// Where the payload is in there.
const PAYLOAD: &str = "/standin-test";

/// Options of `cargo xtask systemd-test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Profile that package and tests are built with.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// More of Debian's packages in the guest: `--with podman` has its containers tested as well.
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Run this in there after the package is installed, instead of the tests: cargo xtask systemd-test -- bash
    #[arg(last = true)]
    command: Vec<String>,
}

/// Gives success if all tests passed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let missing = debian::provide(&PROGRAMS);
    ensure!(missing.is_empty(), "namespaces need {}", missing.join(", "));
    let payload = Payload::build(&options.profile)?;
    let root = guest::root::tree(&options.with)?;
    let begun = Instant::now();
    let system = System::boot(&root, &payload)?;
    println!("systemd is up after {:.1} s", begun.elapsed().as_secs_f64());
    let deb = format!("{PAYLOAD}/standin.deb");
    done(system.command("apt-get").args(["install", "-y", "-q", &deb]))?;
    let passed = match options.command.split_first() {
        Some((program, arguments)) => status(system.unit(program).args(arguments))?.success(),
        None => {
            let tests = format!("{PAYLOAD}/{TESTS}");
            let ignored = ["--ignored", "--test-threads=1"];
            let others = ["--skip", REMOVAL, "--skip", POWER_CUT];
            let first = status(system.unit(&tests).args(ignored).args(others))?.success();
            status(system.unit(&tests).args(ignored).arg(REMOVAL))?.success() && first
        }
    };
    if !passed {
        system.show_log();
    }
    drop(system);
    println!("systemd-test took {:.1} s without building", begun.elapsed().as_secs_f64());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A running systemd. All that runs under it is killed when this goes out of scope.
struct System {
    outer: Child,
    init: u32,
    scratch: PathBuf,
    _cgroups: Cgroups,
}

impl System {
    fn boot(root: &Path, payload: &Payload) -> Result<Self> {
        let scratch = env::temp_dir().join(format!("standin-systemd-{}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        payload.lay(&scratch.join("payload"))?;
        let cgroups = Cgroups::make(&format!("standin-systemd-{}", std::process::id()))?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--cgroup", "--mount", "--pid", "--uts", "--ipc", "--net"]);
        unshare.args(["--propagation", "private", "--fork", "--kill-child", "--"]);
        unshare.arg(env::current_exe()?).arg("namespace-init");
        unshare.arg(root).arg(&scratch);
        unshare.stdin(Stdio::null()).stdout(fs::File::create(scratch.join("log"))?);
        unshare.stderr(fs::File::options().append(true).open(scratch.join("log"))?);
        let entrances = cgroups.entrances()?;
        // SAFETY: between fork and exec only files that are open already are written to.
        unsafe { unshare.pre_exec(move || cgroups::enter(&entrances)) };
        let outer = unshare.spawn().context("failed to start unshare")?;
        let mut system = Self { outer, init: 0, scratch, _cgroups: cgroups };
        system.wait_until_up().inspect_err(|_| system.show_log())?;
        Ok(system)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let until = Instant::now() + BOOT_MAX;
        while Instant::now() < until {
            if let Some(ended) = self.outer.try_wait()? {
                bail!("systemd did not start: {ended}");
            }
            self.init = self.find_init().unwrap_or(0);
            if self.init != 0 {
                let mut ask = self.command("systemctl");
                let ask = ask.arg("is-system-running").stderr(Stdio::null()).output()?;
                let state = String::from_utf8_lossy(&ask.stdout);
                if matches!(state.trim(), "running" | "degraded") {
                    return Ok(());
                }
            }
            sleep(Duration::from_millis(100));
        }
        bail!("systemd was not up after {} s", BOOT_MAX.as_secs())
    }

    /// The child of `unshare`, once it has become systemd.
    fn find_init(&self) -> Option<u32> {
        let pid = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "systemd").then_some(child)
    }

    /// A command in there.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--wdns=/", "--", program]);
        command.env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8").env("STANDIN_PAYLOAD", PAYLOAD);
        command.env("RUST_BACKTRACE", env::var_os("RUST_BACKTRACE").unwrap_or_else(|| "0".into()));
        command
    }

    /// The same as a unit of that systemd, in a cgroup of its own, as users' sessions are.
    fn unit(&self, program: &str) -> Command {
        let mut command = self.command("systemd-run");
        command.args(["--quiet", "--pipe", "--wait", "--collect", "--working-directory=/"]);
        for name in ["PATH", "DEBIAN_FRONTEND", "HOME", "LC_ALL", "STANDIN_PAYLOAD", "RUST_BACKTRACE"] {
            command.arg(format!("--setenv={name}"));
        }
        command.args(["--", program]);
        command
    }

    fn show_log(&self) {
        if self.init != 0 {
            _ = status(self.command("journalctl").args(["--no-pager", "-n", "150", "-o", "short-monotonic"]));
        }
        println!("{}", fs::read_to_string(self.scratch.join("log")).unwrap_or_default());
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // The end of process 1 is the end of its namespace, and `unshare` goes with it.
        if self.init != 0 {
            let init = nix::unistd::Pid::from_raw(self.init.cast_signed());
            _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
        } else {
            _ = self.outer.kill();
        }
        _ = self.outer.wait();
        _ = fs::remove_dir_all(&self.scratch);
    }
}
