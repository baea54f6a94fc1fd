//! At a terminal a job behaves as without standin: keys, job control, size, modes.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Agent, Sandbox, has, is_root, wait_until};

/// A command at a pseudo-terminal of its own, of which it leads the session.
struct Terminal {
    keys: File,
    shown: Arc<Mutex<String>>,
    child: Child,
}

impl Terminal {
    fn start(command: Command) -> Self {
        Self::start_as(command, "dumb")
    }

    /// A terminal of this kind.
    fn start_as(command: Command, kind: &str) -> Self {
        let (keys, child) = support::pty::start(command, (33, 99), kind);
        let shown = Arc::new(Mutex::new(String::new()));
        watch(keys.try_clone().unwrap(), Arc::clone(&shown));
        Self { keys, shown, child }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn wait_for(&self, text: &str) {
        self.wait_for_count(text, 1);
    }

    fn wait_for_count(&self, text: &str, count: usize) {
        let patience = std::time::Instant::now() + support::PATIENCE;
        while self.shown().matches(text).count() < count {
            assert!(std::time::Instant::now() < patience, "no {text:?} in {:?}", self.shown());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Keeps what appears on the screen until the terminal is closed.
fn watch(mut screen: File, shown: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
}

/// Embedded; by an agent, executed in place; by an agent, with a launcher that stays.
fn each_way(test: impl Fn(&str, &Sandbox, &dyn Fn() -> Command)) {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let by_agent = |agent: &Agent<'_>, more: &[&str]| {
        let mut command = agent.standin(["run", "--quiet", "--require-agent"]);
        command.args(more).arg("--");
        command
    };
    test("embedded", &sandbox, &|| sandbox.standin(["run", "--quiet", "--no-agent", "--"]));
    test("agent", &sandbox, &|| by_agent(&agent, &[]));
    test("agent, staying", &sandbox, &|| by_agent(&agent, &["--wait-all"]));
}

fn sh(mut command: Command, script: &str) -> Command {
    command.args(["sh", "-c", script]);
    command
}

/// A script that goes on until the file is there.
/// Rarely a new process: dash starts them by vfork, and a stop that hits the child before it executes leaves the
/// shell unstoppable in the kernel, with standin or without.
fn until(file: &std::path::Path) -> String {
    format!("while [ ! -e {} ]; do sleep 0.5; done", file.display())
}

/// Whether the script's `sleep` has been executed, so that no stop falls between vfork and exec.
fn sleeps(pid: &str) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let name = |child: &str| std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
    children.split_whitespace().any(|child| name(child) == "sleep\n")
}

#[test]
fn control_c_reaches_the_command_once() {
    each_way(|name, sandbox, standin| {
        let go = sandbox.path("go");
        _ = std::fs::remove_file(&go);
        let script = format!("trap 'echo caught' INT; echo ready; {}; echo end", until(&go));
        let mut terminal = Terminal::start(sh(standin(), &script));
        terminal.wait_for("ready");
        terminal.press("\x03");
        terminal.wait_for("caught");
        // A second one would be on its way now.
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(&go, "").unwrap();
        assert!(terminal.end().success(), "{name}");
        terminal.wait_for("end");
        assert_eq!(terminal.shown().matches("caught").count(), 1, "{name}: {}", terminal.shown());
    });
}

#[test]
fn keys_that_kill_end_both_by_the_same_signal() {
    each_way(|name, _, standin| {
        for (key, signal) in [("\x03", libc::SIGINT), ("\x1c", libc::SIGQUIT)] {
            let mut terminal = Terminal::start(sh(standin(), "ulimit -c 0; echo ready; exec sleep 100"));
            terminal.wait_for("ready");
            terminal.press(key);
            assert_eq!(terminal.end().signal(), Some(signal), "{name}");
        }
    });
}

#[test]
fn control_z_stops_and_fg_continues() {
    require!(has("bash"), "bash is not installed");
    each_way(|name, sandbox, standin| {
        let go = sandbox.path("go");
        _ = std::fs::remove_file(&go);
        let job = sandbox.path("job");
        std::fs::write(&job, format!("echo pid=$$.\n{}\necho finished\nexit 5\n", until(&go))).unwrap();
        let mut command = standin();
        command.arg("sh").arg(&job);
        let mut shell = Command::new("bash");
        shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "prompt> ").env_remove("PROMPT_COMMAND");
        for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            shell.env(name, value);
        }
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");

        let mut terminal = Terminal::start(shell);
        terminal.wait_for("prompt> ");
        terminal.press(&format!("{line}\n"));
        terminal.wait_for(".\r\n");
        let shown = terminal.shown();
        let pid = shown.split("pid=").last().unwrap().split('.').next().unwrap();
        let is_stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
        wait_until("the script sleeps", || sleeps(pid));
        terminal.press("\x1a");
        terminal.wait_for("Stopped");
        wait_until("the command is stopped too", is_stopped);
        std::fs::write(&go, "").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(is_stopped() && !terminal.shown().contains("finished"), "{name}: {}", terminal.shown());
        terminal.press("fg\n");
        terminal.wait_for("finished");
        terminal.press("echo code=$?.\n");
        terminal.wait_for("code=5.");
        assert_eq!(terminal.shown().matches("Stopped").count(), 1, "{name}: {}", terminal.shown());
        terminal.press("exit\n");
        terminal.end();
    });
}

