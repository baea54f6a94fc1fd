//! `standin doctor`: what works on this host, and what does not, why, and what is used instead.

use super::report::{JSON_VERSION, print_json};
use super::settings::Settings;
use crate::cgroup::{CONTROLLERS, Hierarchies, Mode};
use crate::probe::{Options, Probes, State};
use crate::store::Reader;
use crate::wire::{self, AgentStatus, Reply, Request};
use clap::Args;
use serde::Serialize;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the agent may take to say what it is.
const AGENT_ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    about: &'static str,
    name: String,
    works: bool,
    detail: String,
}

#[derive(Serialize)]
struct Findings {
    version: u32,
    findings: Vec<Finding>,
}

pub(super) fn run(settings: &Settings, arguments: &DoctorArgs) -> anyhow::Result<u8> {
    let mut findings = vec![host(), permissions(), agent(&settings.socket), database(&settings.database)];
    findings.extend(cgroups());
    findings.extend(probes());
    if arguments.json {
        print_json(&Findings { version: JSON_VERSION, findings })?;
        return Ok(0);
    }
    let mut about = "";
    for finding in &findings {
        if finding.about != about {
            about = finding.about;
            println!("{about}");
        }
        let mark = if finding.works { "ok" } else { "no" };
        println!("  {mark}  {:<14} {}", finding.name, finding.detail);
    }
    Ok(0)
}

fn finding(about: &'static str, name: &str, state: Result<String, String>) -> Finding {
    let works = state.is_ok();
    let (Ok(detail) | Err(detail)) = state;
    Finding { about, name: name.into(), works, detail }
}

fn host() -> Finding {
    let kernel = nix::sys::utsname::uname().map(|name| {
        format!("Linux {}, {}", name.release().to_string_lossy(), name.machine().to_string_lossy())
    });
    finding("host", "kernel", kernel.map_err(|error| error.to_string()))
}

fn permissions() -> Finding {
    let state = if nix::unistd::geteuid().is_root() {
        Ok("root: probes and limits without an agent".into())
    } else {
        Err("not root: without an agent only the kernel's accounts of a process, no probes, no limits".into())
    };
    finding("host", "permissions", state)
}

fn agent(socket: &Path) -> Finding {
    let state = ask_agent(socket).map(|status| {
        format!(
            "version {}, process {}, {} tasks under way, {} recorded in {}; lost by its probes: {} exits, {} block requests",
            status.version, status.pid, status.running, status.recorded, status.database, status.lost.0, status.lost.1
        )
    });
    let state = state
        .map_err(|why| format!("none at {}: {why}; runs are measured by the launcher", socket.display()));
    finding("host", "agent", state)
}

fn ask_agent(socket: &Path) -> Result<AgentStatus, String> {
    let ask = || -> Result<Reply, wire::WireError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(AGENT_ANSWER_MAX))?;
        wire::send(&mut stream, &Request::Status)?;
        wire::receive(&mut stream)
    };
    match ask() {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(_) => Err("it answered something else".into()),
        Err(wire::WireError::Io(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn database(path: &Path) -> Finding {
    let state = if path.exists() {
        Reader::open(path)
            .and_then(|reader| reader.tasks())
            .map(|tasks| format!("{}, {} tasks known", path.display(), tasks.len()))
            .map_err(|error| error.to_string())
    } else {
        Ok(format!("{}, not there yet: the first run makes it", path.display()))
    };
    finding("host", "database", state)
}

fn cgroups() -> Vec<Finding> {
    let hierarchies = match Hierarchies::detect() {
        Ok(hierarchies) => hierarchies,
        Err(error) => return vec![finding("cgroups", "v2", Err(error.to_string()))],
    };
    let mode = match hierarchies.mode() {
        Mode::Unified => "unified",
        Mode::Hybrid => "hybrid: v2 for probes, freezing and killing, v1 for limits",
    };
    let place = format!("{mode}; v2 at {}", hierarchies.unified.display());
    let mut findings = vec![finding("cgroups", "mode", Ok(place))];
    findings.extend(CONTROLLERS.map(|controller| {
        let state = match hierarchies.home(controller) {
            Some(home) => Ok(format!("{home}: {}", what_it_limits(controller))),
            None => Err(format!("no such controller: no {}", what_it_limits(controller))),
        };
        finding("cgroups", controller, state)
    }));
    findings
}

fn what_it_limits(controller: &str) -> &'static str {
    match controller {
        "memory" => "memory limits and accounts",
        "cpu" => "CPU weight and quota",
        "pids" => "limit on tasks",
        _ => "I/O limits (not set yet)",
    }
}

fn probes() -> Vec<Finding> {
    let probes = match Probes::load(&Options { tasks_max: 1, run_level: 2 }) {
        Ok(probes) => probes,
        Err(error) => return vec![finding("probes", "all", Err(error.to_string()))],
    };
    let of_probe = |probe: &crate::probe::ProbeStatus| {
        let state = match &probe.state {
            State::Attached { hook } => Ok(format!("{}: {hook}", probe.measures)),
            State::Unavailable { why, instead } => {
                Err(format!("{}: {why}; instead: {instead}", probe.measures))
            }
        };
        finding("probes", probe.name, state)
    };
    probes.status().iter().map(of_probe).collect()
}
