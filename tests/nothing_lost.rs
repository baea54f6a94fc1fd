//! Whatever becomes of the agent, its disk, its clock and its host: no job is harmed, and what was recorded stays.
//! `node-agent/docs/promises.md` lists what is promised, and by which test.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/service.rs"]
mod service;
mod support;

use serde_json::Value;
use service::{Service, free_port, script};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::{Job, Sandbox, has, is_root, stderr, stdout, wait_until};

/// How often something is done that the full test does a hundred times: a number in the environment.
fn times(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Pauses that differ from run to run.
struct Pauses(fastrand::Rng);

impl Pauses {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        println!("seed {now}");
        Self(fastrand::Rng::with_seed(now.into()))
    }

    fn next(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.0.u64(..u64::try_from(most.as_micros()).unwrap()))
    }
}

fn assert_sound(database: &Path) {
    let connection = rusqlite::Connection::open(database).unwrap();
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let orphans: i64 =
        connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
    assert_eq!(orphans, 0);
}

/// Tells others to stop, however its holder ends: else a failure would be waited for, not told.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Jobs one after the other until told to stop, each with an exit code and an output of its own.
fn run_jobs(sandbox: &Sandbox, stop: &AtomicBool, done: &AtomicU32) {
    while !stop.load(Ordering::Relaxed) {
        let number = done.load(Ordering::Relaxed);
        let script = format!("echo {number}; exit {}", number % 100);
        let mut command =
            sandbox.standin(["run", "--name", &format!("job-{number}"), "--", "sh", "-c", &script]);
        let output = command.env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
        let expected = (Some((number % 100).cast_signed()), format!("{number}\n"));
        assert_eq!((output.status.code(), stdout(&output)), expected, "{}", stderr(&output));
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// `STANDIN_KILLS` says how often; 100 is the promise.
#[test]
fn an_agent_killed_at_random_moments_harms_no_job_and_no_service() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let kills = times("STANDIN_KILLS", 6);
    let sandbox = Sandbox::with_config("checkpoint_s = 1\n");
    let first = sandbox.agent();
    let (port, server) = (free_port(), script(&sandbox));
    let mut command =
        first.standin(["run", "--require-agent", "--name", "web", "--shadows", "1", "--", "python3"]);
    command.args([server.to_str().unwrap(), &format!("127.0.0.1:{port}")]);
    let service = Service::spawn(&sandbox, "web", port, &mut command);
    service.wait_for_shadows(1);
    let primary = service.primary();
    let go = sandbox.path("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done; exit 3", go.display());
    let mut long = Job::start(&mut first.standin(["run", "--name", "long", "--", "sh", "-c", &waits]));
    sandbox.wait_for_runs(2, "state = 'running'");
    first.kill();

    let (stop, done, mut pauses) = (AtomicBool::new(false), AtomicU32::new(0), Pauses::new());
    std::thread::scope(|scope| {
        let jobs = scope.spawn(|| run_jobs(&sandbox, &stop, &done));
        let stop = Stop(&stop);
        for kill in 0..kills {
            let agent = sandbox.agent();
            sleep(pauses.next(Duration::from_millis(700)));
            agent.kill();
            assert_eq!(service.ask(), primary, "the service serves on, kill {kill}");
            assert!(long.is_running(), "kill {kill}");
            assert_sound(&sandbox.database());
        }
        drop(stop);
        jobs.join().unwrap();
    });
    let _agent = sandbox.agent();
    fs::write(&go, "").unwrap();
    assert_eq!(long.exit_code(), Some(3));
    assert_eq!(service.stop().signal(), Some(libc::SIGTERM), "as the server ends by it");
    sandbox.wait_for_runs(0, "state = 'running'");
    let long: String = sandbox.sql(
        "SELECT r.state || r.exit_code FROM run r JOIN task t ON t.id = r.task_id
        WHERE t.task_type = 'long'",
    );
    assert_eq!(long, "failed3", "its run went on over all of them");
    let jobs = i64::from(done.load(Ordering::Relaxed));
    let recorded: i64 = sandbox.sql("SELECT count(*) FROM task WHERE task_type LIKE 'job-%'");
    let lost: i64 = sandbox.sql("SELECT count(*) FROM run WHERE state = 'lost'");
    println!("{kills} kills, {jobs} jobs, {recorded} recorded, of these {lost} as lost");
    // A job may begin and end before its row is written: at most one of those that a kill meets.
    assert!(recorded <= jobs && jobs - recorded <= i64::from(kills), "{recorded} of {jobs}");
    let wrong: i64 = sandbox.sql(
        "SELECT count(*) FROM run r JOIN task t ON t.id = r.task_id
        WHERE t.task_type LIKE 'job-%' AND r.state <> 'lost' AND r.exit_code <> substr(t.task_type, 5) % 100",
    );
    assert_eq!(wrong, 0, "with its own exit code");
    let twice: i64 =
        sandbox.sql("SELECT count(*) FROM (SELECT 1 FROM run GROUP BY task_id HAVING count(*) > 1)");
    // One that was taken in and not told so measures itself as well.
    assert!(twice <= i64::from(kills), "{twice} of {jobs} have two rows");
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

/// As if the agent had been killed before it had written the row: that comes behind the start.
#[test]
fn a_task_that_has_no_row_yet_gets_one_from_the_next_agent() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done; exit 3", go.display());
    let mut job = Job::start(&mut agent.standin(["run", "--name", "long", "--", "bash", "-c", &waits]));
    sandbox.wait_for_runs(1, "state = 'running'");
    wait_until("it has become its command", || {
        fs::read_to_string(format!("/proc/{}/comm", job.0.id())).is_ok_and(|name| name == "bash\n")
    });
    agent.kill();
    let connection = rusqlite::Connection::open(sandbox.database()).unwrap();
    connection.execute_batch("PRAGMA foreign_keys = on; DELETE FROM run").unwrap();
    drop(connection);
    let _agent = sandbox.agent();
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM run WHERE state = 'running'"), 1);
    fs::write(&go, "").unwrap();
    assert_eq!(job.exit_code(), Some(3));
    sandbox.wait_for_runs(1, "exit_code = 3 AND cpu_ns > 0 AND execs > 0");
    assert_eq!(sandbox.sql::<String>("SELECT task_type FROM task ORDER BY id DESC"), "bash");
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM event WHERE kind = 'found'"), 1);
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

/// A file system of so many KiB, until it is dropped.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn new(sandbox: &Sandbox, kib: u32) -> Option<Self> {
        let place = sandbox.path("disk");
        fs::create_dir_all(&place).unwrap();
        let options = format!("size={kib}k,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&place).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { place })
    }

    fn fill(&self) {
        _ = fs::write(self.place.join("filler"), vec![1; 64 << 20]);
    }

    fn free(&self) {
        fs::remove_file(self.place.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

/// A job that must not notice anything.
fn run_job(command: &mut Command) -> Output {
    let output = command.args(["--", "sh", "-c", "echo done; exit 3"]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(3), "done\n"), "{}", stderr(&output));
    output
}

#[test]
fn a_disk_that_fills_up_under_the_agent_costs_records_and_one_warning() {
    require!(is_root(), "needs root, to mount a small file system");
    let sandbox = Sandbox::with_config("checkpoint_s = 1\n");
    let Some(disk) = Disk::new(&sandbox, 2048) else { return support::skip("no file system can be mounted") };
    let database = disk.place.join("standin.db");
    let mut agent = sandbox.standin(["agent"]);
    let log = fs::File::create(sandbox.path("agent.log")).unwrap();
    agent.env("STANDIN_DB", &database).env("STANDIN_SOCKET", sandbox.socket());
    let agent = Job::start_with_stderr(&mut agent, log);
    let standin = |arguments: &[&str]| {
        let mut command = sandbox.standin(arguments);
        command.env("STANDIN_DB", &database).env("STANDIN_SOCKET", sandbox.socket());
        command
    };
    wait_until("the agent answers", || {
        standin(&["queue"]).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
    });
    let count = |condition: &str| -> i64 {
        let connection = rusqlite::Connection::open(&database).unwrap();
        connection
            .query_row(&format!("SELECT count(*) FROM run WHERE {condition}"), [], |row| row.get(0))
            .unwrap()
    };
    run_job(&mut standin(&["run", "--require-agent"]));
    wait_until("the first job is recorded", || count("exit_code = 3") == 1);
    // One that has begun, whose checkpoints and end fall into the time without room.
    let mut begun =
        Job::start(&mut standin(&["run", "--require-agent", "--", "sh", "-c", "sleep 2.5; exit 4"]));
    wait_until("it is recorded", || count("state = 'running'") == 1);
    disk.fill();
    // What is left inside the database's own pages may take a few.
    for _ in 0..40 {
        run_job(&mut standin(&["run", "--require-agent"]));
    }
    assert_eq!(begun.exit_code(), Some(4));
    let warnings = || {
        let log = sandbox.agent_log();
        let told = log.lines().filter(|line| line.contains("WARN") && line.contains("no space left")).count();
        (told, log)
    };
    wait_until("it is told", || warnings().0 > 0);
    sleep(Duration::from_millis(500));
    let (told, log) = warnings();
    assert_eq!(told, 1, "{log}");
    disk.free();
    wait_until("jobs are recorded again", || {
        run_job(&mut standin(&["run", "--require-agent", "--name", "again"]));
        sleep(Duration::from_millis(50));
        count("task_id IN (SELECT id FROM task WHERE task_type = 'again') AND exit_code = 3") > 0
    });
    assert!(sandbox.agent_log().contains("recording again"), "{}", sandbox.agent_log());
    drop(agent);
    assert_sound(&database);
}

#[test]
fn a_disk_too_full_for_a_database_stops_no_job_wherever_it_ends() {
    require!(is_root(), "needs root, to mount a small file system");
    let sandbox = Sandbox::new();
    // From no room at all to room for all of it: opening, each migration, the beginning of a run, its end.
    for kib in [4, 8, 16, 48, 96, 160, 256, 384, 512, 2048] {
        let Some(disk) = Disk::new(&sandbox, kib) else {
            return support::skip("no file system can be mounted");
        };
        let database = disk.place.join("standin.db");
        let output = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(&database));
        let told = stderr(&output).lines().filter(|line| line.contains("no space")).count();
        let recorded = sandbox.standin(["runs", "--json", "--db"]).arg(&database).output().unwrap();
        let is_recorded = stdout(&recorded).contains("\"exit_code\": 3");
        assert!(told == 1 || (told == 0 && is_recorded), "{kib} KiB: {}", stderr(&output));
        assert!(kib < 2048 || is_recorded, "{}", stderr(&output));
        // With room it goes on from whatever state that was.
        let grown =
            Command::new("mount").args(["-o", "remount,size=4096k"]).arg(&disk.place).status().unwrap();
        assert!(grown.success());
        let output = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(&database));
        assert!(!stderr(&output).contains("not recorded"), "{kib} KiB: {}", stderr(&output));
        assert_sound(&database);
    }
}

#[test]
fn a_database_that_another_process_holds_makes_no_job_wait() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    run_job(&mut agent.standin(["run", "--require-agent"]));
    sandbox.wait_for_runs(1, "exit_code = 3");
    let holder = rusqlite::Connection::open(sandbox.database()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..5 {
        run_job(&mut agent.standin(["run", "--require-agent"]));
    }
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM run"), 1, "all of them ran while it was held");
    holder.execute_batch("ROLLBACK").unwrap();
    sandbox.wait_for_runs(6, "exit_code = 3");
}

#[test]
fn a_database_that_the_agent_cannot_use_is_told_and_jobs_run() {
    require!(is_root(), "needs root");
    let start = |sandbox: &Sandbox| {
        let mut command = sandbox.standin(["agent"]);
        command.env("STANDIN_SOCKET", sandbox.socket()).output().unwrap()
    };
    let newer = Sandbox::new();
    drop(newer.agent());
    let connection = rusqlite::Connection::open(newer.database()).unwrap();
    connection.execute_batch("PRAGMA user_version = 999").unwrap();
    drop(connection);
    let output = start(&newer);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("has schema 999"), "{}", stderr(&output));
    run_job(newer.standin(["run"]).env("STANDIN_SOCKET", newer.socket()));

    let corrupt = Sandbox::new();
    fs::write(corrupt.database(), vec![7; 100_000]).unwrap();
    let agent = corrupt.agent();
    run_job(&mut agent.standin(["run", "--require-agent"]));
    corrupt.wait_for_runs(1, "exit_code = 3");
    assert!(corrupt.agent_log().contains("was corrupt: it was moved to"), "{}", corrupt.agent_log());

    let read_only = Sandbox::new();
    let Some(disk) = Disk::new(&read_only, 2048) else {
        return support::skip("no file system can be mounted");
    };
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.place).status().unwrap();
    assert!(remount.success());
    let mut command = read_only.standin(["agent"]);
    command.env("STANDIN_DB", disk.place.join("x.db")).env("STANDIN_SOCKET", read_only.socket());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("read-only"), "{}", stderr(&output));
}

