//! Pools of licences: never more taken than there are, waited for, given back, and learnt from use.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;
use support::{Agent, Job, Sandbox, has, is_root, stderr, wait_until};

fn start(agent: &Agent<'_>, options: &[&str], script: &str) -> Job {
    let mut command = agent.standin(["run", "--require-agent", "--name", "tool"]);
    command.args(options).args(["--", "sh", "-c", script]);
    Job(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

#[test]
fn five_jobs_share_two_licences() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("[license.cad]\ntotal = 2\n");
    let agent = sandbox.agent();
    let place = sandbox.path("held");
    fs::create_dir(&place).unwrap();
    // Each holds its licence by a file, and counts those that hold one at the same time.
    let script = format!(
        "touch {0}/$$; ls {0} | wc -l >> {0}.counts; sleep 0.3; ls {0} | wc -l >> {0}.counts; rm {0}/$$",
        place.display()
    );
    let mut jobs: Vec<_> = (0..5).map(|_| start(&agent, &["--license", "cad"], &script)).collect();
    jobs.iter_mut().for_each(|job| assert_eq!(job.exit_code(), Some(0)));
    let counts = fs::read_to_string(place.with_extension("counts")).unwrap();
    let most = counts.lines().map(|line| line.trim().parse::<u32>().unwrap()).max();
    assert_eq!(most, Some(2), "{counts}");
    sandbox.wait_for_runs(5, "state = 'finished'");
    assert_eq!(sandbox.sql::<i64>("SELECT sum(taken) FROM run_license WHERE license = 'cad'"), 5);
    assert!(
        sandbox.sql::<i64>("SELECT count(*) FROM run_admission WHERE waited_ms > 0") >= 3,
        "their wait is kept"
    );
    wait_until("all is in the log", || {
        let count = |kind| sandbox.sql::<i64>(&format!("SELECT count(*) FROM event WHERE kind = '{kind}'"));
        (count("license_taken"), count("license_returned")) == (5, 5)
    });
}

#[test]
fn what_can_never_be_had_is_refused_at_once() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("[license.cad]\ntotal = 2\n");
    let agent = sandbox.agent();
    let many = agent.run(&["--license", "cad=3"], &["true"]);
    assert_eq!(many.status.code(), Some(125));
    assert!(stderr(&many).contains("it needs 3 licences \"cad\", of which there are 2"), "{}", stderr(&many));
    let unknown = agent.run(&["--license", "cae"], &["true"]);
    assert_eq!(unknown.status.code(), Some(125));
    assert!(stderr(&unknown).contains("[license.cae]"), "{}", stderr(&unknown));
    let mut holder = start(&agent, &["--license", "cad=2"], "sleep 60");
    wait_until("it runs", || !sandbox.run_cgroups().is_empty());
    let busy = agent.run(&["--no-wait", "--license", "cad"], &["true"]);
    assert_eq!(busy.status.code(), Some(125));
    assert!(stderr(&busy).contains("needs 1 of licence cad, 0 are free"), "{}", stderr(&busy));
    assert_eq!(agent.run(&["--no-wait"], &["true"]).status.code(), Some(0), "others are not held up");
    assert!(holder.is_running());
    let alone = sandbox.run(&["--license", "cad"], &["true"]);
    assert_eq!(alone.status.code(), Some(125));
    assert!(stderr(&alone).contains("licences are counted by an agent"), "{}", stderr(&alone));
}

#[test]
fn licences_of_a_task_that_ended_while_no_agent_was_there_are_free() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::with_config("[license.cad]\ntotal = 1\n");
    let agent = sandbox.agent();
    let mut goes_on = start(&agent, &["--license", "cad"], "sleep 60");
    sandbox.wait_for_runs(1, "state = 'running'");
    agent.kill();
    let agent = sandbox.agent();
    let busy = agent.run(&["--no-wait", "--license", "cad"], &["true"]);
    assert_eq!(busy.status.code(), Some(125), "the task that goes on still has it");
    agent.kill();
    goes_on.0.kill().unwrap();
    goes_on.0.wait().unwrap();
    let agent = sandbox.agent();
    assert_eq!(agent.run(&["--no-wait", "--license", "cad"], &["true"]).status.code(), Some(0));
    wait_until("it is in the log", || {
        sandbox.sql::<i64>("SELECT count(*) FROM event WHERE kind = 'released'") >= 1
    });
}

#[test]
fn use_is_learnt_from_connections_to_the_server() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    // A server that grants each licence only after a while.
    std::thread::spawn(move || {
        for mut client in server.incoming().flatten() {
            std::thread::sleep(Duration::from_millis(300));
            let _ = client.write_all(b"granted");
            std::thread::spawn(move || client.read_to_end(&mut Vec::new()));
        }
    });
    let sandbox = Sandbox::with_config(&format!("[license.cad]\ntotal = 2\nserver = \"{address}\"\n"));
    let agent = sandbox.agent();
    let before_ms = sandbox.sql::<i64>("SELECT unixepoch() * 1000");
    // Two at once, and one that is open for a moment only, between two looks. Each is over when the server has closed
    // it as well.
    let connect = format!(
        "import socket, time\n\
         def ask():\n    s = socket.create_connection(('127.0.0.1', {})); s.recv(9); return s\n\
         def end(s):\n    s.shutdown(socket.SHUT_WR); s.recv(1); s.close()\n\
         a = [ask() for _ in range(2)]; time.sleep(0.5)\n\
         for s in a: end(s)\n\
         end(ask())",
        address.port()
    );
    agent.run(&["--name", "tool"], &["python3", "-c", &connect]);
    sandbox.wait_for_runs(1, "state = 'finished'");
    wait_until("its use is recorded", || {
        sandbox.sql::<i64>("SELECT count(*) FROM run_license WHERE license = 'cad' AND used_peak = 2") == 1
    });
    if sandbox.sql::<i64>("SELECT count(*) FROM run_peer") > 0 {
        let of_pool = |what: &str| sandbox.sql::<i64>(&format!("SELECT {what} FROM run_license"));
        assert!(of_pool("first_used_at_ms") >= before_ms - 1000);
        let waited_ms = of_pool("waited_ms");
        assert!(waited_ms >= 3 * 300, "three waited for their answers: {waited_ms} ms");
        // The first was open while the second waited, and both for the pause.
        let held_ms = of_pool("held_ms");
        assert!(held_ms >= waited_ms + 300 + 2 * 500, "{held_ms} ms");
        let text = sandbox.sql::<String>("SELECT license || used FROM license_use WHERE run_id = 1");
        assert_eq!(text, "cad2");
    }
    // The next one takes what it will use, without being asked.
    agent.run(&["--name", "tool"], &["true"]);
    sandbox.wait_for_runs(2, "state = 'finished'");
    assert_eq!(sandbox.sql::<i64>("SELECT taken FROM run_license WHERE run_id = 2"), 2);
    agent.run(&["--name", "tool", "--license", "cad=0"], &["true"]);
    sandbox.wait_for_runs(3, "state = 'finished'");
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM run_license WHERE run_id = 3"), 0);
    // Three runs, of which one used two.
    let output = agent.standin(["predict", "tool", "--json"]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!([{"license": "cad", "expected": 0, "upper": 2, "samples": 3}]);
    assert_eq!(told["licenses"], expected, "{told:#}");
    let output = agent.standin(["explain", "tool"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("licences of cad: 0 expected, at most 2"), "{told}");
}
