//! The probes against the kernel's own accounts: small workloads run in a cgroup of their own, and what the
//! probes counted must equal what `wait4`, `cpu.stat` and the workload itself say.
//!
//! Each workload is this very file's test [`workload`], executed in a child that is born in the cgroup
//! (`CLONE_INTO_CGROUP`), so that not even its first instruction goes uncounted. Needs root, cgroup v2 and a
//! kernel that allows BPF; where one is missing the tests say "skipped" and pass.
#![expect(clippy::unwrap_used, reason = "a test says where it fails by panicking there")]
#[path = "support/skip.rs"]
mod skip;

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use ebpf_probes::demand::{SCALE_WINDOWS, Scale, WINDOW_NS};
use standin::probe::{Losses, Measure, Options, ProbeError, Probes, ProcessExit, Reading, Slot};

const WORKLOAD: &str = "STANDIN_TEST_WORKLOAD";
const PAGE: usize = 4096;
/// Of `include/uapi/linux/sched.h`; the libc crate has it as a `c_int`, in which it is 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const LOOK: Duration = Duration::from_micros(200);

// --- the workloads, run in the child ---------------------------------------------------------------------

/// Not a test unless the environment names a workload: then this process is the child.
#[test]
fn workload() {
    let Ok(name) = env::var(WORKLOAD) else { return };
    match name.as_str() {
        "spin" => spin(Duration::from_millis(300)),
        "spin in threads" => spin_in_threads(),
        "spin now and then" => spin_now_and_then(),
        "touch memory" => touch_memory(64 << 20),
        "start programs" => start_programs(PROGRAMS_STARTED),
        "read and write a file" => read_and_write_a_file(),
        "send over loopback" => send_over_loopback(),
        "exit with 7" => std::process::exit(7),
        "exit from a thread" => exit_from_a_thread(),
        "die by SIGTERM" => die_by(libc::SIGTERM),
        "die by SIGKILL in threads" => {
            thread::spawn(|| spin(Duration::from_secs(60)));
            die_by(libc::SIGKILL);
        }
        "last thread ends alone" => last_thread_ends_alone(),
        other => panic!("no workload {other}"),
    }
    std::process::exit(0);
}

/// Programs that one workload starts.
const PROGRAMS_STARTED: u64 = 20;
/// Bytes per transfer of the file workload, and how many there are each way.
const BLOCK_BYTES: usize = 64 * 1024;
const BLOCKS: usize = 64;
/// Bytes over each TCP connection.
const STREAM_BYTES: usize = 3_000_000;
/// Datagrams over each UDP socket, and their length.
const DATAGRAMS: usize = 200;
const DATAGRAM_BYTES: usize = 1000;

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn spin(cpu: Duration) {
    let end = thread_cpu() + cpu;
    while thread_cpu() < end {
        std::hint::black_box((0..10_000).sum::<u64>());
    }
}

fn spin_in_threads() {
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(|| spin(Duration::from_millis(60)))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Bursts of 30 ms of CPU, apart by more than a window of 100 ms.
fn spin_now_and_then() {
    for _ in 0..5 {
        spin(Duration::from_millis(30));
        thread::sleep(Duration::from_millis(120));
    }
}

fn touch_memory(bytes: usize) {
    // SAFETY: a new private mapping, then writes inside it; huge pages would hide most faults.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0).cast::<u8>();
        libc::madvise(start.cast(), bytes, libc::MADV_NOHUGEPAGE);
        for page in 0..bytes / PAGE {
            start.add(page * PAGE).write_volatile(1);
        }
    }
}

fn start_programs(count: u64) {
    for _ in 0..count {
        assert!(Command::new("/bin/true").env_remove(WORKLOAD).status().unwrap().success());
    }
}

/// A buffer whose start fits `O_DIRECT`.
fn aligned(buffer: &mut Vec<u8>) -> &mut [u8] {
    buffer.resize(BLOCK_BYTES + PAGE, 7);
    let start = buffer.as_ptr().align_offset(PAGE);
    &mut buffer[start..start + BLOCK_BYTES]
}

fn read_and_write_a_file() {
    let path = file_of_workload();
    let mut buffer = Vec::new();
    let block = aligned(&mut buffer);
    let mut options = File::options();
    let file = options.write(true).custom_flags(libc::O_DIRECT).open(&path);
    let mut file = file.unwrap();
    for _ in 0..BLOCKS {
        file.write_all(block).unwrap();
    }
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    for _ in 0..BLOCKS {
        file.read_exact(block).unwrap();
    }
}

