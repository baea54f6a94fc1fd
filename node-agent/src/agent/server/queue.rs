//! The daemon's side of admission: who comes in at once, who waits on its connection, and who is let in when
//! somebody leaves. What may start is decided by [`crate::size::admission`].

use super::live::UserNames;
use super::{Agent, connection};
use crate::agent::terms::Terms;
use crate::host;
use crate::live::{QueueNow, WAITING_MAX};
use crate::size::admission::{Lack, Ledger, Licenses, Promise, Ticket, Total, WhenFull};
use crate::store::event::{Event, Severity};
use crate::store::record::{Admission, RunId};
use crate::units::{format_bytes, format_duration};
use crate::wire::{QueueEntry, QueueStatus, Reply, Waiting};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Pause between two words to somebody who waits: it hears that the agent is alive.
const WORD_EVERY: Duration = Duration::from_secs(1);

/// How long the order of the queue is good for: it is worked out for all who wait at once.
const ORDER_GOOD_FOR: Duration = Duration::from_millis(900);

/// See the head of this file.
pub(super) struct Queue {
    ledger: RefCell<Ledger>,
    entries: RefCell<HashMap<Ticket, Entry>>,
    grants: RefCell<HashMap<Ticket, oneshot::Sender<()>>>,
    order: RefCell<Order>,
    started: Instant,
}

/// How long after its start an agent believes who says that it has waited already, for the one before.
const BELIEVES_FOR: Duration = Duration::from_secs(60);

/// Longest wait that is believed, milliseconds: 30 days.
const WAITED_MS_MAX: i64 = 30 * 24 * 3600 * 1000;

/// Places and expected waits, as they were a moment ago.
#[derive(Default)]
struct Order {
    made: Option<Instant>,
    places: HashMap<Ticket, (usize, Option<i64>)>,
}

/// Who holds a ticket.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) task_type: String,
    pub(super) uid: u32,
    pub(super) pid: i32,
    pub(super) priority: i32,
    pub(super) promise: Promise,
    pub(super) duration_ms: Option<i64>,
    /// When it came or started, milliseconds since boot: the order of the queue must not change with the clock.
    pub(super) since_uptime_ms: i64,
    pub(super) run: Option<RunId>,
}

/// A promise or a place in the queue, given back when this goes.
pub(super) struct Place {
    agent: Rc<Agent>,
    ticket: Ticket,
    admission: Admission,
}

/// Why a task does not start.
pub(super) enum Denied {
    /// The reason in words.
    Because(String),
    /// Nobody is there any more to be told.
    Gone,
}

impl Queue {
    pub(super) fn new(total: Total) -> Self {
        Self {
            ledger: RefCell::new(Ledger::new(total)),
            entries: RefCell::default(),
            grants: RefCell::default(),
            order: RefCell::default(),
            started: Instant::now(),
        }
    }

    /// When a task came, milliseconds since boot. Who says that it has waited already is believed for a while only,
    /// and not everything: else anybody could have come first.
    pub(super) fn arrival_uptime_ms(&self, said_ms: i64) -> i64 {
        let waited = host::now_ms().saturating_sub(said_ms).clamp(0, WAITED_MS_MAX);
        let is_believed = self.started.elapsed() < BELIEVES_FOR;
        host::uptime_ms() - if is_believed { waited } else { 0 }
    }

    /// There is more to promise, or less: who has a promise keeps it.
    pub(super) fn set_total(&self, total: Total) {
        self.ledger.borrow_mut().set_total(total);
    }

    /// Whether there are pools of licences.
    pub(super) fn has_pools(&self) -> bool {
        !self.ledger.borrow().total().licenses.is_empty()
    }

    /// Whether all of the host would not be enough.
    fn is_too_large(&self, promise: &Promise) -> bool {
        promise.memory_bytes > self.ledger.borrow().total().memory_bytes
    }

    fn lacks(&self, promise: &Promise) -> Vec<Lack> {
        self.ledger.borrow().lacks(promise)
    }

    /// How many come before a ticket, and how long it will probably wait.
    fn place(&self, ticket: Ticket) -> (usize, Option<i64>) {
        let is_known = self.order.borrow().places.contains_key(&ticket);
        self.put_in_order(!is_known);
        self.order.borrow().places.get(&ticket).copied().unwrap_or((0, None))
    }

