//! The ledger never promises licences twice, keeps its sums, keeps order and starves nobody.

use super::*;
use proptest::prelude::*;

fn total(memory_bytes: u64) -> Total {
    let licenses = Licenses::from([("cad".to_owned(), 2)]);
    Total { memory_bytes, cpu_cores: 4.0, licenses }
}

fn memory(memory_bytes: u64) -> Promise {
    Promise { memory_bytes, ..Promise::default() }
}

fn license(count: u32) -> Promise {
    Promise { licenses: Licenses::from([("cad".to_owned(), count)]), ..Promise::default() }
}

fn queued(ledger: &mut Ledger, promise: Promise, priority: i32, arrived_ms: i64) -> Ticket {
    ledger.wait(promise, false, (priority, arrived_ms), Some(1000)).unwrap()
}

#[test]
fn what_does_not_fit_is_said() {
    let mut ledger = Ledger::new(total(100));
    let first = ledger.promise(memory(70), None);
    assert_eq!(ledger.lacks(&memory(30)), []);
    assert_eq!(ledger.lacks(&memory(40)), [Lack::Memory(40, 30)]);
    let cores = Promise { cpu_cores: 4.5, ..memory(1) };
    assert_eq!(ledger.lacks(&cores), [], "more than there is fits an idle host");
    ledger.promise(Promise { cpu_cores: 1.0, ..memory(0) }, None);
    assert_eq!(ledger.lacks(&cores), [Lack::Cpu(450, 300)]);
    ledger.release(first);
    assert_eq!(ledger.lacks(&memory(100)), []);
}

#[test]
fn a_task_larger_than_the_host_runs_alone() {
    let mut ledger = Ledger::new(total(100));
    let small = ledger.promise(memory(1), None);
    let big = queued(&mut ledger, memory(500), 0, 0);
    assert_eq!(ledger.admit(0), []);
    assert_eq!(ledger.lacks(&memory(1)), [Lack::Memory(1, 0)], "nobody slips past it");
    ledger.release(small);
    assert_eq!(ledger.admit(0), [big]);
}

#[test]
fn the_queue_goes_by_arrival_and_priority_is_a_head_start() {
    let mut ledger = Ledger::new(total(100));
    let running = ledger.promise(memory(100), None);
    let first = queued(&mut ledger, memory(100), 0, 0);
    let second = queued(&mut ledger, memory(100), 0, 1);
    let urgent = queued(&mut ledger, memory(100), 1, PRIORITY_MS - 1);
    let late = queued(&mut ledger, memory(100), 1, PRIORITY_MS + 2);
    let order: Vec<_> = ledger.queue(0).into_iter().map(|(ticket, _)| ticket).collect();
    assert_eq!(order, [urgent, first, second, late]);
    ledger.release(running);
    let mut started = Vec::<Ticket>::new();
    for _ in 0..4 {
        let admitted = ledger.admit(0);
        assert_eq!(admitted.len(), 1);
        started.extend(&admitted);
        ledger.release(admitted[0]);
    }
    assert_eq!(started, order);
}

#[test]
fn small_tasks_pass_a_big_one_only_where_they_do_not_delay_it() {
    let mut ledger = Ledger::new(total(100));
    ledger.promise(Promise { licenses: license(2).licenses, ..memory(10) }, None);
    // It waits for licences, and 60 of the free 90 are kept for it.
    let big = queued(&mut ledger, Promise { memory_bytes: 60, ..license(1) }, 0, 0);
    let small = queued(&mut ledger, memory(30), 0, 1);
    let delaying = queued(&mut ledger, memory(1), 0, 2);
    assert_eq!(ledger.admit(0), [small]);
    assert_eq!(ledger.queue(0).into_iter().map(|(t, _)| t).collect::<Vec<_>>(), [big, delaying]);
}

#[test]
fn who_waits_for_licences_only_holds_nothing_else_up() {
    let mut ledger = Ledger::new(total(100));
    ledger.promise(Promise { memory_bytes: 1000, ..license(2) }, None);
    let waits = ledger.wait(Promise { memory_bytes: 50, ..license(1) }, true, (0, 0), None).unwrap();
    assert_eq!(ledger.admit(0), []);
    assert_eq!(ledger.never(&license(3)), Some(Lack::License("cad".into(), 3, 2)));
    assert_eq!(ledger.never(&license(2)), None);
    let other = Licenses::from([("none".to_owned(), 1)]);
    assert!(ledger.never(&Promise { licenses: other, ..Promise::default() }).is_some());
    ledger.uses_licenses(waits, "cad", 9);
    assert_eq!(ledger.promised().licenses["cad"], 2, "who waits uses none");
}

#[test]
fn expected_waits_follow_from_expected_ends() {
    let mut ledger = Ledger::new(total(100));
    ledger.promise(memory(60), Some(5_000));
    ledger.promise(memory(40), Some(2_000));
    queued(&mut ledger, memory(40), 0, 0);
    queued(&mut ledger, memory(60), 0, 1);
    queued(&mut ledger, memory(100), 0, 2);
    let waits =
        |ledger: &Ledger, now| ledger.queue(now).into_iter().map(|(_, wait)| wait).collect::<Vec<_>>();
    assert_eq!(waits(&ledger, 0), [Some(2_000), Some(5_000), Some(6_000)]);
    assert_eq!(
        waits(&ledger, 4_000),
        [Some(0), Some(1_000), Some(2_000)],
        "who is late may end at any moment"
    );
    let mut endless = Ledger::new(total(100));
    endless.promise(memory(100), None);
    queued(&mut endless, memory(1), 0, 0);
    assert_eq!(waits(&endless, 0), [None]);
}

