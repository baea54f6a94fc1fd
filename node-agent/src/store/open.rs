//! Opening the database file: made if absent, brought to the current schema, moved aside if damaged, and
//! left alone if it is not ours.

use super::error::StoreError;
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// `application_id` of our databases: "stnd".
pub const APPLICATION_ID: i64 = 0x7374_6e64;

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The write-ahead log is cut back to this after a large transaction, bytes.
const WAL_BYTES_MAX: i64 = 64 << 20;

/// Never edited once landed, only added to.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../../../schema/0001_tables.sql")),
    M::up(include_str!("../../../schema/0002_views.sql")),
    M::up(include_str!("../../../schema/0003_accuracy.sql")),
    M::up(include_str!("../../../schema/0004_events.sql")),
    M::up(include_str!("../../../schema/0005_sizing.sql")),
    M::up(include_str!("../../../schema/0006_cpu_demand.sql")),
    M::up(include_str!("../../../schema/0007_profile.sql")),
    M::up(include_str!("../../../schema/0008_failovers.sql")),
    M::up(include_str!("../../../schema/0009_license_use.sql")),
    M::up(include_str!("../../../schema/0010_bounds.sql")),
    M::up(include_str!("../../../schema/0011_demand_predicted.sql")),
];

/// The schema this program knows: the `user_version` of a database that is up to date.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// A connection for writing, and where a damaged database went, if there was one.
pub(super) fn read_write(path: &Path) -> Result<(Connection, Option<PathBuf>), StoreError> {
    create(path)?;
    match connect(path) {
        Ok(connection) => Ok((connection, None)),
        Err(StoreError::Corrupt { .. }) => replace(path),
        Err(error) => Err(error),
    }
}

/// A connection that cannot write. With write permission or a running agent the log is read too; without
/// either the file is read as it is, which is complete, since whoever closed it last emptied the log. So root reads one
/// that others could have put there.
pub(super) fn read_only(path: &Path) -> Result<Connection, StoreError> {
    must_be_file(path)?;
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Err(StoreError::Missing { path: path.to_owned() });
        }
        Err(_) => {
            return Err(StoreError::Permission { path: path.to_owned() });
        }
    }
    // What lies beside it may be a link to anything, and even a reader writes the index of a log.
    if crate::trust::check_file_of_root(path).is_err() {
        return immutable(path);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection =
            Connection::open_with_flags(path, flags).map_err(|error| StoreError::of(path, error))?;
        checked(connection, path)
    };
    match open() {
        Ok(connection) => Ok(connection),
        Err(error @ StoreError::OlderSchema { .. }) => {
            connect(path).map_err(|_| error)?;
            open()
        }
        Err(
            error
            @ (StoreError::NewerSchema { .. } | StoreError::Foreign { .. } | StoreError::Corrupt { .. }),
        ) => Err(error),
        Err(error) if has_log(path) => Err(error),
        Err(error) => immutable(path).map_err(|_| error),
    }
}

fn checked(connection: Connection, path: &Path) -> Result<Connection, StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| StoreError::of(path, error))?;
    match version(&connection, path)? {
        0 => Err(StoreError::Missing { path: path.to_owned() }),
        found if found < SCHEMA_VERSION => {
            Err(StoreError::OlderSchema { path: path.to_owned(), found, known: SCHEMA_VERSION })
        }
        _ => Ok(connection),
    }
}

fn immutable(path: &Path) -> Result<Connection, StoreError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path, "immutable=1"), flags)
        .map_err(|error| StoreError::of(path, error))?;
    checked(connection, path)
}

/// The name of a file in SQLite's form for options (<https://sqlite.org/uri.html>).
pub(super) fn uri(path: &Path, options: &str) -> String {
    let escaped: String = path.to_string_lossy().chars().fold(String::new(), |mut uri, c| {
        match c {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            c => uri.push(c),
        }
        uri
    });
    format!("file:{escaped}?{options}")
}

fn has_log(path: &Path) -> bool {
    std::fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0)
}

