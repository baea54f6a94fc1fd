//! How far a long work has come: one line on stderr that is written over and gone at the end; only where stderr is a
//! terminal, so that nothing of it gets into a file or a pipe.

use super::table::printable;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Pause between two lines, and before the first: what is quick says nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// One work.
pub(super) struct Progress {
    what: &'static str,
    is_shown: bool,
    next: Instant,
    is_dirty: bool,
}

impl Progress {
    /// `what` is being done: `replaying`.
    pub(super) fn new(what: &'static str) -> Self {
        let can_overwrite = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        let is_shown = can_overwrite && stderr().is_terminal();
        Self { what, is_shown, next: Instant::now() + PAUSE, is_dirty: false }
    }

    /// So much of so much is done; `unit` says of what.
    pub(super) fn tell(&mut self, done: usize, of: usize, unit: &str) {
        if !self.is_shown || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PAUSE;
        self.is_dirty = true;
        let line = format!("standin: {} {done} of {of} {unit}", self.what);
        _ = write!(stderr(), "\r{}\u{1b}[K", printable(&line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_dirty {
            _ = write!(stderr(), "\r\u{1b}[K");
        }
    }
}
