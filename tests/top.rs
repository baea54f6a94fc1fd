//! `standin top` at a terminal: what it shows of a real load, keys, time, and that the terminal is given back.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use nix::sys::termios::{Termios, tcgetattr};
use standin::host;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Agent, Job, Sandbox, is_root, pty, signal, stderr, stdout, wait_until};

/// A program at a terminal, and what is on the screen.
struct Screen {
    keys: File,
    shown: Arc<Mutex<vt100::Parser>>,
    /// As it was before the program.
    before: Termios,
    child: Child,
}

impl Screen {
    fn start(command: Command, size: (u16, u16)) -> Self {
        // Of a fresh terminal: the program may have changed its own by the time that it is looked at.
        let before = tcgetattr(nix::pty::openpty(None, None).unwrap().slave).unwrap();
        let (keys, child) = pty::start(command, size, "xterm-256color");
        let shown = Arc::new(Mutex::new(vt100::Parser::new(size.0, size.1, 0)));
        let (mut output, parser) = (keys.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                parser.lock().unwrap().process(&buffer[..length]);
            }
        });
        Self { keys, shown, before, child }
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().screen().contents()
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let patience = Instant::now() + support::PATIENCE;
        while !condition(&self.text()) {
            assert!(Instant::now() < patience, "no {what} in\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_text(&self, text: &str) {
        self.wait_for(text, |shown| shown.contains(text));
    }

    fn is_taken_over(&self) -> bool {
        self.shown.lock().unwrap().screen().alternate_screen()
    }

    /// The terminal is as it was before the program.
    fn is_given_back(&self) -> bool {
        let now = tcgetattr(&self.keys).unwrap();
        let shown = self.shown.lock().unwrap();
        now.local_flags == self.before.local_flags
            && now.input_flags == self.before.input_flags
            && now.output_flags == self.before.output_flags
            && !shown.screen().alternate_screen()
            && !shown.screen().hide_cursor()
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("top ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        wait_until("the terminal is given back", || self.is_given_back());
        status.unwrap()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Numbers and what fills columns to them are one `#`.
fn masked(line: &str) -> String {
    let mut text = String::new();
    for word in line.split_whitespace() {
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        let word = if is_number { "#" } else { word };
        if !(is_number && text.ends_with('#')) {
            text += &format!(" {word}");
        }
    }
    text.trim_start().to_owned()
}

fn job(agent: &Agent<'_>, options: &[&str], script: &str) -> Job {
    let mut command = agent.standin(["run", "--quiet", "--require-agent"]);
    Job::start(command.args(options).args(["--", "sh", "-c", script]))
}

/// An agent's sandbox with a loop and a sleeper under way.
fn top(agent: &Agent<'_>) -> Command {
    agent.standin(["top", "--interval", "300ms"])
}

#[test]
fn it_shows_tasks_and_goes_by_keys() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let _busy = job(&agent, &["--name", "busy", "--limit-memory", "256M"], "while :; do :; done");
    let _still = job(&agent, &["--name", "still"], "sleep 100; :");
    let mut screen = Screen::start(top(&agent), (24, 80));
    screen.wait_for("both, the busy one first", |text| {
        let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
        names.windows(2).any(|pair| pair == ["busy", "still"])
    });
    screen.wait_for("what the loop does", |text| text.contains("running") || text.contains("cpu wait"));
    let text = screen.text();
    let heads: Vec<_> = text.lines().take(5).map(masked).collect();
    assert!(heads[0].starts_with("standin top # live # tasks by cpu"), "{text}");
    assert!(heads[1].starts_with("CPU") && heads[1].contains("cores"), "{text}");
    assert!(heads[2].starts_with("MEM") && heads[2].contains("promised"), "{text}");
    assert!(heads[3].starts_with("AGENT # cpu, #"), "{text}");
    assert_eq!(heads[4], "TASK STATE CORES MEMORY OF LIMIT I/O /S NET /S");

    screen.press("\t");
    screen.wait_for_text("WRITTEN /S");
    screen.press("\t");
    screen.wait_for_text("MEM WAIT");
    screen.press("\tsss");
    screen.wait_for_text("by network");
    screen.press("/stil\r");
    screen.wait_for("only the sleeper", |text| text.contains("/stil") && !text.contains(" busy "));
    screen.press("\x1b");
    screen.wait_for_text(" busy ");
    screen.press("?");
    screen.wait_for_text("what the task spends its time on");
    screen.press("?SSS");
    screen.wait_for_text("by cpu");
    screen.press("\r");
    screen.wait_for_text("Needed up to now, and predicted");
    screen.wait_for("the course with its limit", |page| {
        page.contains("busy by root, run ") && page.contains("its limit") && page.contains("256.0 MiB")
    });
    screen.press("\x1b[6~");
    screen.wait_for_text("CPU demand, cores in use per window");
    screen.press("\x1b");
    screen.wait_for_text("OF LIMIT");

    for (rows, columns) in [(40, 150), (5, 20), (1, 1), (24, 80)] {
        screen.shown.lock().unwrap().screen_mut().set_size(rows, columns);
        pty::resize(&screen.keys, rows, columns);
        std::thread::sleep(Duration::from_millis(200));
    }
    screen.wait_for("the screen of 80 by 24 again", |text| {
        text.lines().nth(4).map(masked) == Some(heads[4].clone())
    });
    screen.press(" ");
    screen.wait_for_text("PAUSED");
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
}

#[test]
fn without_colour_there_is_none() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let colors = |command: Command| {
        let mut screen = Screen::start(command, (24, 80));
        screen.wait_for_text(" live ");
        let seen = {
            let shown = screen.shown.lock().unwrap();
            let cells = (0..24).flat_map(|row| (0..80).map(move |column| (row, column)));
            cells
                .filter(|&(row, column)| {
                    shown
                        .screen()
                        .cell(row, column)
                        .is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
                })
                .count()
        };
        screen.press("\x03");
        assert_eq!(screen.end().code(), Some(0));
        seen
    };
    let mut colorless = top(&agent);
    colorless.env("NO_COLOR", "1");
    let mut colorful = top(&agent);
    colorful.env_remove("NO_COLOR");
    assert_eq!(colors(colorless), 0);
    assert!(colors(colorful) > 0);
}

#[test]
fn signals_give_the_terminal_back() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    for ending in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let mut screen = Screen::start(top(&agent), (24, 80));
        screen.wait_for_text(" live ");
        assert!(screen.is_taken_over() && !screen.is_given_back());
        signal(screen.child.id(), ending);
        assert_eq!(screen.end().signal(), Some(ending));
    }
}

