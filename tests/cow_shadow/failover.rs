//! Real servers: copied while they serve, killed, and taken over from.

use crate::support::{self, free_port, is_listening, wait_until};
use crate::{Cgroup, Client, Primary, Server, connect, copy, require, require_copies, wait_until_idle};
use nix::unistd::Pid;
use standin::shadow::cow::{CowError, Reason, fork_frozen};
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

/// Copies a server of each kind, with a connection open to it; kills it, and thaws the copy.
fn copy_takes_over(mode: &str) {
    let into = Cgroup::new();
    let mut server = Server::start(mode, 1);
    let primary = server.process.pid();
    let mut kept = server.connect();
    assert_eq!(kept.ask(), primary);
    let copy = copy(primary, &into).unwrap();
    assert_eq!(copy.repairs.connections, 1, "{mode}");
    assert_eq!(into.members().trim(), copy.pid.to_string());
    // The primary serves on: the old connection, and new ones where it takes more than one.
    assert_eq!(kept.ask(), primary, "{mode}");
    if mode != "accept" {
        assert_eq!(server.connect().ask(), primary, "{mode}");
    }
    server.process.kill();
    assert!(kept.is_closed(), "{mode}: the peer of a dead process is told, though a copy of it lives");
    let mut queued: Vec<Client> =
        (0..if mode == "accept" { 1 } else { 4 }).map(|_| server.connect()).collect();
    queued.iter_mut().for_each(|client| client.send("who"));
    into.thaw();
    for client in &mut queued {
        assert!(client.receive().starts_with(&format!("{} ", copy.pid)), "{mode}: queued");
    }
    assert_eq!(queued[0].ask(), copy.pid, "{mode}: kept connections work in the copy");
    drop(queued);
    assert_eq!(server.connect().ask(), copy.pid, "{mode}: new");
}

#[test]
fn c_servers_are_taken_over_from() {
    require_copies!();
    for mode in ["accept", "poll", "select", "epoll", "edge"] {
        copy_takes_over(mode);
    }
}

#[test]
fn primary_and_copy_can_serve_side_by_side() {
    require_copies!();
    let into = Cgroup::new();
    let server = Server::start("epoll", 1);
    let mut kept = server.connect();
    let primary = kept.ask();
    let copy = copy(primary, &into).unwrap();
    assert_eq!(copy.repairs.objects, 3, "an epoll instance, a counter and a timer");
    into.thaw();
    let mut answered_by = std::collections::BTreeSet::new();
    wait_until("both have answered", || {
        answered_by.insert(server.connect().ask());
        answered_by.len() == 2
    });
    assert_eq!(answered_by.into_iter().collect::<Vec<_>>(), [primary, copy.pid]);
    assert_eq!(kept.ask(), primary);
}

#[test]
fn a_copy_of_the_copy_takes_over_from_the_copy() {
    require_copies!();
    let (into, again) = (Cgroup::new(), Cgroup::new());
    let mut server = Server::start("epoll", 1);
    let first = copy(server.process.pid(), &into).unwrap();
    server.process.kill();
    into.thaw();
    assert_eq!(server.connect().ask(), first.pid);
    let second = copy(first.pid, &again).unwrap();
    assert_eq!(server.connect().ask(), first.pid);
    nix::sys::signal::kill(first.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    again.thaw();
    assert_eq!(server.connect().ask(), second.pid);
}

fn only_child(pid: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

#[test]
fn a_server_in_a_pid_namespace_is_taken_over_from() {
    require_copies!();
    require!(support::has("unshare"), "needs unshare");
    let into = Cgroup::new();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", "\"$0\" epoll 1; exec sleep 600"]);
    let mut process = Primary::start(command.arg(crate::program("server").unwrap()));
    let port: u16 = process.line().parse().unwrap();
    let primary = only_child(only_child(process.pid()).unwrap()).unwrap();
    wait_until_idle(primary);
    let copy = copy(primary, &into).unwrap();
    let server = Server { process, port };
    let inner_pid = server.connect().ask();
    nix::sys::signal::kill(primary, nix::sys::signal::Signal::SIGKILL).unwrap();
    into.thaw();
    // Here it has another id than in its namespace.
    let status = fs::read_to_string(format!("/proc/{}/status", copy.pid)).unwrap();
    let inner = server.connect().ask();
    assert!(status.contains(&format!("NSpid:\t{}\t{inner}\n", copy.pid)), "{status}");
    assert_ne!(inner, inner_pid);
}

