//! Who may start now: promises of running tasks against what the host has, and the queue of those who wait.
//! Pure: time comes in as milliseconds, and nothing here starts, stops or reads anything.
//!
//! A promise is the predicted upper bound of a task's memory, its expected cores and its licences. It holds from
//! the start of a task to its end, however much of it is used; a task that uses more counts with that.
//!
//! **Order.** The queue goes by arrival, where a priority of one is worth [`PRIORITY_MS`]: a constant rank, so
//! that whoever waits is overtaken only by those who come within a bounded time after it. Who does not fit
//! keeps what it needs reserved against all behind it: small tasks go past a big one only where they don't
//! delay it. So nobody starves.

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

/// Head start that one unit of priority gives, milliseconds.
pub const PRIORITY_MS: i64 = 30_000;

/// Lowest and highest priority.
pub const PRIORITY_BOUND: i32 = 100;

/// Most tasks that may wait.
pub const QUEUE_MAX: usize = 10_000;

/// Licences by the name of their pool.
pub type Licenses = BTreeMap<String, u32>;

/// What becomes of a task that the host has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// It starts anyway, and that is said. For licences, which can't be had twice, it waits.
    #[default]
    Start,
    /// It waits for its turn.
    Wait,
    /// It fails with 125.
    Fail,
}

/// What a task is promised.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// CPU, cores.
    pub cpu_cores: f64,
    /// Licences.
    pub licenses: Licenses,
}

/// What there is to promise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The host's memory without its reserve, bytes.
    pub memory_bytes: u64,
    /// The host's cores, as often as they may be promised.
    pub cpu_cores: f64,
    /// Licences in the pools.
    pub licenses: Licenses,
}

/// Number of a task in the ledger; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket(u64);

/// Something that a task lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lack {
    /// Memory: needed and free, bytes.
    Memory(u64, u64),
    /// Cores: needed and free, hundredths.
    Cpu(u64, u64),
    /// Licences of a pool: needed and free.
    License(String, u32, u32),
}

/// A task that holds a promise.
#[derive(Clone, Debug)]
struct Holder {
    promise: Promise,
    /// What it counts with: the larger of promise and use, or less when it idles and others wait.
    memory_bytes: u64,
    used_bytes: u64,
    is_idle: bool,
    ends_at_ms: Option<i64>,
}

/// A task that waits.
#[derive(Clone, Debug)]
struct Waiting {
    promise: Promise,
    /// Only licences hold it up: it starts beyond memory and cores.
    licenses_only: bool,
    rank: i64,
    duration_ms: Option<i64>,
}

impl Waiting {
    fn needs_no_memory(&self) -> bool {
        self.licenses_only || self.promise.memory_bytes == 0
    }
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    total: Total,
    last: u64,
    holders: HashMap<Ticket, Holder>,
    waiting: HashMap<Ticket, Waiting>,
    order: BTreeSet<(i64, Ticket)>,
    /// Of those who wait, how many may start on a host without memory.
    need_no_memory: usize,
    taken: Taken,
}

/// What is promised: sums over the holders.
#[derive(Clone, Debug, Default, PartialEq)]
struct Taken {
    memory_bytes: u64,
    cpu_cores: f64,
    licenses: Licenses,
}

/// Rounding of sums of cores must not make a host full.
const CORES_EPSILON: f64 = 1e-6;

/// An idle task's memory is promised with this headroom.
const IDLE_FACTOR: f64 = 1.1;

impl Taken {
    fn add(&mut self, memory_bytes: u64, promise: &Promise) {
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes);
        self.cpu_cores += promise.cpu_cores;
        for (name, count) in &promise.licenses {
            *self.licenses.entry(name.clone()).or_default() += count;
        }
    }

    fn subtract(&mut self, memory_bytes: u64, promise: &Promise) {
        self.memory_bytes = self.memory_bytes.saturating_sub(memory_bytes);
        self.cpu_cores = (self.cpu_cores - promise.cpu_cores).max(0.0);
        for (name, count) in &promise.licenses {
            if let Some(taken) = self.licenses.get_mut(name) {
                *taken = taken.saturating_sub(*count);
            }
        }
    }
}

impl Ledger {
    /// Nothing is promised yet.
    pub fn new(total: Total) -> Self {
        Self { total, ..Self::default() }
    }

    /// What there is.
    pub fn total(&self) -> &Total {
        &self.total
    }

    /// There is more or less than before: whoever holds a promise keeps it.
    pub fn set_total(&mut self, total: Total) {
        self.total = total;
    }

    /// What is promised: memory in bytes, cores, licences.
    pub fn promised(&self) -> Promise {
        let Taken { memory_bytes, cpu_cores, licenses } = self.taken.clone();
        Promise { memory_bytes, cpu_cores, licenses }
    }

