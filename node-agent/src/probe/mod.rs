//! Loads the BPF programs, attaches each by itself, and reads what they count. In come cgroup ids to track,
//! out go [`Reading`]s, [`ProcessExit`]s and the truth about what this kernel lets us measure.
//!
//! The other side is `ebpf-probes`, whose files name hook, maps and cost of each probe. Programs and maps
//! live as long as [`Probes`]; several instances side by side do not know of each other.

mod attach;
mod bpf;
mod cost;
mod counters;
mod coverage;
mod host;
pub mod kernel_btf;
mod load;
pub(crate) mod offsets;
mod peers;
mod pin;

use std::{collections::VecDeque, io};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, Queue, RingBuf},
};
use aya_log::EbpfLogger;
pub use ebpf_probes::{Losses, ProcessExit};

pub(crate) use self::attach::reason;
pub(crate) use self::counters::Mapped;
use self::peers::{Connection, Peer, PeerKey};
pub(crate) use self::pin::{bpf_file_system, find_bpf_file_system, lock_directory};
use self::{attach::Programs, counters::Tables, kernel_btf::BtfError};
pub use self::{
    cost::{ProgramCost, Stats},
    counters::Reading,
    coverage::{Measure, ProbeStatus, State},
    host::CgroupChange,
    pin::Instance,
};
use ebpf_probes::demand::{SCALES, Scale};

/// Most memory that the map of counters may take; it bounds [`Options::tasks_max`].
pub const COUNTERS_BYTES_MAX: usize = 64 << 20;

/// How many exits back a second report of the same process is recognised.
const EXITS_REMEMBERED: usize = 64;

/// What the probes are loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Cgroups tracked at once; less if [`COUNTERS_BYTES_MAX`] does not hold as many.
    pub tasks_max: u32,
    /// Level below the v2 root of the cgroups that will be tracked (1: children of the root). Tasks in
    /// cgroups further down are charged to their ancestor at this level, unless their own is tracked.
    pub run_level: u32,
}

/// Why probes could not be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel does not describe its types.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The object or one of its maps was refused.
    #[error("the kernel refuses the BPF object: {why}")]
    Object {
        /// The refusal and what mends it.
        why: String,
    },
    /// Not a single program could be attached.
    #[error("no BPF program can be attached: {why}")]
    NothingAttached {
        /// Why not the first of them.
        why: String,
    },
    /// A map cannot be used.
    #[error("failed to use the BPF map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// [`Options::tasks_max`] is 0.
    #[error("no cgroup can be tracked: tasks_max is 0")]
    NoSlots,
    /// All slots are taken.
    #[error("{max} cgroups are tracked already: raise tasks_max or wait for one to end")]
    Full {
        /// How many there are.
        max: u32,
    },
    /// The cgroup has a slot.
    #[error("cgroup {0} is tracked already")]
    AlreadyTracked(u64),
}

impl ProbeError {
    fn map(name: &'static str, error: &MapError) -> Self {
        Self::Map { name, source: io::Error::other(error.to_string()) }
    }
}

/// A tracked cgroup's place in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(u32);

/// The loaded probes.
pub struct Probes {
    /// Keeps maps alive, and programs that may be attached again.
    ebpf: Ebpf,
    programs: Programs,
    status: Vec<ProbeStatus>,
    tables: Tables,
    slots: HashMap<MapData, u64, u32>,
    events: RingBuf<MapData>,
    connections: HashMap<MapData, u64, Connection>,
    peers: HashMap<MapData, PeerKey, Peer>,
    /// Slots for cgroups that others make.
    free_for_host: Queue<MapData, u32>,
    host: Array<MapData, u64>,
    cgroups: RingBuf<MapData>,
    losses: Array<MapData, [u64; size_of::<Losses>() / 8]>,
    /// Carries the programs' warnings to the `log` crate.
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// Which cgroup holds each slot.
    tracked: Vec<Option<u64>>,
    /// Slots to hand out, the longest unused first.
    free: VecDeque<u32>,
    exits: RecentExits,
    found: Found,
}

