-- Tables. Every column is explained in README.md; the views in 0002_views.sql are the public face.
-- "stnd": what tells this file from any other SQLite database.
PRAGMA application_id = 1937010276;

CREATE TABLE task (
    id                           INTEGER PRIMARY KEY,
    task_type                    TEXT    NOT NULL,
    uid                          INTEGER NOT NULL,
    user                         TEXT    NOT NULL,
    pruned_runs                  INTEGER NOT NULL DEFAULT 0,
    pruned_finished              INTEGER NOT NULL DEFAULT 0,
    pruned_failed                INTEGER NOT NULL DEFAULT 0,
    pruned_lost                  INTEGER NOT NULL DEFAULT 0,
    pruned_duration_s            REAL    NOT NULL DEFAULT 0,
    pruned_cpu_s                 REAL    NOT NULL DEFAULT 0,
    pruned_memory_peak_bytes_max INTEGER,
    UNIQUE (task_type, uid)
) STRICT;

-- Short columns first: reading them never walks over the long texts at the end of a row.
CREATE TABLE run (
    id                            INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id                       INTEGER NOT NULL REFERENCES task (id),
    state                         TEXT    NOT NULL CHECK (state IN ('running', 'finished', 'failed', 'lost')),
    started_at_ms                 INTEGER NOT NULL,
    ended_at_ms                   INTEGER,
    exit_code                     INTEGER,
    signal                        INTEGER,
    exec_errno                    INTEGER,
    out_of_memory                 INTEGER NOT NULL DEFAULT 0 CHECK (out_of_memory IN (0, 1)),
    out_of_tasks                  INTEGER NOT NULL DEFAULT 0 CHECK (out_of_tasks IN (0, 1)),
    throttled                     INTEGER NOT NULL DEFAULT 0 CHECK (throttled IN (0, 1)),
    engine                        TEXT    NOT NULL CHECK (engine IN ('agent', 'embedded', 'accounting')),
    policy                        TEXT    NOT NULL CHECK (policy IN ('elastic', 'strict', 'observe')),

    duration_ns                   INTEGER,
    cpu_ns                        INTEGER,
    cpu_user_ns                   INTEGER,
    cpu_system_ns                 INTEGER,
    cpu_wait_ns                   INTEGER,
    cpu_cores_peak                REAL,
    switches_voluntary            INTEGER,
    switches_forced               INTEGER,
    memory_peak_bytes             INTEGER,
    memory_charged_peak_bytes     INTEGER,
    process_rss_peak_bytes        INTEGER,
    faults_minor                  INTEGER,
    faults_major                  INTEGER,
    block_read_bytes              INTEGER,
    block_write_bytes             INTEGER,
    block_read_ops                INTEGER,
    block_write_ops               INTEGER,
    storage_read_bytes            INTEGER,
    storage_write_bytes           INTEGER,
    tcp_sent_bytes                INTEGER,
    tcp_received_bytes            INTEGER,
    udp_sent_bytes                INTEGER,
    udp_received_bytes            INTEGER,
    tcp_connects                  INTEGER,
    tcp_accepts                   INTEGER,
    tcp_retransmits               INTEGER,
    forks                         INTEGER,
    execs                         INTEGER,
    exits                         INTEGER,
    tasks_peak                    INTEGER,
    oom_kills                     INTEGER,

    owner_pid                     INTEGER NOT NULL,
    owner_start_ticks             INTEGER NOT NULL,
    owner_boot_id                 TEXT    NOT NULL,
    main_pid                      INTEGER,
    main_start_ticks              INTEGER,
    main_boot_id                  TEXT,
    cgroup_id                     INTEGER,
    cgroup_path                   TEXT,

    directory                     TEXT    NOT NULL,
    command                       TEXT    NOT NULL CHECK (json_valid(command)),
    coverage                      TEXT    CHECK (json_valid(coverage)),
    cpu_burst_ns_histogram        TEXT    CHECK (json_valid(cpu_burst_ns_histogram)),
    cpu_wait_ns_histogram         TEXT    CHECK (json_valid(cpu_wait_ns_histogram)),
    block_read_ns_histogram       TEXT    CHECK (json_valid(block_read_ns_histogram)),
    block_write_ns_histogram      TEXT    CHECK (json_valid(block_write_ns_histogram)),

    CHECK ((state = 'running') = (ended_at_ms IS NULL))
) STRICT;