    /// Works the order out where it is old, or not good for another reason.
    fn put_in_order(&self, is_wrong: bool) {
        let mut order = self.order.borrow_mut();
        if is_wrong || order.made.is_none_or(|made| made.elapsed() >= ORDER_GOOD_FOR) {
            let queue = self.ledger.borrow().queue(host::uptime_ms());
            let places = queue.into_iter().enumerate().map(|(ahead, (ticket, wait))| (ticket, (ahead, wait)));
            *order = Order { made: Some(Instant::now()), places: places.collect() };
        }
    }

    /// Promises and who waits, as `viewer` may see them and at most a second old.
    pub(super) fn now(&self, viewer: u32, free_memory_bytes: u64, names: &UserNames) -> QueueNow {
        let all = self.ledger.borrow().waiting();
        self.put_in_order(false);
        let order = self.order.borrow();
        let mut next: Vec<_> = order.places.iter().filter(|(_, (ahead, _))| *ahead < WAITING_MAX).collect();
        next.sort_unstable_by_key(|(_, (ahead, _))| *ahead);
        // Who came or went since then is not in the order, or not among the entries.
        let waiting: Vec<_> = next
            .into_iter()
            .filter(|(ticket, _)| self.grants.borrow().contains_key(ticket))
            .filter_map(|(ticket, (_, wait))| self.entry(*ticket, *wait, viewer, names))
            .collect();
        let ledger = self.ledger.borrow();
        QueueNow {
            total: ledger.total().clone(),
            promised: ledger.promised(),
            free_memory_bytes,
            running: self.entries.borrow().len().saturating_sub(all),
            waiting_left_out: all.saturating_sub(waiting.len()),
            waiting,
        }
    }

    fn release(&self, ticket: Ticket) {
        self.ledger.borrow_mut().release(ticket);
        self.entries.borrow_mut().remove(&ticket);
        self.grants.borrow_mut().remove(&ticket);
    }

    fn entry(
        &self,
        ticket: Ticket,
        place: Option<i64>,
        viewer: u32,
        names: &UserNames,
    ) -> Option<QueueEntry> {
        let entries = self.entries.borrow();
        let entry = entries.get(&ticket)?;
        let ends_at_ms = entry.duration_ms.map(|duration| entry.since_uptime_ms + duration);
        let is_waiting = self.grants.borrow().contains_key(&ticket);
        let remaining = ends_at_ms.map(|at| at - host::uptime_ms());
        Some(QueueEntry {
            task_type: (viewer == 0 || viewer == entry.uid).then(|| entry.task_type.clone()),
            user: names.of(entry.uid),
            pid: entry.pid,
            run_id: entry.run.map(|run| run.0),
            priority: entry.priority,
            promise: entry.promise.clone(),
            memory_bytes: self.ledger.borrow().memory_of(ticket).unwrap_or(entry.promise.memory_bytes),
            since_ms: host::now_ms() - (host::uptime_ms() - entry.since_uptime_ms),
            expected_ms: if is_waiting { place } else { remaining },
        })
    }

    /// The ledger and the queue, as `viewer` may see them.
    pub(super) fn status(&self, viewer: u32, free_memory_bytes: u64, names: &UserNames) -> QueueStatus {
        let order = self.ledger.borrow().queue(host::uptime_ms());
        let mut running: Vec<_> = {
            let grants = self.grants.borrow();
            let entries = self.entries.borrow();
            entries.keys().copied().filter(|ticket| !grants.contains_key(ticket)).collect()
        };
        running.sort_unstable();
        let ledger = self.ledger.borrow();
        QueueStatus {
            total: ledger.total().clone(),
            promised: ledger.promised(),
            free_memory_bytes,
            running: running
                .into_iter()
                .filter_map(|ticket| self.entry(ticket, None, viewer, names))
                .collect(),
            waiting: order
                .into_iter()
                .filter_map(|(ticket, wait)| self.entry(ticket, wait, viewer, names))
                .collect(),
        }
    }
}

impl Place {
    /// What of it belongs into the record of the run.
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    pub(super) fn recorded(&self, run: RunId) {
        if let Some(entry) = self.agent.queue.entries.borrow_mut().get_mut(&self.ticket) {
            entry.run = Some(run);
        }
    }

    /// What the task uses now.
    pub(super) fn used(&self, used_bytes: u64, is_idle: bool) {
        self.agent.queue.ledger.borrow_mut().used(self.ticket, used_bytes, is_idle);
    }

