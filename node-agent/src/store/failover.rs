//! Failovers of services, and the traffic of the hours of their week.

use super::event::{self, Event, Severity};
use super::record::NewFailover;
use super::{Reader, Store, StoreError};
use rusqlite::{Connection, Result, Row, params};
use serde::Serialize;

/// Failovers that are kept of one service.
const KEPT: i64 = 10_000;

/// Weight of the newest week in the mean of an hour.
const NEWEST_WEEK: f64 = 0.3;

/// A failover, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailoverRow {
    /// Name of the service.
    pub service: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// `died`, `hang`, `unready`, `slow` or `asked`.
    pub cause: String,
    /// In words.
    pub evidence: String,
    /// The instance that had served.
    pub from_instance: Option<i64>,
    /// The one that serves since.
    pub to_instance: i64,
    /// What was done, and how many microseconds after `at_ms`; JSON.
    pub steps: String,
    /// Connections that waited.
    pub queued: i64,
    /// Connections that were moved.
    pub migrated: i64,
    /// Connections that the old one had accepted and not finished; `None` if it could not be asked.
    pub open: Option<i64>,
}

impl Store {
    /// Writes down that the traffic of a service was moved. Of old ones some thousands are kept.
    ///
    /// # Errors
    /// As for all writing.
    pub fn add_failover(&mut self, failover: &NewFailover) -> std::result::Result<(), StoreError> {
        self.transaction(|db| add(db, failover))
    }

    /// Books connections of a service to an hour of the week, 0 being Sunday 0:00 local time; once per hour.
    ///
    /// # Errors
    /// As for all writing.
    pub fn add_service_hour(
        &mut self,
        service: &str,
        uid: u32,
        hour_of_week: u32,
        connections: f64,
    ) -> std::result::Result<(), StoreError> {
        self.transaction(|db| {
            db.execute(
                "INSERT INTO service_hour (service, uid, hour_of_week, connections, weeks) VALUES (?1, ?2, ?3, ?4, 1)
                 ON CONFLICT DO UPDATE SET weeks = weeks + 1,
                     connections = connections + (excluded.connections - connections) * ?5",
                params![service, uid, hour_of_week, connections, NEWEST_WEEK],
            )
            .map(drop)
        })
    }
}

fn add(db: &Connection, failover: &NewFailover) -> Result<()> {
    let steps: serde_json::Map<_, _> =
        failover.steps.iter().map(|(step, us)| (step.clone(), serde_json::Value::from(*us))).collect();
    db.execute(
        "INSERT INTO failover (service, uid, at_ms, cause, evidence, from_instance, from_pid, to_instance, to_pid,
             steps, queued, migrated, open)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            failover.service,
            failover.uid,
            failover.at_ms,
            failover.cause,
            failover.evidence,
            failover.from_instance,
            failover.from_pid,
            failover.to_instance,
            failover.to_pid,
            serde_json::Value::Object(steps).to_string(),
            clamped(failover.queued),
            clamped(failover.migrated),
            failover.open.map(clamped),
        ],
    )?;
    event::log(db, &logged(failover))?;
    db.execute(
        "DELETE FROM failover WHERE service = ?1 AND uid = ?2 AND id <=
             (SELECT id FROM failover WHERE service = ?1 AND uid = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
        params![failover.service, failover.uid, KEPT],
    )?;
    Ok(())
}

/// The failover as an event. One that nobody asked for is a warning.
fn logged(failover: &NewFailover) -> Event {
    let severity = if failover.cause == "asked" { Severity::Info } else { Severity::Warning };
    let details = serde_json::json!({
        "cause": failover.cause,
        "from_instance": failover.from_instance,
        "to_instance": failover.to_instance,
        "queued": failover.queued,
        "migrated": failover.migrated,
    });
    let message =
        format!("{}: instance {} (pid {}) serves", failover.evidence, failover.to_instance, failover.to_pid);
    Event::new("failover", message).severity(severity).service(&failover.service).details(&details)
}

fn clamped(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Reader {
    /// The newest failovers, of one service or of all.
    ///
    /// # Errors
    /// As for all reading.
    pub fn failovers(
        &self,
        service: Option<&str>,
        limit: usize,
    ) -> std::result::Result<Vec<FailoverRow>, StoreError> {
        self.run_query(|db| {
            db.prepare(
                "SELECT service, at_ms, cause, evidence, from_instance, to_instance, steps, queued, migrated, open
                 FROM failover WHERE ?1 IS NULL OR service = ?1 ORDER BY id DESC LIMIT ?2",
            )?
            .query_map(params![service, i64::try_from(limit).unwrap_or(i64::MAX)], row)?
            .collect()
        })
    }

    /// Connections per hour of a service: mean of the hours of the week that are known.
    ///
    /// # Errors
    /// As for all reading.
    pub fn service_hours(&self, service: &str, uid: u32) -> std::result::Result<Vec<(u32, f64)>, StoreError> {
        self.run_query(|db| {
            db.prepare("SELECT hour_of_week, connections FROM service_hour WHERE service = ?1 AND uid = ?2")?
                .query_map(params![service, uid], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }
}

fn row(row: &Row) -> Result<FailoverRow> {
    Ok(FailoverRow {
        service: row.get(0)?,
        at_ms: row.get(1)?,
        cause: row.get(2)?,
        evidence: row.get(3)?,
        from_instance: row.get(4)?,
        to_instance: row.get(5)?,
        steps: row.get(6)?,
        queued: row.get(7)?,
        migrated: row.get(8)?,
        open: row.get(9)?,
    })
}

/// A failover for tests.
#[cfg(test)]
pub(super) fn sample() -> NewFailover {
    NewFailover {
        service: "web".into(),
        uid: 0,
        at_ms: 1000,
        cause: "died".into(),
        evidence: "killed by SIGKILL".into(),
        from_instance: Some(1),
        from_pid: Some(10),
        to_instance: 2,
        to_pid: 20,
        steps: vec![("noticed".into(), 120), ("thawed".into(), 480)],
        queued: 7,
        migrated: 9,
        open: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failovers_and_hours_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("standin.db");
        let mut store = Store::open(&path).unwrap().store;
        let failover = sample();
        store.add_failover(&failover).unwrap();
        for connections in [100.0, 200.0] {
            store.add_service_hour("web", 0, 9, connections).unwrap();
        }
        let reader = Reader::open(&path).unwrap();
        let rows = reader.failovers(Some("web"), 10).unwrap();
        assert_eq!((rows[0].cause.as_str(), rows[0].queued, rows[0].open), ("died", 7, None));
        assert_eq!(rows[0].steps, r#"{"noticed":120,"thawed":480}"#);
        assert!(reader.failovers(Some("other"), 10).unwrap().is_empty());
        let events = reader.events(&event::Filter::default(), 10).unwrap();
        assert_eq!((events[0].kind.as_str(), events[0].service.as_deref()), ("failover", Some("web")));
        assert_eq!(reader.service_hours("web", 0).unwrap(), [(9, 130.0)]);
    }
}
