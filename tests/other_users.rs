//! What a user who means harm gets from the agent, and from a launcher of root's: every request of the protocol asked
//! as somebody else, and every path that could be put there by another.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use standin::store::record::NewFailover;
use standin::wire::{self, Asked, Container, Leftover, Reply, Request, Start, WireError};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::{Job, NOBODY, PATIENCE, Sandbox, as_nobody, is_root, stderr, stdout, wait_until};

/// Members of this group, which `NOBODY` is one of, may use the socket.
const OPEN_TO_NOBODY: &str = "socket_group = \"nogroup\"\n";

/// Does something as `NOBODY`: this thread alone changes its user, so its capabilities are gone as well.
fn as_somebody_else<T>(act: impl FnOnce() -> T) -> T {
    let set = |call, uid: u32| {
        // SAFETY: plain system calls that change who this thread is, by number, as libc's would change all threads.
        let result = unsafe { libc::syscall(call, -1i64, i64::from(uid), -1i64) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    set(libc::SYS_setresgid, NOBODY);
    set(libc::SYS_setresuid, NOBODY);
    let result = act();
    set(libc::SYS_setresuid, 0);
    set(libc::SYS_setresgid, 0);
    result
}

/// A connection whose other end takes us for `NOBODY`.
fn connect(sandbox: &Sandbox) -> UnixStream {
    let stream = as_somebody_else(|| UnixStream::connect(sandbox.socket())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(sandbox: &Sandbox, request: &Request) -> Result<Reply, WireError> {
    let mut stream = connect(sandbox);
    wire::send(&mut stream, request)?;
    wire::receive(&mut stream)
}

fn refusal(reply: Result<Reply, WireError>) -> String {
    match reply.unwrap() {
        Reply::Refused(why) => why,
        other => panic!("not refused: {other:?}"),
    }
}

fn start(pid: Option<i32>) -> Start {
    Start {
        pid,
        task_type: "mine".into(),
        command: vec!["mine".into()],
        directory: "/".into(),
        features: vec![],
        policy: None,
        manual: Default::default(),
        leftover: Leftover::Leave,
        admission: Asked::default(),
    }
}

/// A child of this process that belongs to `NOBODY`.
fn own_process() -> Job {
    Job(as_nobody(Command::new("sleep").arg("100")).spawn().unwrap())
}

fn pid(job: &Job) -> i32 {
    job.0.id().cast_signed()
}

/// Starts a run of a process of `NOBODY`'s; the connection is kept.
fn started(sandbox: &Sandbox, process: &Job) -> UnixStream {
    let mut stream = connect(sandbox);
    wire::send(&mut stream, &Request::Start(Box::new(start(Some(pid(process)))))).unwrap();
    let reply: Reply = wire::receive(&mut stream).unwrap();
    assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    stream
}

#[test]
fn a_user_starts_own_processes_only() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    let roots = Job(Command::new("sleep").arg("100").spawn().unwrap());
    for pid in [Some(pid(&roots)), Some(1), None] {
        let why = refusal(ask(&sandbox, &Request::Start(Box::new(start(pid)))));
        assert!(why.contains("is not yours to start"), "{why}");
    }
    for pid in [0, -1, i32::MIN] {
        let why = refusal(ask(&sandbox, &Request::Start(Box::new(start(Some(pid))))));
        assert!(why.contains("a process id is above 0"), "{why}");
    }
    let own = own_process();
    drop(started(&sandbox, &own));
    sandbox.wait_for_runs(1, "state = 'running'");
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM task WHERE uid <> 65534"), 0);
}

#[test]
fn what_cannot_be_counted_with_is_refused() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    let own = own_process();
    let with = |change: &dyn Fn(&mut Start)| {
        let mut start = start(Some(pid(&own)));
        change(&mut start);
        refusal(ask(&sandbox, &Request::Start(Box::new(start))))
    };
    for cores in [f64::NAN, f64::INFINITY, -1.0] {
        assert!(with(&|start| start.manual.cpu_floor_cores = Some(cores)).contains("cores are between"));
        assert!(with(&|start| start.manual.cpu_cores = Some(cores)).contains("cores are between"));
    }
    assert!(with(&|start| start.manual.memory_bytes = Some(u64::MAX)).contains("a limit is at most"));
    assert!(with(&|start| start.admission.priority = Some(i32::MIN)).contains("a priority is between"));
    assert!(with(&|start| start.command = vec!["x".repeat(70_000)]).contains("a command line of"));
    assert!(with(&|start| start.directory = "x".repeat(5000)).contains("a working directory of"));
    assert!(sandbox.run_cgroups().is_empty(), "nothing of it is left");
}

#[test]
fn other_peoples_tasks_have_no_names() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let agent = sandbox.agent();
    let _job = Job::start(&mut agent.standin(["run", "--name", "s3cret", "--", "sleep", "100"]));
    sandbox.wait_for_runs(1, "state = 'running'");
    let names = |reply| match reply {
        Reply::Queue(queue) => queue.running.into_iter().map(|entry| entry.task_type).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(ask(&sandbox, &Request::Queue).unwrap()), [None]);
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    wire::send(&mut stream, &Request::Queue).unwrap();
    assert_eq!(names(wire::receive(&mut stream).unwrap()), [Some("s3cret".to_owned())], "root sees them");
    let status = ask(&sandbox, &Request::Status).unwrap();
    assert!(!format!("{status:?}").contains("s3cret"), "{status:?}");
}

#[test]
fn what_belongs_to_a_run_takes_a_run() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    for request in [Request::ExecFailed(2), Request::Wait, Request::Steer(Default::default())] {
        let why = refusal(ask(&sandbox, &request));
        assert!(why.contains("no run was started on this connection"), "{why}");
    }
    let container = |id: &str, pid| {
        let start = start(Some(pid));
        let (has_cpu_weight, has_io_weight, has_memory_target) = (false, false, false);
        let id = id.to_owned();
        Request::Container(Box::new(Container {
            id,
            start,
            has_cpu_weight,
            has_io_weight,
            has_memory_target,
        }))
    };
    let own = own_process();
    assert!(refusal(ask(&sandbox, &container("abc", pid(&own)))).contains("for root only"));
    // Root's own hook is not believed that every cgroup of the host is the container's.
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    wire::send(&mut stream, &container("", pid(&own))).unwrap();
    assert!(refusal(wire::receive(&mut stream)).contains("the name of a container"));
}