/// What was pinned by a process before this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or these probes are not pinned.
    #[default]
    Nothing,
    /// The same probes: they are taken up.
    TakenUp,
    /// Others: they are gone, with what they counted.
    Replaced,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Probes").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads and attaches what this kernel allows. An error means that nothing at all can be measured; a
    /// probe that fails alone is a row of [`Probes::status`].
    pub fn load(options: &Options) -> Result<Self, ProbeError> {
        load::load(options, None)
    }

    /// The same, pinned in the place of an instance: they count on when this process ends. What a process
    /// before this one pinned there is taken up, with all that it counted and what it tracked.
    pub fn load_pinned(options: &Options, instance: &Instance) -> Result<Self, ProbeError> {
        load::load(options, Some(instance))
    }

    /// What became of probes that were pinned before.
    pub fn found(&self) -> Found {
        self.found
    }

    /// Finds out which cgroups pinned probes track.
    fn take_up(&mut self, found: Found) -> Result<(), ProbeError> {
        let tracked: Vec<(u64, u32)> = self.slots.iter().flatten().collect();
        for (cgroup, slot) in tracked {
            if let Some(place) = self.tracked.get_mut(slot as usize) {
                *place = Some(cgroup);
                self.free.retain(|&free| free != slot);
                self.tables.take_up(slot as usize)?;
            }
        }
        self.found = found;
        Ok(())
    }

    /// The slot of a cgroup that is tracked already.
    pub fn slot_of(&self, cgroup: u64) -> Option<Slot> {
        let slot = self.tracked.iter().position(|tracked| *tracked == Some(cgroup))?;
        Some(Slot(slot as u32))
    }

    /// All slots in use, with their cgroups.
    pub fn slots(&self) -> Vec<(Slot, u64)> {
        let used = self.tracked.iter().enumerate();
        used.filter_map(|(slot, cgroup)| Some((Slot(slot as u32), (*cgroup)?))).collect()
    }

    /// What is measured and what is not, one row per [`Measure`].
    pub fn status(&self) -> &[ProbeStatus] {
        &self.status
    }

    /// The state of one measure: its numbers mean something only if it is attached.
    pub fn state(&self, measure: Measure) -> Option<&State> {
        self.status.iter().find(|status| status.measure == measure).map(|status| &status.state)
    }

    /// True if the numbers of a measure are real.
    pub fn has(&self, measure: Measure) -> bool {
        self.state(measure).is_some_and(State::is_attached)
    }

    /// How many cgroups can be tracked at once.
    pub fn slots_max(&self) -> u32 {
        self.tracked.len() as u32
    }

    /// Begins to count for a cgroup (v2 id: the inode number of its directory), from zero.
    pub fn track(&mut self, cgroup: u64) -> Result<Slot, ProbeError> {
        self.track_from(cgroup, &Reading::default(), None)
    }

    /// Begins to count for a cgroup, on from what was counted before by others.
    pub fn track_from(
        &mut self,
        cgroup: u64,
        before: &Reading,
        demand: Option<&[Scale; SCALES]>,
    ) -> Result<Slot, ProbeError> {
        if self.tracked.contains(&Some(cgroup)) {
            return Err(ProbeError::AlreadyTracked(cgroup));
        }
        let slot = self.free.pop_front().ok_or(ProbeError::Full { max: self.slots_max() })?;
        if let Err(error) = self.tables.set(slot as usize, before, demand) {
            self.free.push_front(slot);
            return Err(error);
        }
        if let Err(error) = self.slots.insert(cgroup, slot, 0) {
            self.free.push_front(slot);
            return Err(ProbeError::map("SLOTS", &error));
        }
        self.tables.forget_slots();
        self.tracked[slot as usize] = Some(cgroup);
        Ok(Slot(slot))
    }

    /// Goes on counting for a cgroup in another slot, from zero; `slot` keeps what was counted up to now, and is to be
    /// untracked after [`Probes::pass_connections`]. No count is lost or made twice.
    pub fn begin_anew(&mut self, slot: Slot) -> Result<Slot, ProbeError> {
        let cgroup = self.tracked[slot.0 as usize].ok_or(ProbeError::NoSlots)?;
        let next = self.free.pop_front().ok_or(ProbeError::Full { max: self.slots_max() })?;
        let moved = self.tables.set(next as usize, &Reading::default(), None).and_then(|()| {
            self.tables.set_tasks(next as usize, self.read(slot).shared.tasks);
            self.slots.insert(cgroup, next, 0).map_err(|error| ProbeError::map("SLOTS", &error))
        });
        if let Err(error) = moved {
            self.free.push_front(next);
            return Err(error);
        }
        self.tables.forget_slots();
        self.tracked[next as usize] = Some(cgroup);
        Ok(Slot(next))
    }

    /// Ends counting for a cgroup and frees its slot.
    pub fn untrack(&mut self, slot: Slot) {
        let Some(cgroup) = self.tracked.get_mut(slot.0 as usize).and_then(Option::take) else {
            return;
        };
        if self.has_connections(slot) {
            self.forget_connections(slot);
        }
        if self.slots.get(&cgroup, 0).is_ok_and(|current| current == slot.0) {
            // Fails only if the entry is gone, which is what is wanted.
            let _ = self.slots.remove(&cgroup);
        }
        self.tables.forget_slots();
        self.tables.release(slot.0 as usize);
        self.free.push_back(slot.0);
    }

    /// Tells how many tasks the cgroup held when counting began: 1 after a task was moved in, 0 if the
    /// first is born in it. To be called before they can fork.
    pub fn set_tasks(&mut self, slot: Slot, tasks: i64) {
        self.tables.set_tasks(slot.0 as usize, tasks);
    }

    /// Names the process whose end is to be reported; before, the ends of all are.
    pub fn set_main(&mut self, slot: Slot, pid: u32) {
        self.tables.set_main(slot.0 as usize, pid);
    }

    /// What was counted up to now. A task's numbers come in when it leaves the CPU; see
    /// [`Probes::is_on_cpu`] for its end.
    pub fn read(&self, slot: Slot) -> Reading {
        self.tables.read(slot.0 as usize)
    }

    /// CPU demand up to now, the finest scale first.
    pub fn demand(&self, slot: Slot) -> [Scale; SCALES] {
        self.tables.demand(slot.0 as usize)
    }

    /// Brings in what CPUs counted some time ago and hold back. To be called about once a second.
    pub fn settle_stale(&mut self) {
        for slot in (0..self.tracked.len()).filter(|&slot| self.tracked[slot].is_some()) {
            self.tables.settle_stale(slot);
        }
    }

    /// True while a task of the cgroup has begun to end (its exit may be reported already) but its last
    /// stretch on a CPU is not booked yet. When the last exit was seen and this is false, a reading is
    /// complete. Says nothing about tasks that live on.
    pub fn is_on_cpu(&self, slot: Slot) -> bool {
        self.has(Measure::Cpu) && self.has(Measure::Exits) && self.tables.ending(slot.0 as usize) > 0
    }

    /// Makes every CPU forget which task it runs, as if the kernel had not shown the last switch; so that a test can
    /// see what is booked then.
    #[doc(hidden)]
    pub fn forget_running(&self) {
        self.tables.forget_running();
    }

    /// Hands out the ends of processes in tracked cgroups since the last call, and passes on what the
    /// programs had to log. To be called once a second or more often.
    pub fn drain_exits(&mut self, mut each: impl FnMut(ProcessExit)) {
        while let Some(record) = self.events.next() {
            if let Some(exit) = exit_of(&record)
                && self.exits.is_new(exit.pid)
            {
                each(exit);
            }
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// What was lost since loading.
    pub fn losses(&self) -> Losses {
        let [events, requests, ends, cgroups, connections, peers] =
            self.losses.get(&0, 0).unwrap_or_default();
        Losses { events, requests, ends, cgroups, connections, peers }
    }
}

fn exit_of(record: &[u8]) -> Option<ProcessExit> {
    if record.len() < size_of::<ProcessExit>() {
        return None;
    }
    // SAFETY: long enough, and `ProcessExit` is repr(C) with integers only: any bytes are valid.
    Some(unsafe { record.as_ptr().cast::<ProcessExit>().read_unaligned() })
}

/// Before Linux 6.16 a process whose last threads end at the same moment can be reported twice. A process
/// id comes back only after all others were used, so the same one among the last few is a repetition.
#[derive(Debug, Default)]
struct RecentExits(VecDeque<u32>);

impl RecentExits {
    fn is_new(&mut self, pid: u32) -> bool {
        if self.0.contains(&pid) {
            return false;
        }
        if self.0.len() == EXITS_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(pid);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_exit_is_dropped_and_a_reused_pid_is_not() {
        let mut recent = RecentExits::default();
        assert!(recent.is_new(7));
        assert!(!recent.is_new(7));
        assert!((100..100 + EXITS_REMEMBERED as u32).all(|pid| recent.is_new(pid)));
        assert!(recent.is_new(7));
    }

    #[test]
    fn a_short_record_is_no_exit() {
        assert_eq!(exit_of(&[0; 31]), None);
        assert_eq!(exit_of(&[0; 32]), Some(ProcessExit::default()));
    }

    fn assert_send<T: Send>() {}

    #[test]
    fn probes_can_move_between_threads() {
        assert_send::<Probes>();
    }

    proptest::proptest! {
        #[test]
        fn hostile_exit_events(record in crate::hostile::bytes(size_of::<ProcessExit>() + 16)) {
            proptest::prop_assert_eq!(exit_of(&record).is_some(), record.len() >= size_of::<ProcessExit>());
        }
    }
}
