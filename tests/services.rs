//! A service from its start to its end: what it is told, what it tells, and what happens when it is badly made.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/service.rs"]
mod service;
mod support;

use service::{Service, free_port, script};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;
use support::{Sandbox, has, is_root, signal, stderr, wait_until};

#[test]
fn a_shadow_is_frozen_and_uses_no_cpu() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "2"]);
    service.wait_for_shadows(2);
    let ticks = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .skip(11)
            .take(2)
            .map(|text| text.parse().unwrap())
            .collect();
        fields.iter().sum::<u64>()
    };
    let shadows = service.pids("shadow");
    let is_frozen = |pid: &u32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let events = fs::read_to_string(support::unified().join(path).join("cgroup.events")).unwrap();
        events.contains("frozen 1")
    };
    wait_until("the kernel has frozen them", || shadows.iter().all(is_frozen));
    let used: Vec<u64> = shadows.iter().map(|pid| ticks(*pid)).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(shadows.iter().map(|pid| ticks(*pid)).collect::<Vec<_>>(), used);
    let status = service.status().unwrap();
    for instance in status["instances"].as_array().unwrap() {
        assert_eq!(instance["is_frozen"], instance["role"] == "shadow", "{instance}");
        assert!(instance["private_bytes"].as_u64().unwrap() > 1 << 20, "{instance}");
    }
    assert_eq!(status["addresses"][0], service.address().to_string());
    assert!(
        service.log().contains("up shadow") && service.log().contains("up first"),
        "SHADOW=1 is set for shadows"
    );
}

/// Where services may be pinned.
fn pin_roots() -> impl Iterator<Item = &'static str> {
    ["/sys/fs/bpf/standin-services", "/run/standin/bpf/standin-services"].into_iter()
}

/// What the names of this sandbox's pins begin with: a hash of its directory.
fn pin_hash(sandbox: &Sandbox) -> u64 {
    let directory = sandbox.dir.path().join("services");
    directory
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Services of this sandbox whose programs are pinned.
fn pins_of(sandbox: &Sandbox) -> usize {
    let prefix = format!("{:016x}-", pin_hash(sandbox));
    let entries = pin_roots().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[test]
fn the_end_of_the_service_is_that_of_its_primary() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "1"]);
    service.wait_for_shadows(1);
    let (primary, shadow) = (service.primary(), service.pids("shadow")[0]);
    assert_eq!(service.stop().signal(), Some(libc::SIGTERM), "python ends by the signal");
    for pid in [primary, shadow] {
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "{pid} is left");
    }
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
    assert_eq!(pins_of(&sandbox), 0, "nothing is left in the kernel");
    let service = Service::server(&sandbox, "web", &["--shadows", "1"]);
    service.wait_for_shadows(1);
    assert_eq!(pins_of(&sandbox), 1);
    _ = service.tell("/exit0");
    assert_eq!(service.wait().code(), Some(0), "a clean exit is an end");
    let runs: i64 = sandbox.sql("SELECT count(*) FROM run WHERE state <> 'running'");
    assert_eq!(runs, 2);
}

#[test]
fn a_command_that_cannot_serve_ends_as_without_standin() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let run = |command: &[&str]| {
        let mut standin = sandbox.standin(["run", "--no-agent", "--shadows", "1", "--name", "bad", "--"]);
        standin.args(command).env("STANDIN_SOCKET", sandbox.socket()).output().unwrap()
    };
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["no-such-program"]).status.code(), Some(127));
    assert_eq!(run(&["sh", "-c", "kill -SEGV $$"]).status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn a_port_that_is_taken_stays_taken() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = stranger.local_addr().unwrap().to_string();
    let script = script(&sandbox);
    let service = Service::start(
        &sandbox,
        "web",
        0,
        &["--shadows", "1"],
        &["python3", script.to_str().unwrap(), &place],
    );
    let log = service.log();
    assert_eq!(service.wait().code(), Some(1), "{log}");
    assert!(fs::read_to_string(sandbox.path("web.log")).unwrap().contains("Address already in use"));
}

#[test]
fn a_service_that_dies_again_and_again_is_given_up() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let marker = sandbox.path("marker");
    // Serves once, and never again.
    let server = format!(
        "test -e {0} && exit 9; touch {0}; exec python3 {1} 127.0.0.1:{2}",
        marker.display(),
        script(&sandbox).display(),
        free_port()
    );
    let service = Service::start(&sandbox, "web", 0, &["--shadows", "0"], &["sh", "-c", &server]);
    service.wait_for_shadows(0);
    signal(service.primary(), libc::SIGKILL);
    assert_eq!(service.wait().code(), Some(9));
    let log = fs::read_to_string(sandbox.path("web.log")).unwrap();
    assert!(log.contains("5 starts in a row failed, the last one: exit 9; given up"), "{log}");
}

