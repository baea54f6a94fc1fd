//! A service outlives its instances: whatever becomes of the primary, a shadow serves, and nobody is refused.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/load.rs"]
mod load;
#[path = "support/service.rs"]
mod service;
mod support;

use load::Load;
use service::{REQUEST, Service, ask, free_port, script};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use support::{Sandbox, has, is_root, signal, stderr, wait_until};

const SHADOW: &[&str] = &["--shadows", "1"];

/// Requests that a dead instance may have read already, per failover: it serves one at a time, and one more may be
/// between the queue and the server.
const IN_PROCESS: u64 = 3;

/// Why the last failover was; it is told a moment after the traffic was moved.
fn cause(service: &Service) -> String {
    let told = || Some(service.status()?["last_failover"]["evidence"].as_str()?.to_owned());
    wait_until("a failover is told", || told().is_some());
    told().unwrap()
}

/// Kills the primary under load; nobody may be refused.
fn survives_a_kill(service: &Service, lost_max: u64) {
    let load = Load::start(service.address(), 200, REQUEST);
    wait_until("requests flow", || load.sent() > 100);
    let primary = service.primary();
    signal(primary, libc::SIGKILL);
    service.wait_for_another(primary);
    let begin = load.sent();
    wait_until("requests flow", || load.sent() > begin + 100);
    let fates = load.finish();
    assert_eq!(fates.refused, 0, "{fates:?}");
    assert!(fates.failed() <= lost_max, "{} of {} failed", fates.failed(), fates.sent());
}

#[test]
fn killed_under_load_it_refuses_nobody() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    let load = Load::start(service.address(), 300, REQUEST);
    let kills = 3;
    for _ in 0..kills {
        let begin = load.sent();
        wait_until("requests flow", || load.sent() > begin + 200);
        let primary = service.primary();
        signal(primary, libc::SIGKILL);
        service.wait_for_another(primary);
        service.wait_for_shadows(1);
    }
    let fates = load.finish();
    assert_eq!(fates.refused, 0, "{fates:?}");
    assert!(fates.failed() <= kills * IN_PROCESS, "{} of {} failed", fates.failed(), fates.sent());
    assert_eq!(service.failovers(), kills);
    let path = sandbox.database();
    service.stop();
    let log: i64 = sandbox.sql("SELECT count(*) FROM failover_log WHERE cause = 'died' AND service = 'web'");
    assert_eq!(log, i64::try_from(kills).unwrap(), "{}", path.display());
    let in_order: i64 = sandbox.sql(
        "SELECT count(*) FROM failover_log WHERE noticed_ms <= turned_ms AND turned_ms <= migrated_ms
             AND migrated_ms <= thawed_ms AND thawed_ms <= ended_ms",
    );
    assert_eq!(in_order, log);
}

#[test]
fn a_queue_is_moved_not_lost() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    let primary = service.primary();
    // Connections wait behind one whose request is computed for ever; none of them has been read when the primary
    // dies, which is long before that is taken for a hang. That request has: moved as well, it would hang the shadow.
    let _busy = service.tell("/spin");
    wait_until_it_computes(primary);
    let waiting: Vec<_> = (0..50).map(|_| service.tell("/")).collect();
    signal(primary, libc::SIGKILL);
    for mut stream in waiting {
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer:?}");
    }
    let (queued, migrated) = sandbox_row(&sandbox);
    assert!(queued >= 50 && migrated >= 50, "queued {queued}, migrated {migrated}");
}

fn wait_until_it_computes(pid: u32) {
    let ticks = || procfs::process::Process::new(pid as i32).unwrap().stat().unwrap().utime;
    let before = ticks();
    wait_until("it computes", || ticks() > before + 2);
}

fn sandbox_row(sandbox: &Sandbox) -> (i64, i64) {
    wait_until("it is recorded", || {
        rusqlite::Connection::open(sandbox.database())
            .and_then(|db| db.query_row("SELECT count(*) FROM failover", [], |row| row.get::<_, i64>(0)))
            .is_ok_and(|rows| rows == 1)
    });
    (sandbox.sql("SELECT queued FROM failover"), sandbox.sql("SELECT migrated FROM failover"))
}

#[test]
fn every_kind_of_death_is_one() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "1", "--failovers-max", "100"]);
    for (path, expected) in [("/exit3", "exit 3"), ("/abort", "killed by SIGABRT")] {
        service.wait_for_shadows(1);
        let primary = service.primary();
        _ = service.tell(path);
        service.wait_for_another(primary);
        wait_until(expected, || cause(&service) == expected);
        assert_ne!(service.ask(), primary);
    }
    for number in [libc::SIGTERM, libc::SIGSEGV] {
        service.wait_for_shadows(1);
        let primary = service.primary();
        signal(primary, number);
        service.wait_for_another(primary);
        assert_ne!(service.ask(), primary);
    }
}

