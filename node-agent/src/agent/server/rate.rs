//! How often one user may have something written that is no run: a bound on what a loop can do to the disk.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What is counted together.
const SPAN: Duration = Duration::from_secs(60);

/// Failovers of one user that are recorded within that span.
pub(super) const FAILOVERS_MAX: u32 = 240;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Rate {
    most: u32,
    began: Instant,
    of_users: HashMap<u32, u32>,
}

impl Rate {
    /// So many within each span.
    pub(super) fn of(most: u32) -> Self {
        Self { most, began: Instant::now(), of_users: HashMap::new() }
    }

    /// Counts one more of this user; `false` if it is too many.
    pub(super) fn allows(&mut self, uid: u32) -> bool {
        if self.began.elapsed() >= SPAN {
            *self = Self::of(self.most);
        }
        let count = self.of_users.entry(uid).or_default();
        *count = count.saturating_add(1);
        *count <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_own_ones() {
        let mut rate = Rate::of(2);
        assert_eq!([1, 1, 1, 2].map(|uid| rate.allows(uid)), [true, true, false, true]);
    }
}
