//! What is measured on this host, and why not where it is not. A missing probe is a value, never a zero.
use std::collections::HashMap;

use ebpf_probes::{ABSENT, Offsets};

/// A group of numbers that is there or missing as a whole. Fields of `Counters` and `Shared` in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// CPU time, bursts and switches (`on_cpu_ns`, `burst_ns`, `switches_*`).
    Cpu,
    /// Run-queue waits (`wait_ns`, `wait_ns_histogram`).
    CpuWait,
    /// Page faults (`faults_*`).
    Faults,
    /// Tasks created and alive (`forks`, `tasks`, `tasks_peak`).
    Tasks,
    /// Programs executed (`execs`).
    Execs,
    /// Ends of tasks, exit events and peak RSS (`exits`, `process_rss_peak_pages`, `ending`).
    Exits,
    /// Storage bytes by task accounting (`storage_*`).
    Storage,
    /// Processes killed for memory (`oom_kills`).
    OomKills,
    /// Block I/O (`block_*`).
    Block,
    /// Socket payload (`tcp_*_bytes`, `udp_*_bytes`).
    SocketBytes,
    /// TCP connections (`tcp_connects`, `tcp_accepts`).
    Connections,
    /// TCP segments sent again (`tcp_retransmits`).
    Retransmits,
    /// How long servers take to answer (`tcp_service_ns`).
    Service,
    /// Cgroups that others make.
    HostCgroups,
    /// How memory is walked through (`faults_sequential`, `faults_strided`, `faults_random`).
    Access,
    /// Who wrote what the kernel writes back (`block_writeback_bytes`, and the owner of such requests).
    Writeback,
}

/// The state of one measure on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStatus {
    /// The probe it comes from: `sched`, `lifecycle`, `block_io`, `socket` or `oom`.
    pub name: &'static str,
    /// What is measured, for programs.
    pub measure: Measure,
    /// What is measured, for people.
    pub measures: &'static str,
    /// Whether it is.
    pub state: State,
}

/// Whether a probe works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It counts.
    Attached {
        /// Where in the kernel, for example `tp_btf sched_switch`.
        hook: String,
    },
    /// It does not; its counters mean nothing.
    Unavailable {
        /// Why not, and what would mend it where that is known.
        why: String,
        /// What tells about the same thing instead.
        instead: String,
    },
}

impl State {
    /// True if the counters are real.
    pub fn is_attached(&self) -> bool {
        matches!(self, Self::Attached { .. })
    }
}

/// What became of each BPF program: its hook, or why it is not there.
pub(super) type Outcomes = HashMap<&'static str, Result<String, String>>;

/// Puts the programs' outcomes into words, one row per measure.
pub(super) fn statuses(outcomes: &Outcomes, offsets: &Offsets) -> Vec<ProbeStatus> {
    ROWS.iter()
        .map(|row| ProbeStatus {
            name: row.probe,
            measure: row.measure,
            measures: row.measures,
            state: state(row, outcomes, offsets),
        })
        .collect()
}

/// One line of the table below.
struct Row {
    probe: &'static str,
    measure: Measure,
    measures: &'static str,
    /// All of these must be attached.
    programs: &'static [&'static str],
    instead: &'static str,
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { probe: "sched", measure: Measure::Cpu, measures: "CPU time, bursts, switches", programs: &["sched_switch"], instead: "cpu.stat of the cgroup, rusage" },
    Row { probe: "sched", measure: Measure::CpuWait, measures: "waits in the run queue", programs: &["sched_switch"], instead: "/proc/PID/schedstat" },
    Row { probe: "sched", measure: Measure::Faults, measures: "page faults", programs: &["sched_switch"], instead: "rusage" },
    Row { probe: "lifecycle", measure: Measure::Tasks, measures: "tasks created and alive", programs: &["process_fork", "process_exit"], instead: "pids.peak of the cgroup" },
    Row { probe: "lifecycle", measure: Measure::Execs, measures: "programs executed", programs: &["process_exec"], instead: "nothing" },
    Row { probe: "lifecycle", measure: Measure::Exits, measures: "ends of tasks, exit status, peak RSS", programs: &["process_exit"], instead: "pidfd and rusage" },
    Row { probe: "lifecycle", measure: Measure::Storage, measures: "storage bytes of ended tasks", programs: &["process_exit"], instead: "/proc/PID/io" },
    Row { probe: "oom", measure: Measure::OomKills, measures: "victims of the out-of-memory killer", programs: &["oom_victim"], instead: "memory.events of the cgroup" },
    Row { probe: "block_io", measure: Measure::Block, measures: "block bytes, requests, latency", programs: &["block_io", "block_rq_complete"], instead: "io.stat of the cgroup" },
    Row { probe: "block_io", measure: Measure::Writeback, measures: "writers of what is written back", programs: &["block_io", "block_rq_complete", "page_dirtied"], instead: "/proc/PID/io" },
    Row { probe: "faults", measure: Measure::Access, measures: "pattern of memory accesses", programs: &["page_fault_user"], instead: "nothing" },
    Row { probe: "host", measure: Measure::HostCgroups, measures: "cgroups that others make", programs: &["cgroup_made", "cgroup_removed"], instead: "those that are there when the agent starts" },
    Row { probe: "socket", measure: Measure::Service, measures: "service time", programs: &["sock_data_ready", "sock_send_length", "inet_sock_set_state"], instead: "nothing" },
    Row { probe: "socket", measure: Measure::SocketBytes, measures: "TCP and UDP payload", programs: &["sock_send_length", "sock_recv_length"], instead: "nothing" },
    Row { probe: "socket", measure: Measure::Connections, measures: "TCP connections", programs: &["inet_sock_set_state"], instead: "nothing" },
    Row { probe: "socket", measure: Measure::Retransmits, measures: "TCP retransmits", programs: &["tcp_retransmit_skb"], instead: "nothing" },
];

fn state(row: &Row, outcomes: &Outcomes, offsets: &Offsets) -> State {
    let unavailable = |why: &str| State::Unavailable { why: why.into(), instead: row.instead.into() };
    if row.measure == Measure::CpuWait && offsets.task_run_delay == ABSENT {
        return unavailable("this kernel is built without CONFIG_SCHED_INFO");
    }
    if row.measure == Measure::Storage && offsets.task_read_bytes == ABSENT {
        return unavailable("this kernel is built without CONFIG_TASK_IO_ACCOUNTING");
    }
    let mut hooks = Vec::new();
    for program in row.programs {
        match outcomes.get(program) {
            Some(Ok(hook)) => hooks.push(hook.as_str()),
            Some(Err(why)) => return unavailable(why),
            None => return unavailable("the object has no such program"),
        }
    }
    State::Attached { hook: format!("tp_btf {}", hooks.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refused_program_leaves_the_other_measures() {
        let mut outcomes: Outcomes = ROWS
            .iter()
            .flat_map(|row| row.programs)
            .map(|program| (*program, Ok((*program).to_owned())))
            .collect();
        outcomes.insert("sock_recv_length", Err("no such tracepoint".into()));
        let offsets = Offsets { task_run_delay: ABSENT, ..Offsets::default() };
        let missing: Vec<Measure> = statuses(&outcomes, &offsets)
            .into_iter()
            .filter(|status| !status.state.is_attached())
            .map(|status| status.measure)
            .collect();
        assert_eq!(missing, [Measure::CpuWait, Measure::SocketBytes]);
    }
}