#[test]
fn what_is_used_beyond_a_promise_counts_and_idle_promises_shrink() {
    let mut ledger = Ledger::new(total(100));
    let ticket = ledger.promise(memory(50), None);
    ledger.used(ticket, 80, false);
    assert_eq!(ledger.promised().memory_bytes, 80);
    ledger.used(ticket, 20, false);
    assert_eq!(ledger.promised().memory_bytes, 50);
    assert_eq!(ledger.shrink_idle(), 0, "it works");
    ledger.used(ticket, 20, true);
    assert_eq!(ledger.promised().memory_bytes, 50, "nobody needs it");
    assert_eq!((ledger.shrink_idle(), ledger.promised().memory_bytes), (28, 22));
    ledger.used(ticket, 20, true);
    assert_eq!(ledger.promised().memory_bytes, 22);
    ledger.used(ticket, 20, false);
    assert_eq!(ledger.promised().memory_bytes, 50);
}

#[derive(Clone, Debug)]
enum Act {
    Start(Promise),
    Queue(Promise, bool, i32),
    End(usize),
    Use(usize, u64, bool),
    Shrink,
}

fn any_promise() -> impl Strategy<Value = Promise> {
    (0_u64..150, 0.0..6.0, 0_u32..3).prop_map(|(memory_bytes, cpu_cores, count)| Promise {
        cpu_cores,
        memory_bytes,
        ..license(count)
    })
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        any_promise().prop_map(|promise| Act::Start(Promise { licenses: Licenses::new(), ..promise })),
        (any_promise(), any::<bool>(), -3..4)
            .prop_map(|(promise, only, priority)| Act::Queue(promise, only, priority)),
        (0_usize..20).prop_map(Act::End),
        (0_usize..20, 0_u64..200, any::<bool>()).prop_map(|(i, used, idle)| Act::Use(i, used, idle)),
        Just(Act::Shrink),
    ]
}

proptest! {
    #[test]
    fn sums_licences_and_order_hold_whatever_happens(acts in prop::collection::vec(any_act(), 1..80)) {
        let mut ledger = Ledger::new(total(100));
        let mut running = Vec::new();
        for (now, act) in acts.into_iter().enumerate() {
            let now = i64::try_from(now).unwrap();
            match act {
                Act::Start(promise) => running.push(ledger.promise(promise, Some(now + 10))),
                Act::Queue(promise, licenses_only, priority) => {
                    prop_assert!(ledger.wait(promise, licenses_only, (priority, now), Some(5)).is_some());
                }
                Act::End(i) if i < running.len() => ledger.release(running.swap_remove(i)),
                Act::Use(i, used, is_idle) if i < running.len() => ledger.used(running[i], used, is_idle),
                Act::Shrink => _ = ledger.shrink_idle(),
                Act::End(_) | Act::Use(..) => {}
            }
            let before = ledger.queue(now);
            let admitted = ledger.admit(now);
            // The first in the queue that fits is not passed over, and those admitted keep their order.
            let places: Vec<_> = admitted.iter().map(|t| before.iter().position(|(b, _)| b == t).unwrap()).collect();
            prop_assert!(places.is_sorted());
            running.extend(admitted);
            if let Some((head, _)) = ledger.queue(now).first() {
                let head = &ledger.waiting[head];
                prop_assert!(!lacks(&ledger.total, &ledger.taken, &head.promise, head.licenses_only).is_empty());
            }
            // Sums are those of the holders, and licences are never promised twice.
            let sum: u64 = ledger.holders.values().map(|holder| holder.memory_bytes).sum();
            let cores: f64 = ledger.holders.values().map(|holder| holder.promise.cpu_cores).sum();
            prop_assert_eq!(ledger.promised().memory_bytes, sum);
            prop_assert!((ledger.promised().cpu_cores - cores).abs() < 1e-6);
            prop_assert!(ledger.promised().licenses.get("cad").copied().unwrap_or(0) <= 2);
            prop_assert_eq!(ledger.holding(), running.len());
            prop_assert_eq!(ledger.order.len(), ledger.waiting());
            let no_memory = ledger.waiting.values().filter(|waiting| waiting.needs_no_memory()).count();
            prop_assert_eq!(ledger.need_no_memory, no_memory);
        }
    }

    #[test]
    fn nobody_starves(promises in prop::collection::vec((any_promise(), -100_i32..=100), 1..40)) {
        let mut ledger = Ledger::new(total(100));
        let waiting = promises.len();
        for (i, (promise, priority)) in promises.into_iter().enumerate() {
            queued(&mut ledger, promise, priority, i64::try_from(i).unwrap());
        }
        // One ends at a time while others keep coming; all of the first have started after a bounded time.
        let (mut running, mut started, mut turns) = (Vec::new(), 0, 0);
        let mut now = 2 * i64::from(PRIORITY_BOUND) * PRIORITY_MS + 1000;
        while started < waiting {
            for ticket in ledger.admit(now) {
                started += usize::from(ticket.0 <= waiting as u64);
                running.push(ticket);
            }
            queued(&mut ledger, memory(60), PRIORITY_BOUND, now);
            if !running.is_empty() {
                ledger.release(running.remove(0));
            }
            now += 1;
            turns += 1;
            prop_assert!(turns <= 2 * waiting + 2, "{started} of {waiting} after {turns} turns");
        }
    }
}
