//! Births, programs and ends of tasks, and the out-of-memory killer's victims.
//!
//! | | |
//! |---|---|
//! | hooks | `tp_btf/sched_process_fork`, `sched_process_exec`, `sched_process_exit`, `mark_victim` |
//! | maps | `SLOTS`, `COUNTERS`, `SHARED[slot]`; `EVENTS`: a [`ProcessExit`] per main process |
//! | cost | a hash lookup or two per event; these are rare beside switches |
//! | floor | Linux 5.15; `mark_victim` 6.10 (it gave only a pid before) |
//! | fallback | `pids.peak`, `cgroup.events`, pidfds; victims: `memory.events` |
use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_ktime_get_boot_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use ebpf_probes::{ABSENT, Losses, ProcessExit};

use crate::{
    kernel::{Pointer, cgroup_of_task, load, offset},
    maps::{self, Tracked, add, fetch_add, raise_to, tracked},
};

/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`: `group_exit_code` is the status of the process.
const SIGNAL_GROUP_EXIT: u32 = 0x4;

/// Of lost events only every such one is logged.
const LOSSES_PER_WARNING: u64 = 4096;

#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(context: BtfTracePointContext) -> i32 {
    // The child's cgroup, which clone3 can have chosen; it is in it already, but has not run yet.
    let child: Pointer = context.arg(1);
    // SAFETY: a task_struct; the rest points into map values.
    unsafe {
        let Some(tracked) = tracked(cgroup_of_task(child)) else {
            return 0;
        };
        if let Some(counters) = tracked.counters() {
            add(&raw mut (*counters).forks, 1);
        }
        if let Some(shared) = maps::shared(tracked.slot) {
            let tasks = fetch_add((&raw mut (*shared).tasks).cast(), 1) + 1;
            raise_to((&raw mut (*shared).tasks_peak).cast(), tasks);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(context: BtfTracePointContext) -> i32 {
    // SAFETY: a task_struct; the rest points into map values.
    unsafe {
        let Some(tracked) = tracked(cgroup_of_task(context.arg(0))) else {
            return 0;
        };
        if let Some(counters) = tracked.counters() {
            add(&raw mut (*counters).execs, 1);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(context: BtfTracePointContext) -> i32 {
    let task: Pointer = context.arg(0);
    // SAFETY: a task_struct, and `signal` its signal_struct.
    unsafe {
        let Some(tracked) = tracked(cgroup_of_task(task)) else {
            return 0;
        };
        book_exit(tracked, task);
        let signal: Pointer = load(task, offset!(task_signal));
        if process_ended(&context, signal) {
            report_exit(&context, tracked, task, signal);
        }
    }
    0
}

/// Books the end of one task, be it a process or a thread.
///
/// # Safety
/// `task` must be a `task_struct` known to the verifier.
#[inline(always)]
unsafe fn book_exit(tracked: Tracked, task: Pointer) {
    // SAFETY: the caller's promise; the rest points into map values.
    unsafe {
        if let Some(counters) = tracked.counters() {
            add(&raw mut (*counters).exits, 1);
            if offset!(task_read_bytes) != ABSENT {
                add(&raw mut (*counters).storage_read_bytes, load(task, offset!(task_read_bytes)));
                add(&raw mut (*counters).storage_write_bytes, load(task, offset!(task_write_bytes)));
            }
        }
        if let Some(shared) = maps::shared(tracked.slot) {
            add((&raw mut (*shared).tasks).cast(), -1i64 as u64);
            add((&raw mut (*shared).ending).cast(), 1);
        }
    }
}

/// True if the task was the last of its process. Before Linux 6.16 the tracepoint does not tell; two
/// threads that end at the same moment can then both find nobody alive, and user space drops the second
/// event.
///
/// # Safety
/// `signal` must be a `signal_struct` known to the verifier.
#[inline(always)]
unsafe fn process_ended(context: &BtfTracePointContext, signal: Pointer) -> bool {
    if offset!(exit_tells_group_dead) != 0 {
        context.arg::<u64>(1) & 1 != 0
    } else {
        // SAFETY: the caller's promise.
        unsafe { load::<i32>(signal, offset!(signal_live)) == 0 }
    }
}

/// Books the peak RSS of a process that ended, and sends its end to user space if that waits for it.
///
/// # Safety
/// `task` must be a `task_struct` and `signal` a `signal_struct`, both known to the verifier.
#[inline(always)]
unsafe fn report_exit(context: &BtfTracePointContext, tracked: Tracked, task: Pointer, signal: Pointer) {
    // SAFETY: the caller's promise; the rest points into map values.
    unsafe {
        // The kernel has brought it up to date already (`setmax_mm_hiwater_rss` in `do_exit`).
        let rss_peak_pages: u64 = load(signal, offset!(signal_maxrss));
        let Some(shared) = maps::shared(tracked.slot) else { return };
        raise_to(&raw mut (*shared).process_rss_peak_pages, rss_peak_pages);
        let pid: u32 = load(task, offset!(task_tgid));
        let main_pid = (*shared).main_pid;
        if main_pid != 0 && main_pid != u64::from(pid) {
            return;
        }
        let Some(mut event) = maps::EVENTS.reserve(0) else {
            return lose_event(context, pid);
        };
        event.write(ProcessExit {
            cgroup: tracked.cgroup,
            pid,
            status: exit_status(task, signal),
            rss_peak_pages,
            at_ns: bpf_ktime_get_boot_ns(),
        });
        // User space drains on its own clock.
        event.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
}

/// The status that `wait(2)` will report.
///
/// # Safety
/// As for [`report_exit`].
#[inline(always)]
unsafe fn exit_status(task: Pointer, signal: Pointer) -> i32 {
    // SAFETY: the caller's promise; `group_leader` is a task_struct.
    unsafe {
        if load::<u32>(signal, offset!(signal_flags)) & SIGNAL_GROUP_EXIT != 0 {
            load(signal, offset!(signal_group_exit_code))
        } else {
            load(load::<Pointer>(task, offset!(task_group_leader)), offset!(task_exit_code))
        }
    }
}

#[inline(always)]
fn lose_event(context: &BtfTracePointContext, pid: u32) {
    let Some(losses): Option<*mut Losses> = maps::losses() else {
        return;
    };
    // SAFETY: points into a map value.
    let lost = unsafe { fetch_add(&raw mut (*losses).events, 1) };
    if lost % LOSSES_PER_WARNING == 0 {
        warn!(context, "exit of pid {} lost, after {} others: drain events more often", pid, lost);
    }
}

#[btf_tracepoint(function = "mark_victim")]
fn oom_victim(context: BtfTracePointContext) -> i32 {
    // SAFETY: a task_struct since Linux 6.10; with the pid of before, the verifier refuses the load.
    unsafe {
        let Some(tracked) = tracked(cgroup_of_task(context.arg(0))) else {
            return 0;
        };
        if let Some(counters) = tracked.counters() {
            add(&raw mut (*counters).oom_kills, 1);
        }
    }
    0
}
