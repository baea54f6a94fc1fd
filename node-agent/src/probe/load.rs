//! From the embedded object to attached programs. The kernel's types are looked up first, then every
//! program is loaded and attached by itself; what fails is an outcome for `coverage`.
use std::{fs, io, thread};

use crate::causes::in_one_line;
use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, Queue, RingBuf},
};
use aya_log::EbpfLogger;
use ebpf_probes::{Counters, demand::Demand};

use super::{
    COUNTERS_BYTES_MAX, Found, Options, ProbeError, Probes, RecentExits,
    attach::{Programs, with_remedy},
    counters::Tables,
    offsets,
    pin::{Instance, Pins},
};

/// Built by `cargo xtask ebpf`, which also says from what.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf-probes/prebuilt/standin.bpf.o");

const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// Maps that are pinned: all that hold something.
#[rustfmt::skip]
const MAPS: [&str; 17] = [
    "SLOTS", "COUNTERS", "SHARED", "DEMAND", "CPUS", "DEPARTURES", "REQUESTS", "WRITERS", "CONNECTIONS", "PEERS", "FAULTS",
    "EVENTS", "FREE", "HOST", "CGROUPS", "LOSSES", "AYA_LOGS",
];

/// Up to so many tasks, the maps that all share are small: a launcher that measures its own task waits for them.
const FEW_TASKS: u32 = 16;
const FEW_ENTRIES: [(&str, u32); 3] = [("WRITERS", 2048), ("CONNECTIONS", 4096), ("PEERS", 1024)];

