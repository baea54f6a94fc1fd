//! The rows of `node-agent/docs/agreement.md`: what programs that measure themselves say of their I/O, traffic and
//! answers, against what the probes counted of them.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use support::{Job, Sandbox, has, is_root, number, read_json, wait_until};

/// A folder on a real disk: the sandbox may be in memory.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[track_caller]
fn assert_within(what: &str, counted: f64, told: f64, share: f64) {
    println!("{what}: counted {counted}, told {told}");
    assert!((counted - told).abs() <= told * share, "{what}: counted {counted}, told {told}");
}

/// Runs fio under standin: the result, and fio's own report of its job.
fn fio(sandbox: &Sandbox, disk: &Disk, options: &[&str]) -> (Value, Value) {
    let (file, report) = (disk.path("file"), disk.path("report"));
    let filename = format!("--filename={}", file.display());
    let output = format!("--output={}", report.display());
    let mut command = vec!["fio", "--name=x", &filename, "--output-format=json", &output, "--randrepeat=0"];
    command.extend(options);
    let result = sandbox.run_json(&[], &command);
    (result, read_json(&report)["jobs"][0].clone())
}

/// What fio's own program and libraries may add where they are not in memory.
const PROGRAM_BYTES: f64 = 32.0 * 1024.0 * 1024.0;
const PROGRAM_READS: f64 = 1000.0;

/// A file whose blocks are on the disk, so that reading it reads, and writing it changes no metadata.
fn lay_out(disk: &Disk, mib: usize) {
    fs::write(disk.path("file"), vec![7; mib << 20]).unwrap();
    File::open(disk.path("file")).unwrap().sync_all().unwrap();
}

fn has_disk_probes(result: &Value) -> bool {
    !result["measured"]["fingerprint"]["block_read_bytes"].is_null()
}

#[test]
fn direct_io_of_fio() {
    require!(is_root(), "needs root");
    require!(has("fio"), "fio is not installed");
    let (sandbox, disk) = (Sandbox::new(), Disk::new());
    lay_out(&disk, 16);
    for (kind, size) in [("read", "4k"), ("randread", "4k"), ("write", "4k"), ("read", "1M"), ("write", "1M")]
    {
        let (rw, bs) = (format!("--rw={kind}"), format!("--bs={size}"));
        let (result, told) =
            fio(&sandbox, &disk, &["--size=16M", "--direct=1", "--ioengine=psync", &rw, &bs]);
        require!(has_disk_probes(&result), "no block probes");
        let direction = if kind.contains("read") { "read" } else { "write" };
        let what = format!("{kind} {size} direct");
        let bytes = number(&result, &format!("block_{direction}_bytes"));
        let told_bytes = told[direction]["io_bytes"].as_f64().unwrap();
        println!("{what}: counted {bytes}, told {told_bytes}");
        assert!(bytes >= told_bytes * 0.99 && bytes <= told_bytes + PROGRAM_BYTES, "{what}: {bytes}");
        let requests = number(&result, &format!("block_{direction}_ops"));
        let told_requests = told[direction]["total_ios"].as_f64().unwrap();
        assert!(
            requests >= told_requests * 0.99 && requests <= told_requests + PROGRAM_READS,
            "{what}: {requests}"
        );
        let in_order = number(&result, &format!("block_{direction}_sequential")) / requests;
        println!("{what}: {:.0} % in order", in_order * 100.0);
        assert!(if kind.starts_with("rand") { in_order < 0.1 } else { in_order > 0.5 }, "{what}: {in_order}");
        assert!(number(&result, "block_sync_ops") >= told_requests * 0.99, "{what}");
    }
}

