-- Views: what people and programs should read. Units are in the names; every column is explained in README.md.

-- The one definition of what each predicted resource is, from the columns of a run, and of what a run is
-- worth as a sample. When a run ends and is worth something, its row here becomes one of table observation.
CREATE VIEW run_actual AS
SELECT
    id AS run_id,
    task_id,
    CASE
        WHEN state IN ('running', 'lost') OR exec_errno IS NOT NULL THEN 'none'
        WHEN state = 'finished' THEN 'sample'
        WHEN out_of_memory OR out_of_tasks THEN 'lower_bound'
        WHEN signal IN (1, 2, 15) OR exit_code IN (129, 130, 143) THEN 'stopped'
        ELSE 'none'
    END AS worth,
    out_of_memory AS memory_censored,
    throttled AS cpu_censored,
    out_of_tasks AS tasks_censored,
    memory_peak_bytes,
    cpu_ns * 1.0 / nullif(duration_ns, 0) AS cpu_cores_mean,
    cpu_cores_peak,
    max(ifnull(block_read_bytes, storage_read_bytes), ifnull(storage_read_bytes, block_read_bytes))
        * 1e9 / nullif(duration_ns, 0) AS io_read_bytes_per_s,
    max(ifnull(block_write_bytes, storage_write_bytes), ifnull(storage_write_bytes, block_write_bytes))
        * 1e9 / nullif(duration_ns, 0) AS io_write_bytes_per_s,
    coalesce(tcp_received_bytes + udp_received_bytes, tcp_received_bytes, udp_received_bytes)
        * 1e9 / nullif(duration_ns, 0) AS network_received_bytes_per_s,
    coalesce(tcp_sent_bytes + udp_sent_bytes, tcp_sent_bytes, udp_sent_bytes)
        * 1e9 / nullif(duration_ns, 0) AS network_sent_bytes_per_s,
    tasks_peak,
    duration_ns / 1e9 AS duration_s
FROM run;

CREATE VIEW run_resource AS
SELECT
    a.run_id,
    n.name AS resource,
    CASE n.name
        WHEN 'memory_peak_bytes' THEN a.memory_peak_bytes
        WHEN 'cpu_cores_mean' THEN a.cpu_cores_mean
        WHEN 'cpu_cores_peak' THEN a.cpu_cores_peak
        WHEN 'io_read_bytes_per_s' THEN a.io_read_bytes_per_s
        WHEN 'io_write_bytes_per_s' THEN a.io_write_bytes_per_s
        WHEN 'network_received_bytes_per_s' THEN a.network_received_bytes_per_s
        WHEN 'network_sent_bytes_per_s' THEN a.network_sent_bytes_per_s
        WHEN 'tasks_peak' THEN a.tasks_peak
        WHEN 'duration_s' THEN a.duration_s
    END AS value,
    a.worth = 'lower_bound' OR CASE n.name
        WHEN 'memory_peak_bytes' THEN a.memory_censored
        WHEN 'cpu_cores_mean' THEN a.cpu_censored
        WHEN 'cpu_cores_peak' THEN a.cpu_censored
        WHEN 'tasks_peak' THEN a.tasks_censored
        ELSE 0
    END AS lower_bound,
    a.worth
FROM run_actual a CROSS JOIN resource n;

CREATE VIEW task_summary AS
SELECT
    task_type,
    user,
    runs,
    failed,
    datetime(last_started_at_ms / 1000, 'unixepoch') AS last_run_utc,
    round(duration_s_sum / nullif(duration_samples, 0), 2) AS duration_s,
    round(cpu_s_sum / nullif(cpu_samples, 0), 2) AS cpu_s,
    round(cpu_cores_sum / nullif(cpu_samples, 0), 2) AS cores,
    round(memory_bytes_sum / nullif(memory_samples, 0) / 1048576, 1) AS memory_mib,
    round(memory_peak_bytes_max / 1048576.0, 1) AS memory_max_mib,
    round(read_bytes_sum / nullif(read_samples, 0) / 1048576, 1) AS read_mib,
    round(written_bytes_sum / nullif(written_samples, 0) / 1048576, 1) AS written_mib
FROM task
ORDER BY last_run_id DESC;