fn file_of_workload() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-agreement.bin")
}

fn send_over_loopback() {
    for address in loopbacks() {
        send_stream(address);
        send_datagrams(address);
    }
}

/// Loopback addresses of this host, any port.
fn loopbacks() -> Vec<SocketAddr> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let has_v6 = UdpSocket::bind(v6).is_ok();
    if has_v6 { vec![v4, v6] } else { vec![v4] }
}

fn send_stream(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let sender = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&vec![1; STREAM_BYTES]).unwrap();
    });
    let (mut stream, _) = listener.accept().unwrap();
    // Looking at data is not receiving it.
    stream.peek(&mut [0; 1000]).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), STREAM_BYTES);
    sender.join().unwrap();
}

fn send_datagrams(address: SocketAddr) {
    let (receiver, sender) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    let address = receiver.local_addr().unwrap();
    let mut buffer = [0; 2 * DATAGRAM_BYTES];
    for _ in 0..DATAGRAMS {
        assert_eq!(sender.send_to(&[2; DATAGRAM_BYTES], address).unwrap(), DATAGRAM_BYTES);
        assert_eq!(receiver.recv(&mut buffer).unwrap(), DATAGRAM_BYTES);
    }
}

fn exit_from_a_thread() -> ! {
    thread::spawn(|| spin(Duration::from_secs(60)));
    thread::spawn(|| std::process::exit(9)).join().unwrap();
    unreachable!("the other thread ends the process");
}

fn die_by(signal: i32) -> ! {
    // SAFETY: ends this process.
    unsafe { libc::kill(libc::getpid(), signal) };
    loop {
        thread::sleep(PATIENCE);
    }
}

/// A process whose main thread ends by itself (as by `pthread_exit`), then another one, with a status of its
/// own. Ends with the status of that process.
fn last_thread_ends_alone() -> ! {
    // SAFETY: SYS_exit ends a single thread; the child of a process with threads has just the one.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(50));
                libc::syscall(libc::SYS_exit, 5)
            });
            libc::syscall(libc::SYS_exit, 3);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        libc::_exit(libc::WEXITSTATUS(status));
    }
}

// --- the stage: a cgroup, a child in it, and what everybody says of the child ------------------------------