fn failover(service: &str) -> NewFailover {
    NewFailover {
        service: service.into(),
        uid: 0,
        at_ms: 1,
        cause: "died".into(),
        evidence: "so it is said".into(),
        from_instance: None,
        from_pid: None,
        to_instance: 1,
        to_pid: 1,
        steps: vec![("turned".into(), 1)],
        queued: 0,
        migrated: 0,
        open: None,
    }
}

#[test]
fn a_failover_is_recorded_for_who_tells_it() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    let tell = |failover| ask(&sandbox, &Request::FailedOver(Box::new(failover)));
    assert!(matches!(tell(failover("web")), Ok(Reply::Done)));
    assert_eq!(sandbox.sql::<i64>("SELECT uid FROM failover"), i64::from(NOBODY));
    assert!(refusal(tell(failover(&"x".repeat(300)))).contains("the name of a service"));
    let cause = NewFailover { cause: "bored".into(), ..failover("web") };
    assert!(refusal(tell(cause)).contains("a failover is caused by"));
    let mut replies = (0..400).map(|_| tell(failover("web")));
    assert!(replies.any(|reply| matches!(reply, Ok(Reply::Refused(_)))), "a loop does not fill the disk");
    assert!(sandbox.sql::<i64>("SELECT count(*) FROM failover") < 400);
}

