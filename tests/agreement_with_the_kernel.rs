//! What standin tells of a run is what the kernel and the tools tell of it themselves.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::process::{Command, Stdio};
use support::{Sandbox, has, is_root, number};

fn rusage(result: &Value, field: &str) -> f64 {
    result["rusage"][field].as_f64().unwrap_or_else(|| panic!("no {field} in {result:#}"))
}

/// Within a hundredth of the kernel's number, or the few milliseconds that are the price of starting.
fn assert_cpu_agrees(result: &Value) {
    let measured = number(result, "cpu_ns") / 1e9;
    let kernel = rusage(result, "user_s") + rusage(result, "system_s");
    let difference = (measured - kernel).abs();
    assert!(difference <= (kernel * 0.01).max(0.004), "measured {measured} s, rusage {kernel} s");
}

#[test]
fn cpu_time_of_a_busy_loop() {
    require!(is_root(), "needs root");
    let spin = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done";
    assert_cpu_agrees(&Sandbox::new().run_json(&[], &["sh", "-c", spin]));
}

#[test]
fn cpu_time_of_many_processes_and_threads() {
    require!(is_root(), "needs root");
    let forks = "for i in $(seq 300); do /bin/true; done";
    assert_cpu_agrees(&Sandbox::new().run_json(&[], &["sh", "-c", forks]));
    require!(has("xz"), "xz is not installed");
    let threads = "head -c 30000000 /dev/urandom | xz -0 -T2 | wc -c";
    assert_cpu_agrees(&Sandbox::new().run_json(&[], &["sh", "-c", threads]));
}

#[test]
fn bursts_add_up_to_the_switches() {
    require!(is_root(), "needs root");
    let result = Sandbox::new().run_json(&[], &["sh", "-c", "for i in 1 2 3 4 5; do sleep 0.01; done"]);
    let bursts: u64 =
        serde_json::from_value::<Vec<u64>>(result["measured"]["fingerprint"]["cpu_burst_ns"].clone())
            .unwrap()
            .iter()
            .sum();
    let switches = number(&result, "switches_voluntary") + number(&result, "switches_forced");
    assert_eq!(bursts as f64, switches);
    assert!(switches >= 10.0, "{switches}");
}

#[test]
fn page_faults() {
    require!(is_root(), "needs root");
    for script in [
        "for i in 1 2 3; do /bin/ls / >/dev/null; done",
        "head -c 50000000 /dev/zero | tail -c 40000000 | wc -c",
    ] {
        let result = Sandbox::new().run_json(&[], &["sh", "-c", script]);
        assert_eq!(number(&result, "faults_minor"), rusage(&result, "faults_minor"), "{script}");
        assert_eq!(number(&result, "faults_major"), rusage(&result, "faults_major"), "{script}");
    }
}

#[test]
fn peak_memory_of_one_process() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let result = Sandbox::new().run_json(&[], &["python3", "-c", "b = bytearray(200 << 20)"]);
    assert_eq!(number(&result, "process_rss_peak_bytes"), rusage(&result, "rss_peak_bytes"));
    let peak = number(&result, "memory_peak_bytes") / f64::from(1 << 20);
    assert!((200.0..240.0).contains(&peak), "{peak} MiB");
}

#[test]
fn memory_of_processes_together() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let hold = "python3 -c 'import time; b = bytearray(100 << 20); time.sleep(1)'";
    let result = Sandbox::new().run_json(&[], &["sh", "-c", &format!("{hold} & {hold} & wait")]);
    let peak = number(&result, "memory_peak_bytes") / f64::from(1 << 20);
    assert!((200.0..260.0).contains(&peak), "{peak} MiB");
}

/// Bytes of one transfer.
const TRANSFER: f64 = (16 << 20) as f64;

/// Runs until `bytes` are exact: the program's own pages may have to be read in again and a time stamp of the file be
/// written, which count as well. Every attempt must be close.
fn exact(bytes: &str, run: impl Fn() -> Value) -> Option<Value> {
    (0..5).map(|_| run()).find(|result| {
        let page_ins = if number(result, "faults_major") > 0.0 { 0.1 } else { 0.0 };
        let off = (number(result, bytes) - TRANSFER).abs() / TRANSFER;
        assert!(off <= 0.005 + page_ins, "{bytes}: {} in {result:#}", number(result, bytes));
        off == 0.0
    })
}

