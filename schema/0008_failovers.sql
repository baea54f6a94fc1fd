-- What happened to services: each time their traffic was moved, and how busy the hours of their week are.
CREATE TABLE failover (
    id              INTEGER PRIMARY KEY,
    service         TEXT    NOT NULL,
    uid             INTEGER NOT NULL,
    at_ms           INTEGER NOT NULL,
    cause           TEXT    NOT NULL CHECK (cause IN ('died', 'hang', 'unready', 'slow', 'asked')),
    evidence        TEXT    NOT NULL,
    from_instance   INTEGER,
    from_pid        INTEGER,
    to_instance     INTEGER NOT NULL,
    to_pid          INTEGER NOT NULL,
    steps           TEXT    NOT NULL CHECK (json_valid(steps)),
    queued          INTEGER NOT NULL,
    migrated        INTEGER NOT NULL,
    open            INTEGER
) STRICT;

CREATE INDEX failover_by_service ON failover (service, uid, at_ms);

CREATE TABLE service_hour (
    service         TEXT    NOT NULL,
    uid             INTEGER NOT NULL,
    hour_of_week    INTEGER NOT NULL CHECK (hour_of_week BETWEEN 0 AND 167),
    connections     REAL    NOT NULL,
    weeks           INTEGER NOT NULL,
    PRIMARY KEY (service, uid, hour_of_week)
) STRICT, WITHOUT ROWID;

CREATE VIEW failover_log AS
SELECT
    id AS failover_id,
    service,
    uid,
    strftime('%Y-%m-%d %H:%M:%f', at_ms / 1000.0, 'unixepoch') AS at_utc,
    cause,
    evidence,
    from_instance,
    from_pid,
    to_instance,
    to_pid,
    round(json_extract(steps, '$.noticed') / 1000.0, 3) AS noticed_ms,
    round(json_extract(steps, '$.turned') / 1000.0, 3) AS turned_ms,
    round(json_extract(steps, '$.migrated') / 1000.0, 3) AS migrated_ms,
    round(json_extract(steps, '$.thawed') / 1000.0, 3) AS thawed_ms,
    round(json_extract(steps, '$.ended') / 1000.0, 3) AS ended_ms,
    queued,
    migrated,
    open AS lost_at_most
FROM failover
ORDER BY id DESC;