    /// Licences that can never be had: more than the pool has, or of no pool.
    pub fn never(&self, promise: &Promise) -> Option<Lack> {
        promise.licenses.iter().find_map(|(name, count)| {
            let total = self.total.licenses.get(name).copied().unwrap_or(0);
            (*count > total).then(|| Lack::License(name.clone(), *count, total))
        })
    }

    /// What a task lacks that would start now, behind all who wait. Empty: it fits.
    pub fn lacks(&self, promise: &Promise) -> Vec<Lack> {
        let mut taken = self.taken.clone();
        for waiting in self.waiting.values() {
            reserve(&mut taken, waiting);
        }
        lacks(&self.total, &taken, promise, false)
    }

    /// What a task lacks, whoever waits. Empty: only others hold it up.
    pub fn lacks_now(&self, promise: &Promise) -> Vec<Lack> {
        lacks(&self.total, &self.taken, promise, false)
    }

    /// Makes a promise, whether there is room for it or not. `ends_at_ms` is when the task will probably end.
    pub fn promise(&mut self, promise: Promise, ends_at_ms: Option<i64>) -> Ticket {
        let ticket = self.next_ticket();
        self.hold(ticket, promise, ends_at_ms);
        ticket
    }

    fn hold(&mut self, ticket: Ticket, promise: Promise, ends_at_ms: Option<i64>) {
        let memory_bytes = promise.memory_bytes;
        self.taken.add(memory_bytes, &promise);
        let holder = Holder { promise, memory_bytes, used_bytes: 0, is_idle: false, ends_at_ms };
        self.holders.insert(ticket, holder);
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    /// Queues a task. `None` if too many wait.
    pub fn wait(
        &mut self,
        promise: Promise,
        licenses_only: bool,
        (priority, arrived_ms): (i32, i64),
        duration_ms: Option<i64>,
    ) -> Option<Ticket> {
        if self.waiting.len() >= QUEUE_MAX {
            return None;
        }
        let ticket = self.next_ticket();
        let rank = arrived_ms - i64::from(priority.clamp(-PRIORITY_BOUND, PRIORITY_BOUND)) * PRIORITY_MS;
        let waiting = Waiting { promise, licenses_only, rank, duration_ms };
        self.need_no_memory += usize::from(waiting.needs_no_memory());
        self.waiting.insert(ticket, waiting);
        self.order.insert((rank, ticket));
        Some(ticket)
    }

    /// Those who wait and may start now, in order. They hold their promises from here on.
    pub fn admit(&mut self, now_ms: i64) -> Vec<Ticket> {
        let mut admitted = Vec::new();
        let mut ahead = self.taken.clone();
        let order: Vec<_> = self.order.iter().copied().collect();
        for (_, ticket) in order {
            // A long queue is not walked to its end where nobody in it can have what it needs.
            if ahead.memory_bytes >= self.total.memory_bytes && self.need_no_memory == 0 {
                break;
            }
            let Some(waiting) = self.waiting.get(&ticket) else { continue };
            if lacks(&self.total, &ahead, &waiting.promise, waiting.licenses_only).is_empty() {
                let Some(Waiting { promise, duration_ms, .. }) = self.leave_queue(ticket) else { continue };
                ahead.add(promise.memory_bytes, &promise);
                self.hold(ticket, promise, duration_ms.map(|duration| now_ms + duration));
                admitted.push(ticket);
            } else {
                reserve(&mut ahead, waiting);
            }
        }
        admitted
    }

    /// Takes back a promise or a place in the queue. Unknown tickets are no error: their task is gone already.
    pub fn release(&mut self, ticket: Ticket) {
        if let Some(holder) = self.holders.remove(&ticket) {
            self.taken.subtract(holder.memory_bytes, &holder.promise);
        }
        self.leave_queue(ticket);
        if self.holders.is_empty() {
            // What sums of cores leave by rounding goes with the last holder.
            self.taken.cpu_cores = 0.0;
        }
    }

    fn leave_queue(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        self.order.remove(&(waiting.rank, ticket));
        self.need_no_memory -= usize::from(waiting.needs_no_memory());
        Some(waiting)
    }

    /// What a task uses now, and whether it idles.
    pub fn used(&mut self, ticket: Ticket, used_bytes: u64, is_idle: bool) {
        if let Some(holder) = self.holders.get_mut(&ticket) {
            holder.used_bytes = used_bytes;
            holder.is_idle = is_idle;
            // What an idle task gave back it gets again once it works, whoever waits.
            if !is_idle || holder.promise.memory_bytes <= used_bytes {
                let memory_bytes = holder.promise.memory_bytes.max(used_bytes);
                recount(&mut self.taken, holder, memory_bytes);
            }
        }
    }

    /// Lowers the promises of idle tasks to what they use; returns the bytes that became free.
    pub fn shrink_idle(&mut self) -> u64 {
        let before = self.taken.memory_bytes;
        for holder in self.holders.values_mut().filter(|holder| holder.is_idle) {
            let memory_bytes = (holder.used_bytes as f64 * IDLE_FACTOR) as u64;
            recount(&mut self.taken, holder, memory_bytes.min(holder.memory_bytes));
        }
        before.saturating_sub(self.taken.memory_bytes)
    }

    /// Changes the licences that a task holds to what it is seen to use, if that is more.
    pub fn uses_licenses(&mut self, ticket: Ticket, license: &str, count: u32) {
        if let Some(holder) = self.holders.get_mut(&ticket) {
            let held = holder.promise.licenses.entry(license.to_owned()).or_default();
            if count > *held {
                *self.taken.licenses.entry(license.to_owned()).or_default() += count - *held;
                *held = count;
            }
        }
    }

    /// How many hold a promise.
    pub fn holding(&self) -> usize {
        self.holders.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What counts for a task now, bytes.
    pub fn memory_of(&self, ticket: Ticket) -> Option<u64> {
        self.holders.get(&ticket).map(|holder| holder.memory_bytes)
    }

    /// Those who wait, first to last, each with how long it will probably take until its turn, milliseconds.
    /// `None` where a task ahead has no known end.
    pub fn queue(&self, now_ms: i64) -> Vec<(Ticket, Option<i64>)> {
        let mut taken = self.taken.clone();
        let ends = self.holders.iter().filter_map(|(ticket, holder)| {
            // Who is late may end at any moment.
            holder.ends_at_ms.map(|at| Reverse((at.max(now_ms), *ticket)))
        });
        let mut ends: BinaryHeap<_> = ends.collect();
        let mut guests: HashMap<Ticket, (u64, &Promise)> = self
            .holders
            .iter()
            .map(|(ticket, holder)| (*ticket, (holder.memory_bytes, &holder.promise)))
            .collect();
        let mut clock = Some(now_ms);
        let mut queue = Vec::with_capacity(self.order.len());
        for (_, ticket) in &self.order {
            let waiting = &self.waiting[ticket];
            while clock.is_some()
                && !lacks(&self.total, &taken, &waiting.promise, waiting.licenses_only).is_empty()
            {
                clock = ends.pop().map(|Reverse((at, ended))| {
                    if let Some((memory_bytes, promise)) = guests.remove(&ended) {
                        taken.subtract(memory_bytes, promise);
                    }
                    at
                });
            }
            queue.push((*ticket, clock.map(|at| at - now_ms)));
            taken.add(waiting.promise.memory_bytes, &waiting.promise);
            guests.insert(*ticket, (waiting.promise.memory_bytes, &waiting.promise));
            if let (Some(at), Some(duration)) = (clock, waiting.duration_ms) {
                ends.push(Reverse((at + duration, *ticket)));
            }
        }
        queue
    }
}

/// Counts a holder with another amount of memory.
fn recount(taken: &mut Taken, holder: &mut Holder, memory_bytes: u64) {
    taken.memory_bytes = taken.memory_bytes.saturating_sub(holder.memory_bytes).saturating_add(memory_bytes);
    holder.memory_bytes = memory_bytes;
}

/// Keeps what a waiting task needs from those behind it.
fn reserve(ahead: &mut Taken, waiting: &Waiting) {
    if waiting.licenses_only {
        let licenses = Promise { licenses: waiting.promise.licenses.clone(), ..Promise::default() };
        ahead.add(0, &licenses);
    } else {
        ahead.add(waiting.promise.memory_bytes, &waiting.promise);
    }
}

/// What is missing for a promise. One that is larger than the host needs all of it: then it runs alone.
fn lacks(total: &Total, taken: &Taken, promise: &Promise, licenses_only: bool) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if !licenses_only {
        let free = total.memory_bytes.saturating_sub(taken.memory_bytes);
        if promise.memory_bytes.min(total.memory_bytes) > free {
            lacks.push(Lack::Memory(promise.memory_bytes, free));
        }
        let free = (total.cpu_cores - taken.cpu_cores).max(0.0);
        if promise.cpu_cores.min(total.cpu_cores) > free + CORES_EPSILON {
            let hundredths = |cores: f64| (cores * 100.0).round() as u64;
            lacks.push(Lack::Cpu(hundredths(promise.cpu_cores), hundredths(free)));
        }
    }
    for (name, count) in promise.licenses.iter().filter(|(_, count)| **count > 0) {
        let of = |licenses: &Licenses| licenses.get(name).copied().unwrap_or(0);
        let free = of(&total.licenses).saturating_sub(of(&taken.licenses));
        if *count > free {
            lacks.push(Lack::License(name.clone(), *count, free));
        }
    }
    lacks
}

#[cfg(test)]
mod tests;
