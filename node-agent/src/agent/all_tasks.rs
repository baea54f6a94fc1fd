//! What holds for all tasks of this host together: the memory that they leave to the rest of the system, what the
//! host can still give them, and that what is protected for each is protected for all.

use crate::cgroup::{Hierarchies, Home, RunCgroup};
use crate::config::Share;
use crate::host::{self, Capacity, Idle};
use crate::size::Limit;
use crate::size::elastic::Room;
use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the host's room is good for.
const ROOM_GOOD_FOR: Duration = Duration::from_millis(100);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct AllTasks {
    /// The cgroup that all runs are below.
    parent: Option<RunCgroup>,
    /// Memory that is kept free of tasks.
    reserve_bytes: u64,
    /// Whether `memory.low` is there.
    protects: bool,
    /// When it was looked up, by what, and what the host had.
    room: RefCell<(Option<Instant>, Idle, Room)>,
}

impl AllTasks {
    /// Makes `parent` and limits it to what the host has beyond the reserve: a full host then takes memory from
    /// tasks, and not from the rest of the system. What can't be done is logged, and keeps no task from running.
    pub(super) fn new(hierarchies: &Hierarchies, parent: &Path, reserve: Share, capacity: Capacity) -> Self {
        let reserve_bytes = reserve.of(capacity.memory_bytes);
        let protects = hierarchies.home("memory") == Some(Home::V2);
        let made = hierarchies.make_parent(parent).map_err(|error| error.to_string());
        let parent = made.and_then(|()| {
            RunCgroup::existing(hierarchies, parent).ok_or_else(|| format!("{} is gone", parent.display()))
        });
        let bounded = parent.as_ref().map_err(Clone::clone).and_then(|parent| match reserve_bytes {
            0 => Ok(()),
            _ => parent.write(Limit::MemoryMax(capacity.memory_bytes - reserve_bytes)),
        });
        if let Err(why) = bounded {
            tracing::warn!("the host's reserve is not kept from tasks: {why}");
        }
        Self { parent: parent.ok(), reserve_bytes, protects, room: RefCell::default() }
    }

    /// What the host can still give. Looked up at most every [`ROOM_GOOD_FOR`].
    pub(super) fn room(&self) -> Room {
        let mut known = self.room.borrow_mut();
        let (looked, idle, room) = &mut *known;
        if looked.is_none_or(|looked| looked.elapsed() >= ROOM_GOOD_FOR) {
            let memory_bytes = host::memory_available_bytes().saturating_sub(self.reserve_bytes);
            *room = Room { memory_bytes, cpu_cores: idle.cores() };
            *looked = Some(Instant::now());
        }
        *room
    }

    /// Protects for all of them what is protected for each: a cgroup's `memory.low` counts against the rest of the
    /// host only as far as that of the one above it does (cgroup-v2.rst).
    pub(super) fn protect(&self) {
        let Some(parent) = self.parent.as_ref().filter(|_| self.protects) else { return };
        let runs = std::fs::read_dir(parent.v2()).into_iter().flatten().flatten();
        let lows = runs.filter_map(|run| std::fs::read_to_string(run.path().join("memory.low")).ok());
        // "max" is nothing that we write.
        let sum = lows.filter_map(|low| low.trim().parse::<u64>().ok()).fold(0, u64::saturating_add);
        if let Err(why) = parent.write(Limit::MemoryLow(sum)) {
            tracing::debug!("tasks are not protected against the rest of the host: {why}");
        }
    }
}
