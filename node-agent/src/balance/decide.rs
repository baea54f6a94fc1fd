//! What to do when something happens to an instance.
//!
//! - The primary is healthy: it serves.
//! - It is gone: the oldest ready shadow serves. None is ready: the first instance that gets ready does; none is
//!   starting: one is started. Connections wait meanwhile, in the queue of the listener that is held.
//! - It lives but is sick: the same, but it is never given up before another one is ready, and not twice within
//!   the rate that [`Pace`] allows. Where only one may write it is fenced first: killed, and its end waited for.
//!   One that is only slow finishes what it has accepted.
//! - A clean exit is the end of the service, unless it is to be restarted always.
//! - Starts that fail are repeated with growing pauses, [`Rules::starts_max`] times.

use super::pace::Pace;
use super::terms::{Action, Cause, Event, How, Restart, Role, Rules};
use std::time::Duration;

/// A primary that has served for less than this is not taken for sick: it may still be warming up.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instance {
    slot: u32,
    role: Role,
    since: Duration,
}

/// The state of a service. Times are durations since an arbitrary start.
#[derive(Clone, Debug)]
pub struct Balance {
    rules: Rules,
    pace: Pace,
    wanted: usize,
    instances: Vec<Instance>,
    /// Starts that were asked for and have not begun.
    starting: usize,
    /// Why there is no primary, or a sick one.
    cause: Option<Cause>,
    /// The primary that is gone, until another one serves.
    vacant: Option<u32>,
    /// A failover waits for its turn.
    due: Option<Duration>,
    stopping: bool,
    /// Whose end is that of the service: the primary's when stopping began.
    last: Option<u32>,
    last_end: Option<How>,
}

impl Balance {
    /// A service with nothing started yet, and `wanted` shadows to be had.
    pub fn new(rules: Rules, wanted: usize) -> Self {
        Self {
            rules,
            pace: Pace::new(rules.failovers_max),
            wanted,
            instances: Vec::new(),
            starting: 0,
            cause: None,
            vacant: None,
            due: None,
            stopping: false,
            last: None,
            last_end: None,
        }
    }

    /// A service that was left by its supervisor: `primary` served, `shadows` are ready.
    pub fn resume(rules: Rules, wanted: usize, primary: u32, shadows: &[u32], now: Duration) -> Self {
        let instance = |slot, role| Instance { slot, role, since: now };
        let mut balance = Self::new(rules, wanted);
        balance.instances = shadows.iter().map(|slot| instance(*slot, Role::Ready)).collect();
        balance.instances.push(instance(primary, Role::Primary));
        balance
    }

    /// Who serves.
    pub fn primary(&self) -> Option<u32> {
        self.in_role(Role::Primary).next()
    }

    /// What an instance is for.
    pub fn role(&self, slot: u32) -> Option<Role> {
        self.instances.iter().find(|instance| instance.slot == slot).map(|instance| instance.role)
    }

    /// The primary that is gone, as long as nobody serves in its place: its queue is still needed.
    pub fn vacant(&self) -> Option<u32> {
        if self.stopping { None } else { self.vacant }
    }

    /// Whether the first instance that gets ready will serve.
    pub fn is_vacant(&self) -> bool {
        self.primary().is_none() && !self.stopping
    }

    /// Takes in what happened at `now`, and says what to do.
    pub fn decide(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = match event {
            Event::Started(slot) => self.started(slot, now),
            Event::Ready(slot) => self.ready(slot, now),
            Event::Died(slot, how) => self.died(slot, how, now),
            Event::Sick(slot, cause) => self.sick(slot, cause, now),
            Event::Well(slot) => {
                if self.role(slot) == Some(Role::Primary) {
                    self.cause = None;
                }
                Vec::new()
            }
            Event::Asked => self.asked(now),
            Event::Drained(slot) => self.drained(slot, now),
            Event::NotStarted => self.not_started(),
            Event::Wanted(wanted) => {
                self.wanted = wanted;
                Vec::new()
            }
            Event::Stop => self.stop(now),
            Event::Tick => Vec::new(),
        };
        actions.extend(self.fill_vacancy(now));
        actions.extend(self.level());
        if !actions.is_empty() {
            actions.push(Action::Next(self.next()));
        }
        actions
    }

    fn in_role(&self, role: Role) -> impl Iterator<Item = u32> {
        self.instances.iter().filter(move |instance| instance.role == role).map(|instance| instance.slot)
    }

    /// The shadow that has been ready for longest.
    fn best_ready(&self) -> Option<u32> {
        let ready = self.instances.iter().filter(|instance| instance.role == Role::Ready);
        ready.min_by_key(|instance| instance.since).map(|instance| instance.slot)
    }