#[test]
fn warming_and_probing_reach_the_shadow() {
    require!(is_root() && has("curl"), "needs root and curl");
    let sandbox = Sandbox::new();
    let (port, file) = (free_port(), sandbox.path("answers"));
    let warm = format!("for i in 1 2 3; do curl -s http://127.0.0.1:{port}/ >> {}; done", file.display());
    let probe = format!("http://127.0.0.1:{port}/");
    let script = script(&sandbox);
    let options = ["--shadows", "1", "--warm-with", &warm, "--ready-probe", &probe];
    let place = format!("127.0.0.1:{port}");
    let service =
        Service::start(&sandbox, "web", port, &options, &["python3", script.to_str().unwrap(), &place]);
    service.wait_for_shadows(1);
    let shadow = service.pids("shadow")[0];
    let answers = fs::read_to_string(&file).unwrap();
    assert_eq!(answers, format!("{shadow}\n").repeat(3), "all of them by the shadow");
    assert_eq!(service.ask(), service.primary(), "others go to the primary");
}

#[test]
fn a_primary_whose_probe_fails_is_replaced() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let bad = sandbox.path("bad");
    // The instance named in the file is unwell.
    let probe = format!("test \"$(cat {} 2>/dev/null)\" != \"$STANDIN_INSTANCE\"", bad.display());
    let options = ["--shadows", "1", "--ready-probe", &probe, "--probe-interval", "100ms"];
    let service = Service::server(&sandbox, "web", &options);
    service.wait_for_shadows(1);
    let primary = service.primary();
    fs::write(&bad, "1").unwrap();
    assert_ne!(service.wait_for_another(primary), primary);
    wait_until("it is said", || service.log().contains("the ready probe fails: exit 1"));
}

#[test]
fn a_primary_that_gets_slow_is_replaced() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let (port, script, lame) = (free_port(), script(&sandbox), sandbox.path("lame"));
    let place = format!("127.0.0.1:{port}");
    let mut command =
        sandbox.standin(["run", "--no-agent", "--name", "web", "--shadows", "1", "--max-latency", "20ms"]);
    command.args(["--", "python3", script.to_str().unwrap(), &place]).env("LAME", &lame);
    let service = Service::spawn(&sandbox, "web", port, &mut command);
    service.wait_for_shadows(1);
    let primary = service.primary();
    fs::write(format!("{}{primary}", lame.display()), "").unwrap();
    wait_until("another one answers", || service.ask() != primary);
    wait_until("it is said", || service.log().contains("answers were late"));
}

#[test]
fn one_writer_at_a_time() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "1", "--single-writer"]);
    service.wait_for_shadows(1);
    std::thread::sleep(Duration::from_millis(1100));
    let primary = service.primary();
    signal(primary, libc::SIGSTOP);
    assert_ne!(service.ask(), primary);
    drop(service);
    let fenced: i64 = sandbox.sql("SELECT json_extract(steps, '$.fenced') IS NOT NULL FROM failover");
    assert_eq!(fenced, 1);
}

#[test]
fn a_shadow_that_never_gets_ready_is_given_up() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let place = format!("127.0.0.1:{}", free_port());
    let server = format!(
        "test -n \"$SHADOW\" && exec sleep 1000; exec python3 {} {place}",
        script(&sandbox).display()
    );
    let options = ["--shadows", "1", "--start-timeout", "300ms"];
    let service = Service::start(&sandbox, "web", 0, &options, &["sh", "-c", &server]);
    wait_until("it is told", || {
        service.log().contains("is given up: it listens on nothing, not on 127.0.0.1")
    });
    assert_eq!(service.pids("primary").len(), 1, "the primary serves on");
}

#[test]
fn a_unix_socket_is_said_not_to_be_steered() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let server = "import socket, time, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(1000)";
    let path = sandbox.path("s");
    let command = ["python3", "-c", server, path.to_str().unwrap()];
    let service = Service::start(&sandbox, "web", 0, &["--shadows", "1"], &command);
    wait_until("it is told", || service.log().contains("it listens on unix sockets only"));
}

#[test]
fn a_name_is_taken_once() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "0"]);
    service.wait_for_shadows(0);
    let arguments = ["run", "--no-agent", "--shadows", "0", "--name", "web", "--", "sleep", "1"];
    let output = service.standin(&arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("a service named web runs already"), "{}", stderr(&output));
    let output = service.standin(&["stop", "nothing"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("no service named nothing runs"), "{}", stderr(&output));
}

#[test]
fn a_service_without_a_shadow_says_why_it_cannot_fail_over() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "0"]);
    service.wait_for_shadows(0);
    let output = service.standin(&["failover", "web"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("no shadow is ready"), "{}", stderr(&output));
}

