//! CPU time, run-queue waits, context switches and page faults.
//!
//! | | |
//! |---|---|
//! | hook | `tp_btf/sched_switch` |
//! | maps | `CPUS[cpu]` (who runs here, since which counts), `DEPARTURES[thread]`, `SLOTS`, `COUNTERS[slot * cpus + cpu]` |
//! | cost | 20–50 ns per switch of a tracked task above a program that does nothing (EPYC in VMs, some 4 of them for `DEPARTURES`); no clock read, no wake-up probe, no map per task |
//! | floor | Linux 5.15; waits need `CONFIG_SCHED_INFO` |
//! | fallback | `cpu.stat` of the cgroup and rusage; waits: `/proc/PID/schedstat` |
//!
//! At switch-in the scheduler's own accounts of the task are remembered, at switch-out the differences are
//! booked. `sched_info.run_delay` grows after this tracepoint, when the task really gets the CPU, so the
//! difference is the wait before this very stretch. `sum_exec_runtime` is brought up to date before it
//! (`put_prev_task`). A cgroup is looked up at switch-out: a task that moved itself and went on running is
//! charged to where it is, as in the kernel's own accounts.
//!
//! Some kernels of sandboxes run no program while a thread of their own init is current, so that nobody is told whom
//! that thread gives the CPU to. The accounts of a task stand still while it does not run, but for `run_delay`, which
//! grows by that very wait: those of its last switch-out are as good, and are kept for each thread.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_probes::{ABSENT, Accounts, CACHE_ENTRIES, Counters, Departure, NO_SLOT, OnCpu, cache_index};

use crate::{
    demand,
    kernel::{Pointer, cgroup_id, cgroup_of_task, load, offset},
    maps,
};

/// `TASK_DEAD` of `include/linux/sched.h`: the last switch of a task.
const TASK_DEAD: u32 = 0x80;

/// `MAX_RT_PRIO` of `include/linux/sched/prio.h`: from here up, the fair scheduler has the task.
const FAIR_PRIO_MIN: i32 = 100;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(context: BtfTracePointContext) -> i32 {
    let (preempt, prev, next): (u64, Pointer, Pointer) = (context.arg(0), context.arg(1), context.arg(2));
    let cpu = maps::this_cpu();
    let Some(state) = maps::on_cpu(cpu) else { return 0 };
    // SAFETY: prev and next are task_structs, and only this CPU, with interrupts off, writes its state.
    unsafe {
        let state = &mut *state;
        let is_known = state.task == prev as u64;
        // The idle task is never known.
        if is_known || load::<i32>(prev, offset!(task_pid)) != 0 {
            let slot = slot_of(state, prev);
            if slot != NO_SLOT
                && let Some(counters) = maps::counters(slot, cpu)
            {
                let counters = &mut *counters;
                let now = accounts(prev);
                if let Some(before) = if is_known { Some(state.accounts) } else { departed(prev, now) } {
                    book(counters, slot, prev, before, now);
                } else {
                    book_unknown(counters, slot, prev, now);
                }
                let task_state = load::<u32>(prev, offset!(task_state));
                book_switch(counters, slot, task_state, preempt & 1 != 0);
                depart(prev, now, task_state & TASK_DEAD != 0);
            }
        }
        state.task = if load::<i32>(next, offset!(task_pid)) == 0 { 0 } else { next as u64 };
        if state.task != 0 {
            state.accounts = accounts(next);
        }
    }
    0
}

/// What the kernel has counted for a task.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn accounts(task: Pointer) -> Accounts {
    // SAFETY: the caller's promise.
    unsafe {
        Accounts {
            exec_ns: load(task, offset!(task_sum_exec_runtime)),
            delay_ns: if has_sched_info() { load(task, offset!(task_run_delay)) } else { 0 },
            faults_minor: load(task, offset!(task_min_flt)),
            faults_major: load(task, offset!(task_maj_flt)),
        }
    }
}

/// Whether the kernel keeps waits and arrivals (`CONFIG_SCHED_INFO`).
#[inline(always)]
fn has_sched_info() -> bool {
    offset!(task_run_delay) != ABSENT
}

