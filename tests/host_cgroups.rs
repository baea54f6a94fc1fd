//! Cgroups that others make are measured from their first moment, named by their path, and recorded when they go.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use support::{Sandbox, is_root, stdout, wait_until};

/// A cgroup as a service manager would make one, outside of the agent's own parent. Removed when dropped.
struct Unit(PathBuf);

impl Unit {
    fn new(sandbox: &Sandbox, name: &str) -> Self {
        let slice = support::unified().join(format!("{}-host.slice", sandbox.parent));
        fs::create_dir_all(slice.join(name)).unwrap();
        Self(slice.join(name))
    }

    /// Path below the root of the hierarchy.
    fn path(&self) -> String {
        self.0.strip_prefix(support::unified()).unwrap().display().to_string()
    }

    /// A condition on runs: those of this cgroup. Others' units may have the same name.
    fn runs(&self) -> String {
        format!("id IN (SELECT run_id FROM run_launch WHERE cgroup_path LIKE '%{}')", self.path())
    }

    fn spawn(&self, script: &str) -> Child {
        let entrance = self.0.join("cgroup.procs");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        // SAFETY: between fork and exec; the path is made before.
        unsafe { command.pre_exec(move || fs::write(&entrance, "0")) };
        command.spawn().unwrap()
    }

    fn remove(&self) {
        wait_until("the cgroup can be removed", || fs::remove_dir(&self.0).is_ok());
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        _ = fs::write(self.0.join("cgroup.kill"), "1");
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while self.0.exists() && fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < patience {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        _ = self.0.parent().map(fs::remove_dir);
    }
}

/// Runs so many programs.
fn programs(count: u32) -> String {
    format!("i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done")
}

#[test]
fn a_short_lived_unit_is_recorded_whole_and_shown_by_its_path() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("host_cgroups = 64\n");
    let agent = sandbox.agent();
    let unit = Unit::new(&sandbox, "web.service");
    assert!(unit.spawn(&programs(25)).wait().unwrap().success());
    unit.remove();
    let run = unit.runs();
    sandbox.wait_for_runs(1, &format!("{run} AND state = 'finished'"));
    // The shell itself is one more; it entered the cgroup before it was executed.
    assert_eq!(sandbox.sql::<i64>(&format!("SELECT execs FROM run WHERE {run}")), 26);
    assert_eq!(sandbox.sql::<i64>(&format!("SELECT forks FROM run WHERE {run}")), 25);
    let name: String = sandbox.sql(&format!(
        "SELECT task_type FROM task WHERE id = (SELECT task_id FROM run WHERE {run} AND exit_code IS NULL)"
    ));
    assert_eq!(name, "unit web.service");
    let shown = agent.standin(["show", "--cgroup", &unit.path()]).output().unwrap();
    assert!(stdout(&shown).contains("unit web.service"), "{}", stdout(&shown));
    let absolute = unit.0.display().to_string();
    assert!(agent.standin(["show", "--cgroup", &absolute]).output().unwrap().status.success());
    let listed = |options: &[&str]| stdout(&agent.standin(["ls"].iter().chain(options)).output().unwrap());
    // Other tests have units at the same time.
    let without = listed(&[]);
    assert!(without.contains("of others") && !without.contains("unit web.service"), "{without}");
    assert!(listed(&["--all"]).contains("unit web.service"), "{}", listed(&["--all"]));
    let unknown = agent.standin(["show", "--cgroup", "no/such"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn a_unit_that_was_there_before_is_found_and_survives_the_agent() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("host_cgroups = 64\ncheckpoint_s = 1\n");
    let unit = Unit::new(&sandbox, "old.service");
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let script = format!("{}; while [ ! -e {} ]; do sleep 0.02; done", programs(30), go.display());
    let mut child = unit.spawn(&script);
    let of_unit = unit.runs();
    sandbox.wait_for_runs(1, &of_unit);
    agent.kill();
    fs::write(&go, "").unwrap();
    child.wait().unwrap();
    let _agent = sandbox.agent();
    assert!(unit.spawn(&programs(10)).wait().unwrap().success());
    unit.remove();
    sandbox.wait_for_runs(1, &format!("{of_unit} AND state = 'finished'"));
    let (execs, forks): (i64, i64) = (
        sandbox.sql(&format!("SELECT execs FROM run WHERE {of_unit}")),
        sandbox.sql(&format!("SELECT forks FROM run WHERE {of_unit}")),
    );
    // 30 and 10 programs, two shells, and the sleeps between, all of which were forked by a shell.
    assert!(execs >= 42, "{execs}");
    assert_eq!(execs, forks + 2);
}

#[test]
fn runs_of_ones_own_are_not_recorded_twice() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("host_cgroups = 64\n");
    let agent = sandbox.agent();
    agent.run(&["--name", "own"], &["sh", "-c", &programs(5)]);
    // By a launcher that measures by itself, below the same parent.
    sandbox.run(&["--name", "embedded"], &["sh", "-c", &programs(5)]);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let twice: i64 = sandbox.sql(&format!(
        "SELECT count(*) FROM run_launch l JOIN run r ON r.id = l.run_id JOIN task t ON t.id = r.task_id
         WHERE cgroup_path LIKE '{}/%' AND task_type NOT IN ('own', 'embedded')",
        sandbox.parent
    ));
    assert_eq!(twice, 0);
}

#[test]
fn a_unit_that_lives_for_long_is_recorded_in_parts_that_add_up() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("host_cgroups = 64\nhost_record_s = 2\n");
    let agent = sandbox.agent();
    let unit = Unit::new(&sandbox, "long.service");
    let (end, rounds) = (sandbox.path("end"), sandbox.path("rounds"));
    let script = format!(
        "i=0; while [ ! -e {} ]; do /bin/true; /bin/sleep 0.1; i=$((i+1)); done; echo $i >{}",
        end.display(),
        rounds.display()
    );
    let mut child = unit.spawn(&script);
    let own = format!("FROM run WHERE {}", unit.runs());
    let parts = format!("SELECT count(*) {own} AND state = 'finished'");
    wait_until("it is recorded while it lives", || sandbox.sql::<i64>(&parts) >= 2);
    fs::write(&end, "").unwrap();
    assert!(child.wait().unwrap().success());
    unit.remove();
    // The shell, and each program once: nothing lost between two parts, nothing counted twice.
    let forks = 2 * fs::read_to_string(&rounds).unwrap().trim().parse::<i64>().unwrap();
    let sums = format!(
        "SELECT coalesce(sum(execs) = {forks} + 1 AND sum(forks) = {forks} AND min(state = 'finished'), 0) {own}"
    );
    wait_until("all parts are recorded", || sandbox.sql::<i64>(&sums) == 1);
    let overlap = format!(
        "SELECT count(*) FROM (SELECT started_at_ms - lag(ended_at_ms) OVER (ORDER BY started_at_ms) AS gap {own})
         WHERE abs(gap) > 1000"
    );
    assert_eq!(sandbox.sql::<i64>(&overlap), 0, "one begins where the other ended");
    drop(agent);
}
