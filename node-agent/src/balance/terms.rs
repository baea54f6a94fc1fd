//! What the decisions about a service are made of: what the user wants, what can happen, what can be done.

use super::stall::Evidence;
use std::fmt;
use std::time::Duration;

/// When an instance that has ended is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// When it died by a signal or with an exit code other than 0.
    #[default]
    OnFailure,
    /// However it ended.
    Always,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// When an instance that has ended is replaced.
    pub restart: Restart,
    /// Only one instance may run unfrozen at a time.
    pub single_writer: bool,
    /// Starts in a row that may fail before the service is given up.
    pub starts_max: u32,
    /// Failovers per minute that happen at once.
    pub failovers_max: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self { restart: Restart::OnFailure, single_writer: false, starts_max: 5, failovers_max: 6 }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How(
    /// Status as `wait(2)` has it.
    pub i32,
);

impl How {
    /// Exit code 0.
    pub fn is_clean(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if libc::WIFSIGNALED(self.0) {
            let number = libc::WTERMSIG(self.0);
            match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            }
        } else {
            write!(f, "exit {}", libc::WEXITSTATUS(self.0))
        }
    }
}

/// Why the traffic is moved.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// The primary ended.
    Died(How),
    /// It accepts nothing.
    Hangs(Evidence),
    /// The ready probe fails: its last answer.
    Unready(String),
    /// It answers too slowly.
    Slow(String),
    /// Somebody asked for it.
    Asked,
}

impl Cause {
    /// The word that the database has.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Died(_) => "died",
            Self::Hangs(_) => "hang",
            Self::Unready(_) => "unready",
            Self::Slow(_) => "slow",
            Self::Asked => "asked",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Died(how) => how.fmt(f),
            Self::Hangs(evidence) => evidence.fmt(f),
            Self::Unready(answer) => write!(f, "the ready probe fails: {answer}"),
            Self::Slow(answer) => f.write_str(answer),
            Self::Asked => f.write_str("asked for"),
        }
    }
}

/// What an instance is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not ready yet.
    Starting,
    /// A shadow that can serve at once.
    Ready,
    /// It serves.
    Primary,
    /// Finishes what it has accepted, then ends.
    Retiring,
    /// Told to end.
    Ending,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An instance was started in this slot.
    Started(u32),
    /// It can serve: it listens where the service does, answers, and is warm.
    Ready(u32),
    /// Its main process is gone, or so good as.
    Died(u32, How),
    /// It lives, but something is wrong with it.
    Sick(u32, Cause),
    /// Nothing is wrong with it any more.
    Well(u32),
    /// A failover is asked for.
    Asked,
    /// A retiring instance has finished.
    Drained(u32),
    /// No instance could be started: the process could not be made or could not execute.
    NotStarted,
    /// So many shadows are wanted.
    Wanted(usize),
    /// The service is to end.
    Stop,
    /// Time passed.
    Tick,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Move the traffic: the whole act, whose order is the caller's.
    FailOver {
        /// From here; `None` if the last primary is long gone.
        from: Option<u32>,
        /// To here.
        to: u32,
        /// Because.
        cause: Cause,
        /// Kill `from` and wait for its end before `to` runs.
        fence: bool,
        /// Let `from` finish what it has accepted.
        drain: bool,
    },
    /// It serves first: nothing is moved.
    Serve(u32),
    /// Freeze it: it is a shadow.
    Park(u32),
    /// End it and whatever is in its cgroup: asked to with SIGTERM first if `gently`, else killed.
    End {
        /// Which.
        slot: u32,
        /// It may finish what it does.
        gently: bool,
    },
    /// Start an instance after a pause.
    Start {
        /// How long to wait first.
        after: Duration,
    },
    /// The kernel side may turn traffic from a dying primary to this one.
    Next(Option<u32>),
    /// Tell the user.
    Say(String),
    /// The answer to [`Event::Asked`] where nothing can be done.
    Refuse(String),
    /// The service is over; its status as `wait(2)` has it, if it is known.
    Finish(Option<How>),
}
