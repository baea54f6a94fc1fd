//! The event log: what standin did, when and to whom. Written in the transaction of the batch it comes with,
//! read newest first, and bounded by age and number ([`super::Retention`]).
//!
//! An event is built where something happens and handed to [`super::Writer::log`], which never waits:
//!
//! ```
//! use standin::store::event::{Event, Severity};
//! let event = Event::new("limit_raised", "memory.high raised to 1.5 GiB")
//!     .task("train.py")
//!     .severity(Severity::Info)
//!     .details(&serde_json::json!({ "memory_high_bytes": 1_610_612_736_u64 }));
//! ```

use super::record::RunId;
use crate::host;
use rusqlite::{Connection, Result, Row, params};
use serde::Serialize;

/// Longest message, bytes; what is over is cut off.
const MESSAGE_BYTES_MAX: usize = 4096;

/// How much an event matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Standin did what it is for.
    #[default]
    Info,
    /// A task is worse off than it should be, or soon will be.
    Warning,
    /// Something failed.
    Error,
}

impl Severity {
    /// All, from the least.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// The word in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|severity| severity.name() == name).unwrap_or_default()
    }
}

/// Something that happened, to be logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    at_ms: i64,
    severity: Severity,
    kind: &'static str,
    task_type: Option<String>,
    run: Option<RunId>,
    service: Option<String>,
    message: String,
    details: String,
}

impl Event {
    /// It happened now. `kind` is one word that programs can look for (`schema/README.md` lists them),
    /// `message` one line for people.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Self {
            at_ms: host::now_ms(),
            severity: Severity::Info,
            kind,
            task_type: None,
            run: None,
            service: None,
            message,
            details: "{}".into(),
        }
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }

    /// The kind of task it is about.
    #[must_use]
    pub fn task(self, task_type: impl Into<String>) -> Self {
        Self { task_type: Some(task_type.into()), ..self }
    }

    /// The run it is about, where its number is known.
    #[must_use]
    pub fn run(self, run: impl Into<Option<RunId>>) -> Self {
        Self { run: run.into(), ..self }
    }

    /// The service it is about.
    #[must_use]
    pub fn service(self, name: impl Into<String>) -> Self {
        Self { service: Some(name.into()), ..self }
    }

    /// Numbers and names for programs: a JSON object, with units in its keys.
    #[must_use]
    pub fn details(self, details: &serde_json::Value) -> Self {
        Self { details: details.to_string(), ..self }
    }
}

impl Event {
    /// The line for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether somebody should be told.
    pub fn is_warning(&self) -> bool {
        self.severity > Severity::Info
    }
}

/// An event as it was logged.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it, with units")]
pub struct EventRow {
    pub event_id: i64,
    pub at_ms: i64,
    pub severity: Severity,
    pub kind: String,
    pub task_type: Option<String>,
    pub run_id: Option<RunId>,
    pub service: Option<String>,
    pub message: String,
    pub details: serde_json::Value,
}

/// Which events are wanted. The default is all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Of this kind.
    pub kind: Option<String>,
    /// About this kind of task.
    pub task_type: Option<String>,
    /// About this run.
    pub run: Option<i64>,
    /// About this service.
    pub service: Option<String>,
    /// At least so grave.
    pub severity: Severity,
    /// At this time or later, milliseconds since the epoch.
    pub since_ms: i64,
    /// At this time or earlier; `None`: up to now.
    pub until_ms: Option<i64>,
    /// Logged after the event of this number.
    pub after: i64,
}

pub(super) fn log(db: &Connection, event: &Event) -> Result<()> {
    // A run may have been deleted by hand; what happened is no less true.
    db.prepare_cached(
        "INSERT INTO event (at_ms, severity, kind, task_type, run_id, service, message, details)
         VALUES (?, ?, ?, ?, (SELECT id FROM run WHERE id = ?), ?, ?, ?)",
    )?
    .execute(params![
        event.at_ms,
        event.severity.name(),
        event.kind,
        event.task_type,
        event.run.map(|run| run.0),
        event.service,
        event.message,
        event.details,
    ])
    .map(|_| ())
}

/// The newest `limit` events that pass the filter, newest first.
pub(super) fn read(db: &Connection, filter: &Filter, limit: usize) -> Result<Vec<EventRow>> {
    let severities: Vec<_> =
        Severity::ALL.into_iter().filter(|s| *s >= filter.severity).map(Severity::name).collect();
    db.prepare_cached(
        "SELECT e.id, e.at_ms, e.severity, e.kind, ifnull(e.task_type, t.task_type) AS task_type, e.run_id,
                e.service, e.message, e.details
         FROM event e LEFT JOIN run r ON r.id = e.run_id LEFT JOIN task t ON t.id = r.task_id
         WHERE e.id > ?1 AND e.at_ms >= ?2 AND e.severity IN (SELECT value FROM json_each(?3))
           AND (?4 IS NULL OR e.kind = ?4) AND (?5 IS NULL OR ifnull(e.task_type, t.task_type) = ?5)
           AND (?6 IS NULL OR e.run_id = ?6) AND (?7 IS NULL OR e.service = ?7)
           AND (?8 IS NULL OR e.at_ms <= ?8)
         ORDER BY e.id DESC LIMIT ?9",
    )?
    .query_map(
        params![
            filter.after,
            filter.since_ms,
            super::columns::json(&severities),
            filter.kind,
            filter.task_type,
            filter.run,
            filter.service,
            filter.until_ms,
            i64::try_from(limit).unwrap_or(i64::MAX)
        ],
        row,
    )?
    .collect()
}

fn row(row: &Row<'_>) -> Result<EventRow> {
    Ok(EventRow {
        event_id: row.get("id")?,
        at_ms: row.get("at_ms")?,
        severity: Severity::of(row.get_ref("severity")?.as_str()?),
        kind: row.get("kind")?,
        task_type: row.get("task_type")?,
        run_id: row.get::<_, Option<i64>>("run_id")?.map(RunId),
        service: row.get("service")?,
        message: row.get("message")?,
        details: serde_json::from_str(row.get_ref("details")?.as_str()?).unwrap_or_default(),
    })
}

/// Deletes events before a time, and the oldest of more than `keep` (0: no bound).
pub(super) fn prune(db: &Connection, before_ms: i64, keep: u32) -> Result<usize> {
    let old = db.execute("DELETE FROM event WHERE at_ms < ?", [before_ms])?;
    if keep == 0 {
        return Ok(old);
    }
    let surplus = db.execute(
        "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)",
        [keep],
    )?;
    Ok(old + surplus)
}
