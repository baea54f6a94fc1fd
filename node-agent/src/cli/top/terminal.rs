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
        self.terminal.clear()
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
