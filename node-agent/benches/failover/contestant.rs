//! Who is measured against whom: the same server, kept up in different ways.

use crate::prefer_runs;
use crate::proxy::{Kind, Proxied};
use crate::restart::RestartLoop;
use crate::server::{Shape, request};
use crate::service::{Service, ask, free_port};
use crate::support::{Sandbox, has, wait_until};
use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;

/// A way to keep a server up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// standin with a warm shadow.
    Shadow,
    /// standin without one: the queue is held, the server started anew.
    Held,
    /// A proxy with a backup.
    Proxy(Kind),
    /// Nothing but a restart.
    Restart,
}

impl Way {
    pub(crate) const ALL: [Self; 5] =
        [Self::Shadow, Self::Held, Self::Proxy(Kind::Nginx), Self::Proxy(Kind::Haproxy), Self::Restart];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shadow => "standin --shadows 1",
            Self::Held => "standin --shadows 0",
            Self::Proxy(Kind::Nginx) => "nginx, upstream backup",
            Self::Proxy(Kind::Haproxy) => "HAProxy, backup",
            Self::Restart => "restart loop",
        }
    }

    /// Those of `ways` that can be had here; says which can't.
    pub(crate) fn available(ways: &[Self]) -> Vec<Self> {
        let is_there = |way: &Self| match way {
            Self::Proxy(kind) if !has(kind.program()) => {
                println!("not measured: {} ({} is not installed)", way.name(), kind.program());
                false
            }
            _ => true,
        };
        ways.iter().copied().filter(is_there).collect()
    }
}

/// Options of a service that is killed more often than services are.
pub(crate) const OFTEN: [&str; 4] = ["--policy", "observe", "--failovers-max", "1000000"];

/// The server kept up in one of these ways.
pub(crate) struct Contestant<'a> {
    pub(crate) way: Way,
    sandbox: &'a Sandbox,
    /// Its cgroup weighs more than an ordinary process.
    is_preferred: bool,
    kept_up: KeptUp<'a>,
}

enum KeptUp<'a> {
    Service(Service<'a>, usize),
    Proxied(Proxied),
    Restarted(RestartLoop),
}

impl<'a> Contestant<'a> {
    /// `name` is that of its service.
    pub(crate) fn start(way: Way, sandbox: &'a Sandbox, name: &'static str, shape: &Shape) -> Result<Self> {
        let service = |shadows: &'static str| {
            let port = free_port();
            let mut options = vec!["--shadows", shadows];
            options.extend(OFTEN);
            let command = shape.command(port);
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let service = Service::start(sandbox, name, port, &options, &command);
            KeptUp::Service(service, shadows.parse().unwrap_or(0))
        };
        let kept_up = match way {
            Way::Shadow => service("1"),
            Way::Held => service("0"),
            Way::Proxy(kind) => {
                KeptUp::Proxied(Proxied::start(kind, sandbox, shape.silence_ms, |port| shape.command(port))?)
            }
            Way::Restart => {
                let port = free_port();
                KeptUp::Restarted(RestartLoop::start(port, shape.command(port)))
            }
        };
        Ok(Self { way, sandbox, is_preferred: true, kept_up })
    }

    /// As heavy as an ordinary process.
    pub(crate) fn ordinary(mut self) -> Self {
        self.is_preferred = false;
        self
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match &self.kept_up {
            KeptUp::Service(service, _) => service.address(),
            KeptUp::Proxied(proxied) => proxied.address,
            KeptUp::Restarted(restarted) => restarted.address,
        }
    }

    /// Where the first server itself listens.
    pub(crate) fn behind(&self) -> SocketAddr {
        match &self.kept_up {
            KeptUp::Proxied(proxied) => proxied.primary.address,
            _ => self.address(),
        }
    }

    pub(crate) fn service(&self) -> Option<&Service<'a>> {
        match &self.kept_up {
            KeptUp::Service(service, _) => Some(service),
            _ => None,
        }
    }

    /// Waits until all is as it should be before a failure: the first server serves, a stand-in is ready. Gives
    /// the pid of the one that serves.
    pub(crate) fn settle(&self) -> u32 {
        if self.is_preferred {
            prefer_runs(self.sandbox);
        }
        let serves = |pid: &dyn Fn() -> u32| {
            wait_until(self.way.name(), || {
                std::thread::sleep(Duration::from_millis(20));
                answers(self.address()).is_some_and(|answer| answer == pid())
            });
            pid()
        };
        match &self.kept_up {
            KeptUp::Service(service, shadows) => {
                service.wait_for_shadows(*shadows);
                serves(&|| service.pids("primary").first().copied().unwrap_or(0))
            }
            KeptUp::Proxied(proxied) => serves(&|| proxied.primary.pid()),
            KeptUp::Restarted(restarted) => serves(&|| restarted.pid()),
        }
    }
}

/// The pid that answers one request, if one does.
pub(crate) fn answers(address: SocketAddr) -> Option<u32> {
    crate::load::last_line(ask(address, &request(0)).ok()?.as_bytes())
}
