//! Every metric: its name, with unit and kind as Prometheus' conventions have it, its labels, and what it means.

use prometheus::proto::MetricType;

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricType,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order of the text.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

#[rustfmt::skip]
metrics! {
    HOST_CPUS GAUGE "standin_host_cpus" [] "Online CPUs.";
    HOST_CPU_SECONDS COUNTER "standin_host_cpu_seconds_total" ["mode"] "What all CPUs of the host did since boot: user, system, idle, stolen.";
    HOST_MEMORY GAUGE "standin_host_memory_size_bytes" [] "Memory of the host.";
    HOST_MEMORY_AVAILABLE GAUGE "standin_host_memory_available_bytes" [] "Memory that a new task could have without swapping (MemAvailable).";
    HOST_LOAD GAUGE "standin_host_load1" [] "Tasks that ran or wanted to, mean over a minute.";
    HOST_WAITING COUNTER "standin_host_pressure_waiting_seconds_total" ["resource"] "Time in which some task waited for cpu, memory or io (PSI some). Absent where the kernel does not tell.";
    HOST_STALLED COUNTER "standin_host_pressure_stalled_seconds_total" ["resource"] "Time in which all tasks that had something to do waited (PSI full). Absent where the kernel does not tell.";

    PROMISABLE_MEMORY GAUGE "standin_promisable_memory_bytes" [] "Memory that may be promised to tasks: the host's without its reserve.";
    PROMISED_MEMORY GAUGE "standin_promised_memory_bytes" [] "Memory that is promised to tasks.";
    PROMISABLE_CPU GAUGE "standin_promisable_cpu_cores" [] "Cores that may be promised to tasks, overcommitment included.";
    PROMISED_CPU GAUGE "standin_promised_cpu_cores" [] "Cores that are promised to tasks.";
    LICENSES GAUGE "standin_licenses" ["license"] "Licences of a pool.";
    LICENSES_TAKEN GAUGE "standin_licenses_taken" ["license"] "Licences of a pool that tasks have taken.";
    QUEUE_TASKS GAUGE "standin_queue_tasks" [] "Tasks that wait for room or licences.";
    QUEUE_LONGEST GAUGE "standin_queue_longest_wait_seconds" [] "How long whoever waits for the longest has waited.";

    TASK_RUNNING GAUGE "standin_task_running" ["task", "user"] "Runs under way.";
    TASK_RUNS COUNTER "standin_task_runs_total" ["task", "user", "result"] "Runs that ended since the agent started: finished (exit code 0) or failed.";
    TASK_CPU COUNTER "standin_task_cpu_seconds_total" ["task", "user"] "CPU time.";
    TASK_CPU_WAITING COUNTER "standin_task_cpu_waiting_seconds_total" ["task", "user"] "Time that threads were runnable and waited for a CPU, summed over threads.";
    TASK_MEMORY_WAITING COUNTER "standin_task_memory_waiting_seconds_total" ["task", "user"] "Time in which some thread of a run waited for memory, summed over runs.";
    TASK_MEMORY GAUGE "standin_task_memory_bytes" ["task", "user"] "Anonymous and shared memory in use.";
    TASK_MEMORY_LIMIT GAUGE "standin_task_memory_limit_bytes" ["task", "user"] "Memory limits of runs that have one: the lower of memory.high and memory.max, summed.";
    TASK_MEMORY_LIMITED GAUGE "standin_task_memory_limited_bytes" ["task", "user"] "Memory in use by runs that have a limit.";
    TASK_MEMORY_PREDICTED GAUGE "standin_task_memory_predicted_bytes" ["task", "user"] "Predicted upper bound of the peak of memory of runs under way that were predicted, summed.";
    TASK_READ COUNTER "standin_task_storage_read_bytes_total" ["task", "user"] "Bytes of block reads.";
    TASK_WRITTEN COUNTER "standin_task_storage_written_bytes_total" ["task", "user"] "Bytes of block writes.";
    TASK_RECEIVED COUNTER "standin_task_network_received_bytes_total" ["task", "user"] "TCP and UDP payload received.";
    TASK_SENT COUNTER "standin_task_network_sent_bytes_total" ["task", "user"] "TCP and UDP payload sent.";
    TASK_MAJOR_FAULTS COUNTER "standin_task_major_faults_total" ["task", "user"] "Page faults that waited for I/O.";
    TASK_OOM_KILLS COUNTER "standin_task_oom_kills_total" ["task", "user"] "Processes killed for want of memory.";
    TASK_THROTTLED COUNTER "standin_task_throttled_periods_total" ["task", "user"] "CPU quota periods in which the quota ran out.";
    TASK_SERVICE_TIME HISTOGRAM "standin_task_service_time_seconds" ["task", "user"] "From the last byte of a request to the first of its answer, on accepted TCP connections. The sum is worked out from the middle of each bucket.";

    PREDICTIONS COUNTER "standin_predictions_total" ["resource"] "Predictions that runs since the agent started could be held against.";
    PREDICTIONS_EXCEEDED COUNTER "standin_predictions_exceeded_total" ["resource"] "Of those, predictions whose upper bound the run exceeded.";
    PREDICTIONS_ERROR COUNTER "standin_predictions_error_ratio_total" ["resource"] "Sum of |expected - actual| / actual: over the predictions it is the mean relative error.";

    EVENTS COUNTER "standin_events_total" ["kind", "severity"] "Events logged since the agent started, by whoever writes this database.";
    FAILOVERS COUNTER "standin_failovers_total" ["service", "cause"] "Times that the traffic of a service was moved since the agent started: died, hang, unready, slow, asked.";
    SERVICE_INSTANCES GAUGE "standin_service_instances" ["service", "role"] "Instances of the services of the agent's user: primary, shadow, starting, retiring, ending.";
    SERVICE_SHADOWS GAUGE "standin_service_shadows_wanted" ["service"] "Shadows that a service wants now.";
    SERVICE_QUEUE GAUGE "standin_service_queue_connections" ["service"] "Connections that wait to be accepted.";
    SERVICE_CONNECTIONS COUNTER "standin_service_connections_total" ["service"] "Connections since the service began.";

    BUILD GAUGE "standin_build_info" ["version"] "1, with the version of the agent.";
    AGENT_START GAUGE "standin_agent_start_time_seconds" [] "When the agent started, seconds since 1970.";
    AGENT_CPU COUNTER "standin_agent_cpu_seconds_total" [] "CPU time of the agent.";
    AGENT_MEMORY GAUGE "standin_agent_resident_memory_bytes" [] "Resident memory of the agent, its share of the probes' maps included.";
    AGENT_LEARNT GAUGE "standin_agent_learnt_bytes" [] "Of that, what was learnt of tasks, for the next predictions: at most 4 MiB.";
    AGENT_TASKS GAUGE "standin_agent_tasks" [] "Runs that the agent measures.";
    AGENT_CGROUPS GAUGE "standin_agent_host_cgroups" [] "Cgroups of others that have used the CPU and are measured.";
    AGENT_RECORDED COUNTER "standin_agent_recorded_runs_total" [] "Runs recorded since the agent started.";
    AGENT_LOOK GAUGE "standin_agent_snapshot_seconds" [] "How long the last look at all tasks held the agent up.";
    PROBES GAUGE "standin_probe_measures" ["state"] "Measures whose probes are attached, and those whose are not.";
    PROBE_CPU GAUGE "standin_probe_cpu_ratio" ["probe", "program"] "Share of all CPUs that a BPF program took when it was counted last.";
    PROBE_RUNS GAUGE "standin_probe_runs_per_second" ["probe", "program"] "Runs of a BPF program when it was counted last.";
    PROBE_LOST COUNTER "standin_probe_lost_total" [] "What the probes should have counted and did not, since they were loaded; standin doctor tells what.";
    DATABASE GAUGE "standin_database_size_bytes" [] "Size of the database file.";
    DATABASE_LOG GAUGE "standin_database_log_bytes" [] "Size of the database's log of changes (-wal).";
    WRITER_QUEUED GAUGE "standin_database_queued_steps" [] "Steps that wait to be written.";
    WRITER_FAILURES COUNTER "standin_database_failed_steps_total" [] "Steps that could not be written, or found no room in the queue.";
    TASK_OVERFLOWED COUNTER "standin_metrics_overflowed_runs_total" [] "Runs counted under task (other), as metrics.tasks_max others had series already.";
    SCRAPES COUNTER "standin_metrics_scrapes_total" [] "Scrapes that were answered.";
}