/// A cgroup of the v2 hierarchy that goes away with its value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(parent: &Path) -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("standin-test-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }

    /// CPU time of all that ever ran in it, as the kernel has it.
    fn cpu_usage(&self) -> Duration {
        let text = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
        Duration::from_micros(usage.parse().unwrap())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let end = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn v2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut line| {
        let path = line.nth(1)?;
        (line.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

struct Stage {
    probes: Probes,
    cgroup: Cgroup,
    slot: Slot,
}

impl Stage {
    /// `None`, with the reason counted, where the host does not allow for it.
    fn set() -> Option<Self> {
        let skipped = |why: &str| {
            skip::skip(why);
            None::<Self>
        };
        let Some(mount) = v2_mount() else {
            return skipped("no cgroup v2 mount");
        };
        let cgroup = match Cgroup::new(&mount) {
            Ok(cgroup) => cgroup,
            Err(error) => return skipped(&format!("no cgroup of our own: {error}")),
        };
        let mut probes = match Probes::load(&Options { tasks_max: 8, run_level: 1 }) {
            Ok(probes) => probes,
            Err(error) => return skipped(&error.to_string()),
        };
        let slot = probes.track(cgroup.id()).unwrap();
        Some(Self { probes, cgroup, slot })
    }

    /// Runs a workload in the stage's cgroup.
    fn run_within(&mut self, workload: &str) -> Account {
        self.run_within_and(workload, |_| ())
    }

    /// The same, and does something again and again until the workload ends.
    fn run_within_and(&mut self, workload: &str, meanwhile: impl Fn(&Probes)) -> Account {
        // Not to be dropped: the stage removes its directory itself.
        let within = std::mem::ManuallyDrop::new(Cgroup(self.cgroup.0.clone()));
        self.run_and(workload, &within, meanwhile)
    }

    /// Runs a workload in a cgroup and collects what is said about it.
    fn run(&mut self, workload: &str, within: &Cgroup) -> Account {
        self.run_and(workload, within, |_| ())
    }

    /// The same, and does something again and again until the workload ends.
    fn run_and(&mut self, workload: &str, within: &Cgroup, meanwhile: impl Fn(&Probes)) -> Account {
        let pid = born_in(within, workload);
        let (status, usage) = wait_and(pid, || meanwhile(&self.probes));
        let mut exits = Vec::new();
        let end = Instant::now() + PATIENCE;
        while !exits.iter().any(|exit: &ProcessExit| exit.pid == pid) || self.probes.is_on_cpu(self.slot) {
            assert!(
                Instant::now() < end,
                "the end of {workload} ({pid}) is not complete: {exits:?}, {:?}",
                self.probes.read(self.slot)
            );
            thread::sleep(Duration::from_millis(1));
            self.probes.drain_exits(|exit| exits.push(exit));
        }
        Account { pid, status, usage, exits, reading: self.probes.read(self.slot) }
    }
}

/// What is known of a workload that has ended.
struct Account {
    pid: u32,
    /// Of `wait4`.
    status: i32,
    usage: libc::rusage,
    /// Of the probes.
    exits: Vec<ProcessExit>,
    reading: Reading,
}

impl Account {
    fn usage_cpu(&self) -> Duration {
        let time = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
        };
        time(self.usage.ru_utime) + time(self.usage.ru_stime)
    }

    /// The event of the child itself.
    fn own_exit(&self) -> ProcessExit {
        *self.exits.iter().find(|exit| exit.pid == self.pid).unwrap()
    }
}

/// Runs the workload in a child of this process that starts its life in the cgroup.
fn born_in(cgroup: &Cgroup, workload: &str) -> u32 {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap();
    let program = text(env::current_exe().unwrap().as_os_str().as_bytes());
    let arguments = ["probe_agreement", "--exact", "workload", "--nocapture", "--test-threads=1"]
        .map(|a| text(a.as_bytes()));
    let variable = text(format!("{WORKLOAD}={workload}").as_bytes());
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let variables = [variable];
    let (argv, envp) = (pointers(&arguments), pointers(&variables));
    let directory = File::open(&cgroup.0).unwrap();
    // SAFETY: all zeroes is a valid clone_args.
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.flags = CLONE_INTO_CGROUP;
    clone.exit_signal = libc::SIGCHLD as u64;
    clone.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: as fork; the child only calls execve and _exit, with pointers made before.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw const clone, size_of_val(&clone));
        if pid == 0 {
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
        u32::try_from(pid).unwrap_or_else(|_| panic!("clone3: {}", std::io::Error::last_os_error()))
    }
}

/// What `wait4` says of a child.
fn wait(pid: u32) -> (i32, libc::rusage) {
    wait_and(pid, || ())
}

/// The same; does something again and again until the child ends.
fn wait_and(pid: u32, meanwhile: impl Fn()) -> (i32, libc::rusage) {
    let mut status = 0;
    loop {
        meanwhile();
        // SAFETY: all zeroes is a valid rusage; wait4 fills both.
        let (waited, usage) = unsafe {
            let mut usage = std::mem::zeroed();
            (libc::wait4(pid as i32, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
        };
        assert!(waited >= 0, "{}", std::io::Error::last_os_error());
        if waited == pid as i32 {
            return (status, usage);
        }
        thread::sleep(LOOK);
    }
}

/// Within 1 % or 2 ms, whichever is more.
#[track_caller]
fn assert_close(what: &str, counted: Duration, expected: Duration) {
    let allowed = (expected / 100).max(Duration::from_millis(2));
    let off = counted.abs_diff(expected);
    println!("{what}: counted {counted:?}, the kernel says {expected:?}, off by {off:?}");
    assert!(off <= allowed, "{what}: counted {counted:?}, the kernel says {expected:?}");
}

#[track_caller]
fn assert_agrees_with_rusage(account: &Account) {
    let counters = &account.reading.counters;
    assert_close("CPU", Duration::from_nanos(counters.on_cpu_ns), account.usage_cpu());
    assert_eq!(counters.switches_unseen, 0);
    assert_eq!(counters.faults_minor, account.usage.ru_minflt as u64, "minor faults");
    assert_eq!(counters.faults_major, account.usage.ru_majflt as u64, "major faults");
    let switches = counters.switches_voluntary + counters.switches_forced;
    assert_eq!(counters.burst_ns.iter().sum::<u64>(), switches, "each burst ends with a switch");
}

// --- the tests ---------------------------------------------------------------------------------------------

/// Runs one workload in the tracked cgroup itself.
fn account_of(workload: &str) -> Option<(Stage, Account)> {
    account_and(workload, |_| ())
}

/// The same, and does something again and again meanwhile.
fn account_and(workload: &str, meanwhile: impl Fn(&Probes)) -> Option<(Stage, Account)> {
    let mut stage = Stage::set()?;
    let account = stage.run_within_and(workload, meanwhile);
    Some((stage, account))
}

#[test]
fn cpu_time_equals_rusage_and_cpu_stat() {
    let Some((stage, account)) = account_of("spin") else {
        return;
    };
    assert_agrees_with_rusage(&account);
    let counted = Duration::from_nanos(account.reading.counters.on_cpu_ns);
    assert_close("cpu.stat", counted, stage.cgroup.cpu_usage());
}

#[test]
fn cpu_time_of_threads_equals_rusage() {
    let Some((stage, account)) = account_of("spin in threads") else {
        return;
    };
    assert_agrees_with_rusage(&account);
    let shared = account.reading.shared;
    assert!(shared.tasks_peak >= 5, "a main thread and four others: {shared:?}");
    assert_eq!((shared.tasks, shared.ending), (0, 0));
    if stage.probes.has(Measure::CpuWait) {
        let counters = account.reading.counters;
        let waits: u64 = counters.wait_ns_histogram.iter().sum();
        assert_eq!(waits, counters.burst_ns.iter().sum::<u64>(), "one wait before each burst");
    }
}

#[test]
fn a_switch_that_was_not_shown_loses_nothing() {
    for workload in ["spin in threads", "touch memory", "start programs"] {
        let Some((stage, account)) = account_and(workload, Probes::forget_running) else {
            return;
        };
        assert_agrees_with_rusage(&account);
        assert_in_windows(workload, &stage, &account);
        if stage.probes.has(Measure::CpuWait) {
            let counters = account.reading.counters;
            let waits: u64 = counters.wait_ns_histogram.iter().sum();
            assert_eq!(
                waits,
                counters.burst_ns.iter().sum::<u64>(),
                "{workload}: one wait before each burst"
            );
        }
    }
}

/// What a CPU holds back below a microsecond.
const HELD_BACK_NS: u64 = 1000;

#[test]
fn windows_of_demand_add_up_to_the_cpu_time() {
    for workload in ["spin", "spin in threads", "spin now and then"] {
        let Some((stage, account)) = account_of(workload) else { return };
        if !stage.probes.has(Measure::CpuWait) {
            return skip::skip("no sched_info: no windows");
        }
        assert_in_windows(workload, &stage, &account);
    }
}

/// All CPU time is in windows, at each scale, if there are any.
#[track_caller]
fn assert_in_windows(workload: &str, stage: &Stage, account: &Account) {
    let counted = account.reading.counters.on_cpu_ns;
    let cpus = standin::host::cpus() as u64;
    let Some(scales) = stage.probes.has(Measure::CpuWait).then(|| stage.probes.demand(stage.slot)) else {
        return;
    };
    for (scale, windows) in scales.iter().zip(SCALE_WINDOWS) {
        let length_us = windows * WINDOW_NS / 1000;
        println!("{workload}, {length_us} us: {} busy, peak {} us", scale.busy, scale.peak_us);
        let off = counted.abs_diff(scale.cpu_us * 1000);
        assert!(off <= cpus * HELD_BACK_NS, "{workload}: {off} ns of {counted} are in no window");
        assert_eq!(scale.counts.iter().sum::<u64>(), scale.busy);
        assert_eq!(scale.late, 0);
        assert!(scale.peak_us * scale.busy >= scale.cpu_us);
        // The clocks of two CPUs may differ a little.
        assert!(scale.peak_us <= cpus * length_us + length_us / 10, "{scale:?}");
    }
    let squares = |scale: &Scale| scale.squares as f64 / 1e6;
    assert!(squares(&scales[0]) <= scales[0].busy as f64 * (scales[0].peak_us as f64 / 1e4).powi(2) + 1.0);
}

#[test]
fn faults_and_peak_memory_equal_rusage() {
    let Some((_stage, account)) = account_of("touch memory") else {
        return;
    };
    assert_agrees_with_rusage(&account);
    assert!(account.reading.counters.faults_minor >= (64 << 20) / PAGE as u64);
    let peak_kib = account.reading.shared.process_rss_peak_pages * PAGE as u64 / 1024;
    assert_eq!(peak_kib, account.usage.ru_maxrss as u64);
    assert_eq!(account.own_exit().rss_peak_pages, account.reading.shared.process_rss_peak_pages);
}

#[test]
fn programs_started_are_counted() {
    let Some((stage, account)) = account_of("start programs") else {
        return;
    };
    assert_agrees_with_rusage(&account);
    let counters = account.reading.counters;
    // The child itself comes on top, and the thread in which it runs the workload.
    assert_eq!(counters.execs, PROGRAMS_STARTED + 1);
    assert_eq!(counters.forks, PROGRAMS_STARTED + 2);
    assert_eq!(counters.exits, PROGRAMS_STARTED + 2);
    assert_eq!(account.exits.len() as u64, PROGRAMS_STARTED + 1);
    assert!(account.exits.iter().all(|exit| exit.cgroup == stage.cgroup.id() && exit.status == 0));
    assert_eq!(account.reading.shared.tasks, 0);
    assert_eq!(account.reading.shared.tasks_peak, 3);
    assert_eq!(stage.probes.losses(), Losses::default());
}

#[test]
fn block_bytes_are_exact() {
    let path = file_of_workload();
    // Written before, so that the workload finds blocks and changes no metadata.
    fs::write(&path, vec![0; BLOCKS * BLOCK_BYTES]).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    let found = direct.map_err(|error| error.to_string()).map(|_| account_of("read and write a file"));
    fs::remove_file(&path).unwrap();
    let account = match found {
        Ok(Some((_stage, account))) => account,
        Ok(None) => return,
        Err(error) => return skip::skip(&format!("no O_DIRECT in {}: {error}", path.display())),
    };
    let counters = account.reading.counters;
    let expected = (BLOCKS * BLOCK_BYTES) as u64;
    assert_eq!(account.status, 0);
    assert_eq!(counters.block_write_bytes, expected);
    // What the workload prints may go to a file as well, a page or so.
    assert!((expected..expected + (64 << 10)).contains(&counters.storage_write_bytes));
    // Pages of the program itself may come on top; the kernel counts these as well.
    assert!(counters.block_read_bytes >= expected);
    assert_eq!(counters.block_read_bytes, counters.storage_read_bytes);
    // The kernel does not show the end of every request: then it has no latency.
    for (latencies, requests) in [
        (counters.block_read_ns, counters.block_read_ops),
        (counters.block_write_ns, counters.block_write_ops),
    ] {
        let counted: u64 = latencies.iter().sum();
        assert!(counted <= requests && counted + 4 >= requests, "{counted} latencies of {requests} requests");
    }
    assert!(counters.block_write_ops >= BLOCKS as u64 / 2, "{} writes", counters.block_write_ops);
}

#[test]
fn network_payload_and_connections_are_exact() {
    let Some((stage, account)) = account_of("send over loopback") else {
        return;
    };
    assert_eq!(account.status, 0);
    let counters = account.reading.counters;
    let families = loopbacks().len() as u64;
    if stage.probes.has(Measure::SocketBytes) {
        let (stream, datagrams) = (STREAM_BYTES as u64, (DATAGRAMS * DATAGRAM_BYTES) as u64);
        assert_eq!(counters.tcp_sent_bytes, families * stream);
        assert_eq!(counters.tcp_received_bytes, families * stream);
        assert_eq!(counters.udp_sent_bytes, families * datagrams);
        assert_eq!(counters.udp_received_bytes, families * datagrams);
    }
    assert_eq!(counters.tcp_connects, families);
    assert_eq!(counters.tcp_accepts, families);
}

#[test]
fn exit_status_equals_that_of_wait() {
    let ways = [
        "exit with 7",
        "exit from a thread",
        "die by SIGTERM",
        "die by SIGKILL in threads",
        "last thread ends alone",
    ];
    for way in ways {
        let Some((_stage, account)) = account_of(way) else {
            return;
        };
        println!("{way}: status {:#x}", account.status);
        let processes = if way == "last thread ends alone" { 2 } else { 1 };
        assert_eq!(account.exits.len(), processes, "{way}: one event per process");
        for exit in &account.exits {
            assert_eq!(exit.status, account.status, "{way}");
        }
        assert_eq!(account.reading.shared.tasks, 0, "{way}");
    }
}

#[test]
fn a_task_in_a_descendant_is_charged_to_the_tracked_cgroup() {
    let Some(mut stage) = Stage::set() else { return };
    let child = Cgroup::new(&stage.cgroup.0).unwrap();
    let grandchild = Cgroup::new(&child.0).unwrap();
    let account = stage.run("start programs", &grandchild);
    assert_agrees_with_rusage(&account);
    assert_eq!(account.reading.counters.execs, PROGRAMS_STARTED + 1);
    assert!(account.exits.iter().all(|exit| exit.cgroup == stage.cgroup.id()));

    // One that is tracked itself counts for itself.
    let own = stage.probes.track(child.id()).unwrap();
    let before = stage.probes.read(stage.slot);
    let (tracked, slot) = (stage.slot, own);
    stage.slot = slot;
    let account = stage.run("spin", &child);
    assert_agrees_with_rusage(&account);
    assert_eq!(stage.probes.read(tracked), before);
    drop(grandchild);
}

#[test]
fn a_task_that_was_moved_in_is_counted_from_then_on() {
    let Some(mut stage) = Stage::set() else { return };
    let elsewhere = Cgroup::new(stage.cgroup.0.parent().unwrap()).unwrap();
    let pid = born_in(&elsewhere, "spin");
    // The test harness in the child has the workload run in a second thread.
    let tasks = 2;
    let started = || fs::read_to_string(elsewhere.0.join("cgroup.threads")).unwrap().lines().count() as i64;
    let end = Instant::now() + PATIENCE;
    while started() < tasks {
        assert!(Instant::now() < end, "the workload does not start");
        thread::sleep(Duration::from_millis(1));
    }
    stage.probes.set_tasks(stage.slot, tasks);
    fs::write(stage.cgroup.0.join("cgroup.procs"), pid.to_string()).unwrap();
    let (status, _) = wait(pid);
    assert_eq!(status, 0);
    let end = Instant::now() + PATIENCE;
    while stage.probes.is_on_cpu(stage.slot) {
        assert!(Instant::now() < end, "still on a CPU: {:?}", stage.probes.read(stage.slot));
        thread::yield_now();
    }
    let reading = stage.probes.read(stage.slot);
    assert_eq!((reading.shared.tasks, reading.shared.tasks_peak), (0, tasks));
    let counted = Duration::from_nanos(reading.counters.on_cpu_ns);
    let (here, before) = (stage.cgroup.cpu_usage(), elsewhere.cpu_usage());
    println!("counted {counted:?}; kernel: {before:?} before it was moved, {here:?} after");
    // The stretch on the CPU in which it is moved counts as a whole for where it ends.
    assert!(counted + Duration::from_millis(2) >= here && counted <= here + before);
}

#[test]
fn slots_are_bounded_and_come_back_empty() {
    let Some(mut stage) = Stage::set() else { return };
    let spun = stage.run_within("spin");
    assert!(spun.reading.counters.on_cpu_ns > 0);
    let id = stage.cgroup.id();
    assert!(matches!(stage.probes.track(id), Err(ProbeError::AlreadyTracked(same)) if same == id));
    let others: Vec<Slot> = (1..8).map(|number| stage.probes.track(u64::MAX - number).unwrap()).collect();
    assert!(matches!(stage.probes.track(5), Err(ProbeError::Full { max: 8 })));
    others.into_iter().for_each(|slot| stage.probes.untrack(slot));
    stage.probes.untrack(stage.slot);
    for _ in 0..8 {
        let slot = stage.probes.track(id).unwrap();
        assert_eq!(stage.probes.read(slot), Reading::default());
        stage.probes.untrack(slot);
    }
}

#[test]
fn where_the_main_process_is_named_only_its_end_is_told() {
    let Some(mut stage) = Stage::set() else { return };
    stage.probes.set_main(stage.slot, std::process::id());
    let pid = born_in(&stage.cgroup, "start programs");
    wait(pid);
    let mut told = Vec::new();
    stage.probes.drain_exits(|exit| told.push(exit.pid));
    assert!(told.is_empty(), "{told:?} are not it");
    assert!(stage.probes.read(stage.slot).counters.exits > PROGRAMS_STARTED);
}

#[test]
fn two_instances_count_the_same() {
    let Some(mut stage) = Stage::set() else { return };
    let mut other = Probes::load(&Options { tasks_max: 2, run_level: 1 }).unwrap();
    let slot = other.track(stage.cgroup.id()).unwrap();
    let account = stage.run_within("start programs");
    let (ours, theirs) = (account.reading.counters, other.read(slot).counters);
    assert_eq!(
        (ours.execs, ours.exits, ours.faults_minor),
        (theirs.execs, theirs.exits, theirs.faults_minor)
    );
    assert_eq!(ours.on_cpu_ns, theirs.on_cpu_ns);
}
