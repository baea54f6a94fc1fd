//! The second run of a task is predicted and limited before it starts; a wrong prediction kills nothing unless
//! the user asked for hard limits.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use support::{Sandbox, has, is_root, number, stderr, stdout};

/// Allocates and touches so many MiB.
fn allocate(mib: u32) -> Vec<String> {
    vec!["python3".into(), "-c".into(), format!("b = bytearray({mib} << 20)")]
}

fn run_json(sandbox: &Sandbox, options: &[&str], command: &[String]) -> Value {
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let mut all = vec!["--name", "allocate"];
    all.extend(options);
    sandbox.run_json(&all, &command)
}

fn estimate<'a>(result: &'a Value, resource: &str) -> Option<&'a Value> {
    result["prediction"]["estimates"].as_array()?.iter().find(|estimate| estimate["resource"] == resource)
}

/// What the command sees of its own limits, v2 or v1: `memory.high` and its kin.
const LIMITS: &str = r#"
memory=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup); own=$(sed -n 's/^0:://p' /proc/self/cgroup)
cat /sys/fs/cgroup/memory$memory/memory.soft_limit_in_bytes /sys/fs/cgroup/memory$memory/memory.limit_in_bytes 2>/dev/null ||
cat /sys/fs/cgroup$own/memory.high /sys/fs/cgroup$own/memory.max
"#;

fn limits_seen(sandbox: &Sandbox, options: &[&str]) -> Vec<u64> {
    let mut all = vec!["--name", "allocate"];
    all.extend(options);
    let output = sandbox.run(&all, &["sh", "-c", LIMITS]);
    stdout(&output).split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX)).collect()
}

#[test]
fn the_first_run_is_unlimited_and_the_second_is_sized() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let first = run_json(&sandbox, &[], &allocate(300));
    assert!(first["limits"].as_array().unwrap().is_empty(), "{first:#}");
    let peak = number(&first, "memory_peak_bytes");

    let second = run_json(&sandbox, &[], &allocate(300));
    let memory = estimate(&second, "memory_peak_bytes").expect("a prediction");
    assert_eq!((memory["samples"].as_u64(), memory["level"].as_str()), (Some(1), Some("task_and_user")));
    assert!((memory["expected"].as_f64().unwrap() - peak).abs() < 1.0);
    assert!(memory["upper"].as_f64().unwrap() > peak);
    assert!(!memory["reason"].as_str().unwrap().is_empty());

    let upper = memory["upper"].as_f64().unwrap();
    let seen = limits_seen(&sandbox, &[]);
    assert!(
        (seen[0] as f64) >= peak && (seen[0] as f64) <= upper * 1.1,
        "the limit {seen:?} follows {upper}"
    );
    assert!(seen[1] > 1 << 50, "elastic sets no hard limit: {seen:?}");
}

#[test]
fn predicted_and_actual_stand_side_by_side() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    run_json(&sandbox, &[], &allocate(50));
    run_json(&sandbox, &[], &allocate(50));
    let rows: i64 = sandbox.sql(
        "SELECT count(*) FROM prediction_accuracy WHERE task_type = 'allocate' AND resource = 'memory_peak_bytes'
         AND unit = 'MiB' AND within_upper AND actual > 50",
    );
    assert_eq!(rows, 1);
}

#[test]
fn a_task_that_needs_more_than_predicted_ends_well() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    run_json(&sandbox, &[], &allocate(60));
    let more = run_json(&sandbox, &[], &allocate(900));
    assert_eq!(more["ending"]["exit_code"], 0, "{more:#}");
    assert!(number(&more, "memory_peak_bytes") > f64::from(900 << 20));
}

#[test]
fn a_strict_limit_kills_and_counts_as_a_lower_bound() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    run_json(&sandbox, &[], &allocate(60));
    let killed = run_json(&sandbox, &["--policy", "strict"], &allocate(900));
    assert_eq!(killed["ending"]["signal"], libc::SIGKILL, "{killed:#}");
    assert_eq!(killed["ending"]["out_of_memory"], true);
    let upper = |result: &Value| estimate(result, "memory_peak_bytes").unwrap()["upper"].as_f64().unwrap();
    let next = run_json(&sandbox, &["--policy", "observe"], &allocate(60));
    assert!(
        upper(&next) >= number(&killed, "memory_peak_bytes") * 1.2,
        "{} then {}",
        upper(&killed),
        upper(&next)
    );
}

#[test]
fn limits_by_hand_hold_whatever_the_policy() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    for policy in ["elastic", "strict", "observe"] {
        let seen = limits_seen(&sandbox, &["--policy", policy, "--limit-memory", "256M"]);
        assert_eq!(seen[1], 256 << 20, "{policy}");
    }
    let killed = run_json(&sandbox, &["--limit-memory", "64M"], &allocate(300));
    assert_eq!(killed["ending"]["signal"], libc::SIGKILL);
    assert_eq!(killed["ending"]["out_of_memory"], true);
}

#[test]
fn a_cpu_limit_holds_the_task_back() {
    require!(is_root(), "needs root");
    let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    // Less than it gets on a busy host.
    let result = Sandbox::new().run_json(&["--limit-cpu", "0.05"], &["sh", "-c", spin]);
    let cores = number(&result, "cpu_ns") / number(&result, "duration_ns");
    assert!(cores < 0.1, "{cores} cores");
    assert_eq!(result["ending"]["throttled"], true);
}

#[test]
fn another_users_history_serves_until_there_is_an_own_one() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    agent.run(&["--name", "allocate", "--wait-all"], &["python3", "-c", "b = bytearray(80 << 20)"]);
    let output = agent.standin(["predict", "allocate", "--user", "65534", "--json"]).output().unwrap();
    let prediction: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let memory =
        prediction["estimates"].as_array().unwrap().iter().find(|e| e["resource"] == "memory_peak_bytes");
    assert_eq!(memory.unwrap()["level"], "task");
}
