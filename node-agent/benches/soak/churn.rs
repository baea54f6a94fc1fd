//! What goes on meanwhile: each kind on a thread of its own, which counts and, if a job is harmed, panics.

use crate::service::{Service, free_port, script};
use crate::support::{Agent, Sandbox, signal, stderr, unified};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

/// Pauses between jobs, between kills of the primary, and between cgroups that come and go.
const BETWEEN_JOBS: Duration = Duration::from_millis(60);
const BETWEEN_KILLS: Duration = Duration::from_secs(3);
const BETWEEN_CGROUPS: Duration = Duration::from_millis(200);

/// Jobs: what each is called, does and ends with.
const JOBS: [(&str, &str, i32); 4] = [
    ("quick", "true", 0),
    ("forks", "for i in 1 2 3 4 5; do /bin/true; done; exit 3", 3),
    ("memory", "head -c 8000000 /dev/zero | tail -c 1 | wc -c", 0),
    ("waits", "sleep 0.3", 0),
];

type Churn<'scope> = Vec<(&'static str, ScopedJoinHandle<'scope, u64>)>;

/// A server with one shadow, which the agent measures.
pub(crate) fn service<'a>(sandbox: &'a Sandbox, agent: &Agent<'_>) -> Service<'a> {
    let (port, server) = (free_port(), script(sandbox));
    let mut command = agent.standin(["run", "--require-agent", "--name", "web", "--shadows", "1"]);
    command.args(["--failovers-max", "1000", "--", "python3"]);
    command.args([server.to_str().unwrap_or_default(), &format!("127.0.0.1:{port}")]);
    let service = Service::spawn(sandbox, "web", port, &mut command);
    service.wait_for_shadows(1);
    service
}

/// Starts all of it; it goes on until `stop`.
pub(crate) fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    sandbox: &'env Sandbox,
    service: &'env Service<'env>,
    stop: &'env AtomicBool,
) -> Churn<'scope> {
    let mut all: Churn<'scope> = Vec::new();
    for first in [0, 2] {
        all.push(("jobs", scope.spawn(move || jobs(sandbox, first, stop))));
    }
    all.push(("failovers", scope.spawn(move || failovers(service, stop))));
    all.push(("cgroups made and removed", scope.spawn(move || cgroups(stop))));
    all
}

fn jobs(sandbox: &Sandbox, first: usize, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    for (name, script, code) in JOBS.iter().cycle().skip(first) {
        if stop.load(Relaxed) {
            break;
        }
        let mut command =
            sandbox.standin(["run", "--require-agent", "--name", name, "--", "sh", "-c", script]);
        let output = command.env("STANDIN_SOCKET", sandbox.socket()).output();
        let Ok(output) = output else { panic!("standin can't be started") };
        assert_eq!(output.status.code(), Some(*code), "{name}: {}", stderr(&output));
        count += 1;
        sleep(BETWEEN_JOBS);
    }
    count
}

/// Kills the primary whenever a shadow stands ready.
fn failovers(service: &Service<'_>, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Relaxed) {
        let killed = Instant::now();
        if let (Some(primary), true) = (service.pids("primary").first(), !service.pids("shadow").is_empty()) {
            signal(*primary, libc::SIGKILL);
            assert_ne!(service.ask(), *primary);
            count += 1;
        }
        while killed.elapsed() < BETWEEN_KILLS && !stop.load(Relaxed) {
            sleep(Duration::from_millis(100));
        }
    }
    count
}

/// Cgroups as a runtime makes them for containers: made, something runs in them, removed.
fn cgroups(stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Relaxed) {
        let path = unified().join(format!("standin-soak-{}-{count}.scope", std::process::id()));
        if fs::create_dir(&path).is_err() {
            break;
        }
        let enter = format!("echo $$ > {}/cgroup.procs; for i in 1 2 3; do /bin/true; done", path.display());
        let ran = Command::new("sh").args(["-c", &enter]).stdin(Stdio::null()).status();
        assert!(ran.is_ok_and(|status| status.success()), "{} can't be entered", path.display());
        // The last process is still leaving.
        while fs::remove_dir(&path).is_err() && path.exists() {
            sleep(Duration::from_millis(2));
        }
        count += 1;
        sleep(BETWEEN_CGROUPS);
    }
    count
}