#[test]
fn a_user_reads_own_runs_only() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let home = sandbox.path("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let agent = sandbox.agent();
    assert!(agent.run(&["--name", "s3cret"], &["true", "--password", "s3same"]).status.success());
    let mut own = agent.standin(["run", "--require-agent", "--name", "mine", "--", "true"]);
    assert!(as_nobody(&mut own).status().unwrap().success());
    sandbox.wait_for_runs(2, "state = 'finished'");
    as_somebody_else(|| assert!(File::open(sandbox.database()).is_err(), "the database is root's"));

    let read = |verb: &[&str]| {
        let mut command = agent.standin(verb);
        command.env_remove("STANDIN_DB").env("XDG_RUNTIME_DIR", &home);
        let output = as_nobody(&mut command).output().unwrap();
        assert!(output.status.success(), "{verb:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "");
        stdout(&output)
    };
    assert!(read(&["ls"]).contains("mine"));
    for verb in
        [&["ls"][..], &["runs"], &["runs", "--json"], &["events"], &["events", "--json"], &["show", "mine"]]
    {
        let text = read(verb);
        assert!(!text.contains("s3cret") && !text.contains("s3same"), "{verb:?}: {text}");
    }
    let copy = read(&["db", "path"]);
    let bytes = fs::read(copy.trim()).unwrap();
    let holds = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(holds("mine") && !holds("s3cret") && !holds("s3same"));
    assert_eq!(fs::metadata(copy.trim()).unwrap().mode() & 0o077, 0);
    assert_eq!(fs::metadata(home.join("standin")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_length_alone_takes_no_memory_and_a_frame_is_bounded() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let agent = sandbox.agent();
    let header = |length: usize| {
        let mut header = wire::encode(&Request::Status).unwrap();
        header.truncate(wire::HEADER_BYTES);
        header[6..10].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        header
    };
    let mut stream = connect(&sandbox);
    stream.write_all(&header(wire::REQUEST_BYTES_MAX + 1)).unwrap();
    assert!(refusal(wire::receive(&mut stream)).contains("the limit is 131072"));
    let rss = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = rss();
    let mut held: Vec<_> = (0..200).map(|_| connect(&sandbox)).collect();
    held.iter_mut().for_each(|stream| stream.write_all(&header(wire::REQUEST_BYTES_MAX)).unwrap());
    assert!(matches!(ask(&sandbox, &Request::Status), Ok(Reply::Status(_))));
    let grown = rss().saturating_sub(before);
    assert!(grown < 25 * 1024, "200 announced frames of 128 KiB took {grown} KiB");
}

#[test]
fn one_user_keeps_nobody_else_out() {
    require!(is_root(), "needs root, to be somebody else");
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    require!(hard > 6000, "needs more descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let agent = sandbox.agent();
    let mut held: Vec<_> = (0..2500).map(|_| connect(&sandbox)).collect();
    held.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    wait_until("some are refused", || held.iter_mut().any(|stream| stream.read(&mut [0; 64]).is_ok()));
    assert!(agent.run(&[], &["true"]).status.success(), "root is served");
    drop(held);
    wait_until("the user is served again", || {
        matches!(ask(&sandbox, &Request::Status), Ok(Reply::Status(_)))
    });
}

#[test]
fn a_launcher_that_says_nothing_holds_nothing() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    let own = own_process();
    let _silent = started(&sandbox, &own);
    drop(own);
    sandbox.wait_for_runs(1, "state = 'failed'");
    wait_until("the cgroup is gone", || sandbox.run_cgroups().is_empty());
}

/// Has the next process get this number, if nobody else is faster.
fn takes_number(pid: i32) -> Option<Child> {
    (0..200).find_map(|_| {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        if child.id().cast_signed() == pid {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    })
}

#[test]
fn a_number_that_is_used_again_takes_nobody_else_in() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(&format!("{OPEN_TO_NOBODY}[license.cad]\ntotal = 1\n"));
    let agent = sandbox.agent();
    let holder = Job::start(&mut agent.standin(["run", "--license", "cad", "--", "sleep", "100"]));
    sandbox.wait_for_runs(1, "state = 'running'");
    let own = own_process();
    let number = pid(&own);
    let mut stream = connect(&sandbox);
    let mut wanted = start(Some(number));
    wanted.admission.licenses.insert("cad".into(), 1);
    wanted.leftover = Leftover::Kill;
    wire::send(&mut stream, &Request::Start(Box::new(wanted))).unwrap();
    assert!(matches!(wire::receive(&mut stream), Ok(Reply::Waiting(_))));
    drop(own);
    let Some(victim) = takes_number(number) else {
        return support::skip("the number of a process can't be chosen here");
    };
    let mut victim = Job(victim);
    drop(holder);
    let answer = std::iter::from_fn(|| Some(wire::receive::<Reply>(&mut stream)))
        .find(|reply| !matches!(reply, Ok(Reply::Waiting(_))));
    assert!(!matches!(answer, Some(Ok(Reply::Started(_)))), "{answer:?}");
    let cgroup = fs::read_to_string(format!("/proc/{number}/cgroup")).unwrap();
    assert!(!cgroup.contains(&sandbox.parent), "{cgroup}");
    assert!(victim.is_running());
}

#[test]
fn what_is_lent_to_a_service_is_bounded_and_its_own() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let _agent = sandbox.agent();
    let own = own_process();
    let mut stream = started(&sandbox, &own);
    let steer = |stream: &mut UnixStream| -> Result<Vec<OwnedFd>, String> {
        wire::send(stream, &Request::Steer(Default::default())).unwrap();
        match wire::receive(stream).unwrap() {
            Reply::Lent => Ok(wire::receive_descriptors(stream).unwrap()),
            Reply::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    };
    let lent = match steer(&mut stream) {
        Ok(lent) => lent,
        Err(why) => return support::skip(&format!("no steering here: {why}")),
    };
    assert_eq!(lent.len(), standin::steer::LENT);
    assert!(steer(&mut stream).is_err(), "once per run");

    let run = sandbox.run_cgroups().remove(0);
    let victim = Job(Command::new("sleep").arg("100").spawn().unwrap());
    as_somebody_else(|| {
        let write = |file: &str, text: &str| fs::write(run.join(file), text);
        assert!(write("cgroup.procs", &pid(&victim).to_string()).is_err(), "no process of another comes in");
        for file in
            ["cgroup.max.descendants", "cgroup.max.depth", "cgroup.freeze", "cgroup.kill", "memory.max"]
        {
            assert!(File::options().write(true).open(run.join(file)).is_err(), "{file} is not given");
        }
        let made =
            (0..1000).take_while(|number| fs::create_dir(run.join(format!("c{number}"))).is_ok()).count();
        assert!(made < 300, "{made} cgroups below one run");
        let deep = (1..=50).map(|depth| run.join("c0/x/".to_owned() + &"x/".repeat(depth)));
        let depth = deep.take_while(|path| fs::create_dir_all(path).is_ok()).count();
        assert!(depth < 16, "{depth} levels");
    });
    drop((own, stream));
    wait_until("all of it is swept", || sandbox.run_cgroups().is_empty());
}

/// Root's verbs with something of it in a directory that all may write.
#[test]
fn root_takes_nothing_that_others_could_have_put_there() {
    require!(is_root(), "needs root");
    let open = |sandbox: &Sandbox| {
        let place = sandbox.path("open");
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, PermissionsExt::from_mode(0o1777)).unwrap();
        place
    };
    let agent = |sandbox: &Sandbox, change: &dyn Fn(&mut Command)| {
        let mut command = sandbox.standin(["agent"]);
        change(command.env("STANDIN_SOCKET", sandbox.socket()));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        let text = stderr(&output);
        assert!(text.contains("can be written by other users") && text.contains("chmod go-w"), "{text}");
        assert!(!sandbox.socket().exists());
    };
    let sandbox = Sandbox::new();
    let place = open(&sandbox);
    agent(&sandbox, &|command| _ = command.env("STANDIN_DB", place.join("standin.db")));
    agent(&sandbox, &|command| _ = command.env("STANDIN_SOCKET", place.join("agent.sock")));
    fs::copy(sandbox.path("config.toml"), place.join("config.toml")).unwrap();
    agent(&sandbox, &|command| _ = command.env("STANDIN_CONFIG", place.join("config.toml")));
    let mut check = sandbox.standin(["agent", "--check"]);
    let output = check.env("STANDIN_CONFIG", place.join("config.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "diagnosed before it matters");

    // A log that somebody has put beside a database to be is not followed; the job runs.
    let target = sandbox.path("precious");
    fs::write(&target, "precious").unwrap();
    symlink(&target, place.join("standin.db-wal")).unwrap();
    let mut run = sandbox.standin(["run", "--no-agent", "--", "echo", "done"]);
    let output = run.env("STANDIN_DB", place.join("standin.db")).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "done\n"));
    assert!(stderr(&output).contains("not recorded: "), "{}", stderr(&output));
    assert_eq!(fs::read(&target).unwrap(), b"precious");

    // Reading follows nothing either, and tells what it can.
    let closed = sandbox.path("closed.db");
    assert!(sandbox.run(&[], &["true"]).status.success());
    fs::copy(sandbox.database(), &closed).unwrap();
    fs::rename(&closed, place.join("read.db")).unwrap();
    symlink(&target, place.join("read.db-shm")).unwrap();
    symlink(&target, place.join("read.db-wal")).unwrap();
    let read = |verb: &str| sandbox.standin([verb, "--db"]).arg(place.join("read.db")).output().unwrap();
    assert!(stdout(&read("ls")).contains("true"), "{}", stderr(&read("ls")));
    let doctor = read("doctor");
    assert!(stdout(&doctor).contains("can be written by other users"), "{}", stdout(&doctor));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
fn a_service_answers_root_and_its_user_only() {
    use standin::service::control::{self, Request};
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::new();
    let mut run = sandbox.standin([
        "run",
        "--no-agent",
        "--quiet",
        "--name",
        "web",
        "--shadows",
        "0",
        "--",
        "sleep",
        "100",
    ]);
    let mut service = Job::start(run.env("STANDIN_SOCKET", sandbox.socket()));
    let socket = sandbox.path("services/web.sock");
    wait_until("it answers", || control::ask(&socket, &Request::Status).is_ok());
    for request in [Request::Status, Request::FailOver, Request::Stop] {
        let answer = as_somebody_else(|| control::ask(&socket, &request));
        assert!(matches!(answer, Ok(control::Reply::Refused(_))), "{request:?}: {answer:?}");
    }
    assert!(service.is_running());
    assert!(matches!(control::ask(&socket, &Request::Stop), Ok(control::Reply::Done)));
    service.0.wait().unwrap();
}

#[test]
fn a_directory_that_somebody_else_made_is_not_a_services_own() {
    require!(is_root(), "needs root, to be two others");
    let sandbox = Sandbox::new();
    let tmp = sandbox.path("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    let private = sandbox.path("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, PermissionsExt::from_mode(0o700)).unwrap();
    chown(&private, Some(NOBODY), Some(NOBODY)).unwrap();
    // A third one leads where a user's sockets are to be into that user's private directory.
    let planted = tmp.join(format!("standin-{NOBODY}"));
    symlink(&private, &planted).unwrap();
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        &planted,
        Some(1234.into()),
        None,
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
    let mut run = sandbox.standin(["run", "--no-agent", "--shadows", "0", "--", "sleep", "100"]);
    run.env("TMPDIR", &tmp).env_remove("XDG_RUNTIME_DIR").env("STANDIN_DB", private.join("standin.db"));
    let output = as_nobody(&mut run).stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("is no directory"), "{}", stderr(&output));
    let entries: Vec<_> = fs::read_dir(&private).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(entries.iter().all(|name| name.to_string_lossy().starts_with("standin.db")), "{entries:?}");
    assert_eq!(private.metadata().unwrap().mode() & 0o777, 0o700);
}

#[test]
fn pins_that_somebody_else_has_prepared_are_not_taken() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.bpffs()).unwrap();
    let mount = |place: &Path| {
        nix::mount::mount(Some("bpf"), place, Some("bpf"), nix::mount::MsFlags::empty(), Some("mode=1777"))
    };
    require!(mount(&sandbox.bpffs()).is_ok(), "no BPF file system can be mounted");
    let planted = sandbox.bpffs().join("standin");
    as_somebody_else(|| fs::create_dir(&planted)).unwrap();
    let agent = sandbox.agent();
    assert!(sandbox.agent_log().contains("probes are not pinned"), "{}", sandbox.agent_log());
    assert_eq!(fs::read_dir(&planted).unwrap().count(), 0);
    assert!(agent.run(&[], &["true"]).status.success(), "it measures all the same");
    sandbox.wait_for_runs(1, "cpu_ns > 0 AND execs > 0");
}

