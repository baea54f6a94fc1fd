//! What the guard does. The order of a failover is the point of it:
//!
//! 1. turn new connections to the new instance (the kernel side may have done so already);
//! 2. where only one may write: kill the old one and wait for its end;
//! 3. close the old one's queues, so that the kernel moves what waits there;
//! 4. thaw the new one;
//! 5. kill the old one, or what is left of it;
//! 6. tell: recording and a new shadow come later.
//!
//! Queues are moved before the thaw: some kernels (6.1 before 6.1.192) do not wake an idle listener for a
//! connection that is moved to it. A failover that was asked for thaws first and lets the old one finish.
//!
//! A forked shadow shares its listeners with the old instance: nothing is moved, and nothing may be closed. The old
//! one is killed before the shadow goes on; where it may finish it is told to end.

use super::{Failover, Guard, Live, Report};
use crate::balance::{Action, Cause, Slow};
use crate::host;
use crate::steer::Listener;
use std::time::{Duration, Instant};

/// How long the end of an instance that must not write any more is waited for.
const FENCE_PATIENCE: Duration = Duration::from_secs(30);

/// A failover under way.
struct Move {
    from: Option<u32>,
    to: u32,
    cause: Cause,
    fence: bool,
    drain: bool,
}

/// The steps of a failover and their times.
struct Clock {
    zero_ns: u64,
    steps: Vec<(&'static str, u64)>,
}

impl Clock {
    fn step(&mut self, name: &'static str) {
        self.steps.push((name, monotonic_ns().saturating_sub(self.zero_ns) / 1000));
    }
}

/// `CLOCK_MONOTONIC`, which the kernel side uses as well.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

impl Guard {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::FailOver { from, to, cause, fence, drain } => {
                self.fail_over(&Move { from, to, cause, fence, drain });
            }
            Action::Serve(slot) => {
                self.turn_to(slot);
                self.stall.restart();
                if let Some(live) = self.live.get_mut(&slot) {
                    live.mark();
                }
                self.report(Report::Serves(slot));
            }
            Action::Park(slot) => {
                if let Some(live) = self.live.get_mut(&slot) {
                    live.freeze();
                    live.mark();
                }
            }
            Action::End { slot, gently } => self.end(slot, gently),
            Action::Start { after } => self.report(Report::Start(after)),
            Action::Next(slot) => {
                if let Some(steering) = &self.steering {
                    steering.switch().set_next(slot);
                }
            }
            Action::Say(text) | Action::Refuse(text) => self.report(Report::Say(text)),
            Action::Finish(how) => self.report(Report::Finished(how)),
        }
    }

    fn turn_to(&self, slot: u32) {
        if let Some(steering) = &self.steering {
            steering.switch().turn_to(slot);
        }
    }

    fn end(&mut self, slot: u32, gently: bool) {
        let patience = self.stop_patience;
        let Some(live) = self.live.get_mut(&slot) else { return };
        if gently {
            live.listeners.clear();
            live.signal(libc::SIGTERM);
            live.deadline = Some(Instant::now() + patience);
        } else {
            live.kill();
        }
        if live.is_frozen {
            live.thaw();
        }
    }

    fn fail_over(&mut self, this: &Move) {
        let old = this.from.and_then(|slot| self.live.get(&slot));
        let mut clock = Clock {
            zero_ns: old.and_then(|live| live.died_at_ns).unwrap_or_else(monotonic_ns),
            steps: vec![],
        };
        let at_ms = host::now_ms() - i64::try_from((monotonic_ns() - clock.zero_ns) / 1_000_000).unwrap_or(0);
        clock.step("noticed");
        let queued = old.map_or(0, Live::queue);
        let before = self.steering.as_ref().map_or(0, |steering| steering.steered().migrated);
        let open =
            if this.drain { self.hand_over(this, &mut clock) } else { self.take_over(this, &mut clock) };
        let migrated = self.steering.as_ref().map_or(0, |steering| steering.steered().migrated) - before;
        self.stall.restart();
        self.stalls = false;
        self.slow = Slow::default();
        let who = |slot: u32| self.live.get(&slot).map(|live| (live.number, live.pid()));
        let failover = Failover {
            at_ms,
            cause: this.cause.clone(),
            from: this.from.and_then(who),
            to: who(this.to).unwrap_or_default(),
            steps: clock.steps,
            queued,
            migrated,
            open,
        };
        if let Some(live) = self.live.get_mut(&this.to) {
            live.mark();
        }
        self.report(Report::FailedOver(Box::new(failover)));
        if let (true, Some(from)) = (this.drain, this.from) {
            self.report(Report::Retires(from));
        }
    }

    /// The old instance is well: it finishes what it has, and gets nothing new.
    fn hand_over(&mut self, this: &Move, clock: &mut Clock) -> Option<u64> {
        self.thaw(this.to);
        clock.step("thawed");
        self.turn_to(this.to);
        clock.step("turned");
        if let (true, Some(from)) = (self.shares_listeners(this.to), this.from) {
            self.end(from, true);
            clock.step("told");
        }
        None
    }

    fn shares_listeners(&self, slot: u32) -> bool {
        self.live.get(&slot).is_some_and(|live| live.is_copy)
    }

    /// The old instance is dead or has to go.
    fn take_over(&mut self, this: &Move, clock: &mut Clock) -> Option<u64> {
        self.turn_to(this.to);
        clock.step("turned");
        if this.fence {
            self.fence(this.from);
            clock.step("fenced");
        }
        if self.shares_listeners(this.to) {
            let old = this.from.and_then(|slot| self.live.get_mut(&slot));
            old.into_iter().for_each(Live::kill);
        } else {
            let old = this.from.and_then(|slot| self.live.get(&slot));
            old.into_iter().flat_map(|live| &live.listeners).for_each(Listener::shut);
        }
        clock.step("migrated");
        self.thaw(this.to);
        clock.step("thawed");
        let old = this.from.and_then(|slot| self.live.get_mut(&slot))?;
        // Only now, for it takes milliseconds.
        let open = (!old.is_dead).then(|| crate::steer::connections(&old.pids()) as u64);
        old.is_killed = true;
        old.kill();
        clock.step("ended");
        open
    }

    fn thaw(&mut self, slot: u32) {
        if let Some(live) = self.live.get_mut(&slot) {
            live.thaw();
        }
    }

    fn fence(&mut self, slot: Option<u32>) {
        if let Some(cgroup) = slot.and_then(|slot| self.live.get(&slot)?.cgroup.as_ref()) {
            cgroup.kill();
            if !cgroup.wait_until_empty(FENCE_PATIENCE) {
                let said = "the old instance does not die (it waits in the kernel); the new one goes on all the same";
                self.report(Report::Say(said.into()));
            }
        }
    }
}
