//! What the probes themselves cost and miss, as the kernel counts it, and giving up one that costs too much.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use aya::Btf;
use serde::{Deserialize, Serialize};

use super::{Losses, Probes, bpf, offsets};
use crate::host;

/// What one program cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramCost {
    /// The program.
    pub name: String,
    /// The probe that it is a part of.
    pub probe: String,
    /// Runs per second.
    pub runs_per_s: f64,
    /// Time per run, nanoseconds, of which some 40 are the counting itself.
    pub ns_per_run: f64,
    /// Share of the time of all CPUs of the host.
    pub share: f64,
}

/// The kernel counts the times of programs while this lives, which makes all programs of the host dearer.
#[derive(Debug)]
pub struct Stats {
    _counting: OwnedFd,
    since: Instant,
    /// Time and runs of each program by then.
    before: Vec<(&'static str, u64, u64)>,
}

impl Probes {
    /// Begins to count what programs cost.
    ///
    /// # Errors
    /// Before Linux 5.8, or if the kernel does not allow it.
    pub fn count_costs(&self) -> io::Result<Stats> {
        let counting = bpf::enable_stats()?;
        let before = self.programs.infos().map(|(name, _, info)| (name, info.run_ns, info.runs)).collect();
        Ok(Stats { _counting: counting, since: Instant::now(), before })
    }

    /// What they have cost since then, the dearest first.
    pub fn costs(&self, stats: &Stats) -> Vec<ProgramCost> {
        let elapsed_ns = stats.since.elapsed().as_nanos().max(1) as f64;
        let cost = |(name, probe, info): (&'static str, &'static str, bpf::ProgramInfo)| {
            let before = stats.before.iter().find(|(other, _, _)| *other == name);
            let (run_ns, runs) = before.map_or((0, 0), |&(_, run_ns, runs)| (run_ns, runs));
            let (run_ns, runs) = (info.run_ns.saturating_sub(run_ns), info.runs.saturating_sub(runs));
            ProgramCost {
                name: name.to_owned(),
                probe: probe.to_owned(),
                runs_per_s: runs as f64 * 1e9 / elapsed_ns,
                ns_per_run: if runs == 0 { 0.0 } else { run_ns as f64 / runs as f64 },
                share: run_ns as f64 / elapsed_ns / host::cpus() as f64,
            }
        };
        let mut costs: Vec<_> = self.programs.infos().map(cost).collect();
        costs.sort_by(|a, b| b.share.total_cmp(&a.share));
        costs
    }

    /// Everything that should have been counted and was not, since loading: what it is and how often. Only what
    /// has happened.
    pub fn lost(&self) -> Vec<(String, u64)> {
        let Losses { events, requests, ends, cgroups, connections, peers } = self.losses();
        let full = [
            ("ends of processes (EVENTS full)", events),
            ("block requests (REQUESTS full)", requests),
            ("latencies of block requests (the kernel did not show their end)", ends),
            ("cgroups that others made (CGROUPS full)", cgroups),
            ("connections not followed (CONNECTIONS full)", connections),
            ("peers of connections (PEERS full)", peers),
        ];
        let missed = self.programs.infos();
        full.into_iter()
            .map(|(what, count)| (what.to_owned(), count))
            .chain(missed.map(|(name, _, info)| (format!("{name} within itself"), info.missed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Detaches the programs of a probe; `why` is what its measures say from now on.
    pub fn shed(&mut self, probe: &str, why: &str) {
        self.programs.detach_probe(probe, why);
        self.status = self.programs.statuses();
    }

    /// Attaches the programs of a probe again.
    ///
    /// # Errors
    /// If the kernel's types can't be read any more; a program that is refused is a status.
    pub fn restore(&mut self, probe: &str) -> Result<(), String> {
        let (_, kernel) = offsets::of_this_kernel().map_err(|error| error.to_string())?;
        let btf = Btf::from_sys_fs().map_err(|error| error.to_string())?;
        self.programs.attach_probe(&mut self.ebpf, &btf, &kernel, probe);
        self.status = self.programs.statuses();
        Ok(())
    }
}