    /// Whom the kernel may turn to: nobody while failovers have to wait.
    fn next(&mut self) -> Option<u32> {
        if self.stopping || self.due.is_some() { None } else { self.best_ready() }
    }

    fn set_role(&mut self, slot: u32, role: Role, now: Duration) {
        if let Some(instance) = self.instances.iter_mut().find(|instance| instance.slot == slot) {
            (instance.role, instance.since) = (role, now);
        }
    }

    fn started(&mut self, slot: u32, now: Duration) -> Vec<Action> {
        self.starting = self.starting.saturating_sub(1);
        self.instances.push(Instance { slot, role: Role::Starting, since: now });
        if self.stopping { self.end(slot, false, now) } else { Vec::new() }
    }

    fn end(&mut self, slot: u32, gently: bool, now: Duration) -> Vec<Action> {
        self.set_role(slot, Role::Ending, now);
        vec![Action::End { slot, gently }]
    }

    fn ready(&mut self, slot: u32, now: Duration) -> Vec<Action> {
        if self.role(slot) != Some(Role::Starting) {
            return Vec::new();
        }
        self.pace.started();
        if self.primary().is_none() && self.vacant.is_none() {
            self.set_role(slot, Role::Primary, now);
            return vec![Action::Serve(slot)];
        }
        self.set_role(slot, Role::Ready, now);
        match (self.primary(), self.cause.clone()) {
            (Some(primary), Some(cause)) => {
                let mut actions = vec![Action::Park(slot)];
                actions.extend(self.sick(primary, cause, now));
                actions
            }
            (Some(_), None) => vec![Action::Park(slot)],
            // It takes over in a moment; no use in freezing it.
            (None, _) => Vec::new(),
        }
    }

    fn died(&mut self, slot: u32, how: How, now: Duration) -> Vec<Action> {
        let Some(role) = self.role(slot) else { return Vec::new() };
        self.instances.retain(|instance| instance.slot != slot);
        if !self.stopping || self.last == Some(slot) {
            self.last_end = Some(how);
        }
        if self.stopping {
            return self.finish_if_empty();
        }
        match role {
            Role::Primary if how.is_clean() && self.rules.restart == Restart::OnFailure => {
                self.stopping = true;
                let mut actions = self.end_all(now);
                actions.extend(self.finish_if_empty());
                actions
            }
            Role::Primary => {
                self.cause = Some(Cause::Died(how));
                self.vacant = Some(slot);
                let wait = self.pace.wait(now);
                if wait > Duration::ZERO {
                    self.due = Some(now + wait);
                    return vec![Action::Say(format!(
                        "{how}; more than {} failovers within a minute: the next one waits {} ms",
                        self.rules.failovers_max,
                        wait.as_millis()
                    ))];
                }
                Vec::new()
            }
            Role::Starting => self.start_failed(how),
            Role::Ready => vec![Action::Say(format!("a shadow is gone: {how}"))],
            Role::Retiring | Role::Ending => Vec::new(),
        }
    }

    fn start_failed(&mut self, how: How) -> Vec<Action> {
        let never_served = self.primary().is_none() && self.vacant.is_none();
        if never_served {
            // As without standin: a command that ends at once ends with its own exit code.
            self.stopping = true;
            return self.finish_if_empty();
        }
        let after = self.pace.start_failed();
        let failures = self.pace.failures();
        if failures >= self.rules.starts_max && self.primary().is_none() {
            self.stopping = true;
            let mut actions = vec![Action::Say(format!(
                "{failures} starts in a row failed, the last one: {how}; given up"
            ))];
            actions.extend(self.finish_if_empty());
            return actions;
        }
        self.starting += 1;
        vec![
            Action::Say(format!(
                "an instance died before it served: {how}; the next one starts in {} ms",
                after.as_millis()
            )),
            Action::Start { after },
        ]
    }

    fn not_started(&mut self) -> Vec<Action> {
        self.starting = self.starting.saturating_sub(1);
        if self.stopping {
            return self.finish_if_empty();
        }
        if self.instances.is_empty() {
            self.stopping = true;
            return vec![Action::Finish(self.last_end)];
        }
        let after = self.pace.start_failed();
        self.starting += 1;
        vec![Action::Start { after }]
    }