#[test]
fn direct_io_of_fio_to_the_byte() {
    require!(is_root(), "needs root");
    require!(has("fio"), "fio is not installed");
    let sandbox = Sandbox::new();
    // Beside the checkout's build: temporary directories are often not on a disk.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = disk.path().join("data");
    let filename = format!("--filename={}", data.display());
    for (direction, bytes, ops) in
        [("write", "block_write_bytes", "block_write_ops"), ("read", "block_read_bytes", "block_read_ops")]
    {
        for block in ["4k", "256k"] {
            let rw = format!("--rw={direction}");
            let size = format!("--bs={block}");
            let options = [
                "--name=t",
                &filename,
                "--size=16M",
                "--direct=1",
                "--ioengine=psync",
                "--thread",
                &rw,
                &size,
            ];
            let mut command = vec!["fio"];
            command.extend(options);
            // Once to lay the file out and to have the program in memory.
            assert!(Command::new("fio").args(options).stdout(Stdio::null()).status().unwrap().success());
            let result = exact(bytes, || sandbox.run_json(&["--name", "fio"], &command));
            let result = result.unwrap_or_else(|| panic!("{direction} {block}: never exact"));
            let latencies = &result["measured"]["fingerprint"][format!("block_{direction}_ns")];
            let counted: u64 = serde_json::from_value::<Vec<u64>>(latencies.clone()).unwrap().iter().sum();
            // The kernel does not show the end of every request: then it has no latency.
            let requests = number(&result, ops);
            let told = format!("{direction} {block}: {counted} latencies of {requests} requests");
            assert!(
                counted as f64 <= requests && counted as f64 >= requests - (requests / 100.0).max(8.0),
                "{told}"
            );
        }
    }
}

#[test]
fn transfer_of_iperf3_within_a_hundredth() {
    require!(is_root(), "needs root");
    require!(has("iperf3"), "iperf3 is not installed");
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server =
        Command::new("iperf3").args(["-s", "-1", "-p", &port]).stdout(Stdio::null()).spawn().unwrap();
    // A look at the port would use up its one connection.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let result = sandbox.run_json(&[], &["iperf3", "-c", "127.0.0.1", "-n", "64M", "-p", &port]);
    server.wait().unwrap();
    let (sent, expected) = (number(&result, "tcp_sent_bytes"), f64::from(64 << 20));
    assert!((sent - expected).abs() <= expected * 0.01, "{sent} of {expected}");
    assert_eq!(number(&result, "tcp_connects"), 2.0, "control and data");
}

#[test]
fn download_of_curl_within_a_hundredth() {
    require!(is_root(), "needs root");
    require!(has("curl") && has("python3"), "curl or python3 is not installed");
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("big"), vec![7; 20 << 20]).unwrap();
    let port = free_port();
    let mut server = Command::new("python3")
        .args(["-m", "http.server", &port, "--bind", "127.0.0.1", "--directory"])
        .arg(sandbox.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    support::wait_until("the server listens", || {
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()
    });
    let url = format!("http://127.0.0.1:{port}/big");
    let result = sandbox.run_json(&[], &["curl", "-s", "-o", "/dev/null", &url]);
    server.kill().unwrap();
    server.wait().unwrap();
    let (received, expected) = (number(&result, "tcp_received_bytes"), f64::from(20 << 20));
    assert!((received - expected).abs() <= expected * 0.01, "{received} of {expected}");
    assert_eq!(number(&result, "tcp_connects"), 1.0);
}

#[test]
fn without_privileges_the_kernels_accounts_serve() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    let home = sandbox.path("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(support::NOBODY), Some(support::NOBODY)).unwrap();
    let result = home.join("result.json");
    let mut command = sandbox.standin(["run", "--no-agent", "--json"]);
    support::as_nobody(&mut command).env_remove("STANDIN_DB").env("XDG_DATA_HOME", &home);
    let spin = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let output = command.arg(&result).args(["--", "sh", "-c", spin]).output().unwrap();
    assert!(output.status.success(), "{}", support::stderr(&output));
    assert!(support::stderr(&output).contains("not root"), "{}", support::stderr(&output));
    let result = support::read_json(&result);
    assert_cpu_agrees(&result);
    assert!(
        result["measured"]["fingerprint"]["block_read_bytes"].is_null(),
        "what is not measured is not zero"
    );
    assert!(home.join("standin/standin.db").exists());
}

#[test]
fn without_probes_cgroup_and_rusage_serve() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::with_config("probes = false\n");
    let result = sandbox.run_json(&[], &["python3", "-c", "b = bytearray(100 << 20)"]);
    assert_cpu_agrees(&result);
    assert_eq!(number(&result, "faults_minor"), rusage(&result, "faults_minor"));
    assert!(number(&result, "memory_peak_bytes") >= f64::from(100 << 20));
    assert!(result["measured"]["fingerprint"]["cpu_burst_ns"].is_null(), "what is not measured is not zero");
    let coverage = result["measured"]["coverage"].to_string();
    assert!(coverage.contains("agent.probes") && coverage.contains("rusage"), "{coverage}");
}

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}
