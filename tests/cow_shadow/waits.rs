//! An interruption does not show: every kind of wait ends in primary and copy as it would have without.

use crate::support;
use crate::{Cgroup, Primary, copy, program, reap, require, require_copies, wait_until_idle};
use std::io::Read;
use std::process::Command;

const WAIT_MS: u64 = 1200;

/// How a wait ended: result, error number, milliseconds.
#[derive(Debug)]
struct End {
    result: i64,
    errno: i32,
    ms: u64,
}

/// The last lines of primary and copy of a program in `waits.c` that is copied while it waits.
fn ends(wait: &str) -> (End, End) {
    let into = Cgroup::new();
    let mut primary = start(wait, WAIT_MS);
    let copy = copy(primary.pid(), &into).unwrap();
    into.thaw();
    let mut text = String::new();
    primary.output.read_to_string(&mut text).unwrap();
    assert!(primary.child.wait().unwrap().success());
    reap(copy.pid);
    let of = |who: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(who)).unwrap_or_else(|| panic!("{who}: {text}"));
        let mut words = line.split_whitespace().map(|word| word.parse::<i64>().unwrap());
        let mut next = || words.next().unwrap();
        End { result: next(), errno: i32::try_from(next()).unwrap(), ms: next().cast_unsigned() }
    };
    (of("primary"), of("copy"))
}

pub(crate) fn start(wait: &str, ms: u64) -> Primary {
    let mut primary = Primary::start(Command::new(program("waits").unwrap()).args([wait, &ms.to_string()]));
    assert_eq!(primary.line(), "ready");
    wait_until_idle(primary.pid());
    primary
}

fn assert_undisturbed(wait: &str, result: i64, errno: i32) {
    let (primary, copy) = ends(wait);
    for (who, end) in [("primary", primary), ("copy", copy)] {
        assert_eq!((end.result, end.errno), (result, errno), "{wait} in the {who}: {end:?}");
        // No wait ends early. Those that are made again from their beginning end later.
        assert!(end.ms >= WAIT_MS - 1, "{wait} in the {who}: {end:?}");
    }
}

#[test]
fn timed_waits_for_descriptors_time_out() {
    require_copies!();
    for wait in ["poll", "ppoll", "select", "pselect", "epoll_wait", "epoll_pwait"] {
        assert_undisturbed(wait, 0, 0);
    }
}

#[test]
fn sleeps_last_their_time() {
    require_copies!();
    for wait in ["nanosleep", "clock_nanosleep"] {
        assert_undisturbed(wait, 0, 0);
    }
}

#[test]
fn waits_with_an_error_at_their_end_have_that_error() {
    require_copies!();
    assert_undisturbed("futex", -1, libc::ETIMEDOUT);
    for wait in ["accept", "recv", "read", "sigtimedwait"] {
        assert_undisturbed(wait, -1, libc::EAGAIN);
    }
}

#[test]
fn no_register_changes() {
    require_copies!();
    assert_undisturbed("registers", 0, 0);
}

#[test]
fn mutexes_of_the_copy_are_owned_by_the_copy() {
    require_copies!();
    assert_undisturbed("mutex", 0, 0);
}
