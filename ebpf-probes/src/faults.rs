//! How a task walks through its memory: the distance between consecutive page faults of a thread.
//!
//! | | |
//! |---|---|
//! | hook | `tp_btf/page_fault_user` |
//! | maps | `FAULTS`: by the low bits of the thread's id, its last fault; `SLOTS`, `COUNTERS` |
//! | cost | a hash lookup or two, an array lookup and an addition per user page fault |
//! | floor | Linux 5.15; x86 |
//! | fallback | none |
//!
//! A fault is *sequential* if it lies up to [`SEQUENTIAL_PAGES`] above the thread's last one (the kernel maps up
//! to 16 pages around a fault on a file, `fault_around_bytes`), or is the first of the huge page that follows;
//! *strided* if it is as far from the last one as that was from the one before; else *random*. One in the page of
//! the last one tells nothing. Two threads with the same low bits drive each other out, which loses a distance.
use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_probes::Fault;

use crate::{
    kernel::{Pointer, cgroup_of_task},
    maps::{FAULTS, FAULTS_MAX, add, tracked},
};

const PAGE_SHIFT: u32 = 12;
const SEQUENTIAL_PAGES: i64 = 16;
const HUGE_PAGES: i64 = 512;

#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(context: BtfTracePointContext) -> i32 {
    let address: u64 = context.arg(0);
    // SAFETY: the running task; the rest points into map values.
    unsafe {
        let task = aya_ebpf::helpers::bpf_get_current_task_btf() as Pointer;
        let Some(counters) = tracked(cgroup_of_task(task)).and_then(|tracked| tracked.counters()) else {
            return 0;
        };
        let thread = bpf_get_current_pid_tgid();
        let Some(last) = FAULTS.get_ptr_mut(thread as u32 & (FAULTS_MAX as u32 - 1)) else { return 0 };
        let page = address >> PAGE_SHIFT;
        let before = *last;
        if before.thread != thread {
            *last = Fault { thread, page, step: 0 };
            return 0;
        }
        let step = page.wrapping_sub(before.page) as i64;
        if step == 0 {
            return 0;
        }
        *last = Fault { thread, page, step };
        let next_huge = page & (HUGE_PAGES as u64 - 1) == 0 && step > 0 && step <= HUGE_PAGES;
        let counter = if (step > 0 && step <= SEQUENTIAL_PAGES) || next_huge {
            &raw mut (*counters).faults_sequential
        } else if step == before.step {
            &raw mut (*counters).faults_strided
        } else {
            &raw mut (*counters).faults_random
        };
        add(counter, 1);
    }
    0
}
