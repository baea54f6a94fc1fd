//! Whatever becomes of the agent, no job is harmed and no run is lost silently.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::process::Stdio;
use support::{Job, Sandbox, has, is_root, stderr, wait_until};

#[test]
fn a_run_through_the_agent_is_recorded_with_its_exit_code() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    assert_eq!(agent.run(&["--name", "seven"], &["sh", "-c", "exit 7"]).status.code(), Some(7));
    sandbox.wait_for_runs(1, "exit_code = 7");
    let counted: i64 =
        sandbox.sql("SELECT cpu_ns > 0 AND faults_minor > 0 AND execs > 0 AND exits > 0 FROM run");
    assert_eq!(counted, 1);
    agent.run(&["--name", "killed"], &["sh", "-c", "kill -9 $$"]);
    sandbox.wait_for_runs(1, "signal = 9");
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn a_command_that_cannot_be_executed_is_no_sample() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    // Executable to the eye, but not to the kernel.
    let script = sandbox.path("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let output = agent.run(&["--name", "script"], &[script.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(127), "{}", stderr(&output));
    sandbox.wait_for_runs(1, "exec_errno = 2");
    assert_eq!(sandbox.standin(["predict", "script"]).status().unwrap().code(), Some(1));
}

#[test]
fn a_job_survives_the_agent_and_the_next_agent_takes_it_up() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("checkpoint_s = 1\n");
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 3", go.display());
    let mut job = Job::start(&mut agent.standin(["run", "--name", "job", "--", "sh", "-c", &script]));
    sandbox.wait_for_runs(1, "cpu_ns > 0");
    agent.kill();
    assert_eq!(sandbox.sql::<String>("SELECT state FROM run"), "running");
    assert!(job.is_running());

    let _agent = sandbox.agent();
    assert!(sandbox.agent_log().contains("goes on"), "{}", sandbox.agent_log());
    std::fs::write(&go, "").unwrap();
    assert_eq!(job.exit_code(), Some(3));
    sandbox.wait_for_runs(1, "state <> 'running'");
    assert_eq!(sandbox.sql::<i64>("SELECT exit_code FROM run"), 3);
    assert!(
        sandbox.sql::<i64>("SELECT duration_ns FROM run") > 1_000_000_000,
        "from its start, not the agent's"
    );
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn a_run_whose_end_nobody_saw_is_closed_as_lost() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("checkpoint_s = 1\nprobes = false\n");
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", go.display());
    let mut job = Job::start(&mut agent.standin(["run", "--name", "job", "--", "sh", "-c", &script]));
    sandbox.wait_for_runs(1, "cpu_ns > 0");
    agent.kill();
    std::fs::write(&go, "").unwrap();
    assert_eq!(job.exit_code(), Some(0));

    let _agent = sandbox.agent();
    assert_eq!(sandbox.sql::<String>("SELECT state FROM run"), "lost");
    assert!(sandbox.sql::<i64>("SELECT cpu_ns FROM run") > 0, "what was known is kept");
    assert!(sandbox.run_cgroups().is_empty());
}

#[test]
fn a_killed_launcher_leaves_a_lost_run_and_nothing_else() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let launcher = Job::start(&mut sandbox.standin(["run", "--no-agent", "--", "sleep", "100"]));
    sandbox.wait_for_runs(1, "id IN (SELECT run_id FROM run_launch WHERE main_pid IS NOT NULL)");
    drop(launcher);
    wait_until("its command is gone", || {
        sandbox
            .run_cgroups()
            .iter()
            .all(|cgroup| std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().is_empty())
    });
    assert!(sandbox.run(&["--quiet"], &["true"]).status.success());
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM run WHERE state = 'lost'"), 1);
    assert!(sandbox.run_cgroups().is_empty(), "{:?}", sandbox.run_cgroups());
}

