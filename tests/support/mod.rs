//! What every end-to-end test needs: a sandbox with own database, socket and cgroup parent, so that tests run
//! beside each other and beside an agent of the host, and leave the machine as they found it.
#![allow(dead_code, unused_imports, reason = "every test takes what it needs")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "this is no library")]

pub mod pty;
mod skip;

use serde_json::Value;
pub(crate) use skip::skip;
use standin::wire::{self, Reply, Request, WireError};
use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take that should be quick. Not a measure of speed: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The user that tests without privileges run as.
pub const NOBODY: u32 = 65534;

static SANDBOXES: AtomicU32 = AtomicU32::new(0);

pub fn is_root() -> bool {
    // SAFETY: plain system call.
    unsafe { libc::geteuid() == 0 }
}

/// Leaves the test, with the reason counted, unless `$condition`.
#[macro_export]
macro_rules! require {
    ($condition:expr, $why:expr) => {
        if !$condition {
            return support::skip($why);
        }
    };
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|path| path.join(program).is_file())
}

pub struct Sandbox {
    pub dir: tempfile::TempDir,
    pub parent: String,
}

impl Sandbox {
    pub fn new() -> Self {
        Self::with_config("")
    }

    /// `config` is put behind the sandbox's own `[agent]` keys.
    pub fn with_config(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
        let parent = format!("standin-test-{}-{number}", std::process::id());
        let sandbox = Self { dir, parent };
        sandbox.configure(config);
        // Other users must get through to what is made for them.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(sandbox.dir.path(), mode).unwrap();
        sandbox
    }

    /// Writes the configuration anew.
    pub fn configure(&self, config: &str) {
        let bpffs = self.bpffs().display().to_string();
        // What others on this host do is no matter of most tests.
        let others = if config.contains("host_cgroups") { "" } else { "host_cgroups = 0\n" };
        let text =
            format!("[agent]\ncgroup_parent = \"{}\"\nbpffs = {bpffs:?}\n{others}{config}", self.parent);
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Where agents mount a BPF file system of their own.
    pub fn bpffs(&self) -> PathBuf {
        self.path("bpf")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.path("standin.db")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    /// `standin` with this sandbox's configuration and database; without an agent unless one is started.
    pub fn standin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.bare();
        command.env("STANDIN_DB", self.database()).args(arguments);
        command
    }

    /// `standin run … -- COMMAND`, measured by the launcher itself.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.standin(["run", "--no-agent"]).args(options).arg("--").args(command).output().unwrap()
    }

    /// The same, with the `--json` result.
    pub fn run_json(&self, options: &[&str], command: &[&str]) -> Value {
        let file = self.path("result.json");
        let mut all = vec!["--json", file.to_str().unwrap()];
        all.extend(options);
        let output = self.run(&all, command);
        assert!(file.exists(), "no result: {}", stderr(&output));
        read_json(&file)
    }

    /// The program under test, where every user gets through to it: the source tree may be in somebody's home.
    fn program(&self) -> PathBuf {
        let built = Path::new(env!("CARGO_BIN_EXE_standin"));
        let open_to_all = |place: &Path| {
            let mode = fs::metadata(place)
                .map_or(0, |metadata| std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()));
            mode & 0o001 != 0
        };
        if built.ancestors().all(open_to_all) {
            return built.to_owned();
        }
        let linked = self.path("standin");
        if !linked.exists() && fs::hard_link(built, &linked).is_err() {
            fs::copy(built, &linked).unwrap();
        }
        linked
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(self.program());
        for name in ["STANDIN_DB", "STANDIN_SOCKET", "RUST_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        command.env("STANDIN_CONFIG", self.path("config.toml")).stdin(Stdio::null());
        command
    }