/// Makes the directory (0750) and an empty file (0640) where there are none.
fn create(path: &Path) -> Result<(), StoreError> {
    must_be_file(path)?;
    let directory = directory(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(|source| file_error("create", directory, source))?;
    // What is found beside a database (its log) is read and written as well.
    crate::trust::check_file_of_root(path)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        // The mask of the caller must not decide who may read the history.
        Ok(file) => file
            .set_permissions(Permissions::from_mode(0o640))
            .map_err(|source| file_error("create", path, source)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(file_error("create", path, source)),
    }
}

/// SQLite would say of a directory or a device only that it can't be opened, and wait at a pipe.
fn must_be_file(path: &Path) -> Result<(), StoreError> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Err(StoreError::NotAFile { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    let owned = path.to_owned();
    match source.kind() {
        ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path: owned },
        ErrorKind::PermissionDenied => StoreError::Permission { path: owned },
        ErrorKind::StorageFull => StoreError::NoSpace { path: owned },
        _ => StoreError::File { action, path: owned, source },
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(|error| StoreError::of(path, error))?;
    let of = |error| StoreError::of(path, error);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(of)?;
    // SQLite falls back to reading without a word.
    if connection.is_readonly("main").map_err(of)? {
        return Err(StoreError::ReadOnly { path: path.to_owned() });
    }
    if version(&connection, path)? < SCHEMA_VERSION {
        // Two processes may find an empty file at once: only one migrates, the other sees it done.
        let _lock = lock(directory(path))?;
        if version(&connection, path)? < SCHEMA_VERSION {
            migrate(&mut connection, path)?;
        }
    }
    configure(&connection).map_err(of)?;
    Ok(connection)
}

/// The schema of a database that is ours or empty.
fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let of = |error| StoreError::of(path, error);
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(of);
    let (application_id, found) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    // Reading the schema also finds out whether this is a database at all.
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    if application_id != APPLICATION_ID && (application_id != 0 || found != 0 || objects != 0) {
        return Err(StoreError::Foreign { path: path.to_owned(), application_id });
    }
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found, known: SCHEMA_VERSION });
    }
    Ok(found)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    // WAL is a property of the file; where the file system cannot do it, the old journal does.
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .map_err(|error| StoreError::of(path, error))?;
    to_latest(connection, path)
}

/// Brings a database to the current schema; `path` is what complaints name.
pub(super) fn to_latest(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    Migrations::from_slice(MIGRATIONS)
        .to_latest(connection)
        .map_err(|error| StoreError::of_migration(path, error))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // The list of pruned runs is short; a sandboxed agent may have no directory for temporary files.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.query_row(&format!("PRAGMA journal_size_limit = {WAL_BYTES_MAX}"), [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Moves a damaged database aside and begins a fresh one. Under the lock it is looked at once more: another
/// process may have done this already.
fn replace(path: &Path) -> Result<(Connection, Option<PathBuf>), StoreError> {
    let lock = lock(directory(path))?;
    let still_damaged = match Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE) {
        Ok(connection) => matches!(version(&connection, path), Err(StoreError::Corrupt { .. })),
        Err(_) => true,
    };
    let aside = if still_damaged { Some(move_aside(path)?) } else { None };
    drop(lock);
    create(path)?;
    Ok((connect(path)?, aside))
}

/// `NAME` → `NAME.corrupt-SECONDS`, with its log. The database goes first: SQLite drops a log that it finds
/// beside an empty database, but a damaged database without its log would look whole.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut aside = beside(path, &format!(".corrupt-{seconds}"));
    let mut next = 1;
    while aside.exists() {
        aside = beside(path, &format!(".corrupt-{seconds}-{next}"));
        next += 1;
    }
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(file_error("move aside", path, source));
            }
            _ => {}
        }
    }
    Ok(aside)
}

/// An exclusive `flock` on the directory, which leaves no file behind. Given up after [`BUSY_TIMEOUT`].
fn lock(directory: &Path) -> Result<File, StoreError> {
    let file = File::open(directory).map_err(|source| file_error("lock", directory, source))?;
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: directory.to_owned() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(file_error("lock", directory, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_write_reads_an_older_database_and_others_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("old.db");
        let mut old = Connection::open(&path).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        Migrations::from_slice(MIGRATIONS).to_version(&mut old, 8).unwrap();
        drop(old);
        let error = immutable(&path).unwrap_err();
        assert!(matches!(error, StoreError::OlderSchema { found: 8, known: SCHEMA_VERSION, .. }), "{error}");
        let connection = read_only(&path).unwrap();
        assert_eq!(version(&connection, &path).unwrap(), SCHEMA_VERSION);
        assert!(connection.is_readonly("main").unwrap());
    }
}