    /// Licences that the task is seen to use.
    pub(super) fn uses_licenses(&self, license: &str, count: u32) {
        self.agent.queue.ledger.borrow_mut().uses_licenses(self.ticket, license, count);
    }

    /// For the event log: what is remarkable about how it came in.
    pub(super) fn events(&self) -> Vec<Event> {
        let Admission { waited_ms, promise, overcommitted, .. } = &self.admission;
        let mut events = Vec::new();
        if *waited_ms > 0 {
            let message =
                format!("started after {} in the queue", format_duration(*waited_ms as f64 / 1000.0));
            events.push(
                Event::new("admitted", message).details(&serde_json::json!({ "waited_ms": waited_ms })),
            );
        }
        if *overcommitted {
            let promised = self.agent.queue.ledger.borrow().promised().memory_bytes;
            let total = self.agent.queue.ledger.borrow().total().memory_bytes;
            let message = format!(
                "started without room for it: {} of {} of memory are promised",
                format_bytes(promised as f64),
                format_bytes(total as f64)
            );
            let details =
                serde_json::json!({ "promised_memory_bytes": promised, "total_memory_bytes": total });
            events.push(Event::new("overcommitted", message).severity(Severity::Warning).details(&details));
        }
        if !promise.licenses.is_empty() {
            let message = format!("took {}", in_words(&promise.licenses));
            events.push(Event::new("license_taken", message).details(&serde_json::json!(promise.licenses)));
        }
        events
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.agent.queue.release(self.ticket);
        self.agent.let_in();
    }
}

impl Agent {
    /// Lets in those who fit now. Whoever still waits gets what idle tasks don't use.
    pub(super) fn let_in(&self) {
        let queue = &self.queue;
        let mut admitted = queue.ledger.borrow_mut().admit(host::uptime_ms());
        if queue.ledger.borrow().waiting() > 0 {
            let freed = queue.ledger.borrow_mut().shrink_idle();
            if freed > 0 {
                let message = format!(
                    "{} promised to idle tasks are free for those who wait",
                    format_bytes(freed as f64)
                );
                self.writer.log(Event::new("promises_lowered", message));
                admitted.extend(queue.ledger.borrow_mut().admit(host::uptime_ms()));
            }
        }
        for ticket in admitted {
            // Fails only if the connection has just gone; its place goes with it.
            if let Some(grant) = queue.grants.borrow_mut().remove(&ticket) {
                _ = grant.send(());
            }
        }
    }

    /// Takes a promise for a task that runs already.
    pub(super) fn hold(self: &Rc<Self>, entry: Entry, admission: Admission) -> Place {
        let ends_at_ms = entry.duration_ms.map(|duration| entry.since_uptime_ms + duration);
        let ticket = self.queue.ledger.borrow_mut().promise(entry.promise.clone(), ends_at_ms);
        self.queue.entries.borrow_mut().insert(ticket, entry);
        Place { agent: Rc::clone(self), ticket, admission }
    }

    /// A place for a task: at once, after its turn has come, or not at all.
    pub(super) async fn enter(
        self: &Rc<Self>,
        stream: &mut UnixStream,
        entry: Entry,
        terms: &Terms,
    ) -> Result<Place, Denied> {
        if let Some(lack) = self.queue.ledger.borrow().never(&entry.promise) {
            return Err(Denied::Because(never(&lack)));
        }
        let lacks = self.queue.lacks(&entry.promise);
        let lacks_license = lacks.iter().any(|lack| matches!(lack, Lack::License(..)));
        let lacks_memory = lacks.iter().any(|lack| matches!(lack, Lack::Memory(..)));
        match terms.when_full {
            WhenFull::Fail if !lacks.is_empty() => Err(Denied::Because(what_lacks(&lacks))),
            WhenFull::Wait if !lacks.is_empty() => self.wait(stream, entry, terms, false).await,
            WhenFull::Start if lacks_license => self.wait(stream, entry, terms, true).await,
            _ => {
                let admission = Admission {
                    priority: terms.priority,
                    waited_ms: 0,
                    promise: entry.promise.clone(),
                    overcommitted: lacks_memory || self.queue.is_too_large(&entry.promise),
                };
                Ok(self.hold(Entry { since_uptime_ms: host::uptime_ms(), ..entry }, admission))
            }
        }
    }

