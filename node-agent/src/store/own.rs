//! One user's part of the database, as a database: for those who may not read the whole, in which everybody's command
//! lines are.
//!
//! What goes over is said by a table's columns, and a table that names no owner does not: `uid` itself, the `task_id`
//! of an own task, the `run_id` of an own run. So a table that a later schema adds stays here until somebody decides.

use super::open::{self, SCHEMA_VERSION};
use super::{Store, StoreError};
use rusqlite::{Connection, OpenFlags, Result, params};
use std::path::Path;

/// Most runs that go over, the newest.
const RUNS_MAX: i64 = 10_000;

/// Tables that are the same for all: they come with the schema.
const FIXED: [&str; 3] = ["bucket", "demand_bucket", "resource"];

impl Store {
    /// The rows of user `uid` in the database at `path`, as the bytes of a database of the same schema. Reads only; of
    /// more than 10,000 runs the newest go over.
    ///
    /// # Errors
    /// When the database can't be read, or is of another schema.
    pub fn own_part(path: &Path, uid: u32) -> std::result::Result<Vec<u8>, StoreError> {
        let of = |error| StoreError::of(path, error);
        let mut own = Connection::open_in_memory_with_flags(
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI,
        )
        .map_err(of)?;
        open::to_latest(&mut own, path)?;
        copy(&own, path, uid).map_err(of)?;
        Ok(own.serialize("main").map_err(of)?.to_vec())
    }
}

fn copy(own: &Connection, path: &Path, uid: u32) -> Result<()> {
    own.execute("ATTACH ? AS host", [open::uri(path, "mode=ro")])?;
    let version: i64 = own.query_row("PRAGMA host.user_version", [], |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        return Err(rusqlite::Error::InvalidParameterName(format!("schema {version}")));
    }
    // Sums and checks hold already for what is copied.
    own.pragma_update(None, "foreign_keys", false)?;
    for trigger in names(own, "main", "trigger")? {
        own.execute_batch(&format!("DROP TRIGGER \"{trigger}\""))?;
    }
    own.execute_batch("BEGIN; CREATE TEMP TABLE own_run (id INTEGER PRIMARY KEY)")?;
    own.execute(
        "INSERT INTO temp.own_run SELECT r.id FROM host.run r JOIN host.task t ON t.id = r.task_id
         WHERE t.uid = ?1 ORDER BY r.id DESC LIMIT ?2",
        params![uid, RUNS_MAX],
    )?;
    for table in names(own, "main", "table")? {
        if let Some(condition) = condition(own, &table)? {
            let columns = columns(own, &table)?.join("\", \"");
            let sql = format!(
                "INSERT INTO main.\"{table}\" (\"{columns}\") SELECT \"{columns}\" FROM host.\"{table}\" WHERE {condition}"
            );
            let mut statement = own.prepare(&sql)?;
            match statement.parameter_count() {
                0 => statement.execute([])?,
                _ => statement.execute([uid])?,
            };
        }
    }
    own.execute_batch("COMMIT; DROP TABLE temp.own_run; DETACH host")
}

/// Which rows of a table are the user's; `None` where nothing goes over.
fn condition(db: &Connection, table: &str) -> Result<Option<&'static str>> {
    if FIXED.contains(&table) {
        return Ok(None);
    }
    let columns = columns(db, table)?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    Ok(match table {
        "run" => Some("id IN (SELECT id FROM temp.own_run)"),
        // Kept once for all runs: what the probes could do is no secret.
        "coverage" => {
            Some("id IN (SELECT coverage_id FROM host.run WHERE id IN (SELECT id FROM temp.own_run))")
        }
        // Those of an own run, and those of a service that is no other user's as well.
        "event" => Some(
            "run_id IN (SELECT id FROM temp.own_run) OR (run_id IS NULL AND service IN
                 (SELECT service FROM host.failover WHERE uid = ?1
                  EXCEPT SELECT service FROM host.failover WHERE uid <> ?1))",
        ),
        _ if has("uid") => Some("uid = ?1"),
        _ if has("run_id") => Some("run_id IN (SELECT id FROM temp.own_run)"),
        _ => None,
    })
}

fn names(db: &Connection, schema: &str, kind: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT name FROM {schema}.sqlite_schema WHERE type = ? AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    );
    db.prepare(&sql)?.query_map([kind], |row| row.get(0))?.collect()
}

fn columns(db: &Connection, table: &str) -> Result<Vec<String>> {
    db.prepare("SELECT name FROM pragma_table_info(?, 'main')")?
        .query_map([table], |row| row.get(0))?
        .collect()
}
