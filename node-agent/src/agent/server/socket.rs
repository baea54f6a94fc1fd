//! What the agent shares with its users: its socket, with the right owner and mode and never taken from an agent
//! that still answers, and its database, which root and a group of its choice may read.

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, chown};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// A socket that is listened on.
pub(super) struct Door {
    pub(super) listener: UnixListener,
    /// The service manager made it, and keeps it open when this process ends: who comes meanwhile waits for the
    /// next agent.
    is_lent: bool,
}

impl Door {
    /// Removes the socket, if it is ours.
    pub(super) fn close(&self, path: &Path) {
        if !self.is_lent {
            _ = fs::remove_file(path);
        }
    }
}

/// The socket that the service manager hands over (sd_listen_fds(3)), or one of our own on `path`, for root and the
/// members of `group`.
///
/// # Errors
/// If what is handed over is no listening unix socket; if another agent listens on `path`, or the file system
/// refuses.
pub(super) fn open(path: &Path, group: &str) -> anyhow::Result<Door> {
    let handed_over = sd_notify::listen_fds().context("failed to take the service manager's socket")?.next();
    match handed_over {
        Some(fd) => {
            // SAFETY: the service manager opened it for this process, and nothing else here uses it.
            let listener = StdListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
            listener.local_addr().context("the service manager handed over something else than a socket")?;
            listener.set_nonblocking(true)?;
            Ok(Door { listener: UnixListener::from_std(listener)?, is_lent: true })
        }
        None => Ok(Door { listener: listen(path, group)?, is_lent: false }),
    }
}

/// Listens on `path`, for root and the members of `group`.
///
/// # Errors
/// If another agent listens there, or the file system refuses.
pub(super) fn listen(path: &Path, group: &str) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("an agent already listens on {}; stop it, or choose another --socket", path.display());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
        // Who can put another socket there speaks for the agent.
        crate::trust::check_directory(directory)?;
    }
    // Left by an agent that was killed: nobody answered above. Anything else is not ours to remove.
    if let Ok(metadata) = path.symlink_metadata() {
        if !metadata.file_type().is_socket() {
            bail!("{} is there and is no socket; choose another --socket", path.display());
        }
        fs::remove_file(path).with_context(|| format!("failed to remove the stale {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("failed to listen on {}", path.display()))?;
    let group = group_id(group);
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| chown(path, None, Some(group.unwrap_or(Gid::current()))).map_err(Into::into))
        .with_context(|| format!("failed to set owner and mode of {}", path.display()))?;
    Ok(listener)
}

/// Lets the members of `group`, if there is such a group, read the database: all runs of all users. Its directory is
/// only touched if nobody else can look into it yet: then it was made for it. Without a group the files are root's
/// again, whatever they were before.
pub(super) fn share(database: &Path, group: &str) -> io::Result<()> {
    let group = group_id(group).unwrap_or(Gid::from_raw(0));
    let directory = database.parent().filter(|directory| {
        directory.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o007 == 0)
    });
    // The log and its index lie beside it; SQLite gives later ones the database's group by itself.
    let beside = ["-wal", "-shm"].map(|suffix| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    });
    let files = directory.into_iter().chain([database]).chain(beside.iter().map(PathBuf::as_path));
    files.filter(|path| path.exists()).try_for_each(|path| Ok(chown(path, None, Some(group))?))
}

fn group_id(name: &str) -> Option<Gid> {
    Group::from_name(name).ok().flatten().map(|group| group.gid)
}
