//! The maps as user space sees them: arrays mapped into memory, read without a system call.
use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use aya::maps::Map;
use ebpf_probes::{
    Counters, OnCpu, Shared,
    demand::{DEMAND_WORDS, Demand, RECENT_ALL, SCALES, Scale, Words, pack, settle, unpack},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::ProbeError;
use crate::host;

/// What was counted for one cgroup up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Sums over all CPUs.
    pub counters: Counters,
    /// What the CPUs share.
    pub shared: Shared,
}

/// A BPF array of `T`, mapped. The kernel's programs change it at any time, so it is only ever touched word
/// by word, through atomics.
pub(crate) struct Mapped<T> {
    start: NonNull<AtomicU64>,
    entries: usize,
    /// What is mapped: whole pages.
    pages: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
    of: PhantomData<T>,
}

// SAFETY: the memory belongs to the mapping, not to a thread, and all access is atomic.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8));
        size_of::<T>() / 8
    };

    /// Maps the first `entries` of them.
    pub(crate) fn new(map: &Map, name: &'static str, entries: usize) -> Result<Self, ProbeError> {
        Self::range(map, name, 0, entries)
    }

    /// Maps `entries` of them from the entry `first` on, which is entry 0 here.
    fn range(map: &Map, name: &'static str, first: usize, entries: usize) -> Result<Self, ProbeError> {
        let error = |source| ProbeError::Map { name, source };
        let Map::Array(map) = map else {
            return Err(error(std::io::ErrorKind::InvalidData.into()));
        };
        let page = host::page_bytes() as usize;
        let begin = first * size_of::<T>();
        let offset = begin / page * page;
        let bytes =
            NonZeroUsize::new(begin + entries * size_of::<T>() - offset).ok_or(ProbeError::NoSlots)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let pages = unsafe {
            mmap(None, bytes, access, MapFlags::MAP_SHARED, map.fd().as_fd(), offset as libc::off_t)
        }
        .map_err(|source| error(source.into()))?;
        // SAFETY: inside the mapping; aligned, as entries are whole words.
        let start = unsafe { pages.byte_add(begin - offset) }.cast();
        Ok(Self { start, entries, pages, bytes, of: PhantomData })
    }

    fn words(&self, entry: usize) -> &[AtomicU64] {
        assert!(entry < self.entries, "entry {entry} of {}", self.entries);
        // SAFETY: the mapping covers `entries` values of `WORDS` words, aligned to pages, and lives as long
        // as `self`; AtomicU64 allows for others' writes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(entry * Self::WORDS), Self::WORDS) }
    }

    /// The word at byte `offset` of an entry.
    pub(crate) fn word(&self, entry: usize, offset: usize) -> &AtomicU64 {
        &self.words(entry)[offset / 8]
    }

    fn set(&self, entry: usize, value: &T) {
        // SAFETY: the values are repr(C) and hold 64-bit integers only (see `WORDS` for their size).
        let words = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), Self::WORDS) };
        let new: &[u64] = words;
        self.words(entry).iter().zip(new).for_each(|(word, new)| word.store(*new, Ordering::Relaxed));
    }

    fn zero(&self, entry: usize) {
        for word in self.words(entry) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl<T> std::fmt::Debug for Mapped<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} entries)", self.entries)
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.pages, self.bytes.get()) };
    }
}

const NS_PER_US: u64 = 1000;

/// The words of a [`Demand`].
struct Cells<'a>(&'a [AtomicU64]);