#[test]
fn a_command_that_stops_itself_can_be_continued_from_within() {
    each_way(|name, _, standin| {
        // Not before it is stopped, and has been for a moment.
        let script =
            "(until grep -q '^State:.T' /proc/$$/status; do sleep 0.01; done; sleep 0.3; kill -CONT $$) &
                      kill -STOP $$; echo continued; exit 6";
        let mut terminal = Terminal::start(sh(standin(), script));
        terminal.wait_for("continued");
        assert_eq!(terminal.end().code(), Some(6), "{name}");
    });
}

#[test]
fn the_terminal_is_the_commands_own() {
    each_way(|name, _, standin| {
        let look = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all three; \
                    trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.02; done";
        let mut terminal = Terminal::start(sh(standin(), look));
        terminal.wait_for("ready");
        let shown = terminal.shown();
        assert!(
            shown.contains("/dev/pts/") && shown.contains("33 99") && shown.contains("all three"),
            "{shown}"
        );
        let size = nix::pty::Winsize { ws_row: 20, ws_col: 70, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is a terminal and the structure is complete.
        assert_eq!(unsafe { libc::ioctl(terminal.keys.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
        terminal.wait_for("20 70");
        assert_eq!(terminal.end().code(), Some(4), "{name}");
    });
}

#[test]
fn modes_that_the_command_sets_stay_and_no_others() {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    each_way(|name, _, standin| {
        let before = {
            let mut terminal = Terminal::start(sh(standin(), "read line; stty -echo; read line"));
            let before = tcgetattr(&terminal.keys).unwrap();
            terminal.press("\n");
            wait_until("the mode is set", || {
                !tcgetattr(&terminal.keys).unwrap().local_flags.contains(LocalFlags::ECHO)
            });
            terminal.press("\n");
            assert!(terminal.end().success());
            before
        };
        let mut terminal = Terminal::start(sh(standin(), "true"));
        let fresh = tcgetattr(&terminal.keys).unwrap();
        assert!(terminal.end().success());
        assert_eq!(fresh.local_flags, before.local_flags, "{name}");
    });
}

/// Colour is for terminals, and not for those who don't want it.
#[test]
fn no_color_is_respected() {
    let sandbox = Sandbox::new();
    let shown = |no_color: Option<&str>| {
        let mut command = sandbox.standin(["run", "--help"]);
        command.env_remove("NO_COLOR").envs(no_color.map(|value| ("NO_COLOR", value)));
        let mut terminal = Terminal::start_as(command, "xterm-256color");
        assert!(terminal.end().success());
        terminal.wait_for("Examples:");
        terminal.shown()
    };
    assert!(shown(None).contains('\u{1b}'), "help has colour on a terminal");
    assert!(!shown(Some("1")).contains('\u{1b}'));
}

/// Long work says on a terminal how far it has come, takes that away at its end, and is silent in a pipe.
#[test]
fn long_work_tells_how_far_it_has_come() {
    let sandbox = Sandbox::new();
    let rows: String = (0..4_000)
        .map(|n| format!("job{},{n},{},{}\n", n % 7, 10 + n % 50, 1_000_000 * (50 + n % 90)))
        .collect();
    let trace = sandbox.path("trace.csv");
    std::fs::write(&trace, format!("task_type,start_s,duration_s,memory_peak_bytes\n{rows}")).unwrap();
    let trace = trace.to_str().unwrap();
    let mut terminal = Terminal::start_as(sandbox.standin(["backtest", "--csv", trace]), "xterm");
    terminal.wait_for("starts\u{1b}[K");
    terminal.wait_for("RECIPE");
    assert!(terminal.end().success());
    let shown = terminal.shown();
    let (before, after) = shown.split_once("RECIPE").unwrap();
    assert!(before.contains("\r\u{1b}[K") && !after.contains("starts\u{1b}"), "{shown:?}");
    let piped = sandbox.standin(["backtest", "--csv", trace]).output().unwrap();
    assert_eq!(support::stderr(&piped), "");
}