CREATE VIEW run_summary AS
SELECT
    r.id AS run_id,
    t.task_type,
    t.user,
    datetime(r.started_at_ms / 1000, 'unixepoch') AS started_utc,
    CASE
        WHEN r.state IN ('running', 'lost') THEN r.state
        WHEN r.exec_errno IS NOT NULL THEN printf('did not start: errno %d', r.exec_errno)
        WHEN r.out_of_memory AND r.state = 'failed' THEN 'out of memory'
        WHEN r.signal IS NOT NULL THEN printf('signal %d', r.signal)
        WHEN r.exit_code IS NOT NULL THEN printf('exit %d', r.exit_code)
        ELSE r.state
    END AS result,
    round(r.duration_ns / 1e9, 2) AS duration_s,
    round(r.cpu_ns / 1e9, 2) AS cpu_s,
    round(r.cpu_ns * 1.0 / nullif(r.duration_ns, 0), 2) AS cores,
    round(r.memory_peak_bytes / 1048576.0, 1) AS memory_mib,
    round(max(ifnull(r.block_read_bytes, r.storage_read_bytes),
        ifnull(r.storage_read_bytes, r.block_read_bytes)) / 1048576.0, 1) AS read_mib,
    round(max(ifnull(r.block_write_bytes, r.storage_write_bytes),
        ifnull(r.storage_write_bytes, r.block_write_bytes)) / 1048576.0, 1) AS written_mib,
    round(coalesce(r.tcp_received_bytes + r.udp_received_bytes, r.tcp_received_bytes, r.udp_received_bytes)
        / 1048576.0, 1) AS received_mib,
    round(coalesce(r.tcp_sent_bytes + r.udp_sent_bytes, r.tcp_sent_bytes, r.udp_sent_bytes)
        / 1048576.0, 1) AS sent_mib,
    r.faults_major,
    r.engine,
    r.policy,
    (SELECT group_concat(value, ' ') FROM json_each(l.command)) AS command_line
FROM run r JOIN task t ON t.id = r.task_id JOIN run_launch l ON l.run_id = r.id
ORDER BY r.id DESC;

-- One row per run, kind of histogram and bucket that is not empty. The next three show it by kind.
CREATE VIEW run_histogram_bucket AS
SELECT
    h.run_id, h.kind, t.task_type, t.user, b.bucket, b.lower, b.upper, c.value AS count,
    round(100.0 * c.value / (SELECT total(value) FROM json_each(h.counts)), 1) AS percent,
    printf('%.*c', 30.0 * c.value / (SELECT max(value) FROM json_each(h.counts)) + 0.99, '#') AS bar
FROM run_histogram h JOIN run r ON r.id = h.run_id JOIN task t ON t.id = r.task_id,
     json_each(h.counts) c JOIN bucket b ON b.bucket = c.key
WHERE c.value > 0;

CREATE VIEW cpu_burst_histogram AS
SELECT run_id, task_type, user, bucket, lower, upper, count, percent, bar
FROM run_histogram_bucket WHERE kind = 'cpu_burst_ns';

CREATE VIEW run_queue_wait_histogram AS
SELECT run_id, task_type, user, bucket, lower, upper, count, percent, bar
FROM run_histogram_bucket WHERE kind = 'cpu_wait_ns';

CREATE VIEW io_latency_histogram AS
SELECT
    run_id, task_type, user,
    CASE kind WHEN 'block_read_ns' THEN 'read' ELSE 'write' END AS direction,
    bucket, lower, upper, count, percent, bar
FROM run_histogram_bucket WHERE kind IN ('block_read_ns', 'block_write_ns');

CREATE VIEW prediction_accuracy AS
SELECT
    p.run_id,
    t.task_type,
    t.user,
    p.resource,
    n.unit,
    round(p.expected / n.divisor, 2) AS expected,
    round(p.upper / n.divisor, 2) AS upper,
    round(a.value / n.divisor, 2) AS actual,
    round(100.0 * (p.expected - a.value) / nullif(a.value, 0), 1) AS error_percent,
    a.value <= p.upper AS within_upper,
    a.lower_bound AS actual_is_lower_bound,
    p.samples,
    p.level
FROM prediction p
JOIN run r ON r.id = p.run_id
JOIN task t ON t.id = r.task_id
JOIN resource n ON n.name = p.resource
JOIN run_resource a ON a.run_id = p.run_id AND a.resource = p.resource
WHERE a.worth IN ('sample', 'lower_bound', 'stopped') AND a.value IS NOT NULL;

CREATE VIEW run_timeline AS
SELECT
    s.run_id,
    t.task_type,
    t.user,
    round(s.at_ms / 1e3, 2) AS at_s,
    round(s.length_ms / 1e3, 2) AS length_s,
    round(s.cpu_cores, 2) AS cores,
    round(s.memory_bytes / 1048576.0, 1) AS memory_mib,
    round(s.read_bytes_per_s / 1048576, 2) AS read_mib_per_s,
    round(s.write_bytes_per_s / 1048576, 2) AS written_mib_per_s,
    round(s.received_bytes_per_s / 1048576, 2) AS received_mib_per_s,
    round(s.sent_bytes_per_s / 1048576, 2) AS sent_mib_per_s
FROM run_series s JOIN run r ON r.id = s.run_id JOIN task t ON t.id = r.task_id;
