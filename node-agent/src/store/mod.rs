//! The database: what tasks did, what was predicted for them and what was limited.
//!
//! **What it guarantees.** SQLite in WAL mode with `synchronous=NORMAL`; everything about one step of a run
//! (its beginning with features, prediction and limits; a checkpoint; its end) is one transaction, or one
//! part of a batch that is one transaction. So
//! - *`kill -9` of the writer* loses nothing that was answered, and never leaves half a run: a run that was
//!   under way stays `running` until somebody adopts it or closes it as lost;
//! - *a power cut* leaves a sound database, and takes what was committed since the log was last synced: the
//!   agent's [`writer`] sees to it that this is about a second. What a launcher that measures by itself committed is
//!   as safe as any file that was just written: it is on the disk when the kernel has written it back
//!   (`vm.dirty_expire_centisecs`), or at the next checkpoint of the log;
//! - *a full disk* fails the write with [`StoreError::NoSpace`], undoes that transaction, and the next one
//!   may succeed;
//! - *a damaged file* is moved aside when it is opened for writing, and a fresh one begins;
//! - *several processes* may write at once (the agent, and launchers that measure by themselves); each
//!   waits up to 5 s for the others.
//!
//! **Layout.** `schema/*.sql` has the tables and views, `schema/README.md` explains each column. Here
//! `open` opens and migrates, `columns` maps a fingerprint to its columns and rows, `write` writes, `history`
//! reads what predictions are made from, `read` what people look at, and `event` is the log
//! of what standin did, and `writer` the thread that batches the agent's writes.

mod admission;
mod columns;
mod demand;
mod error;
pub mod event;
pub mod failover;
mod history;
pub mod moment;
mod open;
mod outcomes;
mod own;
pub mod past;
mod peers;
mod prune;
pub mod read;
pub mod record;
pub mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod write;
pub mod writer;

use crate::fingerprint::Measured;
use crate::fingerprint::key::TaskKey;
use crate::host::ProcessId;
use crate::predict::History;
pub use error::StoreError;
pub use history::RunsBehind;
pub use open::{APPLICATION_ID, SCHEMA_VERSION};
pub use prune::Retention;
pub use read::Reader;
use record::{Ending, LicensesUsed, NewRun, OpenRun, RunId};
use rusqlite::{Connection, TransactionBehavior};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
pub(crate) use write::limit_parts;
pub use writer::Writer;

/// A connection that writes.
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

/// A [`Store`], and what became of a damaged database in its place.
pub struct Opened {
    /// Ready for writing.
    pub store: Store,
    /// Where the damaged database went.
    pub moved_aside: Option<PathBuf>,
}

impl Store {
    /// Opens the database, making it (0640) and its directory (0750) if absent. A damaged file is moved aside
    /// with its log to `NAME.corrupt-SECONDS` and a fresh one begun.
    ///
    /// Only what is cheap is checked: the header, the size and the schema. See [`Store::is_sound`].
    ///
    /// # Errors
    /// A newer schema, a database of another program, no permission, a read-only or full file system, a lock
    /// held for more than 5 s.
    pub fn open(path: &Path) -> Result<Opened, StoreError> {
        let (connection, moved_aside) = open::read_write(path)?;
        let store = Self { connection, path: path.to_owned() };
        Ok(Opened { store, moved_aside })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole database to find damage: about a second per GB.
    ///
    /// # Errors
    /// When it cannot be read at all.
    pub fn is_sound(&self) -> Result<bool, StoreError> {
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| StoreError::of(&self.path, error))?;
        Ok(verdict == "ok")
    }