/// Nothing that standin has open or set comes through to a job, whoever it is.
#[test]
fn a_job_inherits_no_descriptor() {
    require!(is_root(), "needs root, to be somebody else");
    let sandbox = Sandbox::with_config(OPEN_TO_NOBODY);
    let agent = sandbox.agent();
    let list = ["sh", "-c", "for each in /proc/$$/fd/*; do readlink $each; done"];
    let plain = Command::new(list[0]).args(&list[1..]).stdin(Stdio::null()).output().unwrap();
    let expected = stdout(&plain).lines().count();
    let ways: [(&[&str], bool); 4] = [
        (&["run", "--require-agent", "--"], false),
        (&["run", "--require-agent", "--"], true),
        (&["run", "--require-agent", "--wait-all", "--"], true),
        (&["run", "--no-agent", "--"], false),
    ];
    for (way, other) in ways {
        let mut command = agent.standin(way);
        command.args(list);
        if other {
            as_nobody(&mut command);
        }
        let output = command.output().unwrap();
        assert_eq!(
            stdout(&output).lines().count(),
            expected,
            "{way:?}: {}{}",
            stdout(&output),
            stderr(&output)
        );
        assert!(!stdout(&output).contains("bpf") && !stdout(&output).contains(&sandbox.parent));
    }
}
