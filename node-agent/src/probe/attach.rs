//! Attaching programs, each by itself, and detaching those of a probe that costs too much. What becomes of each is
//! an outcome for `coverage`.
use std::{
    cell::RefCell,
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, ProgramError, links::FdLink},
};
use ebpf_probes::Offsets;

use super::{
    bpf::{self, ProgramInfo},
    coverage::{self, Outcomes, ProbeStatus},
    kernel_btf::KernelBtf,
    offsets::{self, Need},
    pin::Pins,
};
use crate::causes::in_one_line;

/// A BPF program and the tracepoint that it attaches to.
struct Program {
    name: &'static str,
    /// The probe that it is a part of: attached and given up as a whole.
    probe: &'static str,
    tracepoint: &'static str,
    need: Need,
    /// What a kernel without that tracepoint lacks.
    floor: &'static str,
}

const fn program(
    probe: &'static str,
    name: &'static str,
    tracepoint: &'static str,
    need: Need,
    floor: &'static str,
) -> Program {
    Program { name, probe, tracepoint, need, floor }
}

/// All programs but the start of block requests, of which there are two.
const PROGRAMS: [Program; 16] = [
    program("host", "cgroup_made", "cgroup_mkdir", Need::Block, "5.15"),
    program("host", "cgroup_removed", "cgroup_rmdir", Need::Block, "5.15"),
    program("sched", "sched_switch", "sched_switch", Need::Sched, "5.15"),
    program("lifecycle", "process_fork", "sched_process_fork", Need::Every, "5.15"),
    program("lifecycle", "process_exec", "sched_process_exec", Need::Every, "5.15"),
    program("lifecycle", "process_exit", "sched_process_exit", Need::Exit, "5.15"),
    program("oom", "oom_victim", "mark_victim", Need::Every, "6.10"),
    program("block_io", "block_rq_complete", "block_rq_complete", Need::Block, "5.15"),
    program("block_io", "block_rq_merge", "block_rq_merge", Need::Block, "5.15"),
    program("block_io", "page_dirtied", "writeback_dirty_folio", Need::Writers, "5.16"),
    program("faults", "page_fault_user", "page_fault_user", Need::Every, "5.15"),
    program("socket", "sock_data_ready", "sk_data_ready", Need::Socket, "6.4"),
    program("socket", "sock_send_length", "sock_send_length", Need::Socket, "6.3"),
    program("socket", "sock_recv_length", "sock_recv_length", Need::Socket, "6.3"),
    program("socket", "inet_sock_set_state", "inet_sock_set_state", Need::Socket, "5.15"),
    program("socket", "tcp_retransmit_skb", "tcp_retransmit_skb", Need::Socket, "5.15"),
];

/// The start of a block request, best first: that and its way to the device apart, or both at once. The outcome
/// goes under the name `block_io`.
const BLOCK_STARTS: [&[Program]; 2] = [
    &[
        program("block_io", "block_io_start", "block_io_start", Need::Block, "6.5"),
        program("block_io", "block_rq_send", "block_rq_issue", Need::Block, "5.15"),
    ],
    &[program("block_io", "block_rq_issue", "block_rq_issue", Need::Block, "5.15")],
];

/// Most threads that programs are loaded in. What the kernel does for each by itself (verifying, compiling, looking
/// names up in its BTF) is most of the time that loading takes.
const LOADERS_MAX: usize = 4;

/// The name under which the start of a block request is known, whichever program sees it.
const BLOCK_START: &str = "block_io";

/// An attached program.
struct Attached {
    name: &'static str,
    probe: &'static str,
    program: OwnedFd,
    hold: Hold,
}

/// What keeps a program attached.
enum Hold {
    /// This process.
    Link {
        /// Detaches when dropped.
        _link: FdLink,
    },
    /// A file.
    Pin(PathBuf),
}

/// All programs, attached or not.
pub(super) struct Programs {
    offsets: Offsets,
    pins: Option<Pins>,
    attached: Vec<Attached>,
    outcomes: Outcomes,
}

impl Programs {
    pub(super) fn new(offsets: Offsets, pins: Option<Pins>) -> Self {
        Self { offsets, pins, attached: Vec::new(), outcomes: Outcomes::new() }
    }

    /// Attaches what can be attached.
    pub(super) fn attach_all(&mut self, ebpf: &mut Ebpf, btf: &Btf, kernel: &KernelBtf) {
        self.load_ahead(ebpf, btf, kernel);
        self.attach_those(ebpf, btf, kernel, |_| true);
    }

