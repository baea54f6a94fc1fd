//! What was logged since somebody looked last, in numbers: whoever reads all of it in turn counts every event once.

use super::{Reader, StoreError};
use rusqlite::Row;

/// Counts since a row, by two words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Number of the last row that is counted.
    pub last: i64,
    /// Events: kind and severity; failovers: service and cause.
    pub counts: Vec<(String, String, u64)>,
}

impl Reader {
    /// Number of the last event, and of the last failover: 0 where there is none.
    ///
    /// # Errors
    /// When the database cannot be read: as for the others.
    pub fn tail_ends(&self) -> Result<(i64, i64), StoreError> {
        let sql = "SELECT ifnull((SELECT max(id) FROM event), 0), ifnull((SELECT max(id) FROM failover), 0)";
        self.run_query(|db| db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))))
    }

    /// Events after the one of this number.
    ///
    /// # Errors
    /// See above.
    pub fn events_after(&self, last: i64) -> Result<Tail, StoreError> {
        self.tail(
            last,
            "SELECT max(id), kind, severity, count(*) FROM event WHERE id > ? GROUP BY kind, severity",
        )
    }

    /// Failovers after the one of this number.
    ///
    /// # Errors
    /// See above.
    pub fn failovers_after(&self, last: i64) -> Result<Tail, StoreError> {
        self.tail(
            last,
            "SELECT max(id), service, cause, count(*) FROM failover WHERE id > ? GROUP BY service, cause",
        )
    }

    fn tail(&self, last: i64, sql: &str) -> Result<Tail, StoreError> {
        let row = |row: &Row<'_>| {
            let count: i64 = row.get(3)?;
            Ok((row.get::<_, i64>(0)?, (row.get(1)?, row.get(2)?, u64::try_from(count).unwrap_or(0))))
        };
        let rows = self
            .run_query(|db| db.prepare_cached(sql)?.query_map([last], row)?.collect::<Result<Vec<_>, _>>())?;
        let last = rows.iter().map(|(id, _)| *id).max().unwrap_or(last);
        Ok(Tail { last, counts: rows.into_iter().map(|(_, counted)| counted).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::event::{Event, Severity};

    #[test]
    fn every_event_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("standin.db");
        let mut store = Store::open(&path).unwrap().store;
        let mut log = |kind, severity| store.log(&Event::new(kind, "x").severity(severity)).unwrap();
        log("queued", Severity::Info);
        let reader = Reader::open(&path).unwrap();
        let (begin, failovers) = reader.tail_ends().unwrap();
        assert_eq!(reader.events_after(begin).unwrap(), Tail { last: begin, counts: Vec::new() });
        for severity in [Severity::Info, Severity::Info, Severity::Error] {
            log("limit_refused", severity);
        }
        let tail = reader.events_after(begin).unwrap();
        assert_eq!(
            tail.counts,
            [("limit_refused".into(), "error".into(), 1), ("limit_refused".into(), "info".into(), 2)]
        );
        assert!(reader.events_after(tail.last).unwrap().counts.is_empty());
        store.add_failover(&crate::store::failover::sample()).unwrap();
        assert_eq!(reader.failovers_after(failovers).unwrap().counts, [("web".into(), "died".into(), 1)]);
    }
}