    /// Waits until everything that was committed is on the disk: after that a power cut can't take it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        let log = open::beside(&self.path, "-wal");
        match File::open(&log).and_then(|log| log.sync_data()) {
            // Where there can be no log, every commit is synced by SQLite.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| StoreError::File { action: "sync", path: log, source }),
        }
    }

    /// Writes down that a run starts.
    ///
    /// # Errors
    /// No space, a lock held for too long, or any other failure of SQLite: as for all that follow.
    pub fn begin_run(&mut self, run: &NewRun) -> Result<RunId, StoreError> {
        self.transaction(|db| write::begin(db, run))
    }

    /// Writes down the main process of a run.
    ///
    /// # Errors
    /// [`StoreError::NotRunning`], or as [`Store::begin_run`].
    pub fn set_main(&mut self, id: RunId, main: &ProcessId) -> Result<(), StoreError> {
        let changed = self.transaction(|db| write::set_main(db, id, main))?;
        self.running(id, changed)
    }

    /// Writes down the numbers so far, so that they survive whoever measures.
    ///
    /// # Errors
    /// As [`Store::set_main`].
    pub fn checkpoint(&mut self, id: RunId, measured: &Measured) -> Result<(), StoreError> {
        let changed = self.transaction(|db| write::checkpoint(db, id, measured))?;
        self.running(id, changed)
    }

    /// Writes down how a run ended and all its numbers. It is `finished` if its main process exited with 0,
    /// else `failed`.
    ///
    /// # Errors
    /// As [`Store::set_main`].
    pub fn finish_run(
        &mut self,
        id: RunId,
        ended_at_ms: i64,
        ending: &Ending,
        measured: &Measured,
    ) -> Result<(), StoreError> {
        let changed = self.transaction(|db| write::finish(db, id, ended_at_ms, ending, measured))?;
        self.running(id, changed)
    }

    /// Past runs of a task, for prediction: `run_actual.worth` in `schema/README.md` says which count.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn history(&self, key: &TaskKey) -> Result<History, StoreError> {
        history::read(&self.connection, key).map_err(|error| StoreError::of(&self.path, error))
    }

    /// Runs that are not closed, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        read::open_runs(&self.connection).map_err(|error| StoreError::of(&self.path, error))
    }

    /// Makes `owner` the process that will close a run.
    ///
    /// # Errors
    /// As [`Store::set_main`].
    pub fn adopt(&mut self, id: RunId, owner: &ProcessId) -> Result<(), StoreError> {
        let changed = self.transaction(|db| write::adopt(db, id, owner))?;
        self.running(id, changed)
    }

    /// Closes a run whose end nobody saw. Its last checkpoint stays; it is no sample.
    ///
    /// # Errors
    /// As [`Store::set_main`].
    pub fn close_lost(&mut self, id: RunId, ended_at_ms: i64) -> Result<(), StoreError> {
        let changed = self.transaction(|db| write::close_lost(db, id, ended_at_ms))?;
        self.running(id, changed)
    }

    /// Writes down how a run used licences.
    ///
    /// # Errors
    /// As [`Store::begin_run`].
    pub fn licenses_used(&mut self, id: RunId, licenses: &LicensesUsed) -> Result<(), StoreError> {
        self.transaction(|db| admission::licenses_used(db, id, licenses))
    }

    /// Writes down that something happened.
    ///
    /// # Errors
    /// As [`Store::begin_run`].
    pub fn log(&mut self, event: &event::Event) -> Result<(), StoreError> {
        self.transaction(|db| event::log(db, event))
    }

    /// Deletes what is beyond the bounds: closed runs, tasks that have none left (the longest unused first), events.
    /// What runs add up to stays on the row of their task. Returns how many runs were deleted. Their room in the file
    /// is used again; the file does not shrink.
    ///
    /// # Errors
    /// As [`Store::begin_run`]. What was deleted before stays deleted.
    pub fn prune(&mut self, keep: &Retention) -> Result<usize, StoreError> {
        let now_ms = crate::host::now_ms();
        let runs = self.prune_at(now_ms, keep.runs_per_task, keep.days)?
            + self.prune_by(&prune::Rule::of_all(keep.runs))?;
        self.transaction(|db| {
            prune::forget_tasks(db, keep.runs)?;
            event::prune(db, prune::before_ms(now_ms, keep.days).unwrap_or(i64::MIN), keep.events)
        })?;
        Ok(runs)
    }

    fn prune_at(&mut self, now_ms: i64, keep_runs: u32, keep_days: u32) -> Result<usize, StoreError> {
        self.prune_by(&prune::Rule::new(now_ms, keep_runs, keep_days))
    }

    fn prune_by(&mut self, rule: &prune::Rule) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let chosen = self.transaction(|db| prune::choose(db, rule))?;
            loop {
                match self.transaction(prune::portion)? {
                    0 => break,
                    deleted => total += deleted,
                }
            }
            if chosen < prune::CHOICE_MAX {
                return Ok(total);
            }
        }
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        // Inside a batch of the writer its transaction is the frame.
        if !self.connection.is_autocommit() {
            return work(&self.connection).map_err(|error| StoreError::of(&self.path, error));
        }
        let path = &self.path;
        let of = |error| StoreError::of(path, error);
        // Immediate: a transaction that begins by reading cannot wait for another writer later.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(of)?;
        let result = work(&transaction).map_err(of)?;
        transaction.commit().map_err(of)?;
        Ok(result)
    }

    /// One transaction around many steps: all are written or none.
    fn batch<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.execute("BEGIN IMMEDIATE")?;
        let result = work(self).and_then(|result| self.execute("COMMIT").map(|()| result));
        if result.is_err() && !self.connection.is_autocommit() {
            self.execute("ROLLBACK")?;
        }
        result
    }

    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(|error| StoreError::of(&self.path, error))
    }

    fn running(&self, id: RunId, changed: bool) -> Result<(), StoreError> {
        if changed {
            return Ok(());
        }
        Err(StoreError::NotRunning { id, path: self.path.clone() })
    }
}
