//! A service under test, and a server that can be told to misbehave.
#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "this is no library")]

pub use super::support::free_port;
use super::support::{self, PATIENCE, Sandbox, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A server in one thread that answers every connection with its pid, and does as the path says: `/deadlock`
/// sleeps for ever, `/spin` computes for ever, `/exit3` exits, `/abort` aborts, `/slow` takes half a second. Where `$LAME` and its pid name a file, every answer
/// takes 50 ms.
/// Arguments: addresses to listen on, as HOST:PORT; `udp:HOST:PORT` echoes its pid to every datagram;
/// `given` stands for the sockets of `LISTEN_FDS`. Says `READY=1` where somebody listens for it.
pub const SERVER: &str = r#"
import os, selectors, socket, sys, time, threading
selector = selectors.DefaultSelector()
for place in sys.argv[1:]:
    if place == 'given':
        assert int(os.environ['LISTEN_PID']) == os.getpid(), os.environ['LISTEN_PID']
        for number in range(int(os.environ['LISTEN_FDS'])):
            selector.register(socket.socket(fileno=3 + number), selectors.EVENT_READ, False)
        continue
    udp = place.startswith('udp:')
    host, port = place.removeprefix('udp:').rsplit(':', 1)
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.bind((host.strip('[]'), int(port)))
    if not udp: server.listen(5)
    selector.register(server, selectors.EVENT_READ, udp)
me = b'%d\n' % os.getpid()
if 'NOTIFY_SOCKET' in os.environ:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.sendto(b'STATUS=up\nREADY=1', '\0' + os.environ['NOTIFY_SOCKET'][1:])
print('up', 'shadow' if os.environ.get('SHADOW') else 'first', flush=True)
while True:
    for key, _ in selector.select():
        if key.data:
            _, peer = key.fileobj.recvfrom(2048)
            key.fileobj.sendto(me, peer)
            continue
        connection, _ = key.fileobj.accept()
        connection.settimeout(5)
        try:
            request = connection.recv(2048)
            if b'/deadlock' in request: threading.Event().wait()
            if b'/spin' in request:
                while True: pass
            if b'/exit3' in request: os._exit(3)
            if b'/exit0' in request: os._exit(0)
            if b'/abort' in request: os.abort()
            if b'/slow' in request: time.sleep(0.5)
            if os.environ.get('LAME') and os.path.exists(os.environ['LAME'] + str(os.getpid())): time.sleep(0.05)
            connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(me), me))
        except OSError:
            pass
        connection.close()
"#;

/// What every well-behaved request is.
pub const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

pub struct Service<'a> {
    sandbox: &'a Sandbox,
    name: &'static str,
    pub child: Child,
    pub port: u16,
    /// Who runs it, with the runtime directory, if it is not the caller.
    pub user: Option<(u32, PathBuf)>,
}

impl<'a> Service<'a> {
    /// `standin run --name NAME OPTIONS -- COMMAND`, measured by itself.
    pub fn start(
        sandbox: &'a Sandbox,
        name: &'static str,
        port: u16,
        options: &[&str],
        command: &[&str],
    ) -> Self {
        let mut all = vec!["run", "--no-agent", "--name", name];
        all.extend(options);
        Self::spawn(sandbox, name, port, sandbox.standin(all).arg("--").args(command))
    }

    /// The same, of [`SERVER`] on 127.0.0.1.
    pub fn server(sandbox: &'a Sandbox, name: &'static str, options: &[&str]) -> Self {
        let port = free_port();
        let script = script(sandbox);
        let place = format!("127.0.0.1:{port}");
        Self::start(sandbox, name, port, options, &["python3", script.to_str().unwrap(), &place])
    }

    pub fn spawn(sandbox: &'a Sandbox, name: &'static str, port: u16, command: &mut Command) -> Self {
        let log = fs::File::options().create(true).append(true).open(log_of(sandbox, name)).unwrap();
        command.env("STANDIN_SOCKET", sandbox.socket()).stdout(log.try_clone().unwrap()).stderr(log);
        // SAFETY: between fork and exec the child makes one system call, prctl, which is allowed there. A service
        // must not outlive who started it here, however that ends.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        Self { sandbox, name, child: command.spawn().unwrap(), port, user: None }
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(log_of(self.sandbox, self.name)).unwrap_or_default()
    }

    /// As `standin ps --json` has it.
    pub fn status(&self) -> Option<Value> {
        let output = self.standin(&["ps", "--json"]).output().unwrap();
        let services: Value = serde_json::from_slice(&output.stdout).ok()?;
        services["services"].as_array()?.iter().find(|service| service["name"] == self.name).cloned()
    }

    pub fn standin(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.standin(arguments);
        command.env("STANDIN_SOCKET", self.sandbox.socket());
        if let Some((user, home)) = &self.user {
            std::os::unix::process::CommandExt::uid(&mut command, *user);
            command.env("XDG_RUNTIME_DIR", home);
        }
        command
    }

    /// The pids of its instances in a role.
    pub fn pids(&self, role: &str) -> Vec<u32> {
        let status = self.status().unwrap_or_default();
        let instances = status["instances"].as_array().cloned().unwrap_or_default();
        let in_role = instances.iter().filter(|instance| instance["role"] == role);
        in_role.filter_map(|instance| u32::try_from(instance["pid"].as_u64()?).ok()).collect()
    }

    pub fn primary(&self) -> u32 {
        self.pids("primary").first().copied().unwrap_or_else(|| panic!("nobody serves:\n{}", self.log()))
    }

    pub fn failovers(&self) -> u64 {
        self.status().map_or(0, |status| status["failovers"].as_u64().unwrap())
    }

    /// Waits until it serves and has so many shadows.
    pub fn wait_for_shadows(&self, count: usize) {
        wait_until_or(
            || self.pids("primary").len() == 1 && self.pids("shadow").len() == count,
            || format!("{count} shadows: {:#}\n{}", self.status().unwrap_or_default(), self.log()),
        );
    }

    /// Waits until another instance than `old` serves.
    pub fn wait_for_another(&self, old: u32) -> u32 {
        wait_until_or(
            || self.pids("primary").first().is_some_and(|pid| *pid != old),
            || format!("another primary than {old}: {:#}\n{}", self.status().unwrap_or_default(), self.log()),
        );
        self.primary()
    }

    /// The pid that answers.
    pub fn ask(&self) -> u32 {
        let answer = ask(self.address(), REQUEST).unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
        answer.lines().last().unwrap().parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    /// Sends a request whose answer nobody waits for.
    pub fn tell(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        stream
    }

    pub fn wait(mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `standin stop`; the launcher's exit status.
    pub fn stop(self) -> ExitStatus {
        let output = self.standin(&["stop", self.name]).output().unwrap();
        assert!(output.status.success(), "{}", support::stderr(&output));
        self.wait()
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            support::signal(self.child.id(), libc::SIGTERM);
            let until = Instant::now() + Duration::from_secs(15);
            while self.child.try_wait().ok().flatten().is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Writes [`SERVER`] into the sandbox.
pub fn script(sandbox: &Sandbox) -> PathBuf {
    let path = sandbox.path("server.py");
    fs::write(&path, SERVER).unwrap();
    path
}

fn log_of(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.path(&format!("{name}.log"))
}

/// One exchange.
pub fn ask(address: SocketAddr, request: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn wait_until_or(mut condition: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {}", otherwise());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits, for what has no other sign.
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, condition);
}