/// In a mount namespace of its own, in which `hidden` are empty and nothing can be mounted on them.
fn without(sandbox: &Sandbox, hidden: &[&str]) -> Output {
    let mounts: String = hidden
        .iter()
        .map(|place| format!("[ ! -d {place} ] || mount -t tmpfs -o ro,size=4k none {place} || exit 99; "))
        .collect();
    let run = sandbox.standin(["run", "--no-agent", "--name", "hidden"]);
    let program = run.get_program().to_string_lossy().into_owned();
    let script = format!("{mounts} exec {program} run --no-agent --name hidden -- sh -c 'echo done; exit 3'");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    run.get_envs().for_each(|(name, value)| {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    });
    command.output().unwrap()
}

#[test]
fn without_tracefs_bpffs_or_the_kernels_types_jobs_run_and_are_recorded() {
    require!(is_root(), "needs root, to hide file systems");
    require!(has("unshare"), "unshare is not installed");
    let cases: [(&[&str], &str); 3] = [
        (&["/sys/kernel/tracing", "/sys/kernel/debug"], "cpu_ns > 0 AND execs > 0"),
        (&["/sys/fs/bpf", "/run/standin"], "cpu_ns > 0 AND execs > 0"),
        (&["/sys/kernel"], "cpu_ns > 0 AND execs IS NULL"),
    ];
    for (hidden, expected) in cases {
        let sandbox = Sandbox::new();
        let output = without(&sandbox, hidden);
        assert_eq!(
            (output.status.code(), stdout(&output).as_str()),
            (Some(3), "done\n"),
            "{}",
            stderr(&output)
        );
        assert_eq!(
            sandbox.sql::<i64>(&format!("SELECT count(*) FROM run WHERE exit_code = 3 AND {expected}")),
            1,
            "{hidden:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn an_agent_without_a_bpf_file_system_measures_all_the_same() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    // Nothing can be mounted on a file.
    fs::write(sandbox.bpffs(), "").unwrap();
    let agent = sandbox.agent();
    assert!(sandbox.agent_log().contains("probes are not pinned"), "{}", sandbox.agent_log());
    run_job(&mut agent.standin(["run", "--require-agent"]));
    sandbox.wait_for_runs(1, "exit_code = 3 AND execs > 0");
}

/// The clock of the wall is set while no agent is there: to the run it looks as if it had started at another time.
#[test]
fn a_clock_that_is_set_changes_no_duration() {
    require!(is_root(), "needs root");
    let day_ms = 24 * 3600 * 1000_i64;
    for shift_ms in [-day_ms, day_ms] {
        let sandbox = Sandbox::with_config("checkpoint_s = 1\n");
        let agent = sandbox.agent();
        let go = sandbox.path("go");
        let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
        let mut job = Job::start(&mut agent.standin(["run", "--", "sh", "-c", &waits]));
        sandbox.wait_for_runs(1, "duration_ns > 0");
        agent.kill();
        let connection = rusqlite::Connection::open(sandbox.database()).unwrap();
        connection.execute("UPDATE run SET started_at_ms = started_at_ms + ?", [shift_ms]).unwrap();
        drop(connection);
        let recorded: i64 = sandbox.sql("SELECT duration_ns FROM run");
        let _agent = sandbox.agent();
        fs::write(&go, "").unwrap();
        assert_eq!(job.exit_code(), Some(0));
        sandbox.wait_for_runs(1, "state = 'finished'");
        let duration: i64 = sandbox.sql("SELECT duration_ns FROM run");
        assert!(duration >= recorded, "{duration} ns after {recorded} ns");
        assert!(duration < 3600 * 1_000_000_000, "{duration} ns: not a day");
    }
}

#[test]
fn a_fork_bomb_in_a_job_stays_in_it_and_the_agent_answers() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let (bomb, out) = (
        "
import os, sys, time
print('lit', flush=True)
while not os.path.exists(sys.argv[1]):
    try: os.fork()
    except OSError: time.sleep(0.01)
",
        sandbox.path("out"),
    );
    let mut command =
        agent.standin(["run", "--require-agent", "--limit-tasks", "60", "--leftover", "kill", "--"]);
    command.args(["python3", "-c", bomb, out.to_str().unwrap()]).stdout(Stdio::piped());
    let mut job = Job::start(&mut command);
    let mut line = String::new();
    BufReader::new(job.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let threads =
        |cgroup: &Path| fs::read_to_string(cgroup.join("cgroup.threads")).unwrap_or_default().lines().count();
    let run = sandbox.run_cgroups().remove(0);
    // Where the limit could not be set this must not go on.
    wait_until("the bomb meets its limit", || threads(&run) >= 50 || !job.is_running());
    let most = threads(&run);
    assert!(most <= 60, "{most} tasks");
    for _ in 0..5 {
        let status = agent.standin(["queue", "--json"]).output().unwrap();
        assert!(status.status.success(), "{}", stderr(&status));
        run_job(&mut agent.standin(["run", "--require-agent", "--name", "beside"]));
    }
    assert!(job.is_running(), "all of that while it burns");
    fs::write(&out, "").unwrap();
    job.0.wait().unwrap();
    sandbox.wait_for_runs(5, "exit_code = 3");
    sandbox.wait_for_runs(0, "state = 'running'");
    wait_until("nothing of it is left", || sandbox.run_cgroups().is_empty());
}

#[test]
fn every_event_is_shown_once_and_in_order() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("[license.cad]\ntotal = 2\n");
    let agent = sandbox.agent();
    agent.run(&[], &["true"]);
    sandbox.wait_for_runs(1, "state = 'finished'");
    let mut follow = agent.standin(["events", "--follow", "--json"]);
    let mut follower = Job(follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut jobs: Vec<_> = (0..30)
        .map(|_| {
            let mut command = agent.standin(["run", "--require-agent", "--license", "cad", "--", "true"]);
            Job(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        })
        .collect();
    jobs.iter_mut().for_each(|job| assert_eq!(job.exit_code(), Some(0)));
    let returned = "SELECT count(*) FROM event WHERE kind = 'license_returned'";
    wait_until("all are back", || sandbox.sql::<i64>(returned) == 30);
    let last: i64 = sandbox.sql("SELECT max(id) FROM event");
    let all: i64 = sandbox.sql(&format!("SELECT count(*) FROM event WHERE id <= {last}"));
    let mut seen = Vec::new();
    for line in lines {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        seen.push(event["event_id"].as_i64().unwrap());
        if seen.last() == Some(&last) {
            break;
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "none twice");
    assert_eq!(i64::try_from(seen.len()).unwrap(), all, "none is left out");
    let listed = agent.standin(["events", "--json", "--limit", "100000"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed["events"].as_array().unwrap();
    let until_then = listed.iter().filter(|event| event["event_id"].as_i64().unwrap() <= last);
    assert_eq!(until_then.count(), seen.len());
}

/// `STANDIN_JOBS` says how many; 1,000 is the promise. All of them run at the same time.
#[test]
fn jobs_that_all_run_at_once_are_all_measured_and_recorded() {
    require!(is_root(), "needs root");
    let count = times("STANDIN_JOBS", 150);
    let sandbox = Sandbox::with_config("tasks_max = 1100\n");
    let agent = sandbox.agent();
    let go = sandbox.path("go");
    let pipe = nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU);
    pipe.unwrap();
    // Each waits until somebody opens the pipe for writing, and costs nothing meanwhile.
    let script = format!("read line < {}; exit 5", go.display());
    let mut jobs: Vec<_> = (0..count)
        .map(|_| {
            let mut command = agent.standin(["run", "--require-agent", "--quiet", "--", "sh", "-c", &script]);
            Job(command.stdout(Stdio::null()).spawn().unwrap())
        })
        .collect();
    sandbox.wait_for_runs(count as usize, "state = 'running'");
    assert_eq!(sandbox.run_cgroups().len(), count as usize, "at the same time");
    let writer = fs::File::options().write(true).open(&go).unwrap();
    drop(writer);
    // Whoever opens the pipe only now needs one more.
    let release = std::thread::spawn({
        let go = go.clone();
        move || {
            use std::os::unix::fs::OpenOptionsExt;
            while go.exists() {
                drop(fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&go));
                sleep(Duration::from_millis(20));
            }
        }
    });
    assert!(jobs.iter_mut().all(|job| job.exit_code() == Some(5)));
    fs::remove_file(&go).unwrap();
    release.join().unwrap();
    sandbox.wait_for_runs(count as usize, "exit_code = 5 AND cpu_ns > 0 AND execs > 0");
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn each_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let promises = fs::read_to_string(root.join("node-agent/docs/promises.md")).unwrap();
    let mut found = 0;
    for line in promises.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`: `")) {
        let (file, name) = line.split_once(".rs`: `").unwrap();
        let file = file.rsplit_once('`').unwrap().1.to_owned() + ".rs";
        let name = name.split_once('`').unwrap().0;
        let text = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("#[test]\nfn {name}()")), "{file} has no test {name}");
        found += 1;
    }
    assert!(found > 20, "{found} promises");
    let security = fs::read_to_string(root.join(".github/SECURITY.md")).unwrap();
    let attacks = fs::read_to_string(root.join("tests/other_users.rs")).unwrap();
    for name in attacks.split("#[test]\nfn ").skip(1).map(|rest| rest.split_once('(').unwrap().0) {
        assert!(security.contains(&format!("`{name}`")), "SECURITY.md does not name {name}");
    }
}