/// The accounts of a task when it was switched out last, if that is remembered; nothing if this is the first time.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn departed(task: Pointer, now: Accounts) -> Option<Accounts> {
    // SAFETY: the caller's promise; `departure` points to a map value.
    unsafe {
        if offset!(task_pcount) != ABSENT && load::<u64>(task, offset!(task_pcount)) == 1 {
            return Some(Accounts::default());
        }
        let thread = load::<i32>(task, offset!(task_pid)) as u64;
        let departure = *maps::departure(thread)?;
        // Another CPU may be writing a thread's that has its place here as well.
        (departure.thread == thread && departure.accounts.precede(&now)).then_some(departure.accounts)
    }
}

/// Remembers the accounts of a task that is switched out, until its end.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn depart(task: Pointer, accounts: Accounts, is_last: bool) {
    // SAFETY: the caller's promise; `departure` points to a map value.
    unsafe {
        let thread = load::<i32>(task, offset!(task_pid)) as u64;
        if let Some(departure) = maps::departure(thread) {
            *departure = Departure { thread: if is_last { 0 } else { thread }, accounts };
        }
    }
}

/// Adds what `prev` used since its accounts were those of `before`.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book(counters: &mut Counters, slot: u32, prev: Pointer, before: Accounts, now: Accounts) {
    let burst = now.exec_ns - before.exec_ns;
    // SAFETY: the caller's promise.
    unsafe { book_burst(counters, slot, prev, burst) };
    if has_sched_info() {
        let wait = now.delay_ns - before.delay_ns;
        counters.wait_ns += wait;
        counters.wait_ns_histogram[maps::bucket(wait)] += 1;
    }
    counters.faults_minor += now.faults_minor - before.faults_minor;
    counters.faults_major += now.faults_major - before.faults_major;
}

/// Adds the CPU time of a task of which nothing is known before, above all of one that ran when this was attached.
/// The fair scheduler keeps the account's value at switch-in by itself.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book_unknown(counters: &mut Counters, slot: u32, prev: Pointer, now: Accounts) {
    // SAFETY: the caller's promise.
    unsafe {
        let is_fair = load::<i32>(prev, offset!(task_prio)) >= FAIR_PRIO_MIN;
        if offset!(task_prev_sum_exec_runtime) != ABSENT && is_fair {
            let before = load::<u64>(prev, offset!(task_prev_sum_exec_runtime));
            book_burst(counters, slot, prev, now.exec_ns - before);
        }
        counters.switches_unseen += 1;
    }
}

/// Adds a stretch on the CPU, of `burst` nanoseconds.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book_burst(counters: &mut Counters, slot: u32, prev: Pointer, burst: u64) {
    counters.on_cpu_ns += burst;
    counters.burst_ns[maps::bucket(burst)] += 1;
    if has_sched_info() {
        // On the run queue's clock; the burst leaves out what interrupts took meanwhile.
        // SAFETY: the caller's promise.
        let start = unsafe { load::<u64>(prev, offset!(task_last_arrival)) };
        demand::book(counters, slot, start, start + burst);
    }
}

/// Adds the switch itself, of a task in `task_state`, and notes its last one.
#[inline(always)]
fn book_switch(counters: &mut Counters, slot: u32, task_state: u32, preempt: bool) {
    if preempt || task_state == 0 {
        counters.switches_forced += 1;
    } else {
        counters.switches_voluntary += 1;
    }
    if task_state & TASK_DEAD != 0
        && let Some(shared) = maps::shared(slot)
    {
        // With a barrier: who sees this sees what was booked before.
        // SAFETY: `shared` points to a map value.
        unsafe { maps::fetch_add((&raw mut (*shared).ending).cast(), -1i64 as u64) };
    }
}

/// The slot of a task's cgroup, from the cache where it knows the cgroup.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn slot_of(state: &mut OnCpu, task: Pointer) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let cgroup = cgroup_of_task(task);
        let id = cgroup_id(cgroup);
        let index = cache_index(id);
        // Read before the lookup: a change of SLOTS during it empties the cache next time.
        let version = core::ptr::read_volatile(&raw const state.slots_version);
        if state.cache_version != version {
            state.cgroups = [0; CACHE_ENTRIES];
            state.cache_version = version;
        }
        if state.cgroups[index] != id {
            state.cgroups[index] = id;
            state.slots[index] = maps::tracked(cgroup).map_or(NO_SLOT, |tracked| tracked.slot);
        }
        state.slots[index]
    }
}

/// The least that a program here costs; attached by nothing but `cargo xtask bench overhead`.
#[btf_tracepoint(function = "sched_switch")]
fn nothing(_: BtfTracePointContext) -> i32 {
    0
}