#[test]
fn a_stopped_primary_is_replaced() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    std::thread::sleep(Duration::from_millis(1100));
    let primary = service.primary();
    signal(primary, libc::SIGSTOP);
    assert_ne!(service.ask(), primary, "whoever asked meanwhile was moved");
    assert!(cause(&service).contains("stopped"), "{}", cause(&service));
    // Nor need anybody wait for it.
    service.wait_for_shadows(1);
    std::thread::sleep(Duration::from_millis(1100));
    let primary = service.primary();
    signal(primary, libc::SIGSTOP);
    service.wait_for_another(primary);
}

#[test]
fn a_deadlocked_primary_is_replaced() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    std::thread::sleep(Duration::from_millis(1100));
    let primary = service.primary();
    let _stuck = service.tell("/deadlock");
    assert_ne!(service.ask(), primary);
    assert!(cause(&service).contains("asleep"), "{}", cause(&service));
}

#[test]
fn a_livelocked_primary_is_replaced_later() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    let primary = service.primary();
    let _stuck = service.tell("/spin");
    assert_ne!(service.ask(), primary);
    assert!(cause(&service).contains("computing"), "{}", cause(&service));
}

#[test]
fn a_machine_without_a_free_cpu_is_no_failure() {
    require!(is_root() && has("stress-ng"), "needs root and stress-ng");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    let mut hogs = std::process::Command::new("stress-ng");
    let hogs = support::Job::start(hogs.args(["--quiet", "--cpu", "8", "--timeout", "60"]));
    let load = Load::start(service.address(), 100, REQUEST);
    wait_until("1200 requests", || load.sent() > 1200);
    drop(hogs);
    let fates = load.finish();
    assert_eq!(fates.failed(), 0, "{fates:?}");
    assert_eq!(service.failovers(), 0, "{}", service.log());
}

#[test]
fn without_a_shadow_clients_wait_for_the_next_instance() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", &["--shadows", "0"]);
    service.wait_for_shadows(0);
    survives_a_kill(&service, IN_PROCESS);
}

#[test]
fn a_failover_that_was_asked_for_loses_nothing() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let service = Service::server(&sandbox, "web", SHADOW);
    service.wait_for_shadows(1);
    let load = Load::start(service.address(), 300, REQUEST);
    wait_until("requests flow", || load.sent() > 200);
    let primary = service.primary();
    let mut slow = service.tell("/slow");
    let output = service.standin(&["failover", "web"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_ne!(service.wait_for_another(primary), primary);
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut slow, &mut answer).unwrap();
    assert!(answer.contains(&primary.to_string()), "the old one finishes what it has: {answer:?}");
    service.wait_for_shadows(1);
    wait_until("the old one is gone", || !std::path::Path::new(&format!("/proc/{primary}")).exists());
    let fates = load.finish();
    assert_eq!(fates.failed(), 0, "{fates:?}");
}

#[test]
fn both_families_and_several_ports_are_steered() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let (port, other) = (free_port(), free_port());
    let places = [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("0.0.0.0:{other}")];
    let script = script(&sandbox);
    let mut command = vec!["python3", script.to_str().unwrap()];
    command.extend(places.iter().map(String::as_str));
    let service = Service::start(&sandbox, "web", port, SHADOW, &command);
    service.wait_for_shadows(1);
    let primary = service.primary();
    signal(primary, libc::SIGKILL);
    let successor = service.wait_for_another(primary).to_string();
    for place in [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("127.0.0.1:{other}")] {
        let address: SocketAddr = place.parse().unwrap();
        for _ in 0..5 {
            assert!(ask(address, REQUEST).unwrap().contains(&successor), "{place}");
        }
    }
}

#[test]
fn datagrams_go_to_the_shadow() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let port = free_port();
    let script = script(&sandbox);
    let place = format!("udp:127.0.0.1:{port}");
    let service =
        Service::start(&sandbox, "dns", port, SHADOW, &["python3", script.to_str().unwrap(), &place]);
    service.wait_for_shadows(1);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // What is in the queue of a dead instance is lost, as datagrams may be: who asks asks again.
    let ask = || {
        let mut answer = [0; 64];
        let length = (0..5).find_map(|_| {
            client.send_to(b"?", ("127.0.0.1", port)).unwrap();
            client.recv(&mut answer).ok()
        });
        let length = length.unwrap_or_else(|| {
            panic!("no answer:\n{:#}\n{}", service.status().unwrap_or_default(), service.log())
        });
        String::from_utf8_lossy(&answer[..length]).trim().parse::<u32>().unwrap()
    };
    let mut primary = service.primary();
    for _ in 0..3 {
        (0..20).for_each(|_| assert_eq!(ask(), primary));
        service.wait_for_shadows(1);
        signal(primary, libc::SIGKILL);
        primary = service.wait_for_another(primary);
    }
    (0..20).for_each(|_| assert_eq!(ask(), primary));
}

