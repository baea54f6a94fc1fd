//! What the service manager hears (sd_notify(3)): that the agent is ready, reads its configuration, stops, how many
//! tasks there are, and that its loop turns. Without one that asks nothing is said.

use sd_notify::{NotifyState, notify, watchdog_enabled};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Its word that the loop turns is given so many times as often as it is expected.
const WORDS_PER_TIMEOUT: u32 = 4;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Manager {
    /// Longest silence before it takes the agent for hung.
    patience: Option<Duration>,
    last: Cell<Option<Instant>>,
    status: RefCell<String>,
    /// What came of reading the configuration again, if it was no good.
    trouble: RefCell<Option<String>>,
}

impl Default for Manager {
    fn default() -> Self {
        Self {
            patience: watchdog_enabled(),
            last: Cell::default(),
            status: RefCell::default(),
            trouble: RefCell::default(),
        }
    }
}

impl Manager {
    /// Everything is set up.
    pub(super) fn ready(&self) {
        say(&[NotifyState::Ready]);
    }

    /// The configuration is read again, until [`Manager::reloaded`].
    pub(super) fn reloading(&self) {
        let reloading = NotifyState::monotonic_usec_now();
        say(&[NotifyState::Reloading].into_iter().chain(reloading.ok()).collect::<Vec<_>>());
    }

    /// What came of that.
    pub(super) fn reloaded(&self, trouble: Option<String>) {
        self.trouble.replace(trouble);
        self.ready();
    }

    pub(super) fn stopping(&self) {
        say(&[NotifyState::Stopping]);
    }

    /// Called by the loop each second: lets the manager know, and how things are where that has changed.
    pub(super) fn alive(&self, status: impl Fn() -> String) {
        let pause = self.patience.map(|patience| patience / WORDS_PER_TIMEOUT);
        if pause.is_some_and(|pause| self.last.get().is_none_or(|last| last.elapsed() >= pause)) {
            self.last.set(Some(Instant::now()));
            say(&[NotifyState::Watchdog]);
        }
        let trouble = self.trouble.borrow().as_ref().map(|trouble| format!("; {trouble}"));
        let status = status() + &trouble.unwrap_or_default();
        if *self.status.borrow() != status {
            say(&[NotifyState::Status(&status)]);
            self.status.replace(status);
        }
    }
}

/// A manager that does not listen changes nothing.
fn say(states: &[NotifyState<'_>]) {
    _ = notify(states);
}
