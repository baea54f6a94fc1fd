-- Tables. Every column is explained in README.md; the views in 0002_views.sql are the public face.
-- "stnd": what tells this file from any other SQLite database.
PRAGMA application_id = 1937010276;

-- What runs add up to follows them by the triggers at the end: nobody has to read all runs.
CREATE TABLE task (
    id                      INTEGER PRIMARY KEY,
    task_type               TEXT    NOT NULL,
    uid                     INTEGER NOT NULL,
    user                    TEXT    NOT NULL,

    runs                    INTEGER NOT NULL DEFAULT 0,
    finished                INTEGER NOT NULL DEFAULT 0,
    failed                  INTEGER NOT NULL DEFAULT 0,
    lost                    INTEGER NOT NULL DEFAULT 0,
    pruned                  INTEGER NOT NULL DEFAULT 0,
    last_run_id             INTEGER,
    last_started_at_ms      INTEGER,
    memory_peak_bytes_max   INTEGER,

    duration_samples        INTEGER NOT NULL DEFAULT 0,
    duration_s_sum          REAL    NOT NULL DEFAULT 0,
    cpu_samples             INTEGER NOT NULL DEFAULT 0,
    cpu_s_sum               REAL    NOT NULL DEFAULT 0,
    cpu_cores_sum           REAL    NOT NULL DEFAULT 0,
    memory_samples          INTEGER NOT NULL DEFAULT 0,
    memory_bytes_sum        REAL    NOT NULL DEFAULT 0,
    read_samples            INTEGER NOT NULL DEFAULT 0,
    read_bytes_sum          REAL    NOT NULL DEFAULT 0,
    read_bytes_per_s_sum    REAL    NOT NULL DEFAULT 0,
    written_samples         INTEGER NOT NULL DEFAULT 0,
    written_bytes_sum       REAL    NOT NULL DEFAULT 0,
    written_bytes_per_s_sum REAL    NOT NULL DEFAULT 0,
    UNIQUE (task_type, uid)
) STRICT;

-- Nearly all runs of a host have the same: it is kept once.
CREATE TABLE coverage (
    id      INTEGER PRIMARY KEY,
    sources TEXT    NOT NULL UNIQUE CHECK (json_valid(sources))
) STRICT;

-- Numbers only, so that many rows fit a page; words are in run_launch, distributions in run_histogram.
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
    coverage_id                   INTEGER REFERENCES coverage (id),

    CHECK ((state = 'running') = (ended_at_ms IS NULL))
) STRICT;

-- Newest runs of one task, among any number of runs.
CREATE INDEX run_by_task ON run (task_id, id);
-- Retention by age.
CREATE INDEX run_by_end ON run (ended_at_ms) WHERE ended_at_ms IS NOT NULL;
-- The few that are running now.
CREATE INDEX run_running ON run (id) WHERE state = 'running';
-- Whether anybody still needs a row of coverage.
CREATE INDEX run_by_coverage ON run (coverage_id);

CREATE TABLE run_launch (
    run_id            INTEGER PRIMARY KEY REFERENCES run (id) ON DELETE CASCADE,
    owner_pid         INTEGER NOT NULL,
    owner_start_ticks INTEGER NOT NULL,
    owner_boot_id     TEXT    NOT NULL,
    main_pid          INTEGER,
    main_start_ticks  INTEGER,
    main_boot_id      TEXT,
    cgroup_id         INTEGER,
    cgroup_path       TEXT,
    directory         TEXT    NOT NULL,
    command           TEXT    NOT NULL CHECK (json_valid(command))
) STRICT;

CREATE TABLE run_histogram (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    kind   TEXT    NOT NULL CHECK (kind IN ('cpu_burst_ns', 'cpu_wait_ns', 'block_read_ns', 'block_write_ns')),
    counts TEXT    NOT NULL CHECK (json_valid(counts)),
    PRIMARY KEY (run_id, kind)
) STRICT, WITHOUT ROWID;

-- What predictions are made from: the row of view run_actual of a run that ended and is worth something.
-- The table is in the order of the host's history, its index in that of each task's: both are read from one
-- end, without touching a run.
CREATE TABLE observation (
    run_id                       INTEGER PRIMARY KEY REFERENCES run (id) ON DELETE CASCADE,
    task_id                      INTEGER NOT NULL REFERENCES task (id),
    worth                        TEXT    NOT NULL CHECK (worth IN ('sample', 'lower_bound', 'stopped')),
    memory_censored              INTEGER NOT NULL,
    cpu_censored                 INTEGER NOT NULL,
    tasks_censored               INTEGER NOT NULL,
    memory_peak_bytes            INTEGER,
    cpu_cores_mean               REAL,
    cpu_cores_peak               REAL,
    io_read_bytes_per_s          REAL,
    io_write_bytes_per_s         REAL,
    network_received_bytes_per_s REAL,
    network_sent_bytes_per_s     REAL,
    tasks_peak                   INTEGER,
    duration_s                   REAL,
    -- The words and flags above as one number. Not a generated column: an index with one does not cover a query.
    flags                        INTEGER NOT NULL
) STRICT;

CREATE INDEX observation_by_task ON observation (
    task_id, run_id, flags, memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s,
    io_write_bytes_per_s, network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s
);

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