#[test]
fn a_stopping_agent_records_how_far_its_tasks_have_come() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut job = Job::start(&mut agent.standin(["run", "--", "sleep", "100"]));
    wait_until("it runs", || {
        std::fs::read_to_string(format!("/proc/{}/comm", job.0.id())).is_ok_and(|name| name == "sleep\n")
    });
    assert!(agent.terminate().success());
    assert!(job.is_running(), "the job goes on");
    assert_eq!(sandbox.sql::<i64>("SELECT cpu_ns > 0 FROM run WHERE state = 'running'"), 1);
}

#[test]
fn without_an_agent_jobs_run_all_the_same() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    drop(std::os::unix::net::UnixListener::bind(sandbox.socket()).unwrap());
    let mut command = sandbox.standin(["run", "--", "sh", "-c", "exit 5"]);
    let output = command.env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("no agent at"), "{}", stderr(&output));
    let mut command = sandbox.standin(["run", "--require-agent", "--", "touch", "/no/such"]);
    let output = command.env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn an_agent_that_hangs_holds_no_job_up() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let _listener = std::os::unix::net::UnixListener::bind(sandbox.socket()).unwrap();
    let mut command = sandbox.standin(["run", "--", "sh", "-c", "exit 5"]);
    assert_eq!(command.env("STANDIN_SOCKET", sandbox.socket()).status().unwrap().code(), Some(5));
}

#[test]
fn two_agents_do_not_share_a_socket() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let _agent = sandbox.agent();
    let output = sandbox.standin(["agent"]).env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("already listens"), "{}", stderr(&output));
}

#[test]
fn many_tasks_at_once_are_all_recorded() {
    require!(is_root(), "needs root");
    const TASKS: usize = 200;
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let start = |_| agent.standin(["run", "--require-agent", "--", "sh", "-c", "sleep 0.3"]).spawn().unwrap();
    let mut jobs: Vec<_> = (0..TASKS).map(start).collect();
    assert!(jobs.iter_mut().all(|job| job.wait().unwrap().success()));
    sandbox.wait_for_runs(TASKS, "state = 'finished'");
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn a_member_of_the_group_has_the_agent_measure() {
    require!(is_root(), "needs root, to become an ordinary user");
    require!(has("setpriv"), "setpriv is not installed");
    let sandbox = Sandbox::with_config("socket_group = \"nogroup\"\n");
    let agent = sandbox.agent();
    let mut command = agent.standin(["run", "--require-agent", "--limit-memory", "512M", "--", "id", "-u"]);
    let output = support::as_nobody(&mut command).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    sandbox.wait_for_runs(1, "state = 'finished'");
    assert_eq!(sandbox.sql::<i64>("SELECT uid FROM task"), i64::from(support::NOBODY));

    // Who named no database reads the agent's.
    let mut ls = agent.standin(["ls"]);
    let output = support::as_nobody(&mut ls).env_remove("STANDIN_DB").output().unwrap();
    assert!(support::stdout(&output).contains("nobody"), "{}{}", support::stdout(&output), stderr(&output));
}

#[test]
fn an_agent_without_privileges_says_so() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    std::os::unix::fs::chown(sandbox.dir.path(), Some(support::NOBODY), None).unwrap();
    let mut agent = sandbox.standin(["agent"]);
    let output = support::as_nobody(&mut agent).env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("must be root"), "{}", stderr(&output));
}

#[test]
fn nobody_has_other_peoples_processes_taken_in() {
    use standin::wire::{self, Leftover, Reply, Request, Start};
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let _agent = sandbox.agent();
    let mut stranger = std::process::Command::new("setsid")
        .args(["sh", "-c", "sleep 100 & echo $!"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stranger.stdout.take().unwrap()), &mut line)
        .unwrap();
    stranger.wait().unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(sandbox.socket()).unwrap();
    let start = Start {
        pid: Some(pid),
        task_type: "x".into(),
        command: vec![],
        directory: "/".into(),
        features: vec![],
        policy: None,
        manual: Default::default(),
        leftover: Leftover::Leave,
        admission: Default::default(),
    };
    wire::send(&mut stream, &Request::Start(Box::new(start))).unwrap();
    let reply: Reply = wire::receive(&mut stream).unwrap();
    support::signal(pid.cast_unsigned(), libc::SIGKILL);
    assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
}
