//! What the guard sees: the kernel's events, the ends of processes, new listeners, a queue that nobody serves.

use super::{Guard, Live, Report, TICK_BUSY, TICK_IDLE};
use crate::balance::{Cause, Event, How, Look, Role, Verdict};
use crate::cgroup::InstanceCgroup;
use crate::host;
use crate::steer::{self, EXITED, FATAL_SIGNAL, KILLED, LISTENS, SteerEvent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

impl Guard {
    /// Sleeps until something happens, or it is time to look.
    pub(super) fn wait(&self) {
        let mut watched = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        if let Some(steering) = &self.steering {
            watched.push(PollFd::new(steering.events_fd(), PollFlags::POLLIN));
        }
        for live in self.live.values().filter(|live| !live.is_reaped) {
            if let Some(process) = &live.process {
                watched.push(PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN));
            }
        }
        let timeout = PollTimeout::try_from(self.tick()).unwrap_or(PollTimeout::MAX);
        _ = poll(&mut watched, timeout);
    }

    fn tick(&self) -> Duration {
        if self.is_alert { TICK_BUSY } else { TICK_IDLE }
    }

    /// Takes in the kernel's events, and the ends that pidfds tell.
    pub(super) fn serve_kernel(&mut self) {
        let events = self.steering.as_mut().map(steer::Steering::drain).unwrap_or_default();
        for event in events {
            self.take_in(event);
        }
        let slots: Vec<u32> = self.live.keys().copied().collect();
        for slot in slots {
            let Some(live) = self.live.get_mut(&slot) else { continue };
            if live.has_ended()
                && let Some(how) = live.reap()
            {
                self.died(slot, how, None);
            }
        }
    }

    fn take_in(&mut self, event: SteerEvent) {
        let of_this = self.live.get(&event.slot).is_some_and(|live| live.pid() == event.pid.cast_signed());
        match event.kind {
            LISTENS => self.hold_listeners(event.slot, true),
            KILLED | FATAL_SIGNAL if of_this => {
                self.died(event.slot, How(event.detail.cast_signed()), Some(event.at_ns));
            }
            EXITED if of_this => self.died(event.slot, How(event.detail.cast_signed()), Some(event.at_ns)),
            _ => {}
        }
    }

    /// The main process of an instance is gone, or will be in a moment.
    fn died(&mut self, slot: u32, how: How, at_ns: Option<u64>) {
        let Some(live) = self.live.get_mut(&slot) else { return };
        if std::mem::replace(&mut live.is_dead, true) {
            return;
        }
        live.died_at_ns = Some(at_ns.unwrap_or_else(super::act::monotonic_ns));
        // The kernel writes the core flag into the status of a signal; who reads it wants the signal.
        self.decide(Event::Died(slot, how));
    }

    /// Holds the listeners that an instance has opened, and steers their addresses. They are `new`, or have been
    /// registered before.
    pub(super) fn hold_listeners(&mut self, slot: u32, new: bool) {
        // What is new is none of those that are held of others: while it executes its program it still has them open.
        let known = match new {
            true => self.live.values().flat_map(Live::known).collect(),
            false => self.live.get(&slot).map(Live::known).unwrap_or_default(),
        };
        let (Some(live), Some(steering)) = (self.live.get_mut(&slot), self.steering.as_mut()) else { return };
        let found = match steer::find(&live.pids(), &known) {
            Ok(found) => found,
            Err(error) => {
                let said = format!(
                    "its listeners can't be held ({error}): a hang can't be told, and a cold restart loses the queue"
                );
                return self.report(Report::Say(said));
            }
        };
        let mut said = Vec::new();
        let groups = steering.groups();
        for listener in found {
            let Some(group) = groups.iter().find(|(_, address)| **address == listener.address) else {
                continue;
            };
            if new
                && listener.address.is_datagram
                && let Err(error) = steering.register(slot, *group.0, listener.as_fd())
            {
                said.push(format!("{}: {error}", listener.address));
            }
            listener.raise_backlog();
            if let Err(error) = steering.steer(&listener) {
                said.push(format!("{} is not steered: {error}", listener.address));
            }
            live.listeners.push(listener);
        }
        self.report(Report::Listens);
        said.into_iter().for_each(|said| self.report(Report::Say(said)));
    }

    /// Looks for what no event tells.
    pub(super) fn watch(&mut self) {
        self.look_for_datagrams();
        self.look_for_deadlines();
        self.look_for_a_stall();
        self.look_for_slowness();
    }

    /// Datagram sockets have no `listen()` that could be heard of.
    fn look_for_datagrams(&mut self) {
        let is_starting = |slot: u32| self.balance.role(slot) == Some(Role::Starting);
        let live = self.live.iter().filter(|(slot, live)| live.is_executed && is_starting(**slot));
        let slots: Vec<u32> = live.map(|(slot, _)| *slot).collect();
        let Some(steering) = self.steering.as_ref().filter(|_| !slots.is_empty()) else { return };
        // Asks the kernel, so only while an instance starts.
        if steering.groups().values().any(|address| address.is_datagram) {
            slots.into_iter().for_each(|slot| self.hold_listeners(slot, true));
        }
    }

    fn look_for_deadlines(&mut self) {
        let now = Instant::now();
        for live in self.live.values_mut() {
            if live.deadline.is_some_and(|deadline| now >= deadline) {
                live.deadline = None;
                live.kill();
            }
        }
    }

    fn look_for_a_stall(&mut self) {
        let Some(slot) = self.balance.primary() else { return };
        let (Some(live), Some(steering)) = (self.live.get(&slot), &self.steering) else { return };
        if live.is_dead {
            return;
        }
        // In this order: what is established in between is missed for a moment, not taken for accepted.
        let established = steering.steered().established;
        let queue = live.queue();
        let mut look = Look {
            at: self.now(),
            queue,
            accepted: established.saturating_sub(queue),
            is_stopped: live.is_stopped(),
            ..Look::default()
        };
        self.is_alert = queue > 0 || look.is_stopped;
        if self.is_alert {
            look_closer(live, &mut look);
        }
        match self.stall.observe(look) {
            Some(evidence) => {
                self.stalls = true;
                self.decide(Event::Sick(slot, Cause::Hangs(evidence)));
            }
            None if self.stalls && queue == 0 && !look.is_stopped => {
                self.stalls = false;
                self.decide(Event::Well(slot));
            }
            None => {}
        }
    }

    /// Answers that are late, unless it is the machine that is slow.
    fn look_for_slowness(&mut self) {
        let Some(slot) = self.balance.primary() else { return };
        let (Some(live), Some(steering)) = (self.live.get(&slot), &self.steering) else { return };
        let now = self.now();
        if live.is_dead || !self.slow.is_due(now) {
            return;
        }
        let steered = steering.steered();
        let waited_ns = if steered.answered_late > 0 { run_queue_wait_ns(live) } else { 0 };
        match self.slow.observe(now, steered.answered, steered.answered_late, waited_ns) {
            Some(Verdict::Slow(words)) => self.decide(Event::Sick(slot, Cause::Slow(words))),
            Some(Verdict::Well) if !self.stalls => self.decide(Event::Well(slot)),
            _ => {}
        }
    }

    /// Gives back what instances that are over have held.
    pub(super) fn clean(&mut self) {
        let vacant = self.balance.vacant();
        let over: Vec<u32> = self
            .live
            .iter()
            .filter(|(slot, live)| live.is_dead && Some(**slot) != vacant)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in over {
            let Some(live) = self.live.get_mut(&slot) else { continue };
            live.listeners.clear();
            if !live.is_killed {
                live.is_killed = true;
                live.kill();
            }
            let gone = live.is_reaped && !live.is_populated();
            if gone && let Some(live) = self.live.remove(&slot) {
                self.forget_slot(slot, &live);
            }
        }
    }

    /// Takes the slot of an instance back, and its cgroup away.
    pub(super) fn forget_slot(&mut self, slot: u32, live: &Live) {
        if let Some(steering) = &mut self.steering {
            steering.unwatch(live.pid());
            if let Some(cgroup) = &live.cgroup {
                steering.remove(slot, cgroup.id());
            }
        }
        // Its last process may be on its way out still: the run's cgroup is swept at the end.
        _ = live.cgroup.as_ref().map(InstanceCgroup::remove);
    }
}

/// Time that its tasks have waited for a CPU so far (second field of `schedstat`).
fn run_queue_wait_ns(live: &Live) -> u64 {
    let tasks = live
        .pids()
        .into_iter()
        .flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten());
    let wait = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse::<u64>().ok()
    };
    tasks.filter_map(wait).sum()
}

/// What an instance does: only asked while connections wait.
fn look_closer(live: &Live, look: &mut Look) {
    look.cpu_ns = live.cpu_ns();
    for pid in live.pids() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            match host::task_state(&stat) {
                Some('R') => look.is_runnable = true,
                Some('D') => look.waits_for_storage = true,
                _ => {}
            }
        }
    }
}
