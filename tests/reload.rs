//! A running agent reads its configuration again at SIGHUP; `agent --check` looks without starting one.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use support::{Agent, Sandbox, is_root, signal, stderr, stdout, wait_until};

fn tasks_limit(sandbox: &Sandbox, agent: &Agent<'_>) -> Option<i64> {
    let before: i64 = sandbox.sql("SELECT count(*) FROM run");
    // The launcher reads the file as well, and is not what is tested here.
    let mut run = agent.standin(["run", "--require-agent", "--name", "job", "--", "true"]);
    let empty = sandbox.path("empty.toml");
    std::fs::write(&empty, "").unwrap();
    let output = run.env("STANDIN_CONFIG", empty).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    sandbox.wait_for_runs(usize::try_from(before).unwrap() + 1, "state = 'finished'");
    sandbox.sql(
        "SELECT CAST(max(value) AS INTEGER) FROM limit_applied
         WHERE name = 'pids_max' AND run_id = (SELECT max(id) FROM run)",
    )
}

#[test]
fn a_rule_holds_from_the_reload_on_and_a_bad_one_never_does() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    assert_eq!(tasks_limit(&sandbox, &agent), None);
    sandbox.configure("[task.job]\nlimit_tasks = 77\n");
    signal(agent.pid(), libc::SIGHUP);
    wait_until("it was read", || sandbox.agent_log().contains("the configuration was read again"));
    assert_eq!(tasks_limit(&sandbox, &agent), Some(77));

    sandbox.configure("[task.job]\nlimit_speed = 1\n");
    signal(agent.pid(), libc::SIGHUP);
    wait_until("it is refused", || sandbox.agent_log().contains("the configuration stays as it was"));
    assert!(sandbox.agent_log().contains("limit_speed"), "{}", sandbox.agent_log());
    assert_eq!(tasks_limit(&sandbox, &agent), Some(77));

    sandbox.configure("tasks_max = 7\n");
    signal(agent.pid(), libc::SIGHUP);
    let told = "a restart is needed for agent.tasks_max";
    wait_until("what has to wait is named", || sandbox.agent_log().contains(told));
    assert_eq!(tasks_limit(&sandbox, &agent), None);
}

#[test]
fn a_check_finds_what_an_agent_needs_and_starts_none() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let check =
        || sandbox.standin(["agent", "--check"]).env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    let output = check();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    assert!(stdout(&output).contains("can be made"), "{output:?}");
    assert!(!sandbox.database().exists() && !sandbox.socket().exists(), "nothing is made");

    std::fs::write(sandbox.database(), "no database").unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(stdout(&output).contains("NO  database"), "{output:?}");

    let output = sandbox.standin(["agent", "--check=config"]).output().unwrap();
    assert!(output.status.success() && stdout(&output).contains("configuration is valid"), "{output:?}");
}
