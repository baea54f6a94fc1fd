//! Copies of running servers (`--shadow=cow`): real processes are copied, refused, killed and thawed. The
//! programs are in `cow_shadow/*.c` and compiled here.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "cow_shadow/failover.rs"]
mod failover;
#[path = "cow_shadow/refusals.rs"]
mod refusals;
mod support;
#[path = "cow_shadow/survival.rs"]
mod survival;
#[path = "cow_shadow/waits.rs"]
mod waits;

use nix::unistd::Pid;
use standin::shadow::cow::{self, Busy, Copy, CowError};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use support::{PATIENCE, wait_until};

/// A program out of `cow_shadow/NAME.c`; `None` without a C compiler.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    static BUILT: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let directory = support::has("cc").then(|| tempfile::tempdir().unwrap())?;
        // Other users run them too.
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["server", "waits", "refused"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/cow_shadow/{name}.c"));
            let mut compile = Command::new("cc");
            compile.args(["-O1", "-pthread", "-o"]).arg(directory.path().join(name)).arg(source);
            assert!(compile.status().unwrap().success());
        }
        Some(directory)
    });
    directory.as_ref().map(|directory| directory.path().join(name))
}

/// A cgroup of the v2 hierarchy, removed with all that is in it.
pub(crate) struct Cgroup(pub PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        static CGROUPS: AtomicU32 = AtomicU32::new(0);
        let number = CGROUPS.fetch_add(1, Ordering::Relaxed);
        let name = format!("standin-test-cow-{}-{number}", std::process::id());
        let path = support::unified().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn thaw(&self) {
        fs::write(self.0.join("cgroup.freeze"), "0").unwrap();
    }

    pub(crate) fn members(&self) -> String {
        fs::read_to_string(self.0.join("cgroup.procs")).unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let members = self.members();
        _ = fs::write(self.0.join("cgroup.kill"), "1");
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            reap(Pid::from_raw(pid));
        }
        let start = std::time::Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < PATIENCE {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// Waits for the end of a copy, which is a child of this process where the primary is.
pub(crate) fn reap(pid: Pid) {
    _ = nix::sys::wait::waitpid(pid, None);
}

/// A primary: a process that was started here, killed when this goes out of scope.
pub(crate) struct Primary {
    pub child: Child,
    pub output: BufReader<ChildStdout>,
}

impl Primary {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Alive, and nobody traces it.
    pub(crate) fn is_free(&mut self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        self.child.try_wait().unwrap().is_none() && status.contains("TracerPid:\t0")
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A server out of `server.c`.
pub(crate) struct Server {
    pub process: Primary,
    pub port: u16,
}

impl Server {
    pub(crate) fn start(mode: &str, table_mb: u32) -> Self {
        let mut process =
            Primary::start(Command::new(program("server").unwrap()).args([mode, &table_mb.to_string()]));
        let port = process.line().parse().unwrap();
        wait_until_idle(process.pid());
        Self { process, port }
    }

    pub(crate) fn connect(&self) -> Client {
        Client(BufReader::new(connect(self.port)))
    }
}

pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection to [`Server`].
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn send(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Who answers.
    pub(crate) fn ask(&mut self) -> Pid {
        self.send("who");
        let line = self.receive();
        Pid::from_raw(line.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("answer: {line:?}")))
    }

    /// Whether the server's end is closed.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

/// Waits until a process sleeps in a call.
pub(crate) fn wait_until_idle(pid: Pid) {
    wait_until("the process waits for work", || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.chars().next().is_some_and(|first| first.is_ascii_digit())
    });
}

/// A copy, once the primary has time for it.
pub(crate) fn copy(primary: Pid, into: &Cgroup) -> Result<Copy, CowError> {
    let start = std::time::Instant::now();
    loop {
        match cow::fork_frozen(primary, &into.0) {
            Err(CowError::Busy(_)) if start.elapsed() < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// The same, by steps: as long as the primary is at work none is told.
pub(crate) fn copy_by_steps(
    primary: Pid,
    into: &Cgroup,
    on_step: &mut (dyn FnMut(&'static str) -> std::io::Result<()> + Send),
) -> Result<Copy, CowError> {
    let start = std::time::Instant::now();
    loop {
        match cow::fork_frozen_by_steps(primary, &into.0, on_step) {
            Err(CowError::Busy(Busy::Works)) if start.elapsed() < PATIENCE => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Leaves the test where copies can't be made or looked at.
#[macro_export]
macro_rules! require_copies {
    () => {
        require!(support::is_root(), "needs root");
        require!(support::has("cc"), "needs a C compiler");
    };
}