    fn sick(&mut self, slot: u32, cause: Cause, now: Duration) -> Vec<Action> {
        if self.role(slot) != Some(Role::Primary) || self.stopping {
            return Vec::new();
        }
        let since =
            self.instances.iter().find(|instance| instance.slot == slot).map(|instance| instance.since);
        if since.is_some_and(|since| now.saturating_sub(since) < GRACE) {
            return Vec::new();
        }
        let Some(to) = self.best_ready() else {
            if self.cause.is_some() {
                return Vec::new();
            }
            let said = format!("{cause}; no shadow is ready: it serves on until one is");
            self.cause = Some(cause);
            return vec![Action::Say(said)];
        };
        if self.pace.wait(now) > Duration::ZERO {
            if self.cause.is_some() {
                return Vec::new();
            }
            let said = format!("{cause}; not moved: {} failovers within a minute", self.rules.failovers_max);
            self.cause = Some(cause);
            return vec![Action::Say(said)];
        }
        let fence = self.rules.single_writer;
        // One that is only slow can finish what it has.
        let drain = !fence && matches!(cause, Cause::Slow(_));
        self.set_role(slot, if drain { Role::Retiring } else { Role::Ending }, now);
        self.fail_over(Some(slot), to, cause, fence, drain, now)
    }

    fn fail_over(
        &mut self,
        from: Option<u32>,
        to: u32,
        cause: Cause,
        fence: bool,
        drain: bool,
        now: Duration,
    ) -> Vec<Action> {
        self.set_role(to, Role::Primary, now);
        self.pace.failed_over(now);
        self.cause = None;
        self.vacant = None;
        self.due = None;
        vec![Action::FailOver { from, to, cause, fence, drain }]
    }

    fn asked(&mut self, now: Duration) -> Vec<Action> {
        let refuse = |why: &str| vec![Action::Refuse(why.into())];
        let Some(from) = self.primary() else { return refuse("nobody serves at the moment") };
        let Some(to) = self.best_ready() else {
            return refuse("no shadow is ready; standin ps shows how far they are");
        };
        self.set_role(from, Role::Retiring, now);
        // One writer: the old one must be gone before the new one runs, so it can't finish at leisure.
        let fence = self.rules.single_writer;
        if fence {
            self.set_role(from, Role::Ending, now);
        }
        self.fail_over(Some(from), to, Cause::Asked, fence, !fence, now)
    }

    fn drained(&mut self, slot: u32, now: Duration) -> Vec<Action> {
        if self.role(slot) == Some(Role::Retiring) { self.end(slot, true, now) } else { Vec::new() }
    }

    fn stop(&mut self, now: Duration) -> Vec<Action> {
        self.last = self.last.or(self.primary());
        self.stopping = true;
        let mut actions = self.end_all(now);
        actions.extend(self.finish_if_empty());
        actions
    }

    fn end_all(&mut self, now: Duration) -> Vec<Action> {
        let instances = self.instances.clone();
        let serves = |role| matches!(role, Role::Primary | Role::Retiring);
        instances.iter().flat_map(|instance| self.end(instance.slot, serves(instance.role), now)).collect()
    }

    fn finish_if_empty(&mut self) -> Vec<Action> {
        if self.stopping && self.instances.is_empty() {
            vec![Action::Finish(self.last_end)]
        } else {
            Vec::new()
        }
    }

    /// Gives the traffic of a primary that is gone to a shadow.
    fn fill_vacancy(&mut self, now: Duration) -> Vec<Action> {
        if self.stopping || self.vacant.is_none() || self.due.is_some_and(|due| now < due) {
            return Vec::new();
        }
        let (Some(to), Some(cause)) = (self.best_ready(), self.cause.clone()) else { return Vec::new() };
        let from = self.vacant;
        self.fail_over(from, to, cause, false, false, now)
    }

    /// Starts what is missing, ends what is too much.
    fn level(&mut self) -> Vec<Action> {
        if self.stopping {
            return Vec::new();
        }
        let shadows =
            self.in_role(Role::Starting).count() + self.in_role(Role::Ready).count() + self.starting;
        let wanted = match self.primary() {
            // The first instance comes alone: a shadow must find the address steered.
            None if self.vacant.is_none() => 1,
            // One that is gone or sick needs a successor, even where no shadow is kept.
            None => self.wanted.max(1),
            Some(_) if self.cause.is_some() => self.wanted.max(1),
            Some(_) => self.wanted,
        };
        let mut actions = Vec::new();
        for _ in shadows..wanted {
            self.starting += 1;
            actions.push(Action::Start { after: Duration::ZERO });
        }
        if shadows > wanted && self.cause.is_none() {
            for slot in self.surplus(shadows - wanted) {
                self.set_role(slot, Role::Ending, Duration::ZERO);
                actions.push(Action::End { slot, gently: false });
            }
        }
        actions
    }

    /// The youngest shadows.
    fn surplus(&self, count: usize) -> Vec<u32> {
        let mut ready: Vec<&Instance> =
            self.instances.iter().filter(|instance| instance.role == Role::Ready).collect();
        ready.sort_by_key(|instance| std::cmp::Reverse(instance.since));
        ready.into_iter().take(count).map(|instance| instance.slot).collect()
    }
}
