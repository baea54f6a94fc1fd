//! The probes are pinned: they count on while no agent is there, and the next one misses nothing.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;
use support::{Job, Sandbox, is_root, wait_until};

/// A busy job that runs programs until it is told to stop, and then tells how many.
struct Busy {
    job: Job,
    go: PathBuf,
    count: PathBuf,
}

impl Busy {
    fn start(sandbox: &Sandbox, agent: &support::Agent<'_>) -> Self {
        let (go, count) = (sandbox.path("go"), sandbox.path("count"));
        let script = format!(
            "i=0; while [ ! -e {} ]; do /bin/true; i=$((i+1)); done; echo $i > {}; exit 3",
            go.display(),
            count.display()
        );
        let job = Job::start(&mut agent.standin(["run", "--name", "busy", "--", "/bin/sh", "-c", &script]));
        Self { job, go, count }
    }

    /// Ends the job; how many programs it ran.
    fn stop(&mut self) -> i64 {
        fs::write(&self.go, "").unwrap();
        assert_eq!(self.job.exit_code(), Some(3));
        fs::read_to_string(&self.count).unwrap().trim().parse().unwrap()
    }
}

fn assert_all_counted(sandbox: &Sandbox, programs: i64) {
    let number = |column: &str| sandbox.sql::<i64>(&format!("SELECT {column} FROM run"));
    println!("{programs} programs; {} execs, {} forks", number("execs"), number("forks"));
    assert_eq!(number("exit_code"), 3);
    // The shell itself is one more; it was not forked in the cgroup.
    assert_eq!(number("execs"), programs + 1);
    assert_eq!(number("forks"), programs);
    assert_eq!(number("exits"), programs + 1);
    assert_eq!(number("tasks_peak"), 2);
    let in_windows = sandbox.sql::<i64>("SELECT cpu_us FROM run_cpu_demand WHERE window_ms = 10");
    let bursts: i64 = sandbox.sql(
        "SELECT total(value) = r.switches_voluntary + r.switches_forced FROM run r JOIN run_histogram h ON h.run_id = r.id, json_each(h.counts) WHERE kind = 'cpu_burst_ns'",
    );
    assert_eq!(bursts, 1, "each burst ends with a switch");
    // The first and last stretch of the launcher belong to the cgroup's account alone.
    let (off, all) =
        ((number("cpu_ns") / 1000).abs_diff(in_windows), number("cpu_ns").cast_unsigned() / 1000);
    assert!(off < all / 20 + 5000, "{in_windows} us in windows, {all} us in all");
    let notes: String = sandbox.sql("SELECT sources FROM coverage");
    assert!(!notes.contains("missing"), "{notes}");
}

#[test]
fn a_busy_run_loses_no_count_when_its_agent_is_killed_three_times() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut busy = Busy::start(&sandbox, &agent);
    sandbox.wait_for_runs(1, "id IN (SELECT run_id FROM run_launch WHERE main_pid IS NOT NULL)");
    let mut agent = Some(agent);
    for _ in 0..3 {
        sleep(Duration::from_millis(200));
        agent.take().unwrap().kill();
        sleep(Duration::from_millis(200));
        agent = Some(sandbox.agent());
    }
    sleep(Duration::from_millis(100));
    let programs = busy.stop();
    sandbox.wait_for_runs(1, "state = 'failed'");
    assert_all_counted(&sandbox, programs);
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn a_run_that_ends_while_no_agent_is_there_is_recorded_whole() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut busy = Busy::start(&sandbox, &agent);
    sandbox.wait_for_runs(1, "id IN (SELECT run_id FROM run_launch WHERE main_pid IS NOT NULL)");
    sleep(Duration::from_millis(200));
    agent.kill();
    sleep(Duration::from_millis(200));
    let programs = busy.stop();
    // Its end is when it ended, not when an agent heard of it.
    sleep(Duration::from_millis(1500));
    let _agent = sandbox.agent();
    sandbox.wait_for_runs(1, "state = 'failed'");
    assert_all_counted(&sandbox, programs);
    let late: i64 = sandbox.sql("SELECT (ended_at_ms - started_at_ms) * 1000000 - duration_ns FROM run");
    assert!(late.abs() < 200_000_000, "{late} ns");
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn probes_of_another_version_are_replaced_and_the_run_goes_on_from_its_last_record() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut busy = Busy::start(&sandbox, &agent);
    sandbox.wait_for_runs(1, "id IN (SELECT run_id FROM run_launch WHERE main_pid IS NOT NULL)");
    sleep(Duration::from_millis(300));
    assert!(agent.terminate().success());
    let before: i64 = sandbox.sql("SELECT execs FROM run");
    assert!(before > 1);
    // Another number of slots is another layout.
    sandbox.configure("tasks_max = 77\n");
    let agent = sandbox.agent();
    assert!(sandbox.agent_log().contains("replaced"), "{}", sandbox.agent_log());
    let versions = || fs::read_dir(sandbox.bpffs().join("standin").join(&sandbox.parent)).unwrap().count();
    assert_eq!(versions(), 1);
    let programs = busy.stop();
    sandbox.wait_for_runs(1, "state = 'failed'");
    let execs: i64 = sandbox.sql("SELECT execs FROM run");
    assert!(execs >= before && execs <= programs + 1, "{before} before, {execs} of {programs}");
    assert!(sandbox.sql::<String>("SELECT sources FROM coverage").contains("missing"));

    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
    assert!(agent.terminate().success());
    let instance = sandbox.bpffs().join("standin").join(&sandbox.parent);
    assert!(!instance.exists(), "an agent that ends without tasks leaves nothing");
}

#[test]
fn a_second_agent_with_the_same_parent_does_not_take_the_probes_of_the_first() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut second = sandbox.standin(["agent"]);
    let socket = sandbox.path("second.sock");
    let log = fs::File::create(sandbox.path("second.log")).unwrap();
    let mut second = Job::start_with_stderr(second.env("STANDIN_SOCKET", &socket), log);
    wait_until("the second agent listens", || socket.exists());
    wait_until("it says what it lacks", || {
        fs::read_to_string(sandbox.path("second.log")).unwrap().contains("another agent holds")
    });
    assert!(second.is_running());
    assert_eq!(agent.run(&["--name", "seven"], &["sh", "-c", "exit 7"]).status.code(), Some(7));
    sandbox.wait_for_runs(1, "exit_code = 7 AND execs > 0");
}
