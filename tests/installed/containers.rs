//! Containers of a runtime that calls the hook: crun with bundles of busybox; and podman, where the guest has it
//! (`--with podman` of either lane). No image is fetched.
use crate::bundle::{self, Bundle, runtime};
use crate::host::*;
use crate::skip::skip;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

/// Where bundles are, and the cgroup that their containers are in.
const BUNDLES: &str = "/tmp/bundles";
const PARENT: &str = "/standin-containers";

/// Where podman and CRI-O look for hooks.
const HOOKS: &str = "/usr/share/containers/oci/hooks.d";

/// Holds 60 MiB for a moment.
const HOLD: &str = "dd if=/dev/zero of=/dev/null bs=60M count=2 && sleep 2";

/// Containers that come and go: kinds of them at once, one after the other of each.
const KINDS: [(&str, i32); 2] = [("churn-a", 0), ("churn-b", 1)];
const OF_EACH: usize = 8;

/// A root file system for all of them.
fn root() -> PathBuf {
    let root = Path::new(BUNDLES).join("root");
    if !root.exists() {
        bundle::root_file_system(&root);
    }
    root
}

/// The hook as `standin oci-hook --install` writes it.
fn hook() -> Value {
    printed(&["standin", "oci-hook", "--install", HOOKS]);
    let text = fs::read_to_string(Path::new(HOOKS).join("standin.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["hook"].clone()
}

/// Containers that all do the same, one at a time: those of image `NAME:1`.
struct Containers {
    name: &'static str,
    bundle: Bundle,
}

impl Containers {
    fn new(name: &'static str, script: &str) -> Self {
        ensure_started();
        let cgroup = format!("{PARENT}/{name}");
        let bundle = Bundle::new(Path::new(BUNDLES).join(name), &root(), &cgroup, script);
        bundle.hook(&hook());
        let image = json!({ "org.opencontainers.image.ref.name": format!("localhost/{name}:1") });
        bundle.configure(|config| config["annotations"] = image);
        Self { name, bundle }
    }

    fn task(&self) -> String {
        format!("{}:1 sh", self.name)
    }

    fn start(&self) -> Child {
        self.bundle.run(self.name).stdout(Stdio::null()).spawn().unwrap()
    }

    fn run(&self) -> Option<i32> {
        self.start().wait().unwrap().code()
    }
}

/// How the runs of a task ended, oldest first.
fn results(task: &str) -> Vec<String> {
    let database = database().unwrap();
    let mut query =
        database.prepare("SELECT result FROM run_summary WHERE task_type = ? ORDER BY run_id").unwrap();
    query.query_map([task], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// A limit of the newest run of a task: its value, and where it came from.
fn limit(task: &str, name: &str) -> Option<(i64, String)> {
    let newest = format!("SELECT max(run_id) FROM run_summary WHERE task_type = '{task}'");
    let of_newest = format!("FROM limit_applied WHERE name = '{name}' AND run_id = ({newest})");
    Some((
        recorded(&format!("SELECT CAST(value AS INTEGER) {of_newest}"))?,
        recorded(&format!("SELECT origin {of_newest}"))?,
    ))
}

/// `memory.high` or its v1 twin of what is in `PARENT`, where it is one.
fn target_in_force(cgroup: &str) -> Option<u64> {
    let files = [
        format!("/sys/fs/cgroup{PARENT}/{cgroup}/memory.high"),
        format!("/sys/fs/cgroup/memory{PARENT}/{cgroup}/memory.soft_limit_in_bytes"),
    ];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok())?;
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 40)
}

fn agents_descriptors() -> usize {
    fs::read_dir(format!("/proc/{}/fd", main_pid())).unwrap().count()
}

#[ignore = "for an installed package"]
#[test]
fn a_container_is_measured_and_sized_when_it_starts_again() {
    let holders = Containers::new("holder", HOLD);
    assert_eq!(holders.run(), Some(0));
    assert_eq!(result_of(&holders.task()), "exit 0");
    let peak = "SELECT memory_mib FROM run_summary WHERE task_type = 'holder:1 sh'";
    let peak = recorded::<f64>(peak);
    assert!(peak.is_some_and(|mebibytes| mebibytes > 60.0), "{peak:?}");
    assert_eq!(limit(&holders.task(), "memory_high_bytes"), None, "nothing was known of it");
    let mut second = holders.start();
    let mut seen = None;
    wait_until("its target is in force", || {
        seen = seen.or_else(|| target_in_force(holders.name));
        seen.is_some() || second.try_wait().unwrap().is_some()
    });
    assert_eq!(second.wait().unwrap().code(), Some(0));
    wait_until("the second is recorded", || results(&holders.task()) == ["exit 0", "exit 0"]);
    let (high, origin) = limit(&holders.task(), "memory_high_bytes").expect("it is sized");
    assert_ne!(origin, "manual");
    assert!(high > 60 << 20, "{high}");
    assert!(seen.is_some(), "{high} was never in force");
}

#[ignore = "for an installed package"]
#[test]
fn a_limit_that_a_container_was_given_holds_and_is_recorded() {
    let gluttons = Containers::new("glutton", HOLD);
    gluttons.bundle.configure(|config| config["linux"]["resources"]["memory"] = json!({ "limit": 24 << 20 }));
    // The shell that started what was killed goes on.
    _ = gluttons.run();
    assert_eq!(result_of(&gluttons.task()), "out of memory");
    assert_eq!(limit(&gluttons.task(), "memory_max_bytes"), Some((24 << 20, "manual".into())));
    assert_eq!(limit(&gluttons.task(), "memory_high_bytes"), None);
}

#[ignore = "for an installed package"]
#[test]
fn containers_come_and_go_are_all_recorded_and_leave_nothing() {
    let kinds = KINDS.map(|(name, code)| (Containers::new(name, &format!("exit {code}")), code));
    // What is opened once, for the cgroup that they are in among others, is no leak.
    kinds.iter().for_each(|(containers, code)| assert_eq!(containers.run(), Some(*code)));
    let open_before = agents_descriptors();
    thread::scope(|scope| {
        for (containers, code) in &kinds {
            scope.spawn(move || (0..OF_EACH).for_each(|_| assert_eq!(containers.run(), Some(*code))));
        }
    });
    for (containers, code) in &kinds {
        let all = vec![format!("exit {code}"); OF_EACH + 1];
        wait_until("all are recorded", || results(&containers.task()) == all);
    }
    let open = agents_descriptors();
    assert!(open < open_before + OF_EACH, "{open_before} descriptors became {open}");
    let others = "SELECT count(*) FROM run_summary WHERE task_type LIKE 'standin-containers/%'";
    assert_eq!(recorded::<i64>(others), Some(0), "each is one run, under the name that the hook told");
    let find = "find /sys/fs/cgroup -path '*standin-jobs.service/run-*' -o -path '*/churn-*'";
    wait_until("no cgroup is left", || printed(&["sh", "-c", find]).is_empty());
}

#[ignore = "for an installed package"]
#[test]
fn a_container_survives_a_killed_agent() {
    let go = root().join("tmp/go");
    _ = fs::remove_file(&go);
    let waiting = Containers::new("waits", "while [ ! -e /tmp/go ]; do sleep 0.3; done; exit 3");
    let mut container = waiting.start();
    wait_until("it runs", || results(&waiting.task()) == ["running"]);
    let before = main_pid();
    printed(&["kill", "-KILL", &before]);
    wait_until("another agent is there", || {
        let pid = main_pid();
        pid != before && pid != "0" && property("standin.service", "ActiveState") == "active"
    });
    assert!(container.try_wait().unwrap().is_none());
    fs::write(&go, "").unwrap();
    assert_eq!(container.wait().unwrap().code(), Some(3));
    assert_eq!(result_of(&waiting.task()), "exit 3");
}

#[ignore = "for an installed package"]
#[test]
fn a_container_of_podman_is_sized_by_image_and_command() {
    if !output(&["sh", "-c", "command -v podman"]).status.success() {
        return skip("there is no podman: --with podman brings it");
    }
    ensure_started();
    hook();
    // As podman does by itself where it can: by systemd on v2.
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let manager = if is_v2 { "systemd" } else { "cgroupfs" };
    let podman = |arguments: &[&str]| {
        let mut podman = runtime("podman");
        // A store of its own: a guest's disk may be an overlay, which podman's usual one can't lie on.
        podman.args(["--root", "/tmp/podman/store", "--runroot", "/tmp/podman/run"]);
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", manager, "--runtime", "crun"]);
        assert!(podman.args(arguments).status().unwrap().success());
    };
    printed(&["tar", "-C", root().to_str().unwrap(), "-cf", "/tmp/image.tar", "."]);
    podman(&["import", "/tmp/image.tar", "localhost/holder:2"]);
    let run =
        "run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/holder:2 sh -c";
    let line: Vec<_> = run.split(' ').chain([HOLD]).collect();
    for _ in 0..2 {
        podman(&line);
    }
    wait_until("both are recorded", || results("holder:2 sh") == ["exit 0", "exit 0"]);
    let (high, origin) = limit("holder:2 sh", "memory_high_bytes").expect("it is sized");
    assert!(high > 60 << 20 && origin != "manual", "{high} by {origin}");
}
