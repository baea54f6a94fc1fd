//! Every branch of the decision, and what must hold whatever happens.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const KILLED: How = How(9);
const CLEAN: How = How(0);
const CODE_3: How = How(3 << 8);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn hang() -> Cause {
    Cause::Unready("timed out".into())
}

/// A service with its primary in slot 0 and a ready shadow in each of `1..=shadows`, at second 10.
fn armed(rules: Rules, shadows: u32) -> Balance {
    let mut balance = Balance::new(rules, shadows as usize);
    assert!(starts(&balance.decide(Event::Tick, at(0))) == 1, "the first instance comes alone");
    balance.decide(Event::Started(0), at(0));
    let actions = balance.decide(Event::Ready(0), at(1));
    assert_eq!(actions[0], Action::Serve(0));
    assert_eq!(starts(&actions), shadows as usize);
    for slot in 1..=shadows {
        balance.decide(Event::Started(slot), at(2));
        let actions = balance.decide(Event::Ready(slot), at(2 + u64::from(slot)));
        assert_eq!(actions[0], Action::Park(slot));
    }
    balance
}

fn starts(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Start { .. })).count()
}

fn failover(actions: &[Action]) -> Option<(Option<u32>, u32, bool, bool)> {
    actions.iter().find_map(|action| match action {
        Action::FailOver { from, to, fence, drain, .. } => Some((*from, *to, *fence, *drain)),
        _ => None,
    })
}

#[test]
fn a_dead_primary_is_followed_by_the_oldest_shadow() {
    let mut balance = armed(Rules::default(), 2);
    let actions = balance.decide(Event::Died(0, KILLED), at(10));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, false)));
    assert_eq!(starts(&actions), 1, "a new shadow");
    assert_eq!(actions.last(), Some(&Action::Next(Some(2))));
    assert_eq!(balance.primary(), Some(1));
}

#[test]
fn without_a_shadow_the_next_instance_serves() {
    let mut balance = armed(Rules::default(), 0);
    let actions = balance.decide(Event::Died(0, KILLED), at(10));
    assert_eq!((failover(&actions), starts(&actions)), (None, 1));
    assert!(balance.is_vacant());
    balance.decide(Event::Started(1), at(10));
    let actions = balance.decide(Event::Ready(1), at(11));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, false)));
    assert_eq!(starts(&actions), 0, "no shadow is wanted");
}

#[test]
fn a_starting_shadow_takes_over_when_it_is_ready() {
    let mut balance = armed(Rules::default(), 1);
    balance.decide(Event::Died(0, KILLED), at(10));
    balance.decide(Event::Started(2), at(10));
    let actions = balance.decide(Event::Died(1, KILLED), at(11));
    assert_eq!((failover(&actions), starts(&actions)), (None, 0), "one is starting already");
    let actions = balance.decide(Event::Ready(2), at(12));
    assert_eq!(failover(&actions), Some((Some(1), 2, false, false)));
    assert_eq!(starts(&actions), 1);
}

#[test]
fn a_sick_primary_is_replaced_and_ended() {
    let mut balance = armed(Rules::default(), 1);
    let actions = balance.decide(Event::Sick(0, hang()), at(10));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, false)));
    assert_eq!(balance.role(0), Some(Role::Ending));
    let mut balance = armed(Rules::default(), 1);
    let actions = balance.decide(Event::Sick(0, Cause::Slow("late".into())), at(10));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, true)), "it finishes what it has");
    let mut careful = armed(Rules { single_writer: true, ..Rules::default() }, 1);
    let actions = careful.decide(Event::Sick(0, hang()), at(10));
    assert_eq!(failover(&actions), Some((Some(0), 1, true, false)), "fenced first");
}

#[test]
fn the_last_instance_is_never_given_up() {
    let mut balance = armed(Rules::default(), 0);
    let actions = balance.decide(Event::Sick(0, hang()), at(10));
    assert_eq!((failover(&actions), starts(&actions)), (None, 1), "a successor is started");
    assert_eq!(balance.primary(), Some(0));
    assert_eq!(balance.decide(Event::Sick(0, hang()), at(11)), [], "said once");
    balance.decide(Event::Started(1), at(11));
    let actions = balance.decide(Event::Ready(1), at(12));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, false)));
}

#[test]
fn who_gets_well_stays() {
    let mut balance = armed(Rules::default(), 0);
    balance.decide(Event::Sick(0, hang()), at(10));
    balance.decide(Event::Started(1), at(10));
    balance.decide(Event::Well(0), at(11));
    let actions = balance.decide(Event::Ready(1), at(12));
    assert_eq!(failover(&actions), None);
    assert!(actions.contains(&Action::End { slot: 1, gently: false }), "no shadow is wanted: {actions:?}");
}

