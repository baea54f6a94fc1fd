-- How good predictions were as time went by: a week begins on Monday, UTC.
CREATE VIEW prediction_accuracy_weekly AS
SELECT
    a.task_type,
    a.user,
    a.resource,
    date(r.started_at_ms / 1000, 'unixepoch', 'weekday 0', '-6 days') AS week,
    count(*) AS runs,
    round(avg(abs(a.error_percent)), 1) AS mean_error_percent,
    round(100.0 * avg(a.within_upper), 1) AS within_upper_percent,
    round(avg(a.upper / nullif(a.actual, 0)), 2) AS upper_over_actual
FROM prediction_accuracy a JOIN run r ON r.id = a.run_id
-- What is told of other tasks is no prediction of this one.
WHERE NOT a.actual_is_lower_bound AND a.level <> 'host'
GROUP BY a.task_type, a.user, a.resource, week;
