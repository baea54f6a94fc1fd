//! Tasks for which the host has no room: started anyway, queued in order, or turned away; never lost.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fs;
use std::process::{Child, Stdio};
use support::{Agent, Job, Sandbox, is_root, stderr, wait_until};

fn memory_total() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// A host of which tasks may have 1 GiB, with more cores than they need.
fn small_host(config: &str) -> Sandbox {
    let reserve = memory_total() - (1 << 30);
    Sandbox::with_config(&format!(
        "[host]\nreserve_memory = {reserve}\n[admission]\ncpu_overcommit = 1000\n{config}"
    ))
}

fn start(agent: &Agent<'_>, options: &[&str], script: &str) -> Child {
    let mut command = agent.standin(["run", "--require-agent", "--name", "job"]);
    command.args(options).args(["--", "sh", "-c", script]);
    command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn queue(agent: &Agent<'_>) -> Value {
    let output = agent.standin(["queue", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)))
}

fn waiting(agent: &Agent<'_>) -> usize {
    queue(agent)["waiting"].as_array().unwrap().len()
}

fn running(agent: &Agent<'_>) -> usize {
    queue(agent)["running"].as_array().unwrap().len()
}

#[test]
fn ten_jobs_that_want_more_than_the_host_run_in_the_order_in_which_they_came() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let (order, go) = (sandbox.path("order"), sandbox.path("go"));
    let mut jobs = Vec::new();
    for number in 0..10 {
        // None ends before all have come.
        let script = format!(
            "echo {number} >> {}; while [ ! -e {} ]; do sleep 0.02; done",
            order.display(),
            go.display()
        );
        jobs.push(Job(start(&agent, &["--wait", "--reserve-memory", "600M"], &script)));
        wait_until("it has come", || (running(&agent), waiting(&agent)) == (1, number));
    }
    fs::write(&go, "").unwrap();
    while waiting(&agent) > 0 {
        assert!(running(&agent) <= 1, "600 MiB twice are more than 1 GiB");
    }
    for job in &mut jobs {
        assert_eq!(job.exit_code(), Some(0));
    }
    let started: Vec<_> = fs::read_to_string(&order).unwrap().lines().map(ToOwned::to_owned).collect();
    assert_eq!(started, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
    sandbox.wait_for_runs(10, "state = 'finished' AND NOT out_of_memory");
    assert!(sandbox.sql::<i64>("SELECT count(*) FROM run_admission WHERE waited_ms > 0") == 9);
    assert_eq!((waiting(&agent), running(&agent)), (0, 0));
}

#[test]
fn who_may_not_wait_is_turned_away_and_by_default_the_task_starts() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let mut holder = Job(start(&agent, &["--reserve-memory", "800M"], "sleep 60"));
    wait_until("it runs", || running(&agent) == 1);
    let refused = agent.run(&["--no-wait", "--reserve-memory", "800M"], &["true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        stderr(&refused).contains("needs 800.0 MiB of memory, 224.0 MiB are not promised"),
        "{}",
        stderr(&refused)
    );
    let late = agent.run(&["--wait=1s", "--reserve-memory", "800M"], &["true"]);
    assert_eq!(late.status.code(), Some(125));
    assert!(
        stderr(&late).contains("next in the queue") && stderr(&late).contains("no room after"),
        "{}",
        stderr(&late)
    );
    let anyway = agent.run(&["--reserve-memory", "800M"], &["true"]);
    assert_eq!(anyway.status.code(), Some(0));
    assert!(stderr(&anyway).contains("started without room for it"), "{}", stderr(&anyway));
    assert_eq!(agent.run(&["--no-wait", "--reserve-memory", "200M"], &["true"]).status.code(), Some(0));
    assert!(holder.is_running());
}

#[test]
fn a_task_larger_than_the_host_waits_until_it_is_alone() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let mut holder = Job(start(&agent, &["--reserve-memory", "1M"], "sleep 60"));
    wait_until("it runs", || running(&agent) == 1);
    let mut giant = Job(start(&agent, &["--wait", "--reserve-memory", "5T"], "true"));
    wait_until("it waits", || waiting(&agent) == 1);
    assert!(giant.is_running());
    holder.0.kill().unwrap();
    assert_eq!(giant.exit_code(), Some(0));
}

