-- What a run's licences were used for: since when, how long it waited for them and held them; and of every peer the
-- most connections at once and the wait for its first answer.
ALTER TABLE run_peer ADD COLUMN answer_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run_peer ADD COLUMN open_max INTEGER NOT NULL DEFAULT 0;

ALTER TABLE run_license ADD COLUMN first_used_at_ms INTEGER;
ALTER TABLE run_license ADD COLUMN waited_ms INTEGER;
ALTER TABLE run_license ADD COLUMN held_ms INTEGER;

CREATE VIEW license_use AS
SELECT
    l.run_id, t.task_type, t.user, l.license, l.taken, l.used_peak AS used,
    strftime('%Y-%m-%d %H:%M:%f', l.first_used_at_ms / 1000.0, 'unixepoch') AS first_used_utc,
    round(l.waited_ms / 1000.0, 3) AS waited_s,
    round(l.held_ms / 1000.0, 3) AS held_s
FROM run_license l JOIN run r ON r.id = l.run_id JOIN task t ON t.id = r.task_id
ORDER BY l.run_id DESC, l.license;