#[test]
fn a_fresh_primary_is_not_taken_for_sick() {
    let mut balance = armed(Rules::default(), 1);
    balance.decide(Event::Died(0, KILLED), at(10));
    balance.decide(Event::Started(2), at(10));
    balance.decide(Event::Ready(2), at(10));
    assert_eq!(balance.decide(Event::Sick(1, hang()), at(10)), []);
    assert!(failover(&balance.decide(Event::Sick(1, hang()), at(12))).is_some());
}

#[test]
fn too_many_failovers_wait() {
    let mut balance = armed(Rules { failovers_max: 2, ..Rules::default() }, 1);
    let mut primary = 0;
    for round in 0..2 {
        balance.decide(Event::Died(primary, KILLED), at(10 + round));
        primary = balance.primary().unwrap();
        let slot = primary + 1;
        balance.decide(Event::Started(slot), at(10 + round));
        balance.decide(Event::Ready(slot), at(10 + round));
    }
    assert_eq!(failover(&balance.decide(Event::Sick(primary, hang()), at(14))), None, "a live one can wait");
    let actions = balance.decide(Event::Died(primary, KILLED), at(14));
    assert_eq!(failover(&actions), None);
    assert_eq!(actions.last(), Some(&Action::Next(None)), "nor may the kernel turn");
    assert_eq!(failover(&balance.decide(Event::Tick, at(14))), None);
    assert!(failover(&balance.decide(Event::Tick, at(15))).is_some(), "after 100 ms");
}

#[test]
fn a_clean_exit_ends_the_service() {
    let mut balance = armed(Rules::default(), 1);
    let actions = balance.decide(Event::Died(0, CLEAN), at(10));
    assert!(actions.contains(&Action::End { slot: 1, gently: false }), "{actions:?}");
    let actions = balance.decide(Event::Died(1, KILLED), at(10));
    assert!(matches!(actions[0], Action::Finish(_)), "{actions:?}");
    let mut always = armed(Rules { restart: Restart::Always, ..Rules::default() }, 1);
    assert!(failover(&always.decide(Event::Died(0, CLEAN), at(10))).is_some());
}

#[test]
fn a_command_that_never_serves_ends_with_its_own_code() {
    let mut balance = Balance::new(Rules::default(), 1);
    balance.decide(Event::Tick, at(0));
    balance.decide(Event::Started(0), at(0));
    assert_eq!(balance.decide(Event::Died(0, CODE_3), at(0))[0], Action::Finish(Some(CODE_3)));
}

#[test]
fn starts_that_fail_are_repeated_and_then_given_up() {
    let mut balance = armed(Rules { starts_max: 3, ..Rules::default() }, 0);
    balance.decide(Event::Died(0, KILLED), at(10));
    for slot in 1..3 {
        balance.decide(Event::Started(slot), at(10));
        let actions = balance.decide(Event::Died(slot, CODE_3), at(10));
        assert_eq!(starts(&actions), 1, "{actions:?}");
    }
    balance.decide(Event::Started(3), at(11));
    let actions = balance.decide(Event::Died(3, CODE_3), at(11));
    assert!(actions.contains(&Action::Finish(Some(CODE_3))), "{actions:?}");
}

#[test]
fn a_planned_failover_drains() {
    let mut balance = armed(Rules::default(), 1);
    let actions = balance.decide(Event::Asked, at(10));
    assert_eq!(failover(&actions), Some((Some(0), 1, false, true)));
    assert_eq!(balance.role(0), Some(Role::Retiring));
    let actions = balance.decide(Event::Drained(0), at(11));
    assert!(actions.contains(&Action::End { slot: 0, gently: true }));
    assert!(matches!(balance.decide(Event::Asked, at(12))[0], Action::Refuse(_)), "no shadow yet");
}

#[test]
fn stopping_ends_all_and_finishes_with_the_last() {
    let mut balance = armed(Rules::default(), 1);
    let actions = balance.decide(Event::Stop, at(10));
    assert!(actions.contains(&Action::End { slot: 0, gently: true }));
    assert!(actions.contains(&Action::End { slot: 1, gently: false }));
    assert_eq!(balance.decide(Event::Died(0, CODE_3), at(10)), []);
    let actions = balance.decide(Event::Died(1, KILLED), at(11));
    assert_eq!(actions[0], Action::Finish(Some(CODE_3)), "as the primary ended, not as the last one did");
}

