//! Containers are measured, remembered by image and command, and sized when they start again; what their users
//! set by hand stays; and no hook keeps a container from starting.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/bundle.rs"]
mod bundle;
mod support;

use bundle::{Bundle, runtime};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{Agent, Sandbox, has, is_root, stderr, stdout, wait_until};

/// Holds 150 MiB for a moment.
const HOLD: &str = "dd if=/dev/zero of=/dev/null bs=150M count=3 && sleep 0.3";

/// Whether this host can do all that is needed.
fn missing(programs: &[&str]) -> Option<String> {
    if !is_root() {
        return Some("needs root".into());
    }
    let absent = programs.iter().find(|program| !has(program))?;
    Some(format!("{absent} is not installed"))
}

/// The hook's entry as `oci-hook --install` writes it, for this sandbox's agent.
fn hook(agent: &Agent<'_>, sandbox: &Sandbox) -> Value {
    let directory = sandbox.path("hooks.d");
    let installed = agent.standin(["oci-hook", "--install"]).arg(&directory).output().unwrap();
    assert_eq!(installed.status.code(), Some(0), "{}", stderr(&installed));
    support::read_json(&directory.join("standin.json"))["hook"].clone()
}

fn root_file_system(sandbox: &Sandbox) -> PathBuf {
    let root = sandbox.path("rootfs");
    bundle::root_file_system(&root);
    root
}

/// A bundle whose containers are in the sandbox's own cgroup and call `hook`.
fn bundle(sandbox: &Sandbox, name: &str, hook: &Value) -> Bundle {
    let cgroup = format!("/{}/ctr/own", sandbox.parent);
    let bundle = Bundle::new(sandbox.path(name), &sandbox.path("rootfs"), &cgroup, HOLD);
    bundle.hook(hook);
    bundle
}

fn run(sandbox: &Sandbox, bundle: &Bundle, id: &str) -> Output {
    bundle.run(&format!("{id}-{}", sandbox.parent)).output().unwrap()
}

fn limit(sandbox: &Sandbox, run: i64, name: &str) -> Option<i64> {
    let count: i64 =
        sandbox.sql(&format!("SELECT count(*) FROM limit_applied WHERE run_id = {run} AND name = '{name}'"));
    (count == 1).then(|| {
        sandbox.sql(&format!(
            "SELECT CAST(value AS INTEGER) FROM limit_applied WHERE run_id = {run} AND name = '{name}'"
        ))
    })
}

#[test]
fn a_bundle_of_crun_is_measured_and_sized_when_it_starts_again() {
    if let Some(why) = missing(&["crun", "busybox", "unshare"]) {
        return support::skip(&why);
    }
    let sandbox = Sandbox::new();
    root_file_system(&sandbox);
    let agent = sandbox.agent();
    let hook = hook(&agent, &sandbox);
    let free = bundle(&sandbox, "free", &hook);
    let first = run(&sandbox, &free, "a");
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    sandbox.wait_for_runs(1, "state = 'finished' AND memory_peak_bytes > 150 << 20 AND cpu_ns > 0");
    assert_eq!(limit(&sandbox, 1, "memory_high_bytes"), None);
    assert_eq!(run(&sandbox, &free, "b").status.code(), Some(0));
    sandbox.wait_for_runs(2, "state = 'finished'");
    let high = limit(&sandbox, 2, "memory_high_bytes").expect("it is sized");
    assert!(high > 150 << 20, "{high}");
    // A limit by the container's user holds, and no target is set beyond it.
    let held = bundle(&sandbox, "held", &hook);
    held.configure(|config| config["linux"]["resources"]["memory"] = json!({ "limit": 48 << 20 }));
    assert_ne!(run(&sandbox, &held, "c").status.code(), Some(0));
    sandbox.wait_for_runs(1, "out_of_memory");
    assert_eq!(limit(&sandbox, 3, "memory_max_bytes"), Some(48 << 20));
    assert_eq!(limit(&sandbox, 3, "memory_high_bytes"), None);
    assert_eq!(sandbox.sql::<String>("SELECT origin FROM limit_applied WHERE run_id = 3"), "manual");
    wait_until("what was made for counting is gone", || sandbox.run_cgroups().is_empty());
}

/// `memory.high` or its v1 twin, as the container's own cgroup has it while it runs.
fn target_in_force(parent: &str) -> Option<u64> {
    let roots = [("/sys/fs/cgroup/memory", "memory.soft_limit_in_bytes"), ("/sys/fs/cgroup", "memory.high")];
    roots.iter().find_map(|(root, file)| {
        let own = fs::read_dir(Path::new(root).join(parent).join("ctr")).ok()?.flatten();
        let mut containers = own.filter(|entry| entry.file_name().to_string_lossy().starts_with("libpod-"));
        let text = fs::read_to_string(containers.next()?.path().join(file)).ok()?;
        text.trim().parse().ok()
    })
}

