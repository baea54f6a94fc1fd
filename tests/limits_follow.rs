//! Elastic limits follow a task, the log says when, and a host without room is said; strict ones kill.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fs;
use support::{Agent, Sandbox, has, is_root, stderr, wait_until};

/// Allocates so many MiB, 20 at a time with a pause, and stays a moment.
const GROW: &str = "
import sys, time
kept = []
for _ in range(int(sys.argv[1]) // 20):
    kept.append(bytearray(20 << 20))
    time.sleep(0.02)
time.sleep(0.5)
";

fn grow(agent: &Agent<'_>, options: &[&str], mib: u32) -> std::process::Output {
    let mut all = vec!["--name", "grow"];
    all.extend(options);
    agent.run(&all, &["python3", "-c", GROW, &mib.to_string()])
}

fn events(agent: &Agent<'_>, options: &[&str]) -> Vec<Value> {
    let output = agent.standin(["events", "--json"]).args(options).output().unwrap();
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    json["events"].as_array().unwrap().clone()
}

fn memory_total() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn a_job_that_takes_six_times_its_history_ends_well_and_the_log_says_how_its_limit_followed() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    assert_eq!(grow(&agent, &[], 200).status.code(), Some(0));
    sandbox.wait_for_runs(1, "state = 'finished'");
    assert_eq!(grow(&agent, &[], 1200).status.code(), Some(0));
    sandbox.wait_for_runs(2, "state = 'finished'");
    wait_until("the events are logged", || !events(&agent, &["--kind", "limit_raised"]).is_empty());
    let raised = events(&agent, &["--kind", "limit_raised", "--run", "2"]);
    assert!(raised.len() >= 2, "{raised:#?}");
    for event in &raised {
        let number = |key: &str| event["details"][key].as_f64().unwrap();
        assert!(number("to") > number("from") && number("to") > number("used"), "{event:#}");
        assert_eq!(event["task_type"], "grow");
    }
    let ended: i64 = sandbox.sql("SELECT count(*) FROM run WHERE out_of_memory");
    assert_eq!(ended, 0);
    // Under hard limits the same is killed, and counts as a lower bound.
    let killed = grow(&agent, &["--policy", "strict", "--limit-memory", "300M"], 1200);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(libc::SIGKILL));
    sandbox.wait_for_runs(1, "out_of_memory");
    assert_eq!(sandbox.sql::<String>("SELECT worth FROM run_actual WHERE run_id = 3"), "lower_bound");
}

#[test]
fn a_host_without_room_holds_the_task_and_the_run_says_so() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    // All but 700 MiB of the host is kept from tasks.
    let reserve = memory_total() - (700 << 20);
    let sandbox = Sandbox::with_config(&format!("[host]\nreserve_memory = {reserve}\n"));
    let agent = sandbox.agent();
    assert_eq!(grow(&agent, &[], 100).status.code(), Some(0));
    sandbox.wait_for_runs(1, "state = 'finished'");
    let result = sandbox.path("result.json");
    let killed = grow(&agent, &["--json", result.to_str().unwrap()], 1200);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(libc::SIGKILL));
    let result = support::read_json(&result);
    assert_eq!(result["ending"]["out_of_memory"], true);
    assert!(result["notes"].to_string().contains("out of room"), "{}", result["notes"]);
    let met = events(&agent, &["--severity", "warning", "--kind", "limit_met"]);
    assert_eq!(met.len(), 1, "{met:#?}");
    // One that is promised more than tasks can have is told so, and runs on.
    let told = grow(&agent, &["--reserve-memory", "1G"], 20);
    assert!(stderr(&told).contains("started without room for it"), "{}", stderr(&told));
    assert_eq!(told.status.code(), Some(0));
}

