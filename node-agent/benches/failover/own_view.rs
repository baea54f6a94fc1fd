//! The same failovers as standin logged them, to be held against what clients saw.

use crate::support::Sandbox;
use crate::table::spread;
use rusqlite::{Connection, OpenFlags};

/// A failover of the database's view `failover_log`.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) cause: String,
    pub(crate) evidence: String,
    /// Noticed, turned, migrated, thawed, ended: milliseconds after the death, or after its detection.
    pub(crate) steps: [Option<f64>; 5],
    pub(crate) queued: i64,
    pub(crate) migrated: i64,
}

const STEPS: [&str; 5] = ["noticed", "turned", "migrated", "thawed", "ended"];

/// All failovers of a service, oldest first.
pub(crate) fn logged(sandbox: &Sandbox, service: &str) -> Vec<Logged> {
    // The last one may be on its way into the database.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let read = || -> rusqlite::Result<Vec<Logged>> {
        let database = Connection::open_with_flags(sandbox.database(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut statement = database.prepare(
            "SELECT cause, evidence, noticed_ms, turned_ms, migrated_ms, thawed_ms, ended_ms, queued, migrated
             FROM failover_log WHERE service = ? ORDER BY failover_id",
        )?;
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Logged {
                cause: row.get(0)?,
                evidence: row.get(1)?,
                steps: [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?],
                queued: row.get(7)?,
                migrated: row.get(8)?,
            })
        };
        statement.query_map([service], row)?.collect()
    };
    read().unwrap_or_else(|error| {
        println!("the failover log can't be read: {error}");
        Vec::new()
    })
}

/// Prints the steps of all failovers of a service.
pub(crate) fn own_view(sandbox: &Sandbox, service: &str) {
    let rows = logged(sandbox, service);
    let sum = |of: fn(&Logged) -> i64| rows.iter().map(of).sum::<i64>();
    println!(
        "as standin logged its {} failovers ({} died, {} hung): {} queued, {} migrated; ms, median [p25 p75] p99:",
        rows.len(),
        rows.iter().filter(|row| row.cause == "died").count(),
        rows.iter().filter(|row| row.cause == "hang").count(),
        sum(|row| row.queued),
        sum(|row| row.migrated)
    );
    for (index, step) in STEPS.iter().enumerate() {
        let values: Vec<f64> = rows.iter().filter_map(|row| row.steps[index]).collect();
        println!("  {step:<10}{}", spread(&values));
    }
}