#[test]
fn a_service_that_was_left_goes_on() {
    let mut balance = Balance::resume(Rules::default(), 1, 3, &[5], at(0));
    assert_eq!(balance.decide(Event::Tick, at(0)), [], "nothing is missing");
    let actions = balance.decide(Event::Died(3, KILLED), at(0));
    assert_eq!(failover(&actions), Some((Some(3), 5, false, false)));
}

#[test]
fn fewer_shadows_when_fewer_are_wanted() {
    let mut balance = armed(Rules::default(), 2);
    let actions = balance.decide(Event::Wanted(1), at(10));
    assert!(actions.contains(&Action::End { slot: 2, gently: false }), "the younger one: {actions:?}");
    assert_eq!(starts(&balance.decide(Event::Wanted(2), at(11))), 1);
}

/// What can happen to an instance, as numbers.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    Ready(usize),
    Die(usize, bool),
    Sick(usize),
    Asked,
    Wanted(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Start),
        4 => (0usize..8).prop_map(Step::Ready),
        2 => (0usize..8, any::<bool>()).prop_map(|(which, clean)| Step::Die(which, clean)),
        2 => (0usize..8).prop_map(Step::Sick),
        1 => Just(Step::Asked),
        1 => (0usize..4).prop_map(Step::Wanted),
        3 => (0u64..20_000).prop_map(Step::Pass),
    ]
}

/// The world as the caller keeps it.
struct World {
    balance: Balance,
    alive: Vec<u32>,
    ready: Vec<u32>,
    pending: usize,
    next_slot: u32,
    now: Duration,
    failovers: Vec<Duration>,
    finished: bool,
}

impl World {
    #[expect(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
    fn feed(&mut self, event: Event) -> Result<(), TestCaseError> {
        let primary = self.balance.primary();
        for action in self.balance.decide(event.clone(), self.now) {
            match action {
                Action::Start { .. } => self.pending += 1,
                Action::FailOver { from, to, ref cause, .. } => {
                    prop_assert!(self.ready.contains(&to), "to a ready one");
                    prop_assert!(self.alive.contains(&to), "to a live one");
                    prop_assert_ne!(from, Some(to));
                    if !matches!(cause, Cause::Died(_) | Cause::Asked) {
                        let recent =
                            self.failovers.iter().filter(|at| self.now - **at < Duration::from_secs(60));
                        prop_assert!(recent.count() < 6, "sick ones are moved at a bounded rate");
                    }
                    self.failovers.push(self.now);
                }
                Action::End { slot, .. } => {
                    let gone = primary == Some(slot) && self.balance.primary() == Some(slot);
                    prop_assert!(!gone, "the primary is never just ended");
                }
                Action::Finish(_) => {
                    prop_assert!(self.alive.is_empty(), "nobody is left behind");
                    self.finished = true;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_somebody_serves_or_is_on_the_way(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World {
            balance: Balance::new(Rules { restart: Restart::Always, starts_max: u32::MAX, ..Rules::default() }, 1),
            alive: vec![], ready: vec![], pending: 0, next_slot: 0, now: Duration::ZERO, failovers: vec![], finished: false,
        };
        world.feed(Event::Tick)?;
        for step in steps {
            match step {
                Step::Start if world.pending > 0 => {
                    world.pending -= 1;
                    let slot = world.next_slot;
                    world.next_slot += 1;
                    world.alive.push(slot);
                    world.feed(Event::Started(slot))?;
                }
                Step::Ready(which) => if let Some(slot) = world.alive.get(which).copied()
                    && world.balance.role(slot) == Some(Role::Starting)
                {
                    world.ready.push(slot);
                    world.feed(Event::Ready(slot))?;
                },
                Step::Die(which, clean) => if which < world.alive.len() {
                    let slot = world.alive.remove(which);
                    world.feed(Event::Died(slot, if clean { CLEAN } else { KILLED }))?;
                },
                Step::Sick(which) => if let Some(slot) = world.alive.get(which).copied() {
                    world.feed(Event::Sick(slot, hang()))?;
                },
                Step::Asked => world.feed(Event::Asked)?,
                Step::Wanted(wanted) => world.feed(Event::Wanted(wanted))?,
                Step::Pass(ms) => {
                    world.now += Duration::from_millis(ms);
                    world.feed(Event::Tick)?;
                }
                Step::Start => {}
            }
            let on_the_way = world.alive.iter().any(|slot| {
                matches!(world.balance.role(*slot), Some(Role::Starting | Role::Ready))
            });
            let served = world.balance.primary().is_some_and(|primary| world.alive.contains(&primary));
            prop_assert!(world.finished || served || on_the_way || world.pending > 0, "nobody serves");
        }
    }
}
