//! Asking the agent to take a run in, and waiting for its turn where there is no room.
//!
//! The agent says every second that the task still waits. If it dies meanwhile, another one is waited for: it
//! gives the task its old place, by the time when it came.

use super::exit::complain;
use super::reach;
use crate::units::format_duration;
use crate::wire::{self, Reply, Request, Start, Started, Waiting, WireError};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a task that waits does without an agent before it is started without one.
const AGENT_BACK: Duration = Duration::from_secs(30);
const AGENT_PAUSE: Duration = Duration::from_millis(200);

/// How long a task that waits, or can't do without the agent, bears one that says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Longest silence towards people while a task waits.
const WORD_EVERY: Duration = Duration::from_secs(60);

/// Whom to ask, and whether to talk about it.
pub(super) struct Asking<'a> {
    pub(super) socket: &'a Path,
    pub(super) quiet: bool,
    /// Nothing is to be done without the agent: it may take its time to answer.
    pub(super) is_patient: bool,
}

/// What came of it.
pub(super) enum Answer {
    /// Go.
    Started(Started),
    /// The task may not start; the reason.
    Denied(String),
    /// Somebody ended the launcher while it waited.
    Interrupted(Signal),
}

impl Asking<'_> {
    /// Asks, and waits as long as it takes. `interrupted` is asked now and then.
    ///
    /// # Errors
    /// The agent refuses, or is broken or gone: then the task can be started without it.
    pub(super) fn start(
        &self,
        agent: &mut UnixStream,
        start: &Start,
        interrupted: impl Fn() -> Option<Signal>,
    ) -> Result<Answer, WireError> {
        let came = Instant::now();
        let mut said = None;
        if self.is_patient {
            agent.set_read_timeout(Some(SILENCE_MAX))?;
        }
        wire::send(agent, &Request::Start(Box::new(start.clone())))?;
        loop {
            if let Some(signal) = interrupted() {
                return Ok(Answer::Interrupted(signal));
            }
            match wire::receive(agent) {
                Ok(Reply::Started(started)) => return Ok(Answer::Started(*started)),
                Ok(Reply::Denied(why)) => return Ok(Answer::Denied(why)),
                Ok(Reply::Refused(why)) => return Err(WireError::Refused(why)),
                Ok(Reply::Waiting(waiting)) => {
                    // An agent that dies closes the connection; one that is only slow must not be asked twice.
                    _ = agent.set_read_timeout(Some(SILENCE_MAX));
                    self.say(&waiting, &mut said);
                }
                Ok(_) => return Err(WireError::NotAFrame),
                Err(error) if said.is_none() => return Err(error),
                Err(error) => {
                    *agent = self.next_agent(start, came, &interrupted).ok_or(error)?;
                }
            }
        }
    }

    /// Another agent that has been asked, once there is one.
    fn next_agent(
        &self,
        start: &Start,
        came: Instant,
        interrupted: &impl Fn() -> Option<Signal>,
    ) -> Option<UnixStream> {
        let patience = Instant::now() + AGENT_BACK;
        let mut again = start.clone();
        while Instant::now() < patience && interrupted().is_none() {
            std::thread::sleep(AGENT_PAUSE);
            let waited_ms = u64::try_from(came.elapsed().as_millis()).unwrap_or(u64::MAX);
            again.admission.wait_max_ms =
                start.admission.wait_max_ms.map(|wait_ms| wait_ms.saturating_sub(waited_ms));
            if let Ok(mut agent) = reach::connect(self.socket)
                && wire::send(&mut agent, &Request::Start(Box::new(again.clone()))).is_ok()
            {
                return Some(agent);
            }
        }
        None
    }

    /// Says where the task stands when that has changed, or after a while.
    fn say(&self, waiting: &Waiting, said: &mut Option<(usize, Instant)>) {
        let is_news = said.is_none_or(|(ahead, at)| ahead != waiting.ahead || at.elapsed() >= WORD_EVERY);
        if !is_news {
            return;
        }
        *said = Some((waiting.ahead, Instant::now()));
        if !self.quiet {
            complain(&in_words(waiting));
        }
    }
}

fn in_words(waiting: &Waiting) -> String {
    let ahead = match waiting.ahead {
        0 => "next in the queue".to_owned(),
        1 => "1 task ahead".to_owned(),
        ahead => format!("{ahead} tasks ahead"),
    };
    let expected = match waiting.expected_ms {
        Some(ms) => format!("about {}", format_duration((ms.max(0) as f64 / 1000.0).ceil())),
        None => "nobody knows how long".to_owned(),
    };
    format!("waiting: {ahead}, {expected}; {}", waiting.lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_its_place() {
        let waiting = |ahead, expected_ms| in_words(&Waiting { ahead, expected_ms, lacks: "x".into() });
        assert_eq!(waiting(0, Some(1200)), "waiting: next in the queue, about 2.0 s; x");
        assert_eq!(waiting(3, None), "waiting: 3 tasks ahead, nobody knows how long; x");
    }
}