CREATE TRIGGER run_begins AFTER INSERT ON run BEGIN
    UPDATE task SET
        runs = runs + 1,
        last_run_id = new.id,
        last_started_at_ms = max(ifnull(last_started_at_ms, new.started_at_ms), new.started_at_ms)
    WHERE id = new.task_id;
END;

CREATE TRIGGER run_ends AFTER UPDATE OF state ON run WHEN old.state = 'running' AND new.state <> 'running' BEGIN
    UPDATE task SET
        finished = finished + (new.state = 'finished'),
        failed = failed + (new.state = 'failed'),
        lost = lost + (new.state = 'lost')
    WHERE id = new.task_id;
END;

CREATE TRIGGER run_is_pruned AFTER DELETE ON run BEGIN
    UPDATE task SET pruned = pruned + 1 WHERE id = old.task_id;
END;

CREATE TRIGGER memory_peak_grows AFTER UPDATE OF memory_peak_bytes ON run WHEN new.memory_peak_bytes IS NOT NULL BEGIN
    UPDATE task SET memory_peak_bytes_max = new.memory_peak_bytes
    WHERE id = new.task_id AND ifnull(memory_peak_bytes_max < new.memory_peak_bytes, 1);
END;

CREATE TRIGGER sample_counts AFTER INSERT ON observation WHEN new.worth = 'sample' BEGIN
    UPDATE task SET
        duration_samples = duration_samples + (new.duration_s IS NOT NULL),
        duration_s_sum = duration_s_sum + ifnull(new.duration_s, 0),
        cpu_samples = cpu_samples + (new.cpu_cores_mean IS NOT NULL),
        cpu_s_sum = cpu_s_sum + ifnull(new.cpu_cores_mean * new.duration_s, 0),
        cpu_cores_sum = cpu_cores_sum + ifnull(new.cpu_cores_mean, 0),
        memory_samples = memory_samples + (new.memory_peak_bytes IS NOT NULL),
        memory_bytes_sum = memory_bytes_sum + ifnull(new.memory_peak_bytes, 0),
        read_samples = read_samples + (new.io_read_bytes_per_s IS NOT NULL),
        read_bytes_sum = read_bytes_sum + ifnull(new.io_read_bytes_per_s * new.duration_s, 0),
        read_bytes_per_s_sum = read_bytes_per_s_sum + ifnull(new.io_read_bytes_per_s, 0),
        written_samples = written_samples + (new.io_write_bytes_per_s IS NOT NULL),
        written_bytes_sum = written_bytes_sum + ifnull(new.io_write_bytes_per_s * new.duration_s, 0),
        written_bytes_per_s_sum = written_bytes_per_s_sum + ifnull(new.io_write_bytes_per_s, 0)
    WHERE id = new.task_id;
END;

-- With the last sample the rounding errors of the sums go too.
CREATE TRIGGER sample_goes AFTER DELETE ON observation WHEN old.worth = 'sample' BEGIN
    UPDATE task SET
        duration_samples = duration_samples - (old.duration_s IS NOT NULL),
        duration_s_sum = duration_s_sum - ifnull(old.duration_s, 0),
        cpu_samples = cpu_samples - (old.cpu_cores_mean IS NOT NULL),
        cpu_s_sum = cpu_s_sum - ifnull(old.cpu_cores_mean * old.duration_s, 0),
        cpu_cores_sum = cpu_cores_sum - ifnull(old.cpu_cores_mean, 0),
        memory_samples = memory_samples - (old.memory_peak_bytes IS NOT NULL),
        memory_bytes_sum = memory_bytes_sum - ifnull(old.memory_peak_bytes, 0),
        read_samples = read_samples - (old.io_read_bytes_per_s IS NOT NULL),
        read_bytes_sum = read_bytes_sum - ifnull(old.io_read_bytes_per_s * old.duration_s, 0),
        read_bytes_per_s_sum = read_bytes_per_s_sum - ifnull(old.io_read_bytes_per_s, 0),
        written_samples = written_samples - (old.io_write_bytes_per_s IS NOT NULL),
        written_bytes_sum = written_bytes_sum - ifnull(old.io_write_bytes_per_s * old.duration_s, 0),
        written_bytes_per_s_sum = written_bytes_per_s_sum - ifnull(old.io_write_bytes_per_s, 0)
    WHERE id = old.task_id;
    UPDATE task SET
        duration_s_sum = 0, cpu_s_sum = 0, cpu_cores_sum = 0, memory_bytes_sum = 0,
        read_bytes_sum = 0, read_bytes_per_s_sum = 0, written_bytes_sum = 0, written_bytes_per_s_sum = 0
    WHERE id = old.task_id AND duration_samples = 0;
END;

-- A long run may change its coverage at every checkpoint: rows that no run has go at once.
CREATE TRIGGER coverage_changes AFTER UPDATE OF coverage_id ON run WHEN old.coverage_id <> new.coverage_id BEGIN
    DELETE FROM coverage
    WHERE id = old.coverage_id AND NOT EXISTS (SELECT 1 FROM run WHERE coverage_id = old.coverage_id);
END;

CREATE TRIGGER coverage_goes AFTER DELETE ON run WHEN old.coverage_id IS NOT NULL BEGIN
    DELETE FROM coverage
    WHERE id = old.coverage_id AND NOT EXISTS (SELECT 1 FROM run WHERE coverage_id = old.coverage_id);
END;