#[test]
fn a_shell_can_stop_it_and_let_it_go_on() {
    require!(is_root(), "needs root");
    require!(support::has("bash"), "bash is not installed");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let command = top(&agent);
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "prompt> ").env_remove("PROMPT_COMMAND");
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        shell.env(name, value);
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let mut screen = Screen::start(shell, (24, 80));
    screen.wait_for_text("prompt> ");
    screen.press(&format!("{line}\n"));
    screen.wait_for_text(" live ");
    for _ in 0..2 {
        screen.press("\x1a");
        screen.wait_for("the shell", |text| text.contains("Stopped") && text.trim_end().ends_with("prompt>"));
        assert!(!screen.is_taken_over());
        screen.press("fg\n");
        wait_until("it goes on", || screen.is_taken_over());
        screen.wait_for_text(" live ");
    }
    screen.press("q");
    screen.wait_for("the shell", |text| text.trim_end().ends_with("prompt>"));
    // What readline does to its terminal is not ours.
    assert!(!screen.is_taken_over() && !screen.shown.lock().unwrap().screen().hide_cursor());
    screen.press("exit 0\n");
    assert!(screen.child.wait().unwrap().success());
}

#[test]
fn arrows_go_to_what_was() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let begun = host::now_ms();
    assert!(
        job(
            &agent,
            &["--name", "gone", "--limit-memory", "256M"],
            "head -c 20M /dev/zero | tail | wc -c; sleep 2"
        )
        .0
        .wait()
        .unwrap()
        .success()
    );
    sandbox.wait_for_runs(1, "state = 'finished'");
    let middle = begun + 1500;
    let at = || {
        let ago = (host::now_ms() - middle) as f64 / 1000.0;
        format!("{ago:.0}s ago")
    };
    let once = stdout(&agent.standin(["top", "--once", "--at", &at()]).output().unwrap());
    let row = once.lines().find(|line| line.starts_with(" gone ")).unwrap_or_else(|| panic!("{once}"));
    assert!(row.contains("256.0 MiB max") && row.contains("MiB"), "{once}");
    let mut command = top(&agent);
    command.args(["--at", &at()]);
    let mut screen = Screen::start(command, (24, 100));
    screen.wait_for_text(" gone ");
    screen.wait_for_text("PAST");
    screen.press("\r");
    screen.wait_for_text("Numbers and histograms are those of the whole run");
    screen.wait_for_text("at the start: limits: memory.max 256.0 MiB (by hand)");
    screen.press("\x1b");
    screen.wait_for_text("OF LIMIT");
    screen.press(&"\x1b[C".repeat(10));
    screen.wait_for("the present, without it", |text| text.contains(" live ") && !text.contains(" gone "));
    screen.press("[");
    screen.wait_for("five minutes before there was nothing", |text| {
        text.contains("PAST") && !text.contains(" gone ")
    });
    screen.press("l");
    screen.wait_for_text(" live ");
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
}

