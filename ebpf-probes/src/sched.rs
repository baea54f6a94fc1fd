//! CPU time, run-queue waits, context switches and page faults.
//!
//! | | |
//! |---|---|
//! | hook | `tp_btf/sched_switch` |
//! | maps | `CPUS[cpu]` (who runs here, since which counts), `SLOTS`, `COUNTERS[slot * cpus + cpu]` |
//! | cost | 17–23 ns per switch of a tracked task above a program that does nothing (EPYC in a VM); no clock read, no wake-up probe, no map per task |
//! | floor | Linux 5.15; waits need `CONFIG_SCHED_INFO` |
//! | fallback | `cpu.stat` of the cgroup and rusage; waits: `/proc/PID/schedstat` |
//!
//! At switch-in the scheduler's own accounts of the task are remembered, at switch-out the differences are
//! booked. `sched_info.run_delay` grows after this tracepoint, when the task really gets the CPU, so the
//! difference is the wait before this very stretch. `sum_exec_runtime` is brought up to date before it
//! (`put_prev_task`). A cgroup is looked up at switch-out: a task that moved itself and went on running is
//! charged to where it is, as in the kernel's own accounts.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_probes::{ABSENT, CACHE_ENTRIES, Counters, NO_SLOT, OnCpu, cache_index};

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
                if is_known {
                    book(counters, state, prev, slot);
                } else {
                    book_unknown(counters, prev);
                }
                book_switch(counters, prev, slot, preempt & 1 != 0);
            }
        }
        remember(state, next);
    }
    0
}

/// Adds what `prev` used since it was switched in.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier, and `state` of this CPU.
#[inline(always)]
unsafe fn book(counters: &mut Counters, state: &OnCpu, prev: Pointer, slot: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let burst = load::<u64>(prev, offset!(task_sum_exec_runtime)) - state.exec_ns;
        book_burst(counters, burst);
        if offset!(task_run_delay) != ABSENT {
            // On the run queue's clock; the burst leaves out what interrupts took meanwhile.
            let start = load::<u64>(prev, offset!(task_last_arrival));
            demand::book(counters, slot, start, start + burst);
            let wait = load::<u64>(prev, offset!(task_run_delay)) - state.delay_ns;
            counters.wait_ns += wait;
            counters.wait_ns_histogram[maps::bucket(wait)] += 1;
        }
        counters.faults_minor += load::<u64>(prev, offset!(task_min_flt)) - state.faults_minor;
        counters.faults_major += load::<u64>(prev, offset!(task_maj_flt)) - state.faults_major;
    }
}

/// Adds the CPU time of a task whose switch-in was not seen: it ran when this was attached, or the kernel
/// does not show every switch. The fair scheduler keeps the account's value at switch-in by itself.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book_unknown(counters: &mut Counters, prev: Pointer) {
    // SAFETY: the caller's promise.
    unsafe {
        let is_fair = load::<i32>(prev, offset!(task_prio)) >= FAIR_PRIO_MIN;
        if offset!(task_prev_sum_exec_runtime) != ABSENT && is_fair {
            let before = load::<u64>(prev, offset!(task_prev_sum_exec_runtime));
            book_burst(counters, load::<u64>(prev, offset!(task_sum_exec_runtime)) - before);
        }
        counters.switches_unseen += 1;
    }
}

#[inline(always)]
fn book_burst(counters: &mut Counters, burst: u64) {
    counters.on_cpu_ns += burst;
    counters.burst_ns[maps::bucket(burst)] += 1;
}

/// Adds the switch itself, and notes the last one of a task.
///
/// # Safety
/// `prev` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book_switch(counters: &mut Counters, prev: Pointer, slot: u32, preempt: bool) {
    // SAFETY: the caller's promise; `shared` points to a map value.
    unsafe {
        let task_state = load::<u32>(prev, offset!(task_state));
        if preempt || task_state == 0 {
            counters.switches_forced += 1;
        } else {
            counters.switches_voluntary += 1;
        }
        if task_state & TASK_DEAD != 0
            && let Some(shared) = maps::shared(slot)
        {
            // With a barrier: who sees this sees what was booked before.
            maps::fetch_add((&raw mut (*shared).ending).cast(), -1i64 as u64);
        }
    }
}

/// Remembers the accounts of the task that is switched in.
///
/// # Safety
/// `next` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn remember(state: &mut OnCpu, next: Pointer) {
    // SAFETY: the caller's promise.
    unsafe {
        if load::<i32>(next, offset!(task_pid)) == 0 {
            state.task = 0;
            return;
        }
        state.task = next as u64;
        state.exec_ns = load(next, offset!(task_sum_exec_runtime));
        if offset!(task_run_delay) != ABSENT {
            state.delay_ns = load(next, offset!(task_run_delay));
        }
        state.faults_minor = load(next, offset!(task_min_flt));
        state.faults_major = load(next, offset!(task_maj_flt));
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
