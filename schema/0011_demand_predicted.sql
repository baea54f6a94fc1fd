-- CPU demand per 100 ms and per second, and operations on storage, become resources that are predicted.
ALTER TABLE run ADD COLUMN cpu_cores_p95_100ms REAL;
ALTER TABLE run ADD COLUMN cpu_cores_p95_1s REAL;

ALTER TABLE observation ADD COLUMN cpu_cores_p95_100ms REAL;
ALTER TABLE observation ADD COLUMN cpu_cores_p95_1s REAL;
ALTER TABLE observation ADD COLUMN io_read_ops_per_s REAL;
ALTER TABLE observation ADD COLUMN io_write_ops_per_s REAL;

DROP INDEX observation_by_task;
CREATE INDEX observation_by_task ON observation (
    task_id, run_id, flags, memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s,
    io_write_bytes_per_s, network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s,
    cpu_cores_p95_100ms, cpu_cores_p95_1s, io_read_ops_per_s, io_write_ops_per_s
);

INSERT INTO resource VALUES
    ('cpu_cores_p95_100ms', 9,  'cores', 1, 'cores that are enough for 95 % of windows of 100 ms'),
    ('cpu_cores_p95_1s',    10, 'cores', 1, 'cores that are enough for 95 % of seconds'),
    ('io_read_ops_per_s',   11, 'ops/s', 1, 'mean rate of block reads'),
    ('io_write_ops_per_s',  12, 'ops/s', 1, 'mean rate of block writes');

DROP VIEW run_actual;
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
    duration_ns / 1e9 AS duration_s,
    cpu_cores_p95_100ms,
    cpu_cores_p95_1s,
    block_read_ops * 1e9 / nullif(duration_ns, 0) AS io_read_ops_per_s,
    block_write_ops * 1e9 / nullif(duration_ns, 0) AS io_write_ops_per_s
FROM run;

DROP VIEW run_resource;
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
        WHEN 'cpu_cores_p95_100ms' THEN a.cpu_cores_p95_100ms
        WHEN 'cpu_cores_p95_1s' THEN a.cpu_cores_p95_1s
        WHEN 'io_read_ops_per_s' THEN a.io_read_ops_per_s
        WHEN 'io_write_ops_per_s' THEN a.io_write_ops_per_s
    END AS value,
    a.worth = 'lower_bound' OR CASE n.name
        WHEN 'memory_peak_bytes' THEN a.memory_censored
        WHEN 'cpu_cores_mean' THEN a.cpu_censored
        WHEN 'cpu_cores_peak' THEN a.cpu_censored
        WHEN 'cpu_cores_p95_100ms' THEN a.cpu_censored
        WHEN 'cpu_cores_p95_1s' THEN a.cpu_censored
        WHEN 'tasks_peak' THEN a.tasks_censored
        ELSE 0
    END AS lower_bound,
    a.worth
FROM run_actual a CROSS JOIN resource n;

-- Operations were counted before: what is known of them is not to be learnt again.
UPDATE observation SET (io_read_ops_per_s, io_write_ops_per_s) = (
    SELECT a.io_read_ops_per_s, a.io_write_ops_per_s FROM run_actual a WHERE a.run_id = observation.run_id
);