    async fn wait(
        self: &Rc<Self>,
        stream: &mut UnixStream,
        entry: Entry,
        terms: &Terms,
        licenses_only: bool,
    ) -> Result<Place, Denied> {
        let promise = entry.promise.clone();
        let place = self.queue_up(entry, terms.priority, licenses_only)?;
        let (grant, mut granted) = oneshot::channel();
        self.queue.grants.borrow_mut().insert(place.ticket, grant);
        let came = Instant::now();
        let last = terms.wait_max.map(|wait| came + wait);
        let mut stop = self.stop.subscribe();
        self.let_in();
        loop {
            let (ahead, expected_ms) = self.queue.place(place.ticket);
            let lacks = what_lacks(&self.queue.ledger.borrow().lacks_now(&promise));
            if granted.try_recv().is_ok() {
                break;
            }
            // Only after the configuration has changed: it would not have been queued.
            if let Some(lack) = self.queue.ledger.borrow().never(&promise) {
                return Err(Denied::Because(never(&lack)));
            }
            let waiting = Reply::Waiting(Waiting { ahead, expected_ms, lacks });
            if !connection::is_answered(stream, &waiting).await {
                return Err(Denied::Gone);
            }
            let too_late = async {
                match last {
                    Some(last) => tokio::time::sleep_until(last.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = &mut granted => break,
                () = connection::gone(stream) => return Err(Denied::Gone),
                _ = stop.wait_for(|stop| *stop) => return Err(Denied::Gone),
                () = too_late => {
                    let waited = format_duration(came.elapsed().as_secs_f64());
                    let lacks = what_lacks(&self.queue.ledger.borrow().lacks_now(&promise));
                    return Err(Denied::Because(format!("no room after {waited}: {lacks}")));
                }
                () = tokio::time::sleep(WORD_EVERY) => {}
            }
        }
        let waited_ms = u64::try_from(came.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        if let Some(entry) = self.queue.entries.borrow_mut().get_mut(&place.ticket) {
            entry.since_uptime_ms = host::uptime_ms();
        }
        let mut place = place;
        place.admission.waited_ms = waited_ms;
        Ok(place)
    }

    fn queue_up(self: &Rc<Self>, entry: Entry, priority: i32, licenses_only: bool) -> Result<Place, Denied> {
        let rank = (priority, entry.since_uptime_ms);
        let ticket = self.queue.ledger.borrow_mut().wait(
            entry.promise.clone(),
            licenses_only,
            rank,
            entry.duration_ms,
        );
        let Some(ticket) = ticket else {
            return Err(Denied::Because("too many tasks wait already".into()));
        };
        let lacks = what_lacks(&self.queue.ledger.borrow().lacks_now(&entry.promise));
        self.writer.log(Event::new("queued", format!("waits: {lacks}")).task(&entry.task_type));
        let admission = Admission {
            priority,
            waited_ms: 0,
            promise: entry.promise.clone(),
            overcommitted: self.queue.is_too_large(&entry.promise),
        };
        self.queue.entries.borrow_mut().insert(ticket, entry);
        Ok(Place { agent: Rc::clone(self), ticket, admission })
    }
}

/// `1 of cad, 2 of sim`.
pub(super) fn in_words(licenses: &Licenses) -> String {
    licenses.iter().map(|(name, count)| format!("{count} of {name}")).collect::<Vec<_>>().join(", ")
}

fn never(lack: &Lack) -> String {
    match lack {
        Lack::License(name, _, 0) => {
            format!("there are no licences {name:?}: see [license.{name}] in the agent's configuration")
        }
        Lack::License(name, needed, total) => {
            format!("it needs {needed} licences {name:?}, of which there are {total} in all")
        }
        other => what_lacks(std::slice::from_ref(other)),
    }
}

/// What is missing, in words.
fn what_lacks(lacks: &[Lack]) -> String {
    let word = |lack: &Lack| match lack {
        Lack::Memory(needed, free) => {
            format!(
                "needs {} of memory, {} are not promised",
                format_bytes(*needed as f64),
                format_bytes(*free as f64)
            )
        }
        Lack::Cpu(needed, free) => {
            format!("needs {:.2} cores, {:.2} are not promised", *needed as f64 / 100.0, *free as f64 / 100.0)
        }
        Lack::License(name, needed, free) => format!("needs {needed} of licence {name}, {free} are free"),
    };
    if lacks.is_empty() {
        return "others come first".into();
    }
    lacks.iter().map(word).collect::<Vec<_>>().join("; ")
}