#[test]
fn without_an_agent_it_shows_what_is_known_and_why_that_is_not_all() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let show = |arguments: &[&str]| {
        let mut command = sandbox.standin(["top", "--once", "--interval", "300ms"]);
        command.args(arguments).env("STANDIN_SOCKET", sandbox.socket());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let nothing = show(&[]);
    assert!(
        nothing.contains("no agent at") && nothing.contains("start one with: standin agent"),
        "{nothing}"
    );
    let mut command =
        sandbox.standin(["run", "--no-agent", "--quiet", "--name", "alone", "--", "sleep", "100"]);
    let _alone = Job::start(&mut command);
    sandbox.wait_for_runs(1, "state = 'running'");
    let known = show(&[]);
    assert!(known.contains(" alone ") && known.contains("last record"), "{known}");
    let json: serde_json::Value = serde_json::from_str(&show(&["--json"])).unwrap();
    assert_eq!(
        (&json["version"], &json["is_live"], &json["tasks"][0]["task_type"]),
        (&1.into(), &false.into(), &"alone".into())
    );
}

#[test]
fn a_pipe_gets_one_screen_or_a_word_why_not() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let _busy = job(&agent, &["--name", "busy"], "while :; do :; done");
    sandbox.wait_for_runs(1, "state = 'running'");
    let refused = top(&agent).output().unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        stderr(&refused).contains("--once") && stderr(&refused).lines().count() == 1,
        "{}",
        stderr(&refused)
    );
    let once = stdout(&agent.standin(["top", "--once", "--interval", "300ms"]).output().unwrap());
    assert!(
        once.starts_with(" standin top ") && once.contains(" busy ") && !once.contains('\u{1b}'),
        "{once}"
    );
    let output = agent.standin(["top", "--json", "--interval", "300ms"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["tasks"][0]["cpu_cores"].as_f64().unwrap() > 0.0, "{json:#}");
    assert!(json["agent"]["store"]["database_bytes"].as_u64().unwrap() > 0);
    for wrong in [["--at", "soon"], ["--at", "2999-01-01 00:00"], ["--interval", "1ms"]] {
        let output = agent.standin(["top", "--once"]).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{wrong:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
}
