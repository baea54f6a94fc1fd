//! Shells complete verbs, options, and the names of tasks and services.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::process::Command;
use support::{Sandbox, has, stderr, stdout};

/// What a real bash offers for the last word of a line.
fn offered(sandbox: &Sandbox, words: &[&str]) -> Vec<String> {
    const SCRIPT: &str = r#"
        source <(standin completions bash) || exit 9
        [[ $(complete -p standin) =~ -F\ ([^ ]+) ]] || exit 8
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9 COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        "${BASH_REMATCH[1]}" standin "${@: -1}" "${@: -2:1}"
        [[ ${#COMPREPLY[@]} = 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let program = std::path::PathBuf::from(sandbox.standin([""; 0]).get_program());
    let path = std::env::join_paths(
        std::iter::once(program.parent().unwrap().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", SCRIPT, "bash"])
        .args(words)
        .env("PATH", path.unwrap())
        .env("STANDIN_DB", sandbox.database())
        .env("STANDIN_SOCKET", sandbox.socket())
        .env("STANDIN_CONFIG", sandbox.path("config.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}: {}", output.status, stderr(&output));
    assert_eq!(stderr(&output), "", "{words:?}");
    stdout(&output).lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn bash_completes_verbs_options_and_names() {
    require!(has("bash"), "bash is not installed");
    let sandbox = Sandbox::new();
    for name in ["nightly", "night watch", "weekly"] {
        sandbox.run(&["--name", name], &["true"]);
    }
    assert_eq!(offered(&sandbox, &["standin", "sh"]), ["show"]);
    assert_eq!(offered(&sandbox, &["standin", "run", "--pol"]), ["--policy"]);
    assert_eq!(offered(&sandbox, &["standin", "run", "--policy", "st"]), ["strict"]);
    for verb in ["show", "runs", "predict", "explain"] {
        assert_eq!(offered(&sandbox, &["standin", verb, "week"]), ["weekly"], "{verb}");
    }
    assert_eq!(offered(&sandbox, &["standin", "show", "night"]).len(), 2);
    assert_eq!(offered(&sandbox, &["standin", "events", "--task", "week"]), ["weekly"]);
    assert_eq!(offered(&sandbox, &["standin", "show", "nosuch"]), [""; 0]);
}

#[test]
fn services_are_named_by_their_sockets() {
    require!(has("bash"), "bash is not installed");
    let sandbox = Sandbox::new();
    // No service has to answer for its name to be offered.
    let services = standin::service::control_directory(&sandbox.socket());
    std::fs::create_dir_all(&services).unwrap();
    std::fs::write(services.join("web.sock"), "").unwrap();
    assert_eq!(offered(&sandbox, &["standin", "failover", "w"]), ["web"]);
    assert_eq!(offered(&sandbox, &["standin", "stop", "w"]), ["web"]);
}

/// A shell is no place for messages: without a database, or with a broken one, there is nothing to offer.
#[test]
fn what_goes_wrong_is_not_told() {
    require!(has("bash"), "bash is not installed");
    let sandbox = Sandbox::new();
    assert_eq!(offered(&sandbox, &["standin", "show", "x"]), [""; 0]);
    std::fs::write(sandbox.database(), "no database").unwrap();
    assert_eq!(offered(&sandbox, &["standin", "show", "x"]), [""; 0]);
    std::fs::write(sandbox.path("config.toml"), "no configuration").unwrap();
    assert_eq!(offered(&sandbox, &["standin", "show", "x"]), [""; 0]);
}

#[test]
fn every_shell_gets_a_script_and_others_are_refused() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&sandbox.standin(["completions", shell]).output().unwrap());
        assert!(script.contains("STANDIN_COMPLETE") && script.contains("standin"), "{shell}: {script}");
        if has(shell) {
            let file = sandbox.path(shell);
            std::fs::write(&file, script).unwrap();
            let checked = Command::new(shell).arg("-n").arg(&file).output().unwrap();
            assert!(checked.status.success(), "{shell}: {}", stderr(&checked));
        }
    }
    let refused = sandbox.standin(["completions", "csh"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(stderr(&refused).contains("bash"), "{}", stderr(&refused));
}
