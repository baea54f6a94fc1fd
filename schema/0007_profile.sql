-- What else a run did: order and purpose of its I/O, its walk through memory, its connections and peers.
ALTER TABLE run ADD COLUMN cpu_throttled_ns         INTEGER;
ALTER TABLE run ADD COLUMN memory_working_set_bytes INTEGER;
ALTER TABLE run ADD COLUMN faults_sequential        INTEGER;
ALTER TABLE run ADD COLUMN faults_strided           INTEGER;
ALTER TABLE run ADD COLUMN faults_random            INTEGER;
ALTER TABLE run ADD COLUMN block_read_sequential    INTEGER;
ALTER TABLE run ADD COLUMN block_write_sequential   INTEGER;
ALTER TABLE run ADD COLUMN block_sync_ops           INTEGER;
ALTER TABLE run ADD COLUMN block_flush_ops          INTEGER;
ALTER TABLE run ADD COLUMN block_discard_ops        INTEGER;
ALTER TABLE run ADD COLUMN block_discard_bytes      INTEGER;
ALTER TABLE run ADD COLUMN block_writeback_bytes    INTEGER;
ALTER TABLE run ADD COLUMN tcp_connects_failed      INTEGER;

-- The list of kinds grows: SQLite can change a check only with the table.
CREATE TABLE run_histogram_before AS SELECT * FROM run_histogram;
DROP TABLE run_histogram;
CREATE TABLE run_histogram (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    kind   TEXT    NOT NULL CHECK (kind IN ('cpu_burst_ns', 'cpu_wait_ns', 'block_read_ns', 'block_write_ns',
                                            'block_queue_ns', 'tcp_connect_ns', 'tcp_service_ns', 'tcp_rtt_ns')),
    counts TEXT    NOT NULL CHECK (json_valid(counts)),
    PRIMARY KEY (run_id, kind)
) STRICT, WITHOUT ROWID;
INSERT INTO run_histogram SELECT * FROM run_histogram_before;
DROP TABLE run_histogram_before;

CREATE TABLE run_peer (
    run_id         INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    place          INTEGER NOT NULL,
    address        TEXT    NOT NULL,
    port           INTEGER,
    connections    INTEGER NOT NULL,
    sent_bytes     INTEGER NOT NULL,
    received_bytes INTEGER NOT NULL,
    connect_ns     INTEGER NOT NULL,
    held_ns        INTEGER NOT NULL,
    first_at_ms    INTEGER NOT NULL,
    PRIMARY KEY (run_id, place)
) STRICT, WITHOUT ROWID;

CREATE VIEW service_time_histogram AS
SELECT run_id, task_type, user, bucket, lower, upper, count, percent, bar
FROM run_histogram_bucket WHERE kind = 'tcp_service_ns';

CREATE VIEW peer_summary AS
SELECT
    p.run_id, t.task_type, t.user, p.address, p.port, p.connections,
    round(p.sent_bytes / 1048576.0, 2) AS sent_mib,
    round(p.received_bytes / 1048576.0, 2) AS received_mib,
    round(p.connect_ns / 1e6 / nullif(p.connections, 0), 3) AS connect_ms,
    round(p.held_ns / 1e9, 2) AS held_s
FROM run_peer p JOIN run r ON r.id = p.run_id JOIN task t ON t.id = r.task_id
ORDER BY p.run_id DESC, p.place;
