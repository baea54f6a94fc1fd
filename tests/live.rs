//! What the agent says about the tasks that run now: true, only the asker's own, and cheap.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use standin::live::rates::Rates;
use standin::live::{Kind, Snapshot, TaskDetail, TaskNow};
use standin::wire::{self, Reply, Request};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;
use support::{Job, Sandbox, as_nobody, is_root, wait_until};

fn ask(sandbox: &Sandbox, request: &Request) -> Reply {
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    wire::send(&mut stream, request).unwrap();
    wire::receive(&mut stream).unwrap()
}

fn live(sandbox: &Sandbox) -> Snapshot {
    match ask(sandbox, &Request::Live) {
        Reply::Live(snapshot) => *snapshot,
        other => panic!("{other:?}"),
    }
}

fn detail(sandbox: &Sandbox, id: u64) -> TaskDetail {
    match ask(sandbox, &Request::LiveTask(id)) {
        Reply::LiveTask(detail) => *detail,
        other => panic!("{other:?}"),
    }
}

fn task(snapshot: &Snapshot, name: &str) -> Option<TaskNow> {
    snapshot.tasks.iter().find(|task| task.task_type == name).cloned()
}

fn start(command: &mut Command, name: &str, script: &str) -> Job {
    Job::start(command.args(["run", "--require-agent", "--name", name, "--", "sh", "-c", script]))
}

#[test]
fn it_shows_what_tasks_use_between_two_looks() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let _busy = start(&mut agent.standin([""; 0]), "busy", "while :; do :; done");
    let _still = start(&mut agent.standin([""; 0]), "still", "exec sleep 100");
    let recorded = |name| task(&live(&sandbox), name).is_some_and(|task| task.run_id.is_some());
    wait_until("both are there", || recorded("busy") && recorded("still"));
    let before = live(&sandbox);
    std::thread::sleep(Duration::from_secs(1));
    let now = live(&sandbox);
    let rates = |name| Rates::between(&task(&before, name).unwrap(), &task(&now, name).unwrap());
    let (busy, still) = (rates("busy"), rates("still"));
    // What a busy host left it, and what it waited for: a loop wants one CPU all the time.
    let wanted = busy.cpu_cores.unwrap() + busy.cpu_waiting.unwrap_or(0.0);
    assert!(wanted > 0.5 && busy.cpu_cores.unwrap() < 1.3, "{busy:?}");
    assert!(still.cpu_cores.unwrap() < 0.1, "{still:?}");
    let shown = task(&now, "busy").unwrap();
    assert_eq!((shown.kind, shown.user.as_str(), shown.tasks), (Kind::Run, "root", Some(1)));
    assert!(shown.pid.is_some() && shown.since_ms <= now.at_ms);
    assert_eq!((now.queue.running, now.queue.waiting.len(), now.agent.running), (2, 0, 2));
    assert!(now.agent.store.database_bytes > 0 && now.agent.own.rss_bytes > 0, "{:?}", now.agent);
    // The kernel is late with small amounts.
    wait_until("its memory is seen", || task(&live(&sandbox), "busy").unwrap().memory_bytes > Some(0));
    let detail = detail(&sandbox, shown.id);
    assert!(detail.fingerprint.cpu_ns.unwrap() > 0 && !detail.series.is_empty());
    assert!(detail.fingerprint.cpu_burst_ns.is_some() && detail.fingerprint.cpu_demand.is_some());
}

#[test]
fn a_task_goes_when_it_ends_and_unknown_ones_are_refused() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut job = start(&mut agent.standin([""; 0]), "short", "sleep 0.5");
    wait_until("it is there", || task(&live(&sandbox), "short").is_some());
    assert_eq!(job.exit_code(), Some(0));
    wait_until("it is gone", || task(&live(&sandbox), "short").is_none());
    assert!(matches!(ask(&sandbox, &Request::LiveTask(u64::MAX)), Reply::Refused(_)));
}

#[test]
fn ordinary_users_see_their_own_tasks_only() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(sandbox.socket(), open).unwrap();
    let _theirs = start(as_nobody(&mut agent.standin([""; 0])), "theirs", "exec sleep 100");
    let _roots = start(&mut agent.standin([""; 0]), "roots", "exec sleep 100");
    wait_until("root sees both", || live(&sandbox).tasks.len() == 2);
    let shown = |as_who: fn(&mut Command) -> &mut Command| {
        let mut top = agent.standin(["top", "--once", "--interval", "300ms"]);
        support::stdout(&as_who(&mut top).output().unwrap())
    };
    let (mine, all) = (shown(as_nobody), shown(|command| command));
    assert!(mine.contains("theirs") && !mine.contains("roots"), "{mine}");
    assert!(all.contains("theirs") && all.contains("roots"), "{all}");
}

#[test]
fn cgroups_of_others_are_shown_as_such() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("host_cgroups = 32\n");
    let _agent = sandbox.agent();
    let cgroup = support::unified().join(format!("{}-other", sandbox.parent));
    std::fs::create_dir(&cgroup).unwrap();
    let into = format!("echo $$ > {}/cgroup.procs; while :; do :; done", cgroup.display());
    let busy = Job::start(Command::new("sh").args(["-c", &into]));
    let name = format!("{}-other", sandbox.parent);
    wait_until("it is seen", || {
        let seen = live(&sandbox)
            .tasks
            .into_iter()
            .find(|task| task.kind == Kind::Cgroup && task.task_type.contains(&name));
        seen.is_some_and(|task| task.totals.cpu_ns > Some(0))
    });
    drop(busy);
    wait_until("it can be removed", || std::fs::remove_dir(&cgroup).is_ok());
}