#[test]
fn copying_under_load_loses_no_request() {
    const COPIES: u32 = 20;
    require_copies!();
    let server = Server::start("epoll", 8);
    let primary = server.process.pid();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (asked, copied) = std::thread::scope(|scope| {
        let ask = || {
            let mut kept = server.connect();
            let mut asked = 0;
            loop {
                assert_eq!(kept.ask(), primary);
                assert_eq!(server.connect().ask(), primary);
                asked += 1;
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    return asked;
                }
            }
        };
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        let start = std::time::Instant::now();
        let (mut tried, mut copied) = (0, 0);
        while tried < COPIES || (copied == 0 && start.elapsed() < support::PATIENCE) {
            tried += 1;
            copied += u32::from(fork_frozen(primary, &Cgroup::new().0).is_ok());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let asked: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        eprintln!("{copied} of {tried} copies at once, while {asked} times two requests were answered");
        (asked, copied)
    });
    // A server at work is followed to where it waits.
    assert!(asked > 0 && copied > 0);
}

/// Waits on connections to this test and a pair of its own; says which of them are readable, and what they give.
const CLIENT: &str = "
import os, select, socket, sys
primary = os.getpid()
unix = socket.socket(socket.AF_UNIX); unix.connect(sys.argv[1])
tcp = socket.create_connection(('127.0.0.1', int(sys.argv[2])))
one, other = socket.socketpair()
names = {unix.fileno(): (unix, 'unix'), tcp.fileno(): (tcp, 'tcp'), one.fileno(): (one, 'pair')}
print('ready', flush=True)
while names:
    for fd in select.select(list(names), [], [])[0]:
        read = names[fd][0].recv(100)
        print('primary' if os.getpid() == primary else 'copy', names[fd][1], read.decode() or 'closed', flush=True)
        if not read: del names[fd]
";

#[test]
fn connections_to_others_look_closed_to_the_copy_alone() {
    require_copies!();
    require!(system_python().is_some(), "needs Python 3");
    let into = Cgroup::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    let mut command = Command::new(system_python().unwrap());
    let mut process = Primary::start(command.args(["-c", CLIENT, path.to_str().unwrap(), &port]));
    let (mut unix, mut tcp) = (unix.accept().unwrap().0, tcp.accept().unwrap().0);
    assert_eq!(process.line(), "ready");
    wait_until_idle(process.pid());
    let copy = copy(process.pid(), &into).unwrap();
    assert_eq!(copy.repairs.connections, 2);
    into.thaw();
    let mut said = [process.line(), process.line()];
    said.sort();
    assert_eq!(said, ["copy tcp closed", "copy unix closed"]);
    unix.write_all(b"one").unwrap();
    assert_eq!(process.line(), "primary unix one");
    tcp.write_all(b"two").unwrap();
    assert_eq!(process.line(), "primary tcp two");
}