pub(super) fn load(options: &Options, instance: Option<&Instance>) -> Result<Probes, ProbeError> {
    // The loader parses all of the kernel's BTF when it is made, though it has nothing to relocate, and
    // attaching wants BTF again. That takes longer than all else here, so it is done aside, and once.
    let (loader, own) = thread::scope(|scope| {
        let loader = scope.spawn(EbpfLoader::new);
        let own = offsets::of_this_kernel().map(|(offsets, kernel)| {
            let tracepoints = Btf::parse(&kernel.tracepoints_only(), Endianness::default());
            (offsets, kernel, tracepoints)
        });
        (loader.join(), own)
    });
    let (mut offsets, kernel, btf) = own?;
    let mut loader =
        loader.map_err(|_| ProbeError::Object { why: "reading the kernel's BTF crashed".into() })?;
    let btf = btf.map_err(|error| ProbeError::Object { why: error.to_string() })?;

    let cpus = possible_cpus().map_err(|source| ProbeError::Map { name: "CPUS", source })?;
    let slots = slots_for(options.tasks_max, cpus)?;
    offsets.cpus = cpus;
    offsets.run_level = options.run_level;
    let pins = instance
        .map(|instance| instance.version(&[OBJECT, offsets::bytes_of(&offsets), &slots.to_ne_bytes()]))
        .transpose()
        .map_err(|source| ProbeError::Map { name: "pinned", source })?;
    for (pins, name) in pins.iter().flat_map(|pins| MAPS.map(|name| (pins, name))) {
        loader.map_pin_path(name, pins.map(name));
    }
    if options.tasks_max <= FEW_TASKS {
        for (name, entries) in FEW_ENTRIES {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader
        .override_global("OFFSETS", offsets::bytes_of(&offsets), true)
        .map_max_entries("SLOTS", slots)
        .map_max_entries("COUNTERS", slots * cpus)
        .map_max_entries("SHARED", slots)
        .map_max_entries("DEMAND", slots)
        .map_max_entries("FREE", slots)
        .map_max_entries("CPUS", cpus)
        .load(OBJECT)
        .map_err(|error| ProbeError::Object { why: with_remedy(in_one_line(&error)) })?;

    let found = pins.as_ref().map(Pins::found).unwrap_or_default();
    let mut programs = Programs::new(offsets, pins);
    programs.attach_all(&mut ebpf, &btf, &kernel);
    if let Some(why) = programs.nothing_attached() {
        return Err(ProbeError::NothingAttached { why });
    }
    let mut probes = assemble(ebpf, slots, cpus, programs)?;
    probes.take_up(found)?;
    Ok(probes)
}

fn assemble(mut ebpf: Ebpf, slots: u32, cpus: u32, programs: Programs) -> Result<Probes, ProbeError> {
    let per_slot = [take(&mut ebpf, "COUNTERS")?, take(&mut ebpf, "DEMAND")?];
    let map = |name| ebpf.map(name).ok_or_else(|| missing(name));
    let tables = Tables::new([map("SHARED")?, map("CPUS")?], per_slot, slots as usize, cpus as usize)?;
    Ok(Probes {
        status: programs.statuses(),
        programs,
        tables,
        slots: HashMap::try_from(take(&mut ebpf, "SLOTS")?)
            .map_err(|error| ProbeError::map("SLOTS", &error))?,
        events: RingBuf::try_from(take(&mut ebpf, "EVENTS")?)
            .map_err(|error| ProbeError::map("EVENTS", &error))?,
        connections: HashMap::try_from(take(&mut ebpf, "CONNECTIONS")?)
            .map_err(|error| ProbeError::map("CONNECTIONS", &error))?,
        peers: HashMap::try_from(take(&mut ebpf, "PEERS")?)
            .map_err(|error| ProbeError::map("PEERS", &error))?,
        free_for_host: Queue::try_from(take(&mut ebpf, "FREE")?)
            .map_err(|error| ProbeError::map("FREE", &error))?,
        host: Array::try_from(take(&mut ebpf, "HOST")?).map_err(|error| ProbeError::map("HOST", &error))?,
        cgroups: RingBuf::try_from(take(&mut ebpf, "CGROUPS")?)
            .map_err(|error| ProbeError::map("CGROUPS", &error))?,
        losses: Array::try_from(take(&mut ebpf, "LOSSES")?)
            .map_err(|error| ProbeError::map("LOSSES", &error))?,
        // Without it the programs' warnings go unheard, and nothing else.
        logger: EbpfLogger::init(&mut ebpf).ok(),
        tracked: vec![None; slots as usize],
        free: (0..slots).collect(),
        exits: RecentExits::default(),
        found: Found::Nothing,
        ebpf,
    })
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, ProbeError> {
    ebpf.take_map(name).ok_or_else(|| missing(name))
}

fn missing(name: &'static str) -> ProbeError {
    ProbeError::Map { name, source: io::ErrorKind::NotFound.into() }
}

/// Slots that fit into [`COUNTERS_BYTES_MAX`], at most `wanted`.
fn slots_for(wanted: u32, cpus: u32) -> Result<u32, ProbeError> {
    let slot_bytes = size_of::<Counters>() * cpus as usize + size_of::<Demand>();
    let fitting = COUNTERS_BYTES_MAX / slot_bytes;
    match wanted.min(fitting as u32) {
        0 => Err(ProbeError::NoSlots),
        slots => Ok(slots),
    }
}

/// The highest number that a CPU of this host can have, plus 1.
fn possible_cpus() -> io::Result<u32> {
    let ranges = fs::read_to_string(POSSIBLE_CPUS)?;
    last_cpu(&ranges).map(|last| last + 1).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("cannot read {ranges:?} in {POSSIBLE_CPUS}"))
    })
}

/// The last number of a list such as `0-3,8`.
fn last_cpu(ranges: &str) -> Option<u32> {
    ranges.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_numbers_may_have_gaps() {
        assert_eq!(last_cpu("0-1\n"), Some(1));
        assert_eq!(last_cpu("0\n"), Some(0));
        assert_eq!(last_cpu("0-3,8-11\n"), Some(11));
        assert_eq!(last_cpu("\n"), None);
    }

    #[test]
    fn slots_are_bounded_by_memory() {
        assert_eq!(slots_for(8, 2).unwrap(), 8);
        let many = slots_for(u32::MAX, 64).unwrap();
        assert!(many as usize * 64 * size_of::<Counters>() <= COUNTERS_BYTES_MAX);
        assert!(slots_for(0, 2).is_err());
    }
}