#[test]
fn buffered_io_of_fio() {
    require!(is_root(), "needs root");
    require!(has("fio"), "fio is not installed");
    let (sandbox, disk) = (Sandbox::new(), Disk::new());
    lay_out(&disk, 16);
    for size in ["4k", "1M"] {
        let bs = format!("--bs={size}");
        let (result, told) = fio(&sandbox, &disk, &["--size=16M", "--rw=read", "--invalidate=1", &bs]);
        require!(has_disk_probes(&result), "no block probes");
        // What the kernel reads ahead is counted as well, and so are pages of fio itself.
        let bytes = number(&result, "block_read_bytes");
        assert!(bytes >= told["read"]["io_bytes"].as_f64().unwrap(), "{bytes}");
        let (result, told) = fio(&sandbox, &disk, &["--size=16M", "--rw=write", "--end_fsync=1", &bs]);
        let what = format!("write {size} buffered, fsync");
        assert_within(
            &what,
            number(&result, "block_write_bytes"),
            told["write"]["io_bytes"].as_f64().unwrap(),
            0.02,
        );
    }
}

#[test]
fn what_the_kernel_writes_back_is_for_who_wrote() {
    require!(is_root(), "needs root");
    let (sandbox, disk) = (Sandbox::new(), Disk::new());
    let file = disk.path("dirty");
    let script = format!("dd if=/dev/zero of={} bs=1M count=24 2>/dev/null; sync", file.display());
    let result = sandbox.run_json(&[], &["sh", "-c", &script]);
    let sources = result["measured"]["coverage"].to_string();
    require!(sources.contains("writeback_dirty_folio") || has_disk_probes(&result), "no block probes");
    let bytes = f64::from(24 << 20);
    let written_back = number(&result, "block_writeback_bytes");
    assert_within("written back", written_back, bytes, 0.02);
    // What others have left is written by `sync` itself.
    assert!(number(&result, "block_write_bytes") >= written_back);
}

/// A process that is ended with its value.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn traffic_of_iperf3() {
    require!(is_root(), "needs root");
    require!(has("iperf3"), "iperf3 is not installed");
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let _server = Server::start(Command::new("iperf3").args(["-s", "-B", "127.0.0.1", "-p", &text]), port);
    let report = sandbox.path("iperf.json");
    let script =
        |options: &str| format!("iperf3 -c 127.0.0.1 -p {port} -n 20M -J {options} > {}", report.display());
    let result = sandbox.run_json(&[], &["sh", "-c", &script("")]);
    require!(!result["measured"]["fingerprint"]["tcp_sent_bytes"].is_null(), "no socket probes");
    let told = read_json(&report)["end"]["sum_sent"]["bytes"].as_f64().unwrap();
    assert_within("iperf3 TCP", number(&result, "tcp_sent_bytes"), told, 0.01);
    let peer = &result["measured"]["fingerprint"]["peers"][0];
    assert_eq!((peer["address"].as_str(), peer["port"].as_u64()), (Some("127.0.0.1"), Some(port.into())));
    assert_eq!(peer["connections"], 2, "control and data");

    let result = sandbox.run_json(&[], &["sh", "-c", &script("-u -b 400M")]);
    let told = read_json(&report)["end"]["sum"]["bytes"].as_f64().unwrap();
    assert_within("iperf3 UDP", number(&result, "udp_sent_bytes"), told, 0.01);
}

