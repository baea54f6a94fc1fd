//! What is packed: the configuration that is shipped, and the unit that confines the agent.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use standin::config::{Config, ConfigError, DEFAULT_DATABASE};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::has;

/// Most that `systemd-analyze security` may find open, tenths.
const EXPOSURE_MAX: &str = "40";

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// The shipped configuration with every line in force that is commented out.
fn uncommented() -> String {
    let text = std::fs::read_to_string(packaging("config.toml")).unwrap();
    let in_force = |line: &str| match line.strip_prefix('#') {
        // Prose has a space there.
        Some(key) if !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(in_force).collect::<Vec<_>>().join("\n")
}

/// Read from a directory of its own: what others could replace is not taken for a configuration.
fn try_load(text: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path))
}

fn load(text: &str) -> Config {
    try_load(text).unwrap()
}

/// What holds anyway, but for the place of the jobs, which under systemd is one that is handed over.
fn defaults() -> Config {
    let mut config = Config::default();
    config.agent.cgroup_parent = "standin.slice/standin-jobs.service".into();
    config
}

#[test]
fn the_shipped_configuration_changes_nothing_but_the_place_of_the_jobs() {
    assert_eq!(Config::load(Some(&packaging("config.toml"))).unwrap(), defaults());
}

#[test]
fn every_key_is_shown_with_its_default() {
    let mut config = load(&uncommented());
    // Examples of sections that have no defaults.
    assert_eq!((config.license.len(), config.task.len()), (1, 1));
    config.license.clear();
    config.task.clear();
    // Off by default: what is shown is where they could be.
    assert!(config.metrics.socket.take().is_some() && config.metrics.listen.take().is_some());
    // Their defaults depend on who asks.
    assert_eq!(config.agent.database.take().as_deref(), Some(Path::new(DEFAULT_DATABASE)));
    assert_eq!(config.agent.bpffs.take().as_deref(), Some(Path::new("/sys/fs/bpf")));
    assert_eq!(config, defaults());
}

/// The keys of a section, as the parser names them to somebody who mistook one.
fn keys_of(section: &str) -> Vec<String> {
    let needed = if section.starts_with("[license") { "total = 1\n" } else { "" };
    let error = try_load(&format!("{section}\n{needed}no_such_key = 1\n")).unwrap_err().to_string();
    let names = error.split_once("expected").unwrap().1.split('`').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

#[test]
fn no_key_is_forgotten() {
    let text = uncommented();
    let sections = [
        "[agent]",
        "[run]",
        "[metrics]",
        "[host]",
        "[admission]",
        "[retention]",
        "[license.cad]",
        "[task.\"train.py\"]",
    ];
    for section in sections {
        let (_, rest) = text.split_once(section).unwrap_or_else(|| panic!("no {section}"));
        let own = rest.split("\n[").next().unwrap();
        let keys = keys_of(section);
        assert!(!keys.is_empty());
        for key in keys {
            assert!(own.lines().any(|line| line.starts_with(&format!("{key} ="))), "{key} of {section}");
        }
    }
}

#[test]
fn the_service_is_confined() {
    require!(has("systemd-analyze"), "systemd-analyze is not installed");
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX]);
    let output = analyze.arg(packaging("systemd/standin.service")).output().unwrap();
    let text = support::stdout(&output);
    assert!(text.contains("Overall exposure level"), "{text}{}", support::stderr(&output));
    assert!(output.status.success(), "{text}");
}
