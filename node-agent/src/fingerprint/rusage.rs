//! The least that is always there: a fingerprint from what `wait4` tells of a process and the children it
//! waited for. No probes, no cgroup, no privileges.

use super::{Coverage, Fingerprint, Source};
use crate::fingerprint::Measured;
use std::time::Duration;

/// `why` says, for the coverage, why there is nothing better.
pub fn from_rusage(usage: &libc::rusage, duration: Duration, why: &str) -> Measured {
    let ns =
        |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_usec * 1000).unwrap_or(0);
    let count = |value: libc::c_long| Some(u64::try_from(value).unwrap_or(0));
    let (user, system) = (ns(usage.ru_utime), ns(usage.ru_stime));
    let rss = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let fingerprint = Fingerprint {
        duration_ns,
        cpu_ns: Some(user + system),
        cpu_user_ns: Some(user),
        cpu_system_ns: Some(system),
        switches_voluntary: count(usage.ru_nvcsw),
        switches_forced: count(usage.ru_nivcsw),
        memory_peak_bytes: Some(rss),
        process_rss_peak_bytes: Some(rss),
        faults_minor: count(usage.ru_minflt),
        faults_major: count(usage.ru_majflt),
        // 512-byte units, getrusage(2).
        storage_read_bytes: count(usage.ru_inblock).map(|blocks| blocks * 512),
        storage_write_bytes: count(usage.ru_oublock).map(|blocks| blocks * 512),
        ..Fingerprint::default()
    };
    let from_rusage = |measure: &str| Source {
        measure: measure.into(),
        source: Some("rusage of the process and the children it waited for".into()),
        note: Some(why.into()),
    };
    let missing = |measure: &str| Source { measure: measure.into(), source: None, note: Some(why.into()) };
    let coverage = ["cpu", "faults", "memory", "storage"]
        .map(from_rusage)
        .into_iter()
        .chain(["cpu_wait", "block", "network", "connections", "tasks", "oom_kills"].map(missing));
    Measured { fingerprint, coverage: Coverage(coverage.collect()), ..Measured::default() }
}

impl Measured {
    /// Takes over what is missing here and known from `wait4`.
    pub fn fill_from(&mut self, accounted: &Self) {
        let (to, from) = (&mut self.fingerprint, &accounted.fingerprint);
        for (to, from) in [
            (&mut to.cpu_ns, from.cpu_ns),
            (&mut to.cpu_user_ns, from.cpu_user_ns),
            (&mut to.cpu_system_ns, from.cpu_system_ns),
            (&mut to.switches_voluntary, from.switches_voluntary),
            (&mut to.switches_forced, from.switches_forced),
            (&mut to.memory_peak_bytes, from.memory_peak_bytes),
            (&mut to.process_rss_peak_bytes, from.process_rss_peak_bytes),
            (&mut to.faults_minor, from.faults_minor),
            (&mut to.faults_major, from.faults_major),
            (&mut to.storage_read_bytes, from.storage_read_bytes),
            (&mut to.storage_write_bytes, from.storage_write_bytes),
        ] {
            *to = to.or(from);
        }
        let known = |source: &&Source| self.coverage.0.iter().any(|own| own.measure == source.measure);
        let more: Vec<_> = accounted.coverage.0.iter().filter(|source| !known(source)).cloned().collect();
        self.coverage.0.extend(more);
    }
}
