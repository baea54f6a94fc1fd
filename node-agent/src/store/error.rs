//! What can go wrong with the database, in words that say what to do.

use super::record::RunId;
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why something could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A newer standin made this database.
    #[error(
        "{} has schema {found}, this standin knows {known}: update standin, or use another database", path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// `user_version` found.
        found: i64,
        /// Latest this program knows.
        known: i64,
    },
    /// An older standin made this database, and the caller may not bring it up to date.
    #[error(
        "{} has schema {found}, this standin reads {known}: whoever may write it brings it up to date by using it once, \
         or the agent when it starts", path.display()
    )]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// `user_version` found.
        found: i64,
        /// The one that this program reads.
        known: i64,
    },
    /// An SQLite database of some other program.
    #[error(
        "{} is an SQLite database of another program (application id {application_id}): \
         it was left as it is; choose another path", path.display()
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// What it carries in place of ours.
        application_id: i64,
    },
    /// There is no database yet (readers do not make one).
    #[error("no database at {}: nothing was recorded there yet; run a task with `standin run` first", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A directory or a device.
    #[error("{} is no file: name the file that the database is or will be", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// The file or its directory cannot be written.
    #[error("cannot write {}: the file, its directory or its file system is read-only for this user", path.display())]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// Others than root could have put it there, and root opens it.
    #[error(transparent)]
    Untrusted(#[from] crate::trust::Untrusted),
    /// This user may not read or write it.
    #[error("no permission for {}: ask for access to the file and its directory, or name another", path.display())]
    Permission {
        /// The database.
        path: PathBuf,
    },
    /// Another process held it for longer than the busy timeout.
    #[error("{} is locked by another process for more than 5 s: end that process or try again", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("no space left for {}: free some space; jobs go on, but this was not recorded", path.display())]
    NoSpace {
        /// The database.
        path: PathBuf,
    },
    /// The file is damaged, or no database.
    #[error("{} is damaged: it is moved aside the next time it is opened for writing ({source})", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The directory or file could not be made, or a damaged one not moved.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried: `create`, `lock`, `move aside`, `sync`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No run of this id is running (it ended, was closed as lost, or never began).
    #[error("run {} is not running in {}", id.0, path.display())]
    NotRunning {
        /// The run.
        id: RunId,
        /// The database.
        path: PathBuf,
    },
    /// The writer has as many commands waiting as it may hold.
    #[error("the writer is {bound} commands behind: the disk does not keep up, this was not recorded")]
    QueueFull {
        /// How many may wait.
        bound: usize,
    },
    /// The writer's thread is gone.
    #[error("the writer has ended: this was not recorded")]
    WriterGone,
    /// Anything else that SQLite reports.
    #[error("database {}: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A migration failed.
    #[error("cannot bring {} to the current schema: {source}", path.display())]
    Migration {
        /// The database.
        path: PathBuf,
        /// What failed.
        source: rusqlite_migration::Error,
    },
}

impl StoreError {
    /// Sorts an error of SQLite by what the user can do about it.
    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt { path, source },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path },
            Some(ErrorCode::DiskFull) => Self::NoSpace { path },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path },
            Some(ErrorCode::PermissionDenied) => Self::Permission { path },
            Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) => Self::of_system(path, source),
            _ => Self::Database { path, source },
        }
    }

    /// SQLite only says that a system call failed; the reason is in what the path allows.
    fn of_system(path: PathBuf, source: rusqlite::Error) -> Self {
        use nix::unistd::{AccessFlags, access};
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let denied = |place: &Path, mode| access(place, mode).err();
        let why = denied(directory, AccessFlags::W_OK | AccessFlags::X_OK).or_else(|| {
            path.exists().then(|| denied(&path, AccessFlags::R_OK | AccessFlags::W_OK)).flatten()
        });
        match why {
            Some(nix::Error::EROFS) => Self::ReadOnly { path },
            Some(nix::Error::EACCES) => Self::Permission { path },
            _ if full(directory) => Self::NoSpace { path },
            _ => Self::Database { path, source },
        }
    }

    /// The same for errors of migrations.
    pub(super) fn of_migration(path: &Path, source: rusqlite_migration::Error) -> Self {
        match source {
            rusqlite_migration::Error::RusqliteError { err, .. } => Self::of(path, err),
            source => Self::Migration { path: path.to_owned(), source },
        }
    }
}

/// Whether the file system of `directory` has no block or no inode left for us.
fn full(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|fs| fs.f_bavail == 0 || (fs.f_files > 0 && fs.f_favail == 0))
}