#[test]
fn a_supervisor_that_is_killed_takes_nothing_along() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let mut service = Service::server(&sandbox, "web", &["--shadows", "1"]);
    let port = service.port;
    service.wait_for_shadows(1);
    let (primary, shadow) = (service.primary(), service.pids("shadow")[0]);
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    assert_eq!(service.ask(), primary, "it serves on");
    assert_eq!(service.status().unwrap()["mode"], "unsupervised");
    // While nobody is there the primary dies too: the kernel turns the traffic, and it waits.
    signal(primary, libc::SIGKILL);
    wait_until("it is gone", || !fs::exists(format!("/proc/{primary}")).unwrap());
    let mut waiting = service.tell("/");
    let script = script(&sandbox);
    let place = format!("127.0.0.1:{port}");
    let again = Service::start(
        &sandbox,
        "web",
        port,
        &["--shadows", "1"],
        &["python3", script.to_str().unwrap(), &place],
    );
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut waiting, &mut answer).unwrap();
    assert!(answer.contains(&shadow.to_string()), "{answer:?}");
    again.wait_for_shadows(1);
    assert_eq!(again.primary(), shadow);
    wait_until("the failover is logged", || again.failovers() == 1);
    assert!(again.log().contains("taking up the service as its supervisor left it"), "{}", again.log());
    again.stop();
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn a_service_without_a_supervisor_can_be_stopped() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let mut service = Service::server(&sandbox, "web", &["--shadows", "1"]);
    service.wait_for_shadows(1);
    let primary = service.primary();
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    let output = service.standin(&["failover", "web"]).output().unwrap();
    assert!(stderr(&output).contains("start it again to have it taken up"), "{}", stderr(&output));
    assert!(service.standin(&["stop", "web"]).output().unwrap().status.success());
    wait_until("it is gone", || !fs::exists(format!("/proc/{primary}")).unwrap());
}

#[test]
fn doctor_says_which_failover_there_is() {
    require!(is_root(), "needs root, and to be somebody else");
    let sandbox = Sandbox::new();
    let mode = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = findings["findings"].as_array().unwrap().clone();
        let mode =
            all.into_iter().find(|finding| finding["about"] == "failover" && finding["name"] == "mode");
        mode.unwrap()["detail"].as_str().unwrap().to_owned()
    };
    let steered = mode(&mut sandbox.standin(["doctor", "--json"]));
    assert!(steered.starts_with("steered"), "{steered}");
    let restart = mode(support::as_nobody(&mut sandbox.standin(["doctor", "--json"])));
    assert!(restart.starts_with("restart"), "{restart}");
}

#[test]
fn users_fail_over_with_the_agents_help() {
    require!(is_root(), "needs root, to be somebody else");
    let group = "nogroup";
    let sandbox = Sandbox::with_config(&format!("socket_group = \"{group}\"\n"));
    let (port, script, home) = (free_port(), script(&sandbox), sandbox.path("home"));
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(support::NOBODY), Some(support::NOBODY)).unwrap();
    let agent = sandbox.agent();
    let place = format!("127.0.0.1:{port}");
    let mut command = agent.standin(["run", "--require-agent", "--name", "web", "--shadows", "1"]);
    command.args(["--", "python3", script.to_str().unwrap(), &place]);
    command.env("XDG_RUNTIME_DIR", &home).env_remove("STANDIN_DB");
    support::as_nobody(&mut command);
    let mut service = Service::spawn(&sandbox, "web", port, &mut command);
    service.user = Some((support::NOBODY, home));
    service.wait_for_shadows(1);
    let primary = service.primary();
    signal(primary, libc::SIGKILL);
    assert_ne!(service.ask(), primary);
    service.wait_for_shadows(1);
    let recorded = "SELECT count(*) FROM failover WHERE service = 'web' AND uid = 65534 AND cause = 'died'";
    wait_until("it is recorded", || sandbox.sql::<i64>(recorded) == 1);
    agent.kill();
    let primary = service.primary();
    signal(primary, libc::SIGKILL);
    assert_ne!(service.ask(), primary, "failover needs no agent");
    service.wait_for_shadows(1);
    let _agent = sandbox.agent();
    let primary = service.primary();
    service.child.kill().unwrap();
    wait_until("it ends with its launcher", || !fs::exists(format!("/proc/{primary}")).unwrap());
    wait_until("the cgroups are gone", || sandbox.run_cgroups().is_empty());
}

#[test]
fn what_a_dead_service_has_pinned_is_swept() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let mut service = Service::server(&sandbox, "web", &["--shadows", "0"]);
    service.wait_for_shadows(0);
    let primary = service.primary();
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    signal(primary, libc::SIGKILL);
    wait_until("it is gone", || !fs::exists(format!("/proc/{primary}")).unwrap());
    assert_eq!(pins_of(&sandbox), 1);
    // And what another version has pinned, which this one can't use.
    let old = pin_roots().find(|root| fs::exists(root).unwrap()).unwrap();
    fs::create_dir(format!("{old}/{:016x}-old", pin_hash(&sandbox))).unwrap();
    assert_eq!(pins_of(&sandbox), 2);
    let other = Service::server(&sandbox, "other", &["--shadows", "0"]);
    other.wait_for_shadows(0);
    assert_eq!(pins_of(&sandbox), 1, "its own");
}