-- History of one task, newest first, among any number of runs.
CREATE INDEX run_by_task ON run (task_id, id);
-- Retention by age.
CREATE INDEX run_by_end ON run (ended_at_ms) WHERE ended_at_ms IS NOT NULL;
-- The few that are running now.
CREATE INDEX run_running ON run (id) WHERE state = 'running';

CREATE TABLE run_feature (
    run_id   INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name     TEXT    NOT NULL,
    number   REAL,
    category TEXT,
    PRIMARY KEY (run_id, name),
    CHECK ((number IS NULL) <> (category IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE run_series (
    run_id               INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    at_ms                INTEGER NOT NULL,
    length_ms            INTEGER NOT NULL,
    cpu_cores            REAL    NOT NULL,
    memory_bytes         INTEGER NOT NULL,
    read_bytes_per_s     REAL    NOT NULL,
    write_bytes_per_s    REAL    NOT NULL,
    received_bytes_per_s REAL    NOT NULL,
    sent_bytes_per_s     REAL    NOT NULL,
    PRIMARY KEY (run_id, at_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE resource (
    name    TEXT PRIMARY KEY,
    place   INTEGER NOT NULL UNIQUE,
    unit    TEXT NOT NULL,
    divisor REAL NOT NULL,
    meaning TEXT NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO resource VALUES
    ('memory_peak_bytes',            0, 'MiB',   1048576, 'peak memory'),
    ('cpu_cores_mean',               1, 'cores', 1,       'mean cores in use'),
    ('cpu_cores_peak',               2, 'cores', 1,       'most cores in use over a sampling interval'),
    ('io_read_bytes_per_s',          3, 'MiB/s', 1048576, 'mean rate of reads from storage'),
    ('io_write_bytes_per_s',         4, 'MiB/s', 1048576, 'mean rate of writes to storage'),
    ('network_received_bytes_per_s', 5, 'MiB/s', 1048576, 'mean rate of network payload received'),
    ('network_sent_bytes_per_s',     6, 'MiB/s', 1048576, 'mean rate of network payload sent'),
    ('tasks_peak',                   7, 'tasks', 1,       'most processes and threads at once'),
    ('duration_s',                   8, 's',     1,       'wall time');

CREATE TABLE prediction (
    run_id   INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    resource TEXT    NOT NULL REFERENCES resource (name),
    expected REAL    NOT NULL,
    upper    REAL    NOT NULL,
    risk     REAL    NOT NULL,
    samples  INTEGER NOT NULL,
    level    TEXT    NOT NULL CHECK (level IN ('task_and_user', 'task', 'host')),
    reason   TEXT    NOT NULL,
    PRIMARY KEY (run_id, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE limit_applied (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name   TEXT    NOT NULL CHECK (name IN ('memory_max_bytes', 'memory_high_bytes', 'cpu_max_cores', 'cpu_weight', 'pids_max')),
    value  REAL    NOT NULL,
    origin TEXT    NOT NULL CHECK (origin IN ('predicted', 'manual')),
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE bucket (
    bucket   INTEGER PRIMARY KEY,
    lower_ns INTEGER NOT NULL,
    upper_ns INTEGER,
    lower    TEXT    NOT NULL,
    upper    TEXT    NOT NULL
) STRICT;

WITH RECURSIVE edge (i, ns) AS (
    SELECT 0, 1 UNION ALL SELECT i + 1, ns * 2 FROM edge WHERE i < 32
), worded (i, ns, text) AS (
    SELECT i, ns, CASE
        WHEN i = 0 THEN '0 ns'
        WHEN ns < 1000 THEN printf('%d ns', ns)
        WHEN ns < 1000000 THEN printf('%.3g µs', ns / 1e3)
        WHEN ns < 1000000000 THEN printf('%.3g ms', ns / 1e6)
        ELSE printf('%.3g s', ns / 1e9) END
    FROM edge
)
INSERT INTO bucket
SELECT a.i, CASE WHEN a.i = 0 THEN 0 ELSE a.ns END, CASE WHEN a.i = 31 THEN NULL ELSE b.ns END,
       a.text, CASE WHEN a.i = 31 THEN 'more' ELSE b.text END
FROM worded a JOIN worded b ON b.i = a.i + 1;