impl Words for Cells<'_> {
    fn load(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn fetch_add(&self, word: usize, value: u64) -> u64 {
        self.0[word].fetch_add(value, Ordering::AcqRel)
    }

    fn exchange(&self, word: usize, old: u64, new: u64) -> Result<(), u64> {
        self.0[word].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    fn raise(&self, word: usize, value: u64) {
        self.0[word].fetch_max(value, Ordering::AcqRel);
    }
}

const COUNTER_WORDS: usize = size_of::<Counters>() / 8;
const SHARED_WORDS: usize = size_of::<Shared>() / 8;

/// What a CPU has used in its window and not settled.
fn share(counters: &Mapped<Counters>, cpu: usize) -> &AtomicU64 {
    counters.word(cpu, std::mem::offset_of!(Counters, window))
}

/// What is mapped of a slot in use: its counters by CPU, and its demand. Both are large.
struct InUse {
    counters: Mapped<Counters>,
    demand: Mapped<Demand>,
}

/// The mapped arrays.
pub(super) struct Tables {
    slots: Vec<Option<InUse>>,
    counters_map: Map,
    demand_map: Map,
    shared: Mapped<Shared>,
    cpus: Mapped<OnCpu>,
    /// The shares of windows as they were when [`Tables::settle_stale`] looked last.
    shares: Vec<u64>,
}

impl Tables {
    /// Maps the arrays `SHARED` and `CPUS`, which like `COUNTERS` and `DEMAND` hold `slots` cgroups and `cpus` CPUs;
    /// of those two only what is in use.
    pub(super) fn new(
        [shared, on_cpu]: [&Map; 2],
        [counters_map, demand_map]: [Map; 2],
        slots: usize,
        cpus: usize,
    ) -> Result<Self, ProbeError> {
        Ok(Self {
            slots: (0..slots).map(|_| None).collect(),
            counters_map,
            demand_map,
            shared: Mapped::new(shared, "SHARED", slots)?,
            cpus: Mapped::new(on_cpu, "CPUS", cpus)?,
            shares: vec![0; slots * cpus],
        })
    }

    /// Sets what a slot begins with: everything on the first CPU.
    pub(super) fn set(
        &mut self,
        slot: usize,
        before: &Reading,
        demand: Option<&[Scale; SCALES]>,
    ) -> Result<(), ProbeError> {
        self.take_up(slot)?;
        if let Some(in_use) = &self.slots[slot] {
            (1..self.cpus.entries).for_each(|cpu| in_use.counters.zero(cpu));
            in_use.counters.set(0, &before.counters);
            let scales = demand.copied().unwrap_or_default();
            in_use.demand.set(0, &Demand { recent: [0; RECENT_ALL], scales });
        }
        self.shared.set(slot, &before.shared);
        Ok(())
    }

    /// A slot is in use, with what it holds.
    pub(super) fn take_up(&mut self, slot: usize) -> Result<(), ProbeError> {
        if self.slots[slot].is_none() {
            let cpus = self.cpus.entries;
            self.slots[slot] = Some(InUse {
                counters: Mapped::range(&self.counters_map, "COUNTERS", slot * cpus, cpus)?,
                demand: Mapped::range(&self.demand_map, "DEMAND", slot, 1)?,
            });
        }
        Ok(())
    }

    /// A slot is not in use any more.
    pub(super) fn release(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    /// CPU demand up to now, with what CPUs have not settled yet.
    pub(super) fn demand(&self, slot: usize) -> [Scale; SCALES] {
        let Some(InUse { counters, demand }) = &self.slots[slot] else { return Default::default() };
        let copy: Vec<AtomicU64> =
            demand.words(0).iter().map(|word| AtomicU64::new(word.load(Ordering::Relaxed))).collect();
        for cpu in 0..self.cpus.entries {
            let (window, ns) = unpack(share(counters, cpu).load(Ordering::Relaxed));
            if ns >= NS_PER_US {
                settle(&Cells(&copy), window, ns / NS_PER_US);
            }
        }
        let mut words = [0; DEMAND_WORDS];
        words.iter_mut().zip(copy).for_each(|(word, copied)| *word = copied.into_inner());
        // SAFETY: repr(C) with 64-bit integers only, so any words are valid.
        unsafe { std::mem::transmute::<[u64; DEMAND_WORDS], Demand>(words) }.scales
    }

    /// Settles what a CPU left in its share and has not touched since the last call: it may not come back
    /// before the window's place is taken by another one. To be called about once a second.
    pub(super) fn settle_stale(&mut self, slot: usize) {
        let Some(InUse { counters, demand }) = &self.slots[slot] else { return };
        for cpu in 0..self.cpus.entries {
            let seen = share(counters, cpu).load(Ordering::Relaxed);
            let (window, ns) = unpack(seen);
            let before = std::mem::replace(&mut self.shares[slot * self.cpus.entries + cpu], seen);
            if before != seen || ns < NS_PER_US {
                continue;
            }
            // A CPU only adds to the share while it is in that window, which ended long ago; else it takes it
            // by an exchange of its own.
            let taken = pack(window, 0);
            let share = share(counters, cpu);
            if share.compare_exchange(seen, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                settle(&Cells(demand.words(0)), window, ns / NS_PER_US);
            }
        }
    }

    pub(super) fn read(&self, slot: usize) -> Reading {
        let mut sums = [0u64; COUNTER_WORDS];
        let in_use = self.slots[slot].as_ref();
        for (in_use, cpu) in
            in_use.iter().flat_map(|in_use| (0..self.cpus.entries).map(move |cpu| (in_use, cpu)))
        {
            let words = in_use.counters.words(cpu);
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(word.load(Ordering::Relaxed));
            }
        }
        let mut shared = [0u64; SHARED_WORDS];
        for (copy, word) in shared.iter_mut().zip(self.shared.words(slot)) {
            *copy = word.load(Ordering::Relaxed);
        }
        // SAFETY: both structs are repr(C) and hold 64-bit integers only, so any words are valid.
        let (counters, shared) = unsafe {
            (
                std::mem::transmute::<[u64; COUNTER_WORDS], Counters>(sums),
                std::mem::transmute::<[u64; SHARED_WORDS], Shared>(shared),
            )
        };
        Reading { counters, shared }
    }

    /// Tasks that have begun to end and whose last stretch is not booked yet.
    pub(super) fn ending(&self, slot: usize) -> i64 {
        // Pairs with the barrier of the program that books: what it booked is seen by later reads.
        self.shared.word(slot, std::mem::offset_of!(Shared, ending)).load(Ordering::Acquire) as i64
    }

    pub(super) fn set_tasks(&self, slot: usize, tasks: i64) {
        let word = |offset| -> &AtomicI64 {
            let word = self.shared.word(slot, offset);
            // SAFETY: AtomicI64 and AtomicU64 have the same layout, and the borrow keeps its lifetime.
            unsafe { AtomicI64::from_ptr(word.as_ptr().cast()) }
        };
        word(std::mem::offset_of!(Shared, tasks)).store(tasks, Ordering::Relaxed);
        word(std::mem::offset_of!(Shared, tasks_peak)).fetch_max(tasks, Ordering::Relaxed);
    }

    pub(super) fn set_main(&self, slot: usize, pid: u32) {
        self.shared.word(slot, std::mem::offset_of!(Shared, main_pid)).store(pid.into(), Ordering::Relaxed);
    }

    /// Makes every CPU look cgroups up anew; to be called after each change of `SLOTS`.
    pub(super) fn forget_slots(&self) {
        for cpu in 0..self.cpus.entries {
            let version = self.cpus.word(cpu, std::mem::offset_of!(OnCpu, slots_version));
            version.fetch_add(1, Ordering::Release);
        }
    }

    /// Makes every CPU forget which task it runs.
    pub(super) fn forget_running(&self) {
        for cpu in 0..self.cpus.entries {
            self.cpus.word(cpu, std::mem::offset_of!(OnCpu, task)).store(0, Ordering::Relaxed);
        }
    }
}