/// A field of a process's `smaps_rollup`, in kB.
fn memory_kb(pid: Pid, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_copy_of_300_mb_has_less_than_a_megabyte_of_its_own() {
    require_copies!();
    let into = Cgroup::new();
    let server = Server::start("poll", 300);
    let mut client = server.connect();
    let primary = client.ask();
    let copy = copy(primary, &into).unwrap();
    let own_kb = memory_kb(copy.pid, "Private_Dirty") + memory_kb(copy.pid, "Private_Clean");
    let all_kb = memory_kb(copy.pid, "Rss");
    client.send("fork");
    let fork_us: f64 = client.receive().parse().unwrap();
    let pause_us = copy.pause.as_secs_f64() * 1e6;
    eprintln!(
        "300 MB: own memory {own_kb} kB of {all_kb} kB; the primary stood still for {pause_us:.0} us, a plain fork() takes {fork_us:.0} us"
    );
    assert!(all_kb > 300 * 1024, "{all_kb}");
    assert!(own_kb <= 1024, "{own_kb}");
}

/// Asks an HTTP server for a path; the whole answer.
fn http_get(port: u16, path: &str) -> String {
    let mut stream = connect(port);
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Copies a server on `port`, kills it while a request is queued, and has the copy answer `expected`.
fn http_copy_takes_over(mut process: Primary, port: u16, expected: &str) {
    let into = Cgroup::new();
    wait_until("it listens", || is_listening(port));
    assert!(http_get(port, "/").contains(expected));
    wait_until_idle(process.pid());
    let mut kept = connect(port);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let copy = copy(process.pid(), &into).unwrap();
    write!(kept, "GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(expected), "the primary serves the connection it had: {answer:?}");
    assert!(http_get(port, "/").contains(expected));
    process.kill();
    let queued = std::thread::spawn(move || http_get(port, "/"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    into.thaw();
    assert!(queued.join().unwrap().contains(expected), "queued");
    for _ in 0..5 {
        assert!(http_get(port, "/").contains(expected), "new");
    }
    drop(copy);
}

#[test]
fn pythons_http_server_is_taken_over_from() {
    require_copies!();
    require!(system_python().is_some(), "needs Python 3");
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("index.html"), "the page").unwrap();
    // Threads are made for requests and end with them: the server that takes one at a time is copied.
    let program = "import http.server as h, sys\n\
                   h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()";
    let mut command = Command::new(system_python().unwrap());
    command.args(["-c", program, &port.to_string()]).current_dir(&directory);
    let process = Primary::start(command.stderr(std::process::Stdio::null()));
    http_copy_takes_over(process, port, "the page");
}

#[test]
fn pythons_threading_server_is_taken_over_from() {
    require_copies!();
    require!(system_python().is_some(), "needs Python 3");
    let into = Cgroup::new();
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("index.html"), "the page").unwrap();
    let mut command = Command::new(system_python().unwrap());
    command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]).current_dir(&directory);
    let mut process = Primary::start(command.stderr(std::process::Stdio::null()));
    wait_until("it listens", || is_listening(port));
    wait_until_idle(process.pid());
    // The thread for the one who looked whether it listens may begin at any moment, and ends.
    wait_until("its threads have ended", || match copy(process.pid(), &into) {
        Err(CowError::Refused(Reason::Threads(_))) => false,
        copied => {
            copied.unwrap();
            true
        }
    });
    assert!(http_get(port, "/").contains("the page"));
    process.kill();
    into.thaw();
    assert!(http_get(port, "/").contains("the page"));
}

const ASYNCIO_SERVER: &str = "
import asyncio, sys
async def serve(reader, writer):
    while await reader.readline() not in (b'', b'\\r\\n'): pass
    writer.write(b'HTTP/1.0 200 OK\\r\\n\\r\\nfrom the loop')
    await writer.drain()
    asyncio.get_running_loop().call_later(0, writer.close)
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', int(sys.argv[1]))
    async with server: await server.serve_forever()
asyncio.run(main())
";

#[test]
fn asyncio_is_taken_over_from() {
    require_copies!();
    let Some(python) = python(|minor| minor >= 12) else {
        return support::skip("needs Python 3.12 or later");
    };
    let port = free_port();
    let process = Primary::start(Command::new(python).args(["-c", ASYNCIO_SERVER, &port.to_string()]));
    http_copy_takes_over(process, port, "from the loop");
}

#[test]
fn a_pair_that_the_first_primary_made_stays_open_in_a_copy_of_its_copy() {
    require_copies!();
    let Some(python) = python(|minor| minor >= 12) else {
        return support::skip("needs Python 3.12 or later");
    };
    let (into, again) = (Cgroup::new(), Cgroup::new());
    let port = free_port();
    let mut process = Primary::start(Command::new(python).args(["-c", ASYNCIO_SERVER, &port.to_string()]));
    wait_until("it listens", || is_listening(port));
    let first = copy(process.pid(), &into).unwrap();
    process.kill();
    into.thaw();
    assert!(http_get(port, "/").contains("from the loop"));
    wait_until("the connection is gone", || {
        let sockets = fs::read_dir(format!("/proc/{}/fd", first.pid)).unwrap().flatten().filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        });
        sockets.count() == 3
    });
    // The loop's pair, by which it is woken. Without it the loop would spin at end-of-file.
    let second = copy(first.pid, &again).unwrap();
    assert_eq!(second.repairs.connections, 0);
}