#[test]
fn answers_of_redis() {
    require!(is_root(), "needs root");
    require!(has("redis-server") && has("redis-benchmark") && has("redis-cli"), "redis is not installed");
    const REQUESTS: u64 = 2000;
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let json = sandbox.path("redis.json");
    let mut server =
        sandbox.standin(["run", "--no-agent", "--quiet", "--json", json.to_str().unwrap(), "--"]);
    let directory = sandbox.path("");
    server.args(["redis-server", "--port", &text, "--save", "", "--dir", directory.to_str().unwrap()]);
    let mut server = Job::start(server.stdout(Stdio::null()));
    wait_until("redis listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let requests = REQUESTS.to_string();
    let report = Command::new("redis-benchmark")
        .args(["-p", &text, "-c", "1", "-n", &requests, "-t", "get", "--csv"])
        .output()
        .unwrap();
    let report = String::from_utf8(report.stdout).unwrap();
    let quit = Command::new("redis-cli").args(["-p", &text, "shutdown", "nosave"]).output().unwrap();
    assert!(quit.status.success());
    server.exit_code();
    let result = read_json(&json);
    let service = &result["measured"]["fingerprint"]["tcp_service_ns"];
    require!(!service.is_null(), "no service probe");
    let counts: Vec<u64> = service.as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
    let answers: u64 = counts.iter().sum();
    // The benchmark asks for the configuration first, and the kernel does not show every arrival.
    println!("{answers} answers; {report}");
    assert!((REQUESTS - REQUESTS / 100..REQUESTS + 20).contains(&answers), "{answers}");
    let mut seen = 0;
    let median = counts.iter().position(|count| {
        seen += count;
        seen >= answers / 2
    });
    let median_ns = f64::from(2u32.pow(u32::try_from(median.unwrap()).unwrap()));
    // The client's includes both ways over loopback, and waking up.
    let line = report.lines().find(|line| line.starts_with("\"GET\"")).unwrap();
    let client_ms: f64 = line.split(',').nth(4).unwrap().trim_matches('"').parse().unwrap();
    assert!(median_ns < client_ms * 1e6, "server {median_ns} ns, client {client_ms} ms");
    assert!(median_ns > 1000.0, "{median_ns} ns is no answer of a program");
}

/// Walks over 32 MiB of memory of its own, page by page.
const WALK: &str = "
import mmap, random, sys
pages = 8192
m = mmap.mmap(-1, pages * 4096)
m.madvise(15)
order = list(range(pages))
if sys.argv[1] == 'strided':
    order = [(i * 37) % pages for i in range(pages)]
if sys.argv[1] == 'random':
    random.shuffle(order)
for page in order:
    m[page * 4096] = 1
";

#[test]
fn a_walk_through_memory() {
    require!(is_root(), "needs root");
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let pages = 8192.0;
    for way in ["sequential", "strided", "random"] {
        let result = sandbox.run_json(&[], &["python3", "-c", WALK, way]);
        require!(!result["measured"]["fingerprint"]["faults_random"].is_null(), "no page fault probe");
        let own = number(&result, &format!("faults_{way}"));
        let all: f64 = ["sequential", "strided", "random"]
            .iter()
            .map(|way| number(&result, &format!("faults_{way}")))
            .sum();
        println!("{way}: {own} of {all} faults");
        // Python itself makes some thousands, in order or anywhere.
        assert!(own >= pages * 0.97, "{way}: {own} of {pages}");
        assert!(all - own < 1.5 * pages, "{way}: {own} of {all}");
    }
}

#[test]
fn stress_ng_agrees_with_rusage() {
    require!(is_root(), "needs root");
    require!(has("stress-ng"), "stress-ng is not installed");
    let sandbox = Sandbox::new();
    let stressors: [&[&str]; 3] = [
        &["--cpu", "1", "--cpu-ops", "300"],
        &["--vm", "1", "--vm-bytes", "64M", "--vm-ops", "20000"],
        &["--fault", "1", "--fault-ops", "500"],
    ];
    for options in stressors {
        let mut command = vec!["stress-ng", "--quiet", "--temp-path", sandbox.dir.path().to_str().unwrap()];
        command.extend(options);
        let result = sandbox.run_json(&[], &command);
        let usage = |field: &str| result["rusage"][field].as_f64().unwrap();
        let cpu_s = usage("user_s") + usage("system_s");
        assert_within(&format!("{options:?} CPU"), number(&result, "cpu_ns") / 1e9, cpu_s, 0.02);
        let told = usage("faults_minor");
        assert_within(&format!("{options:?} faults"), number(&result, "faults_minor"), told, 0.01);
        let demand = &result["measured"]["fingerprint"]["cpu_demand"][0]["cpu_us"];
        assert_within(&format!("{options:?} windows"), demand.as_f64().unwrap() / 1e6, cpu_s, 0.02);
    }
}
