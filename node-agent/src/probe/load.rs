//! From the embedded object to attached programs. The kernel's types are looked up first, then every
//! program is loaded and attached by itself; what fails is an outcome for `coverage`.
use std::{fs, io, path::Path, thread};

use crate::causes::in_one_line;
use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    maps::{Array, HashMap, Map, RingBuf},
    programs::{BtfTracePoint, ProgramError, links::FdLink},
};
use aya_log::EbpfLogger;
use ebpf_probes::{Counters, Offsets, demand::Demand};

use super::{
    COUNTERS_BYTES_MAX, Found, Options, ProbeError, Probes, RecentExits,
    counters::Tables,
    coverage::{self, Outcomes},
    kernel_btf::KernelBtf,
    offsets::{self, Need},
    pin::{Instance, Pins},
};

/// Built by `cargo xtask ebpf`, which also says from what.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf-probes/prebuilt/standin.bpf.o");

const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// A BPF program and the tracepoint that it attaches to.
struct Program {
    name: &'static str,
    tracepoint: &'static str,
    need: Need,
    /// What a kernel without that tracepoint lacks.
    floor: &'static str,
}

const fn program(name: &'static str, tracepoint: &'static str, need: Need, floor: &'static str) -> Program {
    Program { name, tracepoint, need, floor }
}

/// All programs but the start of block requests, of which there are two.
const PROGRAMS: [Program; 14] = [
    program("sched_switch", "sched_switch", Need::Sched, "5.15"),
    program("process_fork", "sched_process_fork", Need::Every, "5.15"),
    program("process_exec", "sched_process_exec", Need::Every, "5.15"),
    program("process_exit", "sched_process_exit", Need::Exit, "5.15"),
    program("oom_victim", "mark_victim", Need::Every, "6.10"),
    program("block_rq_complete", "block_rq_complete", Need::Block, "5.15"),
    program("block_rq_complete_again", "block_rq_complete", Need::Block, "5.15"),
    program("page_dirtied", "writeback_dirty_folio", Need::Writers, "5.16"),
    program("page_fault_user", "page_fault_user", Need::Every, "5.15"),
    program("sock_data_ready", "sk_data_ready", Need::Socket, "6.4"),
    program("sock_send_length", "sock_send_length", Need::Socket, "6.3"),
    program("sock_recv_length", "sock_recv_length", Need::Socket, "6.3"),
    program("inet_sock_set_state", "inet_sock_set_state", Need::Socket, "5.15"),
    program("tcp_retransmit_skb", "tcp_retransmit_skb", Need::Socket, "5.15"),
];

/// The start of a block request, best first: that and its way to the device apart, or both at once. The outcome
/// goes under the name `block_io`.
const BLOCK_STARTS: [&[Program]; 2] = [
    &[
        program("block_io_start", "block_io_start", Need::Block, "6.5"),
        program("block_io_start_again", "block_io_start", Need::Block, "6.5"),
        program("block_rq_send", "block_rq_issue", Need::Block, "5.15"),
    ],
    &[program("block_rq_issue", "block_rq_issue", Need::Block, "5.15")],
];

/// Maps that are pinned: all that hold something.
#[rustfmt::skip]
const MAPS: [&str; 13] = [
    "SLOTS", "COUNTERS", "SHARED", "DEMAND", "CPUS", "REQUESTS", "WRITERS", "CONNECTIONS", "PEERS", "FAULTS",
    "EVENTS", "LOSSES", "AYA_LOGS",
];

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
    let mut ebpf = loader
        .override_global("OFFSETS", offsets::bytes_of(&offsets), true)
        .map_max_entries("SLOTS", slots)
        .map_max_entries("COUNTERS", slots * cpus)
        .map_max_entries("SHARED", slots)
        .map_max_entries("DEMAND", slots)
        .map_max_entries("CPUS", cpus)
        .load(OBJECT)
        .map_err(|error| ProbeError::Object { why: with_remedy(in_one_line(&error)) })?;

    let outcomes = attach_all(&mut ebpf, &btf, &kernel, &offsets, pins.as_ref());
    if let Some(why) = nothing_attached(&outcomes) {
        return Err(ProbeError::NothingAttached { why });
    }
    let mut probes = assemble(ebpf, slots, cpus, coverage::statuses(&outcomes, &offsets))?;
    if let Some(pins) = pins {
        probes.take_up(&pins);
    }
    Ok(probes)
}

