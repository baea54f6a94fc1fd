//! `standin doctor`: what works on this host, and what does not, why, and what is used instead.

mod failover;
mod start;

pub(super) use start::check;

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::reach::{self, Unreachable};
use super::settings::Settings;
use super::table::{Align, Table};
use crate::cgroup::{CONTROLLERS, Hierarchies, Mode};
use crate::probe::{Options, ProbeStatus, Probes, State as ProbeState};
use crate::store::Reader;
use crate::units::format_bytes;
use crate::wire::AgentStatus;
use clap::Args;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin doctor                       every part of this host that standin uses, with a reason for each that fails
  standin doctor --json | jq '.findings[] | select(.state == \"fails\")'")]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It works.
    Ok,
    /// It is not there, and need not be.
    Absent,
    /// It should work and does not.
    Fails,
}

impl State {
    fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "-",
            Self::Fails => "NO",
        }
    }
}

/// One line.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    about: &'static str,
    name: String,
    state: State,
    detail: String,
}

impl Finding {
    fn new(about: &'static str, name: &str, state: State, detail: impl Into<String>) -> Self {
        Self { about, name: name.into(), state, detail: detail.into() }
    }

    fn of(about: &'static str, name: &str, result: Result<String, String>) -> Self {
        match result {
            Ok(detail) => Self::new(about, name, State::Ok, detail),
            Err(why) => Self::new(about, name, State::Fails, why),
        }
    }
}

#[derive(Serialize)]
struct Findings {
    version: u32,
    findings: Vec<Finding>,
}

pub(super) fn run(settings: &Settings, arguments: &DoctorArgs) -> anyhow::Result<u8> {
    let status = reach::status(&settings.socket);
    let mut findings =
        vec![host(), permissions(&status), agent(&status), database(&settings.database_to_read())];
    findings.extend(cgroups());
    findings.extend(match &status {
        Ok(status) => [probes_of_agent(status), costs_and_losses(status)].concat(),
        Err(_) => probes(),
    });
    findings.extend(failover::findings());
    if arguments.json {
        print_json(&Findings { version: JSON_VERSION, findings })?;
    } else {
        print(in_groups(&findings))?;
    }
    Ok(0)
}

/// A verdict, then a group per subject, each with its lines aligned.
fn in_groups(findings: &[Finding]) -> String {
    let mut text = format!("{}\n", verdict(findings));
    for group in findings.chunk_by(|a, b| a.about == b.about) {
        let mut table = Table::new(&[("", Align::Left); 3]);
        for finding in group {
            let mark = format!("  {}", finding.state.mark());
            table.row([mark, finding.name.clone(), finding.detail.clone()]);
        }
        text += &format!("\n{}\n{table}", group[0].about);
    }
    text
}

fn verdict(findings: &[Finding]) -> String {
    let failing: Vec<_> = findings.iter().filter(|finding| finding.state == State::Fails).collect();
    let probes = findings.iter().filter(|finding| finding.about == "probes");
    let attached = probes.clone().filter(|finding| finding.state == State::Ok).count();
    let probes = format!("{attached} of {} probes attached", probes.count());
    match failing[..] {
        [] => format!("All is well: {probes}."),
        [one] => format!("One thing does not work ({}, marked NO below); {probes}.", one.name),
        _ => format!("{} things do not work (marked NO below); {probes}.", failing.len()),
    }
}

fn host() -> Finding {
    let kernel = nix::sys::utsname::uname().map(|name| {
        format!("Linux {}, {}", name.release().to_string_lossy(), name.machine().to_string_lossy())
    });
    Finding::of("host", "kernel", kernel.map_err(|error| error.to_string()))
}

fn permissions(agent: &Result<AgentStatus, Unreachable>) -> Finding {
    let is_root = nix::unistd::geteuid().is_root();
    let (state, detail) = match (is_root, agent) {
        (true, _) => (State::Ok, "root: probes and limits with an agent and without"),
        (false, Ok(_)) => (State::Ok, "not root: the agent has the probes and sets the limits"),
        (false, Err(_)) => (
            State::Fails,
            "not root, and no agent: runs are measured by the kernel's accounts of the process, without probes and limits; start `standin agent` as root",
        ),
    };
    Finding::new("host", "permissions", state, detail)
}

fn agent(status: &Result<AgentStatus, Unreachable>) -> Finding {
    match status {
        Ok(status) => {
            let detail = format!(
                "version {}, process {}: {} running, {} recorded in {}",
                status.version, status.pid, status.running, status.recorded, status.database
            );
            Finding::new("host", "agent", State::Ok, detail)
        }
        Err(unreachable) => {
            let state = if unreachable.absent { State::Absent } else { State::Fails };
            let detail = format!("{}; `standin run` measures by itself", unreachable.message);
            Finding::new("host", "agent", state, detail)
        }
    }
}

