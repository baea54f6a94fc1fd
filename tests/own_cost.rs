//! The agent knows what its probes cost, keeps to its budget, and says so.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use support::{Agent, Job, Sandbox, is_root, stdout, wait_until};

fn doctor(agent: &Agent<'_>) -> serde_json::Value {
    serde_json::from_str(&stdout(&agent.standin(["doctor", "--json"]).output().unwrap())).unwrap()
}

fn findings(doctor: &serde_json::Value, about: &str) -> Vec<serde_json::Value> {
    let all = doctor["findings"].as_array().unwrap();
    all.iter().filter(|finding| finding["about"] == about).cloned().collect()
}

#[test]
fn doctor_shows_what_each_program_costs_and_what_was_lost() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("cost_interval_s = 2\nbudget_percent = 100.0\n");
    let agent = sandbox.agent();
    wait_until("costs are counted", || {
        findings(&doctor(&agent), "cost").iter().any(|finding| finding["name"] == "sched_switch")
    });
    let doctor = doctor(&agent);
    let costs = findings(&doctor, "cost");
    assert!(costs.iter().any(|finding| finding["name"] == "agent"), "{costs:?}");
    let switch = costs.iter().find(|finding| finding["name"] == "sched_switch").unwrap();
    let detail = switch["detail"].as_str().unwrap();
    let runs = detail.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(runs > 10.0, "this host surely switches tasks: {detail}");
    assert!(!findings(&doctor, "losses").is_empty());
}

#[test]
fn over_the_budget_the_dearest_probe_is_given_up_and_the_run_says_so() {
    require!(is_root(), "needs root");
    // Nothing is that cheap.
    let sandbox = Sandbox::with_config("cost_interval_s = 2\nbudget_percent = 0.000001\n");
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.1; done", go.display());
    let mut job = Job::start(&mut agent.standin(["run", "--name", "job", "--", "sh", "-c", &script]));
    sandbox.wait_for_runs(1, "state = 'running'");
    wait_until("a probe is given up", || sandbox.agent_log().contains("is given up for"));
    let failing = findings(&doctor(&agent), "probes");
    assert!(
        failing.iter().any(|finding| finding["detail"].as_str().unwrap().contains("agent.budget_percent")),
        "{failing:?}"
    );
    std::fs::write(&go, "").unwrap();
    assert_eq!(job.exit_code(), Some(0));
    sandbox.wait_for_runs(1, "exit_code = 0");
    let sources: String = sandbox.sql("SELECT sources FROM coverage");
    assert!(sources.contains("lower bounds"), "{sources}");
}
