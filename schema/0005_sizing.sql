-- What a run was promised, how long it waited for that, and its licences; and more kinds of limits.
CREATE TABLE run_admission (
    run_id                INTEGER PRIMARY KEY REFERENCES run (id) ON DELETE CASCADE,
    priority              INTEGER NOT NULL,
    waited_ms             INTEGER NOT NULL,
    promised_memory_bytes INTEGER NOT NULL,
    promised_cpu_cores    REAL    NOT NULL,
    -- It was started although the host had no room for its promise.
    overcommitted         INTEGER NOT NULL CHECK (overcommitted IN (0, 1))
) STRICT;

CREATE TABLE run_license (
    run_id    INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    license   TEXT    NOT NULL,
    taken     INTEGER NOT NULL,
    used_peak INTEGER,
    PRIMARY KEY (run_id, license)
) STRICT, WITHOUT ROWID;

-- A CHECK can't be widened: the table is made anew.
CREATE TABLE limit_of_run (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name   TEXT    NOT NULL CHECK (name IN ('memory_max_bytes', 'memory_high_bytes', 'memory_low_bytes', 'cpu_max_cores',
                                            'cpu_burst_cores', 'cpu_weight', 'pids_max', 'io_weight',
                                            'io_read_max_bytes_per_s', 'io_write_max_bytes_per_s')),
    value  REAL    NOT NULL,
    origin TEXT    NOT NULL CHECK (origin IN ('predicted', 'manual')),
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;
INSERT INTO limit_of_run SELECT * FROM limit_applied;
DROP TABLE limit_applied;
ALTER TABLE limit_of_run RENAME TO limit_applied;

CREATE VIEW admission_log AS
SELECT
    a.run_id,
    t.task_type,
    t.user,
    strftime('%Y-%m-%d %H:%M:%S', r.started_at_ms / 1000, 'unixepoch') AS started_utc,
    a.priority,
    round(a.waited_ms / 1000.0, 3) AS waited_s,
    round(a.promised_memory_bytes / 1048576.0, 1) AS promised_memory_mib,
    round(r.memory_peak_bytes / 1048576.0, 1) AS used_memory_mib,
    round(a.promised_cpu_cores, 2) AS promised_cores,
    a.overcommitted,
    (SELECT group_concat(l.license || '=' || l.taken, ' ') FROM run_license l WHERE l.run_id = a.run_id) AS licenses
FROM run_admission a JOIN run r ON r.id = a.run_id JOIN task t ON t.id = r.task_id
ORDER BY a.run_id DESC;