#[test]
fn floors_and_rules_hold_for_the_kind_of_task_that_they_name() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let rule = "[task.grow]\nreserve_memory = \"1G\"\nreserve_cpu = 3\n[task.held]\nlimit_memory = \"64M\"\n";
    let sandbox = Sandbox::with_config(rule);
    let first = sandbox.run_json(&["--name", "grow"], &["python3", "-c", GROW, "40"]);
    let weight = |result: &Value| {
        let limits = result["limits"].as_array().unwrap();
        limits.iter().find_map(|limit| limit[0]["cpu_weight"].as_u64())
    };
    assert_eq!(weight(&first), Some(300), "{first:#}");
    let second = sandbox.run_json(&["--name", "grow"], &["python3", "-c", GROW, "40"]);
    let high = second["limits"].as_array().unwrap().iter().find_map(|limit| limit[0]["memory_high"].as_u64());
    assert_eq!(high, Some(1 << 30), "{second:#}");
    let held = sandbox.run_json(&["--name", "held"], &["python3", "-c", GROW, "400"]);
    assert_eq!(held["ending"]["out_of_memory"], true, "{held:#}");
    let freed =
        sandbox.run_json(&["--name", "held", "--limit-memory", "2G"], &["python3", "-c", GROW, "400"]);
    assert_eq!(freed["ending"]["exit_code"], 0, "the command line wins: {freed:#}");
}

/// What the command sees of its own limits: quota in cores, burst, tasks; v1 or v2.
const LIMITS: &str = r#"
own() { sed -n "s/^[0-9]*:$1://p" /proc/self/cgroup | head -n 1; }
if cd /sys/fs/cgroup/cpu"$(own cpu)" 2>/dev/null && [ -f cpu.cfs_quota_us ]; then
    cat cpu.cfs_quota_us cpu.cfs_burst_us; cat /sys/fs/cgroup/pids"$(own pids)"/pids.max
else
    cd /sys/fs/cgroup"$(own '')"; cut -d' ' -f1 cpu.max; cat cpu.max.burst pids.max
fi
"#;

#[test]
fn quotas_come_with_a_burst_where_they_are_asked_for() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let seen = |options: &[&str]| -> Vec<String> {
        let mut all = vec!["--name", "quota"];
        all.extend(options);
        let output = sandbox.run(&all, &["sh", "-c", &format!("sleep 0.3; {LIMITS}")]);
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(ToOwned::to_owned).collect()
    };
    let free = seen(&[]);
    assert!(free[0] == "-1" || free[0] == "max", "{free:?}");
    let quota = seen(&["--cpu-quota", "--limit-tasks", "50"]);
    let number = |text: &String| text.parse::<i64>().unwrap();
    assert!(number(&quota[1]) > 0 && number(&quota[1]) <= number(&quota[0]), "{quota:?}");
    assert_eq!(quota[2], "50");
    let weighed = seen(&[]);
    assert!(weighed[0] == "-1" || weighed[0] == "max", "no quota unless asked for: {weighed:?}");
}

#[test]
fn a_quota_that_is_too_small_is_raised_while_cores_idle() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    agent.run(&["--name", "spin"], &["sleep", "0.5"]);
    sandbox.wait_for_runs(1, "state = 'finished'");
    // Predicted next to nothing, it now wants a core: the quota of a tenth of one must not hold it for long.
    let spin = "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done";
    agent.run(&["--name", "spin", "--cpu-quota"], &["sh", "-c", spin]);
    sandbox.wait_for_runs(2, "state = 'finished'");
    let raised = events(&agent, &["--run", "2"]);
    let quota = |event: &&Value| event["details"]["limit"] == "cpu_max_cores";
    assert!(raised.iter().any(|event| quota(&event)), "{raised:#?}");
}

#[test]
fn a_cgroup_that_is_removed_under_us_stops_no_job_and_no_agent() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    grow(&agent, &[], 100);
    sandbox.wait_for_runs(1, "state = 'finished'");
    let leave_and_remove = "
import os, time
old = [line.rstrip().split(':', 2)[2] for line in open('/proc/self/cgroup')]
places = [line.split()[1] for line in open('/proc/self/mounts') if line.split()[2] in ('cgroup', 'cgroup2')]
for place in places:
    open(place + '/cgroup.procs', 'w').write(str(os.getpid()))
own = next(path for path in old if '/run-' in path)
removed = 0
for place in places:
    if os.path.isdir(place + own):
        os.rmdir(place + own)
        removed += 1
assert removed > 0
kept = [bytearray(20 << 20) for _ in range(40)]
time.sleep(1.5)
";
    let gone = agent.run(&["--name", "grow"], &["python3", "-c", leave_and_remove]);
    assert_eq!(gone.status.code(), Some(0), "{}", stderr(&gone));
    sandbox.wait_for_runs(0, "state = 'running'");
    assert_eq!(grow(&agent, &[], 100).status.code(), Some(0));
    sandbox.wait_for_runs(3, "state = 'finished'");
}
