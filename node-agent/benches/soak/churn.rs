//! What goes on meanwhile: each kind on a thread of its own, which counts and, if a job is harmed, panics.

use crate::bundle::{self, Bundle};
use crate::service::{Service, free_port, script};
use crate::support::{Agent, Sandbox, has, read_json, signal, stderr, unified};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

/// Pauses between jobs, between kills of the primary, and between cgroups and containers that come and go.
const BETWEEN_JOBS: Duration = Duration::from_millis(60);
const BETWEEN_KILLS: Duration = Duration::from_secs(3);
const BETWEEN_CGROUPS: Duration = Duration::from_millis(200);
const BETWEEN_CONTAINERS: Duration = Duration::from_millis(200);

/// What containers are made with.
const RUNTIME: [&str; 3] = ["crun", "busybox", "unshare"];

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

/// A bundle whose containers the agent is told of by its hook; nothing where there is no runtime.
pub(crate) fn bundle(sandbox: &Sandbox, agent: &Agent<'_>) -> Option<Bundle> {
    if let Some(missing) = RUNTIME.iter().find(|program| !has(program)) {
        println!("no containers come and go: {missing} is not installed");
        return None;
    }
    let hooks = sandbox.path("hooks.d");
    let installed = agent.standin(["oci-hook", "--install"]).arg(&hooks).status();
    assert!(installed.is_ok_and(|status| status.success()), "the hook can't be installed");
    let root = sandbox.path("rootfs");
    bundle::root_file_system(&root);
    let cgroup = format!("/{}/container", sandbox.parent);
    let bundle = Bundle::new(
        sandbox.path("bundle"),
        &root,
        &cgroup,
        "dd if=/dev/zero of=/dev/null bs=8M count=1; exit 4",
    );
    bundle.hook(&read_json(&hooks.join("standin.json"))["hook"]);
    Some(bundle)
}

/// Starts all of it; it goes on until `stop`.
pub(crate) fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    sandbox: &'env Sandbox,
    bundle: Option<&'env Bundle>,
    service: &'env Service<'env>,
    stop: &'env AtomicBool,
) -> Churn<'scope> {
    let mut all: Churn<'scope> = Vec::new();
    for first in [0, 2] {
        all.push(("jobs", scope.spawn(move || jobs(sandbox, first, stop))));
    }
    all.push(("failovers", scope.spawn(move || failovers(service, stop))));
    all.push(("cgroups made and removed", scope.spawn(move || cgroups(stop))));
    if let Some(bundle) = bundle {
        all.push(("containers", scope.spawn(move || containers(bundle, &sandbox.parent, stop))));
    }
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

fn containers(bundle: &Bundle, id: &str, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Relaxed) {
        let Ok(output) = bundle.run(id).output() else { panic!("crun can't be started") };
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        count += 1;
        sleep(BETWEEN_CONTAINERS);
    }
    count
}

/// Cgroups of others that no hook tells of: made, something runs in them, removed.
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
