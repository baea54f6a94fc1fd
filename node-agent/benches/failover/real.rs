//! Servers as they are installed, unmodified, killed under load: with a shadow, and in a restart loop.

use crate::contestant::OFTEN;
use crate::restart::RestartLoop;
use crate::service::{Service, free_port};
use crate::strike::{Blow, Under, strike};
use crate::support::{Sandbox, has, wait_until};
use crate::table::Sum;
use crate::{Settings, prefer_runs, service};
use anyhow::Result;
use std::fs;
use std::net::SocketAddr;

/// One server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Real {
    pub(crate) name: &'static str,
    program: &'static str,
    pub(crate) request: &'static [u8],
    /// New connections per second that it can do on one busy core.
    pub(crate) rate: u32,
    pub(crate) command: fn(&Sandbox, u16) -> Vec<String>,
}

const HTTP: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

pub(crate) const NGINX: Real =
    Real { name: "nginx", program: "nginx", request: HTTP, rate: 1000, command: nginx };
pub(crate) const REDIS: Real =
    Real { name: "redis", program: "redis-server", request: b"PING\r\n", rate: 1000, command: redis };
pub(crate) const NODE: Real =
    Real { name: "node", program: "node", request: HTTP, rate: 1000, command: node };
const PYTHON: Real =
    Real { name: "python3 -m http.server", program: "python3", request: HTTP, rate: 300, command: python };
const JAVA: Real = Real { name: "java HttpServer", program: "java", request: HTTP, rate: 300, command: java };

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(Into::into).collect()
}

/// A master and two workers.
fn nginx(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let text = format!(
        "daemon off; pid {0}/nginx-{port}.pid; error_log /dev/null; worker_processes 2; user root;
         events {{ worker_connections 2048; }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"$pid\\n\"; }} }} }}",
        sandbox.dir.path().display()
    );
    let file = sandbox.path(&format!("nginx-{port}.conf"));
    fs::write(&file, text).unwrap();
    words(&format!("nginx -c {}", file.display()))
}

fn redis(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let directory = sandbox.dir.path().display();
    let mut command = words(&format!(
        "redis-server --port {port} --bind 127.0.0.1 --dir {directory} --appendonly no --logfile /dev/null --save"
    ));
    command.push(String::new());
    command
}

fn node(_: &Sandbox, port: u16) -> Vec<String> {
    let script = format!(
        "require('http').createServer((request, answer) => answer.end(process.pid + '\\n')).listen({port}, '127.0.0.1')"
    );
    vec!["node".into(), "-e".into(), script]
}

fn python(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let directory = sandbox.path("files");
    fs::create_dir_all(&directory).unwrap();
    words(&format!("python3 -m http.server {port} --bind 127.0.0.1 --directory {}", directory.display()))
}

/// One file, compiled as it starts.
fn java(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let file = sandbox.path("Server.java");
    fs::write(
        &file,
        r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class Server {
    public static void main(String[] arguments) throws Exception {
        InetSocketAddress address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        HttpServer server = HttpServer.create(address, 0);
        byte[] answer = (ProcessHandle.current().pid() + "\n").getBytes();
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
"#,
    )
    .unwrap();
    words(&format!("java -Xshare:auto {} {port}", file.display()))
}

impl Real {
    /// Whether it is installed; says so if not.
    pub(crate) fn is_there(&self) -> bool {
        let there = has(self.program);
        if !there {
            println!("not measured: {} ({} is not installed)", self.name, self.program);
        }
        there
    }

    /// As a service with a shadow. A warm JVM has compiled what it serves with, so it is asked some times.
    pub(crate) fn service<'a>(&self, sandbox: &'a Sandbox) -> Service<'a> {
        let port = free_port();
        let mut options = vec!["--shadows", "1"];
        options.extend(OFTEN);
        let warm = format!("for i in $(seq 300); do curl -s -o /dev/null http://127.0.0.1:{port}/; done");
        if self.program == "java" && has("curl") {
            options.extend(["--warm-with", &warm]);
        }
        let command = (self.command)(sandbox, port);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let service = Service::start(sandbox, self.program_name(), port, &options, &command);
        service.wait_for_shadows(1);
        service
    }

    pub(crate) fn program_name(&self) -> &'static str {
        self.program
    }

    pub(crate) fn answers(&self, address: SocketAddr) -> bool {
        // Redis keeps the connection, so its answer has no end.
        if self.program == "redis-server" {
            return std::net::TcpStream::connect(address).is_ok();
        }
        service::ask(address, self.request).is_ok_and(|answer| !answer.is_empty())
    }
}

pub(crate) fn run(settings: &Settings) -> Result<()> {
    let kills = settings.kills.div_ceil(4);
    let mut rows = Vec::new();
    for real in [NGINX, REDIS, NODE, PYTHON, JAVA].iter().filter(|real| real.is_there()) {
        let sandbox = Sandbox::with_config("probes = false");
        let service = real.service(&sandbox);
        let port = free_port();
        let restarted = RestartLoop::start(port, (real.command)(&sandbox, port));
        let mut sums = [Sum::default(), Sum::default()];
        let mut private = 0.0;
        for _ in 0..kills {
            let under = Under { rate: real.rate, marks: None, request: real.request };
            service.wait_for_shadows(1);
            prefer_runs(&sandbox);
            private = shadow_mebibytes(&service);
            sums[0].add(&strike(Blow::Kill, service.address(), service.primary(), under));
            wait_until(real.name, || real.answers(restarted.address));
            sums[1].add(&strike(Blow::Kill, restarted.address, restarted.pid(), under));
        }
        let [shadow, restart] = sums;
        rows.push(format!("{}{private:>14.1}", shadow.row(&format!("{}, {}/s", real.name, real.rate))));
        rows.push(restart.row("  in a restart loop"));
    }
    println!("\nkill -9 of servers as they are; lost ones that were not refused all count as unread");
    println!("{}{:>14}", Sum::header(), "shadow, MiB");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

/// Memory that the shadow has for itself.
fn shadow_mebibytes(service: &Service<'_>) -> f64 {
    let status = service.status().unwrap_or_default();
    let instances = status["instances"].as_array().cloned().unwrap_or_default();
    let shadow = instances.iter().find(|instance| instance["role"] == "shadow");
    shadow.and_then(|shadow| shadow["private_bytes"].as_f64()).map_or(0.0, |bytes| bytes / f64::from(1 << 20))
}