fn database(path: &Path) -> Finding {
    if let Err(untrusted) = crate::trust::check_file_of_root(path) {
        return Finding::of("host", "database", Err(untrusted.to_string()));
    }
    let shown = path.display();
    let is_writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let result = if path.exists() {
        let known = Reader::open(path).and_then(|reader| reader.tasks()).map_err(|error| error.to_string());
        known.map(|tasks| {
            let how = if is_writable(path) { "" } else { "; read-only for you" };
            format!("{shown}: {} known{how}", plural(tasks.len(), "task"))
        })
    } else {
        match path.ancestors().skip(1).find(|ancestor| ancestor.exists()) {
            Some(place) if !is_writable(place) => {
                Err(format!("{shown}: not there, and {} may not be written to", place.display()))
            }
            _ => Ok(format!("{shown}: not there yet, the first run makes it")),
        }
    };
    Finding::of("host", "database", result)
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn cgroups() -> Vec<Finding> {
    let hierarchies = match Hierarchies::detect() {
        Ok(hierarchies) => hierarchies,
        Err(error) => return vec![Finding::of("cgroups", "v2", Err(error.to_string()))],
    };
    let mode = match hierarchies.mode() {
        Mode::Unified => "unified",
        Mode::Hybrid => "hybrid: v2 for probes, freezing and killing, v1 for limits",
    };
    let place = format!("{mode}; v2 at {}", hierarchies.unified.display());
    let moves = if hierarchies.moves_are_quick {
        Finding::new("cgroups", "moves", State::Ok, "quick: mounted with favordynmods")
    } else {
        let cost = "with an agent, a start after a pause waits some 10 ms for the kernel; \
                    the mount option favordynmods of cgroup2 avoids it";
        Finding::new("cgroups", "moves", State::Absent, cost)
    };
    let mut findings = vec![Finding::new("cgroups", "mode", State::Ok, place), moves];
    findings.extend(CONTROLLERS.map(|controller| {
        let (used, use_of_it) = what_it_limits(controller);
        match hierarchies.home(controller) {
            Some(home) if used => {
                Finding::new("cgroups", controller, State::Ok, format!("{home}: {use_of_it}"))
            }
            Some(home) => Finding::new("cgroups", controller, State::Absent, format!("{home}: {use_of_it}")),
            None if used => Finding::new(
                "cgroups",
                controller,
                State::Fails,
                format!("no such controller: no {use_of_it}"),
            ),
            None => Finding::new("cgroups", controller, State::Absent, "no such controller; not needed"),
        }
    }));
    findings
}

/// Whether this version uses a controller, and for what.
fn what_it_limits(controller: &str) -> (bool, &'static str) {
    match controller {
        "memory" => (true, "memory limits and accounts"),
        "cpu" => (true, "CPU weight and quota"),
        "pids" => (true, "limit on the number of tasks"),
        _ => (true, "limits on reads and writes where they are asked for"),
    }
}

fn probes() -> Vec<Finding> {
    let probes = match Probes::load(&Options { tasks_max: 1, run_level: 2 }) {
        Ok(probes) => probes,
        Err(error) => {
            let why = format!("{error}; instead: the kernel's accounts of cgroups or processes");
            return vec![Finding::of("probes", "all", Err(why))];
        }
    };
    probes.status().iter().map(of_probe).collect()
}

fn of_probe(probe: &ProbeStatus) -> Finding {
    let state = match &probe.state {
        ProbeState::Attached { hook } => Ok(format!("{} ({hook})", probe.measures)),
        ProbeState::Unavailable { why, instead } => {
            Err(format!("{}: {why}; instead: {instead}", probe.measures))
        }
    };
    Finding::of("probes", probe.name, state)
}

/// What the agent and its probes cost, and what they lost.
fn costs_and_losses(status: &AgentStatus) -> Vec<Finding> {
    let own = status.own;
    let share = own.cpu_ms as f64 / own.elapsed_ms.max(1) as f64 * 100.0;
    let detail = format!(
        "{share:.2} % of a CPU since it started, {} resident; looking at the probes takes {} us a second",
        format_bytes(own.rss_bytes as f64),
        own.drain_us
    );
    let mut findings = vec![Finding::new("cost", "agent", State::Ok, detail)];
    findings.extend(status.costs.iter().map(|cost| {
        let detail = format!(
            "{:.3} % of the CPUs: {:.0} runs a second of {:.0} ns",
            cost.share * 100.0,
            cost.runs_per_s,
            cost.ns_per_run
        );
        Finding::new("cost", &cost.name, State::Ok, detail)
    }));
    if status.lost.is_empty() {
        findings.push(Finding::new("losses", "probes", State::Ok, "nothing was lost"));
    }
    let lost = |(what, count): &(String, u64)| {
        Finding::new("losses", "probes", State::Fails, format!("{count} times: {what}"))
    };
    findings.extend(status.lost.iter().map(lost));
    findings
}

fn probes_of_agent(status: &AgentStatus) -> Vec<Finding> {
    let of_probe = |(name, state): &(String, Result<String, String>)| {
        let state = state.clone().map(|hook| format!("the agent's, at {hook}"));
        Finding::of("probes", name, state)
    };
    status.probes.iter().map(of_probe).collect()
}
