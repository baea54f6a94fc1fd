//! Keeps the limits of one task following it: sees what holds the task back, asks the pure rule of
//! [`crate::size::elastic`], writes what it says, and words it for the event log.

use crate::cgroup::{HeldBack, RunCgroup, Watch};
use crate::size::elastic::{Change, Following, Room, Seen, Why};
use crate::size::{Limit, Limits};
use crate::store::event::{Event, Severity};
use crate::store::limit_parts;
use crate::units::format_bytes;
use std::time::Duration;

/// Longest pause between two looks at a task that may stand still at its limit: it is let go within a second.
pub(super) const LOOK_MAX: Duration = Duration::from_millis(500);

/// A limit that was changed, or should have been.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    change: Change,
    /// What the task used then: bytes or cores, as the limit counts.
    used: f64,
    /// Why the kernel did not take it.
    refused: Option<String>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Follow {
    following: Following,
    /// The last look: when, what held it back, and CPU time so far.
    last: Option<(Duration, HeldBack, u64)>,
    /// A full host has held it back, at least once.
    was_held: bool,
}

impl Follow {
    pub(super) fn new(following: Following) -> Self {
        Self { following, ..Self::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.following.is_empty()
    }

    pub(super) fn was_held(&self) -> bool {
        self.was_held
    }

    /// Looks at the task, writes what has to change, and keeps `limits` true. A limit that the kernel refuses is
    /// told once; then none follows any more.
    pub(super) fn look(
        &mut self,
        (at, used_bytes, cpu_ns): (Duration, u64, u64),
        (cgroup, watch): (&RunCgroup, &Watch),
        room: impl FnOnce() -> Room,
        limits: &mut Limits,
    ) -> Vec<Followed> {
        if self.following.is_empty() {
            return Vec::new();
        }
        let held_back = watch.held_back();
        let seen = self.seen(at, used_bytes, cpu_ns, held_back);
        self.last = Some((at, held_back, cpu_ns));
        let changes = self.following.follow(&seen, room());
        let written: Vec<_> =
            changes.into_iter().map(|change| write(cgroup, change, &seen, limits)).collect();
        self.was_held |= written.iter().any(|followed| followed.change.why == Why::HostFull);
        if written.iter().any(|followed| followed.refused.is_some()) {
            self.following = Following::default();
        }
        written
    }

    /// Rates since the last look.
    fn seen(&self, at: Duration, used_bytes: u64, cpu_ns: u64, now: HeldBack) -> Seen {
        let (before_at, before, before_cpu_ns) = self.last.unwrap_or((at, now, cpu_ns));
        let span = at.saturating_sub(before_at);
        let grown = |of: fn(&HeldBack) -> Option<u64>| match (of(&before), of(&now)) {
            (Some(before), Some(now)) => now.saturating_sub(before) as f64,
            _ => 0.0,
        };
        let share = |part: f64, whole: f64| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
        let (periods, throttled) = (grown(|b| b.quota_periods), grown(|b| b.quota_periods_throttled));
        Seen {
            at,
            used_bytes,
            charged_bytes: now.charged_bytes.unwrap_or(0),
            stalled_share: share(grown(|b| b.stalled_us), span.as_secs_f64() * 1e6),
            cores: if span.is_zero() {
                0.0
            } else {
                cpu_ns.saturating_sub(before_cpu_ns) as f64 / 1e9 / span.as_secs_f64()
            },
            throttled_share: share(throttled, periods),
        }
    }
}

fn write(cgroup: &RunCgroup, change: Change, seen: &Seen, limits: &mut Limits) -> Followed {
    let refused = if change.from == change.to { None } else { cgroup.write(change.to).err() };
    let (name, _) = limit_parts(change.to);
    if refused.is_none() {
        let now = limits.0.iter_mut().map(|(limit, _)| limit).find(|limit| limit_parts(**limit).0 == name);
        if let Some(limit) = now {
            *limit = change.to;
        }
    }
    let used = if matches!(change.to, Limit::CpuMax(_)) { seen.cores } else { seen.used_bytes as f64 };
    Followed { change, used, refused }
}

impl Followed {
    /// For the log.
    pub fn event(&self) -> Event {
        let ((name, from), (_, to)) = (limit_parts(self.change.from), limit_parts(self.change.to));
        let details = serde_json::json!({ "limit": name, "from": from, "to": to, "used": self.used });
        let (file, show): (_, fn(f64) -> String) = match self.change.to {
            Limit::CpuMax(_) => ("cpu.max", |cores| format!("{cores:.2} cores")),
            _ => ("memory.high", format_bytes),
        };
        let (from, to, used) = (show(from), show(to), show(self.used));
        let event = match (&self.refused, self.change.why) {
            (Some(why), _) => Event::new("limit_refused", format!("{file} stays at {from}: {why}"))
                .severity(Severity::Error),
            (None, Why::Near) => {
                Event::new("limit_raised", format!("{file} raised from {from} to {to}: {used} in use"))
            }
            (None, Why::Pressed) => Event::new(
                "limit_raised",
                format!("{file} raised from {from} to {to}: the task was held back, {used} in use"),
            ),
            (None, Why::Unneeded) => {
                Event::new("limit_lowered", format!("{file} lowered from {from} to {to}: {used} in use"))
            }
            (None, Why::HostFull) => {
                let message =
                    format!("{file} can't follow beyond {to}: {used} in use, and the host has no room");
                Event::new("limit_met", message).severity(Severity::Warning)
            }
        };
        event.details(&details)
    }
}

/// What a run says that met its limit on a full host.
pub(super) const WAS_HELD: &str =
    "the host was out of room: limits could not follow the task, which was held back (see `standin events`)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_since_the_last_look() {
        let held = |stalled_us, periods, throttled| HeldBack {
            charged_bytes: Some(7),
            stalled_us: Some(stalled_us),
            quota_periods: Some(periods),
            quota_periods_throttled: Some(throttled),
        };
        let mut follow = Follow::default();
        let first = follow.seen(Duration::from_secs(1), 5, 1_000_000_000, held(900, 10, 5));
        assert_eq!((first.stalled_share, first.cores, first.throttled_share), (0.0, 0.0, 0.0));
        follow.last = Some((Duration::from_secs(1), held(900, 10, 5), 1_000_000_000));
        let then = follow.seen(Duration::from_secs(3), 5, 4_000_000_000, held(500_900, 20, 10));
        assert_eq!((then.stalled_share, then.cores, then.throttled_share), (0.25, 1.5, 0.5));
        assert_eq!(then.charged_bytes, 7);
    }
}
