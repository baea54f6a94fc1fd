-- How much CPU a run used per window of 10 ms, 100 ms and 1 s.
CREATE TABLE run_cpu_demand (
    run_id       INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    window_ms    INTEGER NOT NULL,
    windows      INTEGER NOT NULL,
    windows_busy INTEGER NOT NULL,
    cpu_us       INTEGER NOT NULL,
    squares      INTEGER NOT NULL,
    peak_us      INTEGER NOT NULL,
    cpus_peak    INTEGER NOT NULL,
    late         INTEGER NOT NULL,
    counts       TEXT    NOT NULL CHECK (json_valid(counts)),
    PRIMARY KEY (run_id, window_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE demand_bucket (
    window_ms   INTEGER NOT NULL,
    bucket      INTEGER NOT NULL,
    lower_cores REAL    NOT NULL,
    upper_cores REAL,
    PRIMARY KEY (window_ms, bucket)
) STRICT, WITHOUT ROWID;

WITH RECURSIVE scale (window_ms, unit_us) AS (VALUES (10, 16), (100, 128), (1000, 1024)),
edge (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM edge WHERE i < 128),
valued (i, value) AS (
    SELECT i, CASE WHEN i < 16 THEN i ELSE (8 + i % 8) << (i / 8 - 1) END FROM edge
)
INSERT INTO demand_bucket
SELECT s.window_ms, a.i, a.value * s.unit_us / (s.window_ms * 1e3),
       CASE WHEN a.i < 127 THEN b.value * s.unit_us / (s.window_ms * 1e3) END
FROM scale s, valued a JOIN valued b ON b.i = a.i + 1;

CREATE VIEW cpu_demand AS
SELECT
    d.run_id, t.task_type, t.user, d.window_ms, d.windows,
    round(100.0 * (d.windows - d.windows_busy) / nullif(d.windows, 0), 1) AS idle_percent,
    round(d.cpu_us / (d.windows * d.window_ms * 1e3), 3) AS cores_mean,
    round(d.peak_us / (d.window_ms * 1e3), 3) AS cores_peak,
    round(1.0 * d.peak_us * d.windows / nullif(d.cpu_us, 0), 2) AS peak_to_mean,
    round((d.squares / 1e6 / d.windows - m.mean * m.mean) / nullif(m.mean, 0) * d.window_ms, 2) AS dispersion_ms
FROM run_cpu_demand d JOIN run r ON r.id = d.run_id JOIN task t ON t.id = r.task_id
JOIN (SELECT run_id, window_ms, cpu_us / nullif(windows * window_ms * 1e3, 0) AS mean FROM run_cpu_demand) m
    ON m.run_id = d.run_id AND m.window_ms = d.window_ms;

CREATE VIEW cpu_demand_histogram AS
SELECT
    d.run_id, t.task_type, t.user, d.window_ms, b.bucket,
    round(b.lower_cores, 4) AS lower_cores, round(b.upper_cores, 4) AS upper_cores,
    c.value AS count,
    round(100.0 * c.value / d.windows, 1) AS percent,
    printf('%.*c', 30.0 * c.value / (SELECT max(value) FROM json_each(d.counts)) + 0.99, '#') AS bar
FROM run_cpu_demand d JOIN run r ON r.id = d.run_id JOIN task t ON t.id = r.task_id,
     json_each(d.counts) c JOIN demand_bucket b ON b.bucket = c.key AND b.window_ms = d.window_ms
WHERE c.value > 0;
