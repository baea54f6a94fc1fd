//! The usual way: a proxy in front of two servers, of which the second one is a backup. Both are restarted when
//! they end. The proxies are set up to notice as early and to retry as much as they can.

use crate::restart::{Kept, RestartLoop};
use crate::service::free_port;
use crate::support::Sandbox;
use anyhow::Result;
use std::net::SocketAddr;

/// Milliseconds after which a proxy gives up on a silent server where hangs are measured: as long as standin waits
/// before it has learnt anything.
pub(crate) const SILENCE_MS: u32 = 300;
/// The same where they are not: a long queue is no hang.
pub(crate) const PATIENT_MS: u32 = 10_000;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
}

impl Kind {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// A proxy and its two servers.
pub(crate) struct Proxied {
    pub(crate) address: SocketAddr,
    pub(crate) primary: RestartLoop,
    _backup: RestartLoop,
    _proxy: Kept,
}

impl Proxied {
    /// In front of what `command` starts on a port.
    pub(crate) fn start(
        kind: Kind,
        sandbox: &Sandbox,
        silence_ms: u32,
        command: impl Fn(u16) -> Vec<String>,
    ) -> Result<Self> {
        let (front, first, second) = (free_port(), free_port(), free_port());
        let primary = RestartLoop::start(first, command(first));
        let backup = RestartLoop::start(second, command(second));
        let file = sandbox.path(&format!("{}-{front}.conf", kind.program()));
        let (text, arguments) = match kind {
            Kind::Nginx => (nginx(sandbox, [front, first, second], silence_ms), ["-c"]),
            Kind::Haproxy => (haproxy([front, first, second], silence_ms), ["-f"]),
        };
        std::fs::write(&file, text)?;
        let mut run: Vec<String> = vec![kind.program().into()];
        run.extend(arguments.map(Into::into));
        run.push(file.display().to_string());
        let proxy = Kept::start(&run)?;
        Ok(Self { address: ([127, 0, 0, 1], front).into(), primary, _backup: backup, _proxy: proxy })
    }
}

/// A request that failed is tried once more, on the backup.
fn nginx(sandbox: &Sandbox, [front, first, second]: [u16; 3], silence_ms: u32) -> String {
    format!(
        "daemon off; pid {0}/nginx-{front}.pid; error_log /dev/null; worker_processes 2; user root;
         worker_rlimit_nofile 8192;
         events {{ worker_connections 4096; }}
         http {{
           access_log off;
           upstream servers {{
             server 127.0.0.1:{first} max_fails=1 fail_timeout=1s;
             server 127.0.0.1:{second} backup;
           }}
           server {{
             listen 127.0.0.1:{front} backlog=4096;
             keepalive_requests 1000000;
             location / {{
               proxy_pass http://servers;
               proxy_connect_timeout {silence_ms}ms;
               proxy_read_timeout {silence_ms}ms;
               proxy_next_upstream error timeout http_502 http_504;
             }}
           }}
         }}",
        sandbox.dir.path().display()
    )
}

/// The first error marks a server as down; health checks every 100 ms bring it back. The pause before a retry is as
/// long as the timeout of a connect.
fn haproxy([front, first, second]: [u16; 3], silence_ms: u32) -> String {
    format!(
        "global
  maxconn 8192
defaults
  mode http
  timeout connect 50ms
  timeout client 10s
  timeout server {silence_ms}ms
  timeout check {silence_ms}ms
  retries 3
  option redispatch 1
  retry-on all-retryable-errors
frontend front
  bind 127.0.0.1:{front} backlog 4096
  default_backend servers
backend servers
  option httpchk GET /0
  default-server check inter 100ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down
  server first 127.0.0.1:{first}
  server second 127.0.0.1:{second} backup
"
    )
}
