-- What standin did to tasks, as it happened: limits that followed, admissions, licences, releases.
CREATE TABLE event (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms     INTEGER NOT NULL,
    severity  TEXT    NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    kind      TEXT    NOT NULL,
    task_type TEXT,
    -- An event outlives its run.
    run_id    INTEGER REFERENCES run (id) ON DELETE SET NULL,
    service   TEXT,
    message   TEXT    NOT NULL,
    details   TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(details))
) STRICT;

CREATE INDEX event_by_run ON event (run_id) WHERE run_id IS NOT NULL;

CREATE VIEW event_log AS
SELECT
    e.id AS event_id,
    strftime('%Y-%m-%d %H:%M:%f', e.at_ms / 1000.0, 'unixepoch') AS at_utc,
    e.severity,
    e.kind,
    ifnull(e.task_type, t.task_type) AS task_type,
    e.run_id,
    e.service,
    e.message,
    e.details
FROM event e LEFT JOIN run r ON r.id = e.run_id LEFT JOIN task t ON t.id = r.task_id
ORDER BY e.id DESC;