    /// Starts an agent and waits until it answers.
    pub fn agent(&self) -> Agent<'_> {
        let log = fs::File::options().create(true).append(true).open(self.path("agent.log")).unwrap();
        let mut command = self.standin(["agent"]);
        let child = command.env("STANDIN_SOCKET", self.socket()).stderr(log).spawn().unwrap();
        let agent = Agent { child, sandbox: self };
        wait_until("the agent answers", || self.agent_answers());
        agent
    }

    /// Whether an agent has taken up its work: it listens a moment earlier.
    fn agent_answers(&self) -> bool {
        let ask = || -> Result<Reply, WireError> {
            let mut stream = UnixStream::connect(self.socket())?;
            wire::send(&mut stream, &Request::Status)?;
            wire::receive(&mut stream)
        };
        matches!(ask(), Ok(Reply::Status(_)))
    }

    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// One value out of the database.
    pub fn sql<T: rusqlite::types::FromSql>(&self, query: &str) -> T {
        self.try_sql(query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    fn try_sql<T: rusqlite::types::FromSql>(&self, query: &str) -> rusqlite::Result<T> {
        let read_only = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.database(), read_only)?
            .query_row(query, [], |row| row.get(0))
    }

    /// Waits until so many runs meet a condition.
    pub fn wait_for_runs(&self, count: usize, condition: &str) {
        let query = format!("SELECT count(*) FROM run WHERE {condition}");
        wait_until(condition, || self.try_sql(&query) == Ok(i64::try_from(count).unwrap()));
    }

    /// The v2 directory under which runs get their cgroups.
    pub fn cgroups(&self) -> PathBuf {
        unified().join(&self.parent)
    }

    /// The cgroups of runs that are there now.
    pub fn run_cgroups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cgroups()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // With it goes what is pinned in it. Where no agent ran nothing is mounted.
        _ = nix::mount::umount2(&self.bpffs(), nix::mount::MntFlags::MNT_DETACH);
        for cgroup in self.run_cgroups() {
            _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        let roots: Vec<_> = fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (place, kind) = (words.nth(1)?, words.next()?);
                matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place).join(&self.parent))
            })
            .collect();
        let patience = Instant::now() + Duration::from_secs(5);
        while roots.iter().any(|root| !remove_cgroups(root)) && Instant::now() < patience {
            sleep(Duration::from_millis(5));
        }
    }
}

fn remove_cgroups(root: &Path) -> bool {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(root).is_ok() || !root.exists()
}

/// Mount point of the v2 hierarchy.
pub fn unified() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (place, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| place.to_owned())
    });
    place.expect("a cgroup v2 mount").into()
}

/// A running agent. It is killed when this goes out of scope.
pub struct Agent<'a> {
    child: Child,
    sandbox: &'a Sandbox,
}

impl Agent<'_> {
    /// `standin` that talks to this agent.
    pub fn standin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.sandbox.standin(arguments);
        command.env("STANDIN_SOCKET", self.sandbox.socket());
        command
    }

    /// `standin run … -- COMMAND` through this agent.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.standin(["run", "--require-agent"]).args(options).arg("--").args(command).output().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; its exit status.
    pub fn terminate(mut self) -> std::process::ExitStatus {
        signal(self.pid(), libc::SIGTERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("agent log:\n{}", self.sandbox.agent_log());
        }
    }
}

/// A job in the background. It is killed when this goes out of scope, so that a failing test leaves none.
pub struct Job(pub Child);

impl Job {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    pub fn start_with_stderr(command: &mut Command, stderr: fs::File) -> Self {
        Self(command.stderr(stderr).spawn().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: plain system call; callers name processes that they started.
    assert_eq!(unsafe { libc::kill(pid.cast_signed(), signal) }, 0);
}

/// A port that nobody serves on. It lies below those that the kernel gives out, so that it is nobody's by chance
/// before its server has it.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 22_000;
    /// Test programs that run beside each other begin apart.
    const EACH: u32 = 64;
    let is_free = |port: u16| {
        TcpListener::bind(("0.0.0.0", port)).is_ok() && UdpSocket::bind(("0.0.0.0", port)).is_ok()
    };
    let mut ports = std::iter::repeat_with(|| {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        u16::try_from(FIRST + std::process::id().wrapping_mul(EACH).wrapping_add(tried) % PORTS).unwrap()
    });
    ports.find(|port| is_free(*port)).unwrap()
}

/// Whether somebody listens on a TCP port of this host. The kernel is asked: a connection would be the server's
/// first, which may be its last, or be under way still when the test begins.
pub fn is_listening(port: u16) -> bool {
    const LISTENS: &str = "0A";
    let place = format!(":{port:04X}");
    let listens = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&place)) && fields.nth(1) == Some(LISTENS)
    };
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).unwrap_or_default().lines().any(listens))
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < patience, "waited in vain: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// The command as an ordinary user.
pub fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Whether all of a run's stretches on a CPU are known. Where a switch was not shown of a thread whose last one is not
/// known either, the run says that what is counted between switches is a lower bound.
pub fn saw_every_switch(result: &Value) -> bool {
    !result["measured"]["coverage"].to_string().contains("did not show every switch")
}

/// Runs until all of them are known, which is rarely not the first time.
pub fn run_with_every_switch(run: impl Fn() -> Value) -> Value {
    const ATTEMPTS: usize = 10;
    let mut runs = std::iter::repeat_with(run).take(ATTEMPTS);
    runs.find(saw_every_switch).expect("the kernel shows every switch, or the last one before is known")
}

/// A number of a result's fingerprint.
pub fn number(result: &Value, field: &str) -> f64 {
    let value = &result["measured"]["fingerprint"][field];
    value.as_f64().unwrap_or_else(|| panic!("{field} is {value} in {result:#}"))
}
