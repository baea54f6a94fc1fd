//! The agent's socket: made with the right owner and mode, never taken from an agent that still answers.

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, chown};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use tokio::net::UnixListener;

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
    let group = Group::from_name(group).ok().flatten().map(|group| group.gid);
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| chown(path, None, Some(group.unwrap_or(Gid::current()))).map_err(Into::into))
        .with_context(|| format!("failed to set owner and mode of {}", path.display()))?;
    Ok(listener)
}
