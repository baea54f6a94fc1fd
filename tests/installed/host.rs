//! The guest: its programs, its units, its users, and the database of the agent. Everything may take long: the guest
//! may be an emulated machine.
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take. No measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// The agent's database.
pub(crate) const DATABASE: &str = "/var/lib/standin/standin.db";

/// Where the unit's overrides for a test are.
const DROP_IN: &str = "/run/systemd/system/standin.service.d/test.conf";

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < patience, "waited in vain: {what}");
        sleep(Duration::from_millis(50));
    }
}

pub(crate) fn command(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).current_dir("/");
    command
}

pub(crate) fn output(line: &[&str]) -> Output {
    command(line).output().unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

/// What a command prints that must succeed.
pub(crate) fn printed(line: &[&str]) -> String {
    let output = output(line);
    assert!(output.status.success(), "{line:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A property of a unit.
pub(crate) fn property(unit: &str, name: &str) -> String {
    printed(&["systemctl", "show", "--property", name, "--value", unit])
}

pub(crate) fn main_pid() -> String {
    property("standin.service", "MainPID")
}

/// The service runs and answers, whatever a test before has left. (An emulated machine loads the probes for longer than
/// a launcher waits for an answer.)
pub(crate) fn ensure_started() {
    if property("standin.service", "ActiveState") != "active" {
        output(&["systemctl", "reset-failed", "standin.service", "standin.socket"]);
        printed(&["systemctl", "start", "standin.socket", "standin.service"]);
    }
    wait_until("the agent answers", || output(&["standin", "queue", "--json"]).status.success());
}

/// Settings of the unit for a test; the unit is as it was when this goes out of scope.
pub(crate) struct Override;

impl Override {
    pub(crate) fn new(settings: &str) -> Self {
        fs::create_dir_all(PathBuf::from(DROP_IN).parent().unwrap()).unwrap();
        fs::write(DROP_IN, format!("[Service]\n{settings}\n")).unwrap();
        printed(&["systemctl", "daemon-reload"]);
        printed(&["systemctl", "restart", "standin.service"]);
        Self
    }
}

impl Drop for Override {
    fn drop(&mut self) {
        _ = fs::remove_file(DROP_IN);
        output(&["systemctl", "daemon-reload"]);
        output(&["systemctl", "reset-failed", "standin.service", "standin.socket"]);
        output(&["systemctl", "restart", "standin.service"]);
    }
}

/// Makes a user, in the agent's group or not.
pub(crate) fn user(name: &str, is_member: bool) {
    if !output(&["id", name]).status.success() {
        let group = if is_member { &["-G", "standin"][..] } else { &[] };
        printed(&[&["useradd", "--no-create-home"], group, &[name]].concat());
    }
}

/// A command of that user.
pub(crate) fn as_user(name: &str, line: &[&str]) -> Output {
    output(&[&["runuser", "-u", name, "--"], line].concat())
}

/// A job in the background. It is killed when this goes out of scope.
pub(crate) struct Job(pub(crate) Child);

impl Job {
    pub(crate) fn start(line: &[&str]) -> Self {
        Self(command(line).stdout(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The agent's database, to read.
pub(crate) fn database() -> rusqlite::Result<rusqlite::Connection> {
    rusqlite::Connection::open_with_flags(DATABASE, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// One value out of the agent's database; `None` while there is no such row.
pub(crate) fn recorded<T: rusqlite::types::FromSql>(query: &str) -> Option<T> {
    database().ok()?.query_row(query, [], |row| row.get(0)).ok()
}

/// How the newest run of a task ended, in the words of `run_summary`, once it has.
pub(crate) fn result_of(task: &str) -> String {
    let query = format!(
        "SELECT result FROM run_summary WHERE task_type = '{task}' AND result <> 'running' ORDER BY run_id DESC LIMIT 1"
    );
    let mut result = None;
    wait_until(&format!("{task} is recorded"), || {
        result = recorded::<String>(&query);
        result.is_some()
    });
    result.unwrap()
}
