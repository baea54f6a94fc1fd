//! Limits that the kernel enforces: v1 or v2, as the guest has them.
use crate::host::*;
use crate::skip::skip;
use std::fs;

/// Takes so many MiB and holds them for a moment.
fn eater(mebibytes: u32, hold_s: u32) -> String {
    format!(
        "my $x = 'a' x ({mebibytes} << 20); select(undef, undef, undef, {hold_s}); print length($x), qq(\\n);"
    )
}

#[ignore = "for an installed package"]
#[test]
fn a_job_over_a_hard_limit_is_recorded_as_out_of_memory() {
    ensure_started();
    let eat = eater(300, 0);
    let run = output(&[
        "standin",
        "run",
        "--require-agent",
        "--policy",
        "strict",
        "--limit-memory",
        "64M",
        "--name",
        "glutton",
        "--",
        "perl",
        "-e",
        &eat,
    ]);
    assert!(!run.status.success(), "{run:?}");
    assert_eq!(result_of("glutton"), "out of memory");
    let free = output(&["standin", "run", "--require-agent", "--name", "free", "--", "perl", "-e", &eat]);
    assert!(free.status.success(), "the same without a limit: {free:?}");
}

#[ignore = "for an installed package"]
#[test]
fn a_reclaim_target_follows_a_job_that_grows() {
    ensure_started();
    if fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|all| all.contains("memory")) {
        let grow = |mebibytes, hold_s| {
            let eat = eater(mebibytes, hold_s);
            let run =
                output(&["standin", "run", "--require-agent", "--name", "grower", "--", "perl", "-e", &eat]);
            assert!(run.status.success(), "it is held back, not stopped: {run:?}");
            assert_eq!(result_of("grower"), "exit 0");
        };
        grow(40, 2);
        grow(40, 2);
        grow(220, 3);
        let raised = "SELECT count(*) FROM event_log WHERE kind = 'limit_raised' AND task_type = 'grower'";
        wait_until("that it followed is in the log", || {
            recorded::<i64>(raised).is_some_and(|count| count > 0)
        });
    } else {
        skip("memory is on cgroup v1 here, where the target holds nobody back");
    }
}

#[ignore = "for an installed package"]
#[test]
fn all_jobs_together_leave_the_host_its_reserve() {
    ensure_started();
    let places = [
        "/sys/fs/cgroup/standin.slice/standin-jobs.service/memory.max",
        "/sys/fs/cgroup/memory/standin.slice/standin-jobs.service/memory.limit_in_bytes",
    ];
    let bound = places.iter().find_map(|place| fs::read_to_string(place).ok()).unwrap();
    let bound: u64 = bound.trim().parse().unwrap();
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let total_kib: u64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(bound < total_kib * 1024, "{bound} of {total_kib} KiB");
}
