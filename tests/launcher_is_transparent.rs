//! A command can't tell, and its caller can't either, that standin started it.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use support::{Sandbox, as_nobody, is_root, stderr, stdout};

/// What a command sees of itself: signals (1 to 31; 32 and 33 belong to the C library), directory, descriptors,
/// environment, limits.
const LOOK: &str = r#"
grep -E '^(SigBlk|SigIgn|NoNewPrivs|Seccomp):' /proc/self/status | sed 's/^\(Sig.*\)........\(........\)$/\1\2/'
pwd; ls -l /proc/self/fd | sed 's/.* \([0-9]* ->\)/\1/; s/\[[0-9]*\]//; s,/proc/[0-9]*/fd,FD,' | grep -v total
env | grep -v -E '^(STANDIN_|_=)' | sort; umask; ulimit -a; cat /proc/self/oom_score_adj
"#;

/// A name, and what makes the command.
type Way<'a> = (&'static str, Box<dyn Fn() -> Command + 'a>);

/// The ways of running: a name, and `standin run` up to the command.
fn ways<'a>(sandbox: &'a Sandbox, agent: &'a support::Agent<'_>) -> Vec<Way<'a>> {
    vec![
        ("embedded", Box::new(|| sandbox.standin(["run", "--quiet", "--no-agent", "--"]))),
        ("agent", Box::new(|| agent.standin(["run", "--quiet", "--require-agent", "--"]))),
        (
            "agent, staying",
            Box::new(|| agent.standin(["run", "--quiet", "--require-agent", "--wait-all", "--"])),
        ),
        (
            "accounting",
            Box::new(|| {
                let mut command = sandbox.standin(["run", "--quiet", "--no-agent", "--"]);
                as_nobody(&mut command).env("STANDIN_DB", "/dev/null/no.db");
                command
            }),
        ),
    ]
}

fn each_way(test: impl Fn(&str, &dyn Fn() -> Command)) {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    for (name, command) in ways(&sandbox, &agent) {
        test(name, &*command);
    }
}

#[test]
fn a_command_sees_what_it_would_see_without() {
    each_way(|name, standin| {
        let look = |mut command: Command| {
            let output = command
                .args(["/bin/sh", "-c", LOOK])
                .current_dir("/usr")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            stdout(&output)
        };
        let mut bare = Command::new("/usr/bin/env");
        if name == "accounting" {
            as_nobody(&mut bare);
        }
        for variable in ["RUST_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
            bare.env_remove(variable);
        }
        let expected = look(bare);
        assert!(expected.contains("SigBlk"), "{expected}");
        let seen = look(standin());
        let differing: Vec<_> =
            seen.lines().zip(expected.lines()).filter(|(seen, expected)| seen != expected).collect();
        assert!(seen == expected, "{name}: {differing:#?}");
    });
}

#[test]
fn exit_codes_are_the_commands_own() {
    each_way(|name, standin| {
        for code in [0, 1, 7, 99, 125, 126, 127, 255] {
            let status = standin().args(["sh", "-c", &format!("exit {code}")]).status().unwrap();
            assert_eq!(status.code(), Some(code), "{name}");
        }
    });
}

#[test]
fn death_by_a_signal_is_passed_on() {
    each_way(|name, standin| {
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGPIPE, libc::SIGHUP] {
            let status = standin().args(["sh", "-c", &format!("kill -{signal} $$")]).status().unwrap();
            assert_eq!(status.signal(), Some(signal), "{name}: {status:?}");
        }
    });
}

#[test]
fn signals_sent_to_the_launcher_reach_the_command() {
    each_way(|name, standin| {
        for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP, libc::SIGINT] {
            let script =
                format!("trap 'echo caught; exit 42' {signal}; echo ready; while :; do sleep 0.01; done");
            let mut child = standin().args(["sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
            let mut out = child.stdout.take().unwrap();
            let mut ready = [0; 6];
            out.read_exact(&mut ready).unwrap();
            support::signal(child.id(), signal);
            let mut rest = String::new();
            out.read_to_string(&mut rest).unwrap();
            assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("caught\n", Some(42)), "{name}");
        }
    });
}

#[test]
fn a_killed_launcher_takes_its_command_along() {
    each_way(|name, standin| {
        let mut child =
            standin().args(["sh", "-c", "echo $$; exec sleep 100"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut pid = String::new();
        while !pid.ends_with('\n') {
            let mut byte = [0];
            out.read_exact(&mut byte).unwrap();
            pid.push(byte[0].into());
        }
        support::signal(child.id(), libc::SIGKILL);
        child.wait().unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        support::wait_until(name, || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));
    });
}

#[test]
fn stdin_goes_through() {
    each_way(|name, standin| {
        let mut child = standin().arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let text = "x".repeat(1 << 20);
        let mut stdin = child.stdin.take().unwrap();
        let written = text.clone();
        let writer = std::thread::spawn(move || stdin.write_all(written.as_bytes()).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(stdout(&output) == text, "{name}");
    });
}

#[test]
fn closed_and_extra_descriptors_stay_as_they_are() {
    each_way(|name, standin| {
        let mut command = standin();
        command.args([
            "sh",
            "-c",
            "ls /proc/self/fd; test ! -e /proc/self/fd/0 && echo closed; echo text >&7",
        ]);
        let (mut read, write) = std::io::pipe().unwrap();
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&write), 7);
                libc::close(0);
                Ok(())
            });
        }
        let output = command.output().unwrap();
        drop(command);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text\n", "{name}: {}", stderr(&output));
        assert!(stdout(&output).contains("closed"), "{name}: {}", stdout(&output));
    });
}

#[test]
fn a_script_without_a_first_line_runs() {
    each_way(|name, standin| {
        let sandbox = tempfile::tempdir().unwrap();
        let script = sandbox.path().join("script");
        fs::write(&script, "echo \"ran $1\"\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).unwrap();
        let public: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(sandbox.path(), public).unwrap();
        let output = standin().arg(&script).arg("it").output().unwrap();
        assert_eq!(stdout(&output), "ran it\n", "{name}: {}", stderr(&output));
    });
}