/// Attaches what can be attached.
fn attach_all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    kernel: &KernelBtf,
    offsets: &Offsets,
    pins: Option<&Pins>,
) -> Outcomes {
    let mut attach = |program: &Program| match pins.map(|pins| pins.link(program.name)) {
        // Attached by an agent before this one.
        Some(path) if path.exists() => Ok(program.tracepoint.to_owned()),
        path => attach(ebpf, btf, kernel, offsets, program, path.as_deref()),
    };
    let mut outcomes: Outcomes = PROGRAMS.iter().map(|program| (program.name, attach(program))).collect();
    let [best, older] = BLOCK_STARTS;
    let mut attach_in_order = |programs: &[Program]| {
        programs.iter().try_fold(String::new(), |_, program| attach(program))?;
        Ok(programs[0].tracepoint.to_owned())
    };
    outcomes.insert("block_io", attach_in_order(best).or_else(|_: String| attach_in_order(older)));
    outcomes
}

/// Loads and attaches one program, and pins its link; gives the tracepoint, or why not.
fn attach(
    ebpf: &mut Ebpf,
    btf: &Btf,
    kernel: &KernelBtf,
    offsets: &Offsets,
    program: &Program,
    pin: Option<&Path>,
) -> Result<String, String> {
    let Program { name, tracepoint, need, floor } = program;
    if kernel.tracepoint_arguments(tracepoint).is_none() {
        return Err(format!("this kernel has no tracepoint {tracepoint}: needs Linux {floor}"));
    }
    if let Some(why) = offsets::lacks(offsets, *need) {
        return Err(why);
    }
    let loaded: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?
        .try_into()
        .map_err(|error: ProgramError| error.to_string())?;
    let refused = |error: ProgramError| format!("{}, needs Linux {floor}", with_remedy(reason(&error)));
    loaded.load(tracepoint, btf).map_err(refused)?;
    let link = loaded.attach().map_err(refused)?;
    if let Some(path) = pin {
        let link: FdLink = loaded.take_link(link).map_err(refused)?.into();
        link.pin(path).map_err(|error| in_one_line(&error))?;
    }
    Ok((*tracepoint).to_owned())
}

/// Why nothing works, if nothing does.
fn nothing_attached(outcomes: &Outcomes) -> Option<String> {
    if outcomes.values().any(Result::is_ok) {
        return None;
    }
    outcomes.get("sched_switch").and_then(|outcome| outcome.clone().err())
}

fn assemble(
    mut ebpf: Ebpf,
    slots: u32,
    cpus: u32,
    status: Vec<coverage::ProbeStatus>,
) -> Result<Probes, ProbeError> {
    let map = |name| ebpf.map(name).ok_or_else(|| missing(name));
    let maps = [map("COUNTERS")?, map("SHARED")?, map("DEMAND")?, map("CPUS")?];
    let tables = Tables::new(maps, slots as usize, cpus as usize)?;
    Ok(Probes {
        status,
        tables,
        slots: HashMap::try_from(take(&mut ebpf, "SLOTS")?)
            .map_err(|error| ProbeError::map("SLOTS", &error))?,
        events: RingBuf::try_from(take(&mut ebpf, "EVENTS")?)
            .map_err(|error| ProbeError::map("EVENTS", &error))?,
        connections: HashMap::try_from(take(&mut ebpf, "CONNECTIONS")?)
            .map_err(|error| ProbeError::map("CONNECTIONS", &error))?,
        peers: HashMap::try_from(take(&mut ebpf, "PEERS")?)
            .map_err(|error| ProbeError::map("PEERS", &error))?,
        losses: Array::try_from(take(&mut ebpf, "LOSSES")?)
            .map_err(|error| ProbeError::map("LOSSES", &error))?,
        // Without it the programs' warnings go unheard, and nothing else.
        logger: EbpfLogger::init(&mut ebpf).ok(),
        tracked: vec![None; slots as usize],
        free: (0..slots).collect(),
        exits: RecentExits::default(),
        found: Found::Nothing,
        _ebpf: ebpf,
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

/// The kernel's answer, and of the verifier's log the line that says why.
fn reason(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return in_one_line(error);
    };
    let log = verifier_log.to_string();
    let statistics = ["processed ", "stack depth ", "verification time "];
    let is_reason = |line: &&str| !line.is_empty() && !statistics.iter().any(|word| line.starts_with(word));
    let mut lines = log.lines().filter(is_reason);
    match lines.next_back() {
        Some(line) => format!("the kernel refuses the program: {io_error} ({line})"),
        None => format!("the kernel refuses the program: {io_error}"),
    }
}

fn with_remedy(why: String) -> String {
    if why.contains("os error 1)") && !nix::unistd::geteuid().is_root() {
        format!("{why}; run as root or with CAP_BPF and CAP_PERFMON")
    } else {
        why
    }
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
