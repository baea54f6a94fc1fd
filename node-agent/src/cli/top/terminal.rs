//! The terminal: taken over, and given back as it was, whatever happens: at the end, on a panic, on SIGTERM, SIGHUP
//! and SIGINT, and for as long as somebody has stopped the process (SIGTSTP).

use nix::sys::signal::{SigSet, Signal, raise};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};
use std::io::{self, Stdout, stdout};
use std::sync::mpsc::{Receiver, channel};

/// Signals that end or stop.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTSTP];

/// See the head of this file.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    signals: Receiver<Signal>,
}

impl Screen {
    /// Takes the terminal over. To be called before there are other threads: they inherit that the signals are
    /// waited for by one alone.
    ///
    /// # Errors
    /// What the terminal says.
    pub(super) fn open() -> io::Result<Self> {
        let set = SIGNALS.into_iter().collect::<SigSet>();
        set.thread_block()?;
        let (tell, signals) = channel();
        let wait = move || {
            while let Ok(signal) = set.wait() {
                if tell.send(signal).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait)?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        take_over()?;
        Ok(Self { terminal: Terminal::new(CrosstermBackend::new(stdout()))?, signals })
    }

    /// Draws.
    ///
    /// # Errors
    /// What the terminal says: it is gone.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// A signal that came.
    pub(super) fn signal(&self) -> Option<Signal> {
        self.signals.try_recv().ok()
    }

    /// Stops the process until somebody continues it. The terminal is the shell's meanwhile.
    ///
    /// # Errors
    /// What the terminal says.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        give_back();
        suffer(Signal::SIGTSTP)?;
        SigSet::from(Signal::SIGTSTP).thread_block()?;
        take_over()?;
        // Draws everything anew. To clear would ask the terminal where its cursor is, which some never answer.
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }

    /// Gives the terminal back and ends as the signal ends a process.
    ///
    /// # Errors
    /// If the signal can't be raised.
    pub(super) fn end_by(self, signal: Signal) -> io::Result<()> {
        drop(self);
        Ok(suffer(signal)?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Has the signal do to this process what it does by default.
fn suffer(signal: Signal) -> nix::Result<()> {
    SigSet::from(signal).thread_unblock()?;
    raise(signal)
}

fn take_over() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Hide)
}

fn give_back() {
    // A terminal that is gone needs nothing back.
    _ = execute!(stdout(), LeaveAlternateScreen, Show);
    _ = disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    const PANICS: &str = "STANDIN_TEST_PANIC_AT_TERMINAL";

    #[test]
    fn child_that_panics_at_its_terminal() {
        if std::env::var_os(PANICS).is_some() {
            let _screen = Screen::open().unwrap();
            panic!("as asked for");
        }
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_is_read() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = nix::sys::termios::tcgetattr(&pair.master).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--nocapture", "cli::top::terminal::tests::child_that_panics_at_its_terminal"])
            .env(PANICS, "1")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut master = std::fs::File::from(pair.master.try_clone().unwrap());
        let reader = std::thread::spawn(move || {
            let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                shown.extend_from_slice(&buffer[..length]);
            }
            String::from_utf8_lossy(&shown).into_owned()
        });
        assert!(!child.wait().unwrap().success());
        let after = nix::sys::termios::tcgetattr(&pair.master).unwrap();
        assert_eq!((after.local_flags, after.input_flags), (before.local_flags, before.input_flags));
        drop(pair.slave);
        let shown = reader.join().unwrap();
        let (taken, given, said) =
            (shown.find("\x1b[?1049h"), shown.rfind("\x1b[?1049l"), shown.find("as asked for"));
        assert!(taken.is_some() && taken < given && shown.find("\x1b[?1049l") < said, "{shown:?}");
    }
}