#[test]
fn a_container_of_podman_is_sized_on_its_second_start_by_image_and_command() {
    if let Some(why) = missing(&["podman", "crun", "busybox", "unshare", "tar"]) {
        return support::skip(&why);
    }
    let sandbox = Sandbox::new();
    let root = root_file_system(&sandbox);
    let agent = sandbox.agent();
    hook(&agent, &sandbox);
    let podman = |arguments: &[&str]| {
        let mut podman = runtime("podman");
        podman.arg("--root").arg(sandbox.path("store")).arg("--runroot").arg(sandbox.path("run"));
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "crun"]);
        podman.arg("--hooks-dir").arg(sandbox.path("hooks.d")).args(arguments);
        podman
    };
    let archive = sandbox.path("image.tar");
    let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status().unwrap();
    assert!(packed.success());
    let imported = podman(&["import", archive.to_str().unwrap(), "localhost/holder:1"]).output().unwrap();
    assert!(imported.status.success(), "{}", stderr(&imported));
    let parent = format!("/{}/ctr", sandbox.parent);
    let run = |options: &[&str]| {
        let mut all = vec!["run", "--rm", "--network", "none", "--cgroup-parent", &parent];
        // Where root may not raise limits podman's own defaults fail.
        all.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        all.extend(options);
        all.extend(["localhost/holder:1", "sh", "-c", HOLD]);
        podman(&all)
    };
    let first = run(&[]).output().unwrap();
    assert!(first.status.success(), "{}{}", stdout(&first), stderr(&first));
    sandbox.wait_for_runs(1, "state = 'finished' AND memory_peak_bytes > 150 << 20");
    assert_eq!(sandbox.sql::<String>("SELECT task_type FROM task"), "holder:1 sh");
    let mut second = support::Job::start(&mut run(&[]));
    let mut seen = None;
    wait_until("its limit is in force", || {
        seen = target_in_force(&sandbox.parent).filter(|bytes| *bytes < 1 << 40).or(seen);
        seen.is_some() || !second.is_running()
    });
    assert_eq!(second.exit_code(), Some(0));
    sandbox.wait_for_runs(2, "state = 'finished'");
    let high = limit(&sandbox, 2, "memory_high_bytes").expect("it is sized");
    // The kernel keeps whole pages.
    assert!(seen.is_some_and(|seen| seen.abs_diff(high.cast_unsigned()) < 4096), "{seen:?} is not {high}");
    let held = run(&["--memory", "48m"]).output().unwrap();
    assert!(!held.status.success());
    sandbox.wait_for_runs(1, "out_of_memory AND id = 3");
    assert_eq!(limit(&sandbox, 3, "memory_max_bytes"), Some(48 << 20));
}

#[test]
fn no_hook_keeps_a_container_from_starting() {
    let sandbox = Sandbox::new();
    let call = |arguments: &[&str], state: &str| {
        let file = sandbox.path("state.json");
        fs::write(&file, state).unwrap();
        let mut hook = sandbox.standin(["oci-hook"]);
        hook.args(arguments).stdin(fs::File::open(file).unwrap()).output().unwrap()
    };
    let bundle = sandbox.path("");
    let state = format!(r#"{{"id": "x", "status": "created", "pid": 1, "bundle": {bundle:?}}}"#);
    fs::write(sandbox.path("bad.toml"), "[nonsense]\n").unwrap();
    let bad_config = sandbox.path("bad.toml");
    let cases: [(&[&str], &str, &str); 5] = [
        (&[], "", "no state of a container"),
        (&[], "{}", "no state of a container"),
        (&[], r#"{"id": "x", "status": "creating", "bundle": "/nowhere"}"#, "use createRuntime"),
        (&[], r#"{"id": "x", "status": "created", "pid": 1, "bundle": "/nowhere"}"#, "/nowhere/config.json"),
        (&["--config", bad_config.to_str().unwrap()], &state, "nonsense"),
    ];
    for (arguments, state, why) in cases {
        let called = call(arguments, state);
        assert_eq!(called.status.code(), Some(0), "{state}");
        assert!(stderr(&called).contains(why) && stderr(&called).lines().count() == 1, "{}", stderr(&called));
    }
    fs::write(sandbox.path("config.json"), r#"{"process": {"args": ["sh"]}}"#).unwrap();
    let alone = call(&["--socket", "/nowhere/agent.sock"], &state);
    assert_eq!(alone.status.code(), Some(0));
    assert!(stderr(&alone).contains("not sized: no agent at /nowhere/agent.sock"), "{}", stderr(&alone));
    let stopped = call(&[], r#"{"id": "x", "status": "stopped", "bundle": "/nowhere"}"#);
    assert_eq!((stopped.status.code(), stderr(&stopped).as_str()), (Some(0), ""));
}

#[test]
fn a_bundle_whose_agent_is_gone_runs_all_the_same() {
    if let Some(why) = missing(&["crun", "busybox", "unshare"]) {
        return support::skip(&why);
    }
    let sandbox = Sandbox::new();
    root_file_system(&sandbox);
    let agent = sandbox.agent();
    let hook = hook(&agent, &sandbox);
    agent.kill();
    let run = run(&sandbox, &bundle(&sandbox, "free", &hook), "a");
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
}
