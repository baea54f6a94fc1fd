//! `standin agent --check`: what an agent needs, looked at without starting one, and without making anything.

use super::{Finding, State, database, in_groups, probes};
use crate::cgroup::Hierarchies;
use crate::cli::exit::{FAILED, INCOMPLETE, print};
use crate::cli::reach;
use crate::cli::settings::Settings;
use crate::config::DEFAULT_PATH;
use crate::probe::find_bpf_file_system;
use nix::unistd::{AccessFlags, Group, access};
use std::path::Path;

/// How the findings are headed without which there is no agent.
const NEEDED: &str = "needed";

/// Prints what was found; 0 if all is well, 1 if the agent would start and do without something, 125 if it would not
/// start.
pub(in crate::cli) fn check(settings: &Settings) -> anyhow::Result<u8> {
    let mut findings = vec![
        configuration(settings),
        Finding { about: NEEDED, ..database(&settings.database) },
        socket(&settings.socket),
        cgroups(Path::new(&settings.config.agent.cgroup_parent)),
        group(&settings.config.agent.socket_group),
        pins(settings),
    ];
    if settings.config.agent.probes {
        findings.extend(probes());
    } else {
        findings.push(Finding::new("probes", "all", State::Absent, "switched off by agent.probes"));
    }
    print(in_groups(&findings))?;
    let mut failing = findings.iter().filter(|finding| finding.state == State::Fails).peekable();
    Ok(match (failing.peek().is_some(), failing.any(|finding| finding.about == NEEDED)) {
        (_, true) => FAILED,
        (true, false) => INCOMPLETE,
        (false, false) => 0,
    })
}

fn configuration(settings: &Settings) -> Finding {
    let path = settings.config_path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let detail = if path.exists() {
        format!("{}: valid", path.display())
    } else {
        format!("{}: not there, the defaults hold", path.display())
    };
    Finding::new(NEEDED, "configuration", State::Ok, detail)
}

fn socket(path: &Path) -> Finding {
    let shown = path.display();
    let result = match reach::status(path) {
        Ok(status) => Ok(format!("{shown}: version {} answers, process {}", status.version, status.pid)),
        Err(unreachable) if !unreachable.absent && path.exists() => {
            if reach::connect(path).is_ok() {
                Err(format!("{shown}: somebody listens who does not answer"))
            } else {
                may_be_made(path)
            }
        }
        Err(_) => may_be_made(path),
    };
    Finding::of(NEEDED, "socket", result)
}

fn may_be_made(path: &Path) -> Result<String, String> {
    let place = path.ancestors().skip(1).find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match access(place, AccessFlags::W_OK) {
        Ok(()) => Ok(format!("{}: can be made", path.display())),
        Err(error) => Err(format!("{}: {} may not be written to: {error}", path.display(), place.display())),
    }
}

fn cgroups(parent: &Path) -> Finding {
    let result = match Hierarchies::detect() {
        Err(error) => Err(error.to_string()),
        Ok(hierarchies) if hierarchies.is_writable(parent) => {
            let path = hierarchies.unified.join(parent);
            Ok(format!(
                "runs get theirs below {}{}",
                path.display(),
                if path.is_dir() { "" } else { ", not there yet" }
            ))
        }
        Ok(hierarchies) => {
            Err(format!("{} may not be written to: the agent must be root", hierarchies.unified.display()))
        }
    };
    Finding::of(NEEDED, "cgroups", result)
}

fn group(name: &str) -> Finding {
    let about = "shared with users";
    match Group::from_name(name) {
        Ok(Some(_)) => Finding::new(about, "group", State::Ok, format!("{name}: its members use the agent")),
        _ => Finding::new(
            about,
            "group",
            State::Absent,
            format!("{name}: no such group, so only root uses the agent"),
        ),
    }
}

fn pins(settings: &Settings) -> Finding {
    let place = settings.config.agent.bpffs.clone().or_else(find_bpf_file_system);
    let (state, detail) = match place {
        Some(place) => {
            (State::Ok, format!("in {}: counting goes on while no agent is there", place.display()))
        }
        None => (State::Absent, "no BPF file system yet: the agent mounts one on /run/standin/bpf".into()),
    };
    Finding::new("probes", "pins", state, detail)
}