#[test]
fn who_leaves_the_queue_leaves_no_trace_in_it() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let holder = Job(start(&agent, &["--reserve-memory", "800M"], "sleep 60"));
    wait_until("it runs", || running(&agent) == 1);
    let result = sandbox.path("result.json");
    let stays = ["--wait", "--reserve-memory", "800M", "--json", result.to_str().unwrap()];
    // One becomes its command, the other stays its parent: both hear a signal while they wait.
    for options in [&stays[..3], &stays[..]] {
        let mut leaves = Job(start(&agent, options, "true"));
        wait_until("it waits", || waiting(&agent) == 1);
        support::signal(leaves.0.id(), libc::SIGTERM);
        let status = leaves.0.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
        wait_until("its place is free", || waiting(&agent) == 0);
    }
    drop(holder);
    wait_until("nothing is promised", || queue(&agent)["promised"]["memory_bytes"] == 0);
}

#[test]
fn promises_and_places_survive_a_killed_agent() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let mut holder = Job(start(&agent, &["--reserve-memory", "800M"], "sleep 60"));
    wait_until("it runs", || running(&agent) == 1);
    let mut waits = Job(start(&agent, &["--wait", "--reserve-memory", "800M"], "true"));
    wait_until("it waits", || waiting(&agent) == 1);
    sandbox.wait_for_runs(1, "state = 'running'");
    agent.kill();
    let agent = sandbox.agent();
    assert_eq!(queue(&agent)["promised"]["memory_bytes"], 800 << 20, "of the task that goes on");
    wait_until("it waits again", || waiting(&agent) == 1);
    assert!(waits.is_running() && holder.is_running());
    holder.0.kill().unwrap();
    assert_eq!(waits.exit_code(), Some(0));
}

#[test]
fn priority_is_a_head_start_and_above_normal_it_is_for_root() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    let mut holder = Job(start(&agent, &["--reserve-memory", "1G"], "sleep 60"));
    wait_until("it runs", || running(&agent) == 1);
    let order = sandbox.path("order");
    let mut jobs = Vec::new();
    for (name, priority) in [("normal", "0"), ("low", "-5"), ("high", "5")] {
        let options = ["--wait", "--reserve-memory", "1G", "--priority", priority];
        jobs.push(Job(start(&agent, &options, &format!("echo {name} >> {}", order.display()))));
        wait_until("it waits", || waiting(&agent) == jobs.len());
    }
    holder.0.kill().unwrap();
    jobs.iter_mut().for_each(|job| assert_eq!(job.exit_code(), Some(0)));
    assert_eq!(fs::read_to_string(&order).unwrap(), "high\nnormal\nlow\n");
}

#[test]
fn a_thousand_tasks_at_once_all_come_in_by_and_by() {
    require!(is_root(), "needs root");
    let sandbox = small_host("");
    let agent = sandbox.agent();
    // Four at a time.
    let mut jobs: Vec<_> = (0..1000)
        .map(|_| start(&agent, &["--quiet", "--wait", "--reserve-memory", "250M"], "true"))
        .collect();
    let codes: Vec<_> = jobs.iter_mut().map(|job| job.wait().unwrap().code()).collect();
    assert!(codes.iter().all(|code| *code == Some(0)), "{codes:?}");
    sandbox.wait_for_runs(1000, "state = 'finished'");
    assert_eq!(queue(&agent)["promised"]["memory_bytes"], 0);
    assert_eq!(queue(&agent)["promised"]["cpu_cores"], 0.0);
}

#[test]
fn without_an_agent_nobody_waits_and_that_is_said() {
    let sandbox = Sandbox::new();
    let alone = sandbox.run(&["--wait"], &["true"]);
    assert_eq!(alone.status.code(), Some(0));
    assert!(stderr(&alone).contains("the queue is kept by an agent"), "{}", stderr(&alone));
    let queue = sandbox.standin(["queue"]).output().unwrap();
    assert_eq!(queue.status.code(), Some(125));
    assert!(stderr(&queue).contains("no agent at"), "{}", stderr(&queue));
    for bad in [&["--wait", "--no-wait"][..], &["--wait=soon"], &["--priority", "101"], &["--license", "=2"]]
    {
        let refused = sandbox.run(bad, &["true"]);
        assert_eq!(refused.status.code(), Some(125), "{bad:?}");
        assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
    }
    let backwards = sandbox.run(&["--limit-memory", "1M", "--reserve-memory", "2M"], &["true"]);
    assert_eq!(backwards.status.code(), Some(125));
}