    /// Loads what is going to be attached, several programs at a time. Whatever fails here fails again when it is
    /// attached, where that is said.
    fn load_ahead(&self, ebpf: &mut Ebpf, btf: &Btf, kernel: &KernelBtf) {
        let is_pinned = |name| self.pins.as_ref().is_some_and(|pins| pins.link(name).exists());
        let wanted = |name: &str| {
            let program = PROGRAMS.iter().chain(BLOCK_STARTS[0]).find(|program| program.name == name)?;
            let is_wanted = !is_pinned(program.name) && lacks(kernel, &self.offsets, program).is_none();
            is_wanted.then_some(program.tracepoint)
        };
        let programs = ebpf
            .programs_mut()
            .filter_map(|(name, program)| wanted(name).zip(Some(program)))
            .collect::<Vec<_>>();
        let threads = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(LOADERS_MAX));
        let programs = Mutex::new(programs.into_iter());
        let next = || programs.lock().unwrap_or_else(PoisonError::into_inner).next();
        let load = || {
            while let Some((tracepoint, program)) = next() {
                let program: Result<&mut BtfTracePoint, _> = program.try_into();
                let _ = program.map(|program| program.load(tracepoint, btf));
            }
        };
        thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(load)));
            load();
        });
    }

    /// Attaches the programs of a probe again.
    pub(super) fn attach_probe(&mut self, ebpf: &mut Ebpf, btf: &Btf, kernel: &KernelBtf, probe: &str) {
        self.attach_those(ebpf, btf, kernel, |program| program.probe == probe);
    }

    fn attach_those(
        &mut self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        kernel: &KernelBtf,
        which: impl Fn(&Program) -> bool,
    ) {
        let (all, outcomes) = (RefCell::new((ebpf, self)), RefCell::new(Vec::new()));
        let attach = |program: &Program| {
            let (ebpf, programs) = &mut *all.borrow_mut();
            programs.attach(ebpf, btf, kernel, program)
        };
        for program in PROGRAMS.iter().filter(|program| which(program)) {
            outcomes.borrow_mut().push((program.name, attach(program)));
        }
        let [best, older] = BLOCK_STARTS;
        if which(&best[0]) {
            let in_order = |programs: &[Program]| {
                programs.iter().try_for_each(|program| attach(program).map(|_| ()))?;
                Ok(programs[0].tracepoint.to_owned())
            };
            let outcome = in_order(best).or_else(|_: String| in_order(older));
            outcomes.borrow_mut().push((BLOCK_START, outcome));
        }
        all.into_inner().1.outcomes.extend(outcomes.into_inner());
    }

    /// Attaches one program, unless an agent before this one has; gives the tracepoint, or why not.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        kernel: &KernelBtf,
        program: &Program,
    ) -> Result<String, String> {
        let Program { name, probe, tracepoint, .. } = *program;
        let pin = self.pins.as_ref().map(|pins| pins.link(name));
        let (program, hold) = match pin {
            Some(path) if path.exists() => {
                let program = bpf::program_of_link(&path).map_err(|error| error.to_string())?;
                (program, Hold::Pin(path))
            }
            pin => load(ebpf, btf, kernel, &self.offsets, program, pin)?,
        };
        self.attached.push(Attached { name, probe, program, hold });
        Ok(tracepoint.to_owned())
    }

    /// Detaches the programs of a probe; `why` becomes the outcome.
    pub(super) fn detach_probe(&mut self, probe: &str, why: &str) {
        let (gone, kept) = std::mem::take(&mut self.attached).into_iter().partition(|one| one.probe == probe);
        self.attached = kept;
        for Attached { name, hold, .. } in gone {
            if let Hold::Pin(path) = hold {
                // Gone already is what is wanted.
                let _ = fs::remove_file(path);
            }
            let is_start = BLOCK_STARTS.iter().any(|programs| programs.iter().any(|one| one.name == name));
            self.outcomes.insert(if is_start { BLOCK_START } else { name }, Err(why.to_owned()));
        }
    }

    /// What is measured and what is not.
    pub(super) fn statuses(&self) -> Vec<ProbeStatus> {
        coverage::statuses(&self.outcomes, &self.offsets)
    }

    /// Why nothing works, if nothing does.
    pub(super) fn nothing_attached(&self) -> Option<String> {
        if self.outcomes.values().any(Result::is_ok) {
            return None;
        }
        self.outcomes.get("sched_switch").and_then(|outcome| outcome.clone().err())
    }

    /// What each attached program has cost: its name, its probe, the kernel's account.
    pub(super) fn infos(&self) -> impl Iterator<Item = (&'static str, &'static str, ProgramInfo)> {
        self.attached.iter().filter_map(|attached| {
            Some((attached.name, attached.probe, bpf::program_info(&attached.program).ok()?))
        })
    }
}

/// Loads and attaches one program, and pins its link.
fn load(
    ebpf: &mut Ebpf,
    btf: &Btf,
    kernel: &KernelBtf,
    offsets: &Offsets,
    program: &Program,
    pin: Option<PathBuf>,
) -> Result<(OwnedFd, Hold), String> {
    let Program { name, tracepoint, floor, .. } = program;
    if let Some(why) = lacks(kernel, offsets, program) {
        return Err(why);
    }
    let loaded: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?
        .try_into()
        .map_err(|error: ProgramError| error.to_string())?;
    let refused = |error: ProgramError| format!("{}, needs Linux {floor}", with_remedy(reason(&error)));
    if loaded.fd().is_err() {
        loaded.load(tracepoint, btf).map_err(refused)?;
    }
    let link = loaded.attach().and_then(|link| loaded.take_link(link)).map_err(refused)?;
    let link: FdLink = link.into();
    let hold = match pin {
        None => Hold::Link { _link: link },
        Some(path) => {
            link.pin(&path).map_err(|error| in_one_line(&error))?;
            Hold::Pin(path)
        }
    };
    let fd = loaded.fd().map_err(refused)?;
    let program = std::os::fd::AsFd::as_fd(fd).try_clone_to_owned().map_err(|error| error.to_string())?;
    Ok((program, hold))
}

/// Why this kernel can't have a program.
fn lacks(kernel: &KernelBtf, offsets: &Offsets, program: &Program) -> Option<String> {
    let Program { tracepoint, need, floor, .. } = program;
    if kernel.tracepoint_arguments(tracepoint).is_none() {
        return Some(format!("this kernel has no tracepoint {tracepoint}: needs Linux {floor}"));
    }
    offsets::lacks(offsets, *need)
}

/// The kernel's answer, and of the verifier's log the line that says why.
pub(crate) fn reason(error: &ProgramError) -> String {
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

pub(super) fn with_remedy(why: String) -> String {
    if why.contains("os error 1)") && !nix::unistd::geteuid().is_root() {
        format!("{why}; run as root or with CAP_BPF and CAP_PERFMON")
    } else {
        why
    }
}
