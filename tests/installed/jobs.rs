//! Jobs of users: measured, free of everything that confines the agent, and untouched by what becomes of it.
use crate::host::*;
use std::fs;
use std::path::Path;

#[ignore = "for an installed package"]
#[test]
fn a_member_of_the_group_has_jobs_measured() {
    ensure_started();
    user("alice", true);
    let run = as_user(
        "alice",
        &["standin", "run", "--require-agent", "--name", "hers", "--", "sh", "-c", "exit 7"],
    );
    assert_eq!(run.status.code(), Some(7), "{run:?}");
    assert_eq!(result_of("hers"), "exit 7");
    let user: Option<String> = recorded("SELECT user FROM run_summary WHERE task_type = 'hers'");
    assert_eq!(user.as_deref(), Some("alice"));
    assert!(stdout(&as_user("alice", &["standin", "ls"])).contains("hers"));
    let killed = as_user("alice", &["standin", "run", "--require-agent", "--", "sh", "-c", "kill -TERM $$"]);
    // The shell of `runuser` says a death by a signal as 128 + its number.
    assert!(killed.status.code().is_none_or(|code| code == 143), "{killed:?}");
    assert_eq!(as_user("alice", &["standin", "run", "--", "no-such-program"]).status.code(), Some(127));
}

#[ignore = "for an installed package"]
#[test]
fn who_is_no_member_runs_jobs_all_the_same() {
    ensure_started();
    user("bob", false);
    let run = as_user("bob", &["standin", "run", "--db", "/tmp/bob.db", "--", "sh", "-c", "exit 5"]);
    assert_eq!(run.status.code(), Some(5), "{run:?}");
    let refused = as_user("bob", &["standin", "run", "--require-agent", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(stderr(&refused).contains("no permission"), "{refused:?}");
    assert!(!as_user("bob", &["cat", DATABASE]).status.success());
}

/// What of a process a unit could have changed.
const LOOK: &str = "grep -E '^(NoNewPrivs|Seccomp|Cap[A-Z][a-z]+):' /proc/self/status; cat /proc/self/limits \
                    /proc/self/oom_score_adj; readlink /proc/self/ns/mnt /proc/self/ns/net; umask; pwd; env | sort";

#[ignore = "for an installed package"]
#[test]
fn a_job_inherits_nothing_of_the_service() {
    ensure_started();
    let bare = printed(&["sh", "-c", LOOK]);
    let job = printed(&["standin", "run", "--require-agent", "--quiet", "--", "sh", "-c", LOOK]);
    assert_eq!(job, bare);
    let cgroup = printed(&["standin", "run", "--require-agent", "--quiet", "--", "cat", "/proc/self/cgroup"]);
    let is_among_jobs = |line: &str| line.contains("/standin.slice/standin-jobs.service/run-");
    assert!(cgroup.lines().any(|line| line.starts_with("0::") && is_among_jobs(line)), "{cgroup}");
    assert!(!cgroup.contains("standin.service"), "{cgroup}");
    // A device file is refused to the agent's cgroup (PrivateDevices), and to no job.
    let device =
        "mknod /tmp/zero-of-a-job c 1 5 && head -c1 /tmp/zero-of-a-job >/dev/null; rm -f /tmp/zero-of-a-job";
    let run = output(&["standin", "run", "--require-agent", "--", "sh", "-ec", device]);
    assert_eq!(run.status.code(), output(&["sh", "-ec", device]).status.code(), "{run:?}");
}

/// Whether the host calls our processes by other numbers. (The kernel's own threads show only where it does not.)
fn is_in_pid_namespace() -> bool {
    fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() != "kthreadd")
        || !Path::new("/proc/2").exists()
}

/// A job that runs until it is let go; then its exit code is 3.
struct Waiting {
    job: Job,
    go: String,
    name: &'static str,
}

impl Waiting {
    fn start(name: &'static str) -> Self {
        ensure_started();
        let go = format!("/tmp/go-{name}");
        _ = fs::remove_file(&go);
        let script = format!("while [ ! -e {go} ]; do sleep 0.3; done; exit 3");
        let job =
            Job::start(&["standin", "run", "--require-agent", "--name", name, "--", "sh", "-c", &script]);
        let running =
            format!("SELECT count(*) FROM run_summary WHERE task_type = '{name}' AND result = 'running'");
        wait_until("it runs", || recorded::<i64>(&running) == Some(1));
        Self { job, go, name }
    }

    /// It still runs, under an agent that is not `before`, ends when it is let go, and its end is recorded.
    fn outlives(mut self, before: &str) {
        wait_until("another agent is there", || {
            let pid = main_pid();
            pid != before && pid != "0" && property("standin.service", "ActiveState") == "active"
        });
        assert!(self.job.is_running());
        fs::write(&self.go, "").unwrap();
        assert_eq!(self.job.exit_code(), Some(3));
        assert_eq!(result_of(self.name), "exit 3");
    }
}

#[ignore = "for an installed package"]
#[test]
fn a_job_survives_a_restart_of_the_agent() {
    let job = Waiting::start("restarted");
    let before = main_pid();
    printed(&["systemctl", "restart", "standin.service"]);
    job.outlives(&before);
}

#[ignore = "for an installed package"]
#[test]
fn a_job_survives_a_killed_agent() {
    let job = Waiting::start("killed");
    let before = main_pid();
    printed(&["kill", "-KILL", &before]);
    job.outlives(&before);
}

#[ignore = "for an installed package"]
#[test]
fn a_job_survives_an_upgrade() {
    let job = Waiting::start("upgraded");
    let before = main_pid();
    let package = format!("{}/standin.deb", std::env::var("STANDIN_PAYLOAD").unwrap());
    assert!(Path::new(&package).exists());
    printed(&["dpkg", "--install", &package]);
    job.outlives(&before);
}

#[ignore = "for an installed package"]
#[test]
fn a_job_survives_an_agent_that_is_stopped_for_a_while() {
    let mut job = Waiting::start("left");
    printed(&["systemctl", "stop", "standin.socket", "standin.service"]);
    assert!(job.job.is_running());
    fs::write(&job.go, "").unwrap();
    assert_eq!(job.job.exit_code(), Some(3));
    printed(&["systemctl", "start", "standin.socket", "standin.service"]);
    // What was pinned has counted on, and kept how it ended; but under the number that the host knows the process by.
    let expected = if is_in_pid_namespace() { "lost" } else { "exit 3" };
    assert_eq!(result_of("left"), expected);
}