#[test]
fn asyncio_that_remembers_its_process_id_is_refused() {
    require_copies!();
    let Some(python) = python(|minor| minor <= 11) else {
        return support::skip("needs Python 3.11 or earlier");
    };
    let into = Cgroup::new();
    let port = free_port();
    let process = Primary::start(Command::new(python).args(["-c", ASYNCIO_SERVER, &port.to_string()]));
    wait_until("it listens", || is_listening(port));
    let refused = copy(process.pid(), &into);
    assert!(matches!(refused, Err(CowError::Refused(Reason::PidBound { .. }))), "{refused:?}");
    assert!(http_get(port, "/").contains("from the loop"));
}

#[test]
fn nginx_in_one_process_is_taken_over_from() {
    require_copies!();
    require!(support::has("nginx"), "needs nginx");
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let process = Primary::start(&mut nginx(&directory, port, "master_process off;"));
    http_copy_takes_over(process, port, "from nginx");
}

#[test]
fn an_nginx_worker_is_refused_for_the_memory_that_it_shares() {
    require_copies!();
    require!(support::has("nginx"), "needs nginx");
    let into = Cgroup::new();
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut master = Primary::start(&mut nginx(&directory, port, "worker_processes 1;"));
    wait_until("it has a worker", || only_child(master.pid()).is_some() && is_listening(port));
    let worker = only_child(master.pid()).unwrap();
    let refused = copy(worker, &into);
    assert!(matches!(refused, Err(CowError::Refused(Reason::SharedMemory { .. }))), "{refused:?}");
    assert!(http_get(port, "/").contains("from nginx"));
    // The worker ends with its master only if that tells it to.
    support::signal(master.child.id(), libc::SIGTERM);
    master.child.wait().unwrap();
}

fn nginx(directory: &tempfile::TempDir, port: u16, processes: &str) -> Command {
    let at = directory.path().display();
    let config = format!(
        "daemon off; user root; {processes} pid {at}/pid; error_log {at}/log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 'from nginx'; }} }} }}\n"
    );
    fs::write(directory.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(directory.path().join("nginx.conf")).args(["-e", &format!("{at}/log")]);
    command
}

fn system_python() -> Option<PathBuf> {
    python(|_| true)
}

/// A Python 3 with a minor version that suits, in `PATH` or kept by pyenv.
fn python(suits: impl Fn(u32) -> bool) -> Option<PathBuf> {
    let kept = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    let kept =
        fs::read_dir(kept).into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python3"));
    let common = ["/usr/bin/python3".into(), "python3".into(), "python3.13".into(), "python3.12".into()];
    common.into_iter().chain(kept).find(|program: &PathBuf| {
        let version = "import sys; print(*sys.version_info[:2])";
        let output = Command::new(program).args(["-c", version]).output();
        let text = output.map(|output| support::stdout(&output)).unwrap_or_default();
        let minor = text.trim().strip_prefix("3 ").and_then(|minor| minor.parse().ok());
        minor.is_some_and(&suits)
    })
}