#[test]
fn sockets_that_are_given_are_steered_too() {
    require!(is_root(), "needs root");
    for further in [&[][..], &["--notify"]] {
        let sandbox = Sandbox::new();
        let (port, script) = (free_port(), script(&sandbox));
        let (place, other) = (format!("127.0.0.1:{port}"), format!("[::1]:{port}"));
        let mut options = vec!["--shadows", "1", "--listen", &place, "--listen", &other];
        options.extend(further);
        let service =
            Service::start(&sandbox, "web", port, &options, &["python3", script.to_str().unwrap(), "given"]);
        service.wait_for_shadows(1);
        survives_a_kill(&service, IN_PROCESS);
    }
}

#[test]
fn without_privileges_given_sockets_outlive_the_service() {
    require!(is_root() && has("python3"), "needs root, to be somebody else");
    let sandbox = Sandbox::new();
    let (port, script, home) = (free_port(), script(&sandbox), sandbox.path("home"));
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(support::NOBODY), Some(support::NOBODY)).unwrap();
    let place = format!("127.0.0.1:{port}");
    let mut command =
        sandbox.standin(["run", "--no-agent", "--name", "web", "--shadows", "1", "--listen", &place]);
    command.args(["--", "python3", script.to_str().unwrap(), "given"]);
    command.env("XDG_RUNTIME_DIR", &home).env("XDG_DATA_HOME", &home).env_remove("STANDIN_DB");
    support::as_nobody(&mut command);
    let mut service = Service::spawn(&sandbox, "web", port, &mut command);
    service.user = Some((support::NOBODY, home));
    service.wait_for_shadows(0);
    assert_eq!(service.status().unwrap()["mode"], "restart");
    survives_a_kill(&service, 20 * IN_PROCESS);
}

#[test]
fn a_tree_of_processes_fails_over_as_one() {
    require!(is_root() && has("nginx"), "needs root and nginx");
    let sandbox = Sandbox::new();
    let port = free_port();
    let configuration = format!(
        "daemon off; pid {0}/nginx.pid; error_log stderr; worker_processes 2; user root;
         events {{ worker_connections 256; }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"$pid\\n\"; }} }} }}",
        sandbox.dir.path().display()
    );
    std::fs::write(sandbox.path("nginx.conf"), configuration).unwrap();
    let file = sandbox.path("nginx.conf");
    let service = Service::start(&sandbox, "nginx", port, SHADOW, &["nginx", "-c", file.to_str().unwrap()]);
    service.wait_for_shadows(1);
    survives_a_kill(&service, 2 * IN_PROCESS);
}

#[test]
fn a_forked_shadow_shares_the_memory_and_takes_over() {
    require!(is_root() && cfg!(target_arch = "x86_64"), "needs root and x86_64");
    let sandbox = Sandbox::new();
    let script = sandbox.path("big.py");
    // 100 MB that a copy need not have again.
    std::fs::write(&script, format!("table = bytearray(b'x') * (100 << 20)\n{}", service::SERVER)).unwrap();
    let port = free_port();
    let place = format!("127.0.0.1:{port}");
    let options = ["--shadows", "1", "--shadow", "cow"];
    let service =
        Service::start(&sandbox, "web", port, &options, &["python3", script.to_str().unwrap(), &place]);
    service.wait_for_shadows(1);
    let status = service.status().unwrap();
    let shadow =
        status["instances"].as_array().unwrap().iter().find(|one| one["role"] == "shadow").unwrap().clone();
    assert!(shadow["private_bytes"].as_u64().unwrap() < 1 << 20, "{shadow}\n{}", service.log());
    for _ in 0..2 {
        survives_a_kill(&service, IN_PROCESS);
        service.wait_for_shadows(1);
    }
    std::thread::sleep(Duration::from_millis(1100));
    let primary = service.primary();
    signal(primary, libc::SIGSTOP);
    // A copy has the first process's pid in its memory and answers with that: who serves is told by ps.
    service.ask();
    assert_ne!(service.wait_for_another(primary), primary);
    assert_eq!(service.log().matches("up ").count(), 1, "the program was started once: {}", service.log());
}

#[test]
fn what_cannot_be_copied_is_started_instead() {
    require!(is_root() && cfg!(target_arch = "x86_64"), "needs root and x86_64");
    let sandbox = Sandbox::new();
    let script = sandbox.path("threads.py");
    let thread =
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n";
    std::fs::write(&script, format!("{thread}{}", service::SERVER)).unwrap();
    let port = free_port();
    let place = format!("127.0.0.1:{port}");
    let options = ["--shadows", "1", "--shadow", "cow"];
    let service =
        Service::start(&sandbox, "web", port, &options, &["python3", script.to_str().unwrap(), &place]);
    service.wait_for_shadows(1);
    assert!(service.log().contains("--shadow cow: the process can't be copied"), "{}", service.log());
    assert!(service.log().contains("threads"), "{}", service.log());
}
