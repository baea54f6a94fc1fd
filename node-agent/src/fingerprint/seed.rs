//! A fingerprint as the counters that would give it: where new probes begin to count for a run that others have
//! counted before.

use super::Fingerprint;
use super::demand::CpuDemand;
use crate::host;
use crate::probe::Reading;
use ebpf_probes::demand::{SCALES, Scale};
use ebpf_probes::{Counters, Shared};

impl Fingerprint {
    /// The counters behind it; what is not known is 0.
    pub fn as_counted(&self) -> (Reading, Option<[Scale; SCALES]>) {
        let of = |number: Option<u64>| number.unwrap_or(0);
        let counters = Counters {
            on_cpu_ns: of(self.cpu_ns),
            wait_ns: of(self.cpu_wait_ns),
            switches_voluntary: of(self.switches_voluntary),
            switches_forced: of(self.switches_forced),
            burst_ns: self.cpu_burst_ns.unwrap_or_default(),
            wait_ns_histogram: self.cpu_wait_ns_histogram.unwrap_or_default(),
            faults_minor: of(self.faults_minor),
            faults_major: of(self.faults_major),
            block_read_bytes: of(self.block_read_bytes),
            block_write_bytes: of(self.block_write_bytes),
            block_read_ops: of(self.block_read_ops),
            block_write_ops: of(self.block_write_ops),
            block_read_ns: self.block_read_ns.unwrap_or_default(),
            block_write_ns: self.block_write_ns.unwrap_or_default(),
            storage_read_bytes: of(self.storage_read_bytes),
            storage_write_bytes: of(self.storage_write_bytes),
            tcp_sent_bytes: of(self.tcp_sent_bytes),
            tcp_received_bytes: of(self.tcp_received_bytes),
            udp_sent_bytes: of(self.udp_sent_bytes),
            udp_received_bytes: of(self.udp_received_bytes),
            tcp_connects: of(self.tcp_connects),
            tcp_accepts: of(self.tcp_accepts),
            tcp_retransmits: of(self.tcp_retransmits),
            faults_sequential: of(self.faults_sequential),
            faults_strided: of(self.faults_strided),
            faults_random: of(self.faults_random),
            block_read_sequential: of(self.block_read_sequential),
            block_write_sequential: of(self.block_write_sequential),
            block_sync_ops: of(self.block_sync_ops),
            block_flush_ops: of(self.block_flush_ops),
            block_discard_ops: of(self.block_discard_ops),
            block_discard_bytes: of(self.block_discard_bytes),
            block_writeback_bytes: of(self.block_writeback_bytes),
            tcp_connects_failed: of(self.tcp_connects_failed),
            block_queue_ns: self.block_queue_ns.unwrap_or_default(),
            tcp_connect_ns: self.tcp_connect_ns.unwrap_or_default(),
            tcp_service_ns: self.tcp_service_ns.unwrap_or_default(),
            tcp_rtt_ns: self.tcp_rtt_ns.unwrap_or_default(),
            forks: of(self.forks),
            execs: of(self.execs),
            exits: of(self.exits),
            oom_kills: of(self.oom_kills),
            ..Counters::default()
        };
        let shared = Shared {
            tasks_peak: i64::try_from(of(self.tasks_peak)).unwrap_or(i64::MAX),
            process_rss_peak_pages: of(self.process_rss_peak_bytes) / host::page_bytes(),
            ..Shared::default()
        };
        (Reading { counters, shared }, self.cpu_demand.as_ref().and_then(CpuDemand::as_scales))
    }
}

impl CpuDemand {
    /// The sums behind it.
    fn as_scales(&self) -> Option<[Scale; SCALES]> {
        let scales: Option<Vec<Scale>> = self
            .0
            .iter()
            .map(|windows| {
                Some(Scale {
                    busy: windows.busy,
                    cpu_us: windows.cpu_us,
                    squares: windows.squares,
                    peak_us: windows.peak_us,
                    cpus_peak: windows.cpus_peak,
                    late: windows.late,
                    counts: windows.counts.as_slice().try_into().ok()?,
                })
            })
            .collect();
        scales?.try_into().ok()
    }
}
