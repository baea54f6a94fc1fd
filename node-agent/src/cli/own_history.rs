//! What an ordinary user reads where an agent records: the own part of its database, as a file of the user's own.

use super::reach::{self, Unreachable};
use crate::trust;
use crate::wire::{self, Reply, Request};
use nix::unistd::{AccessFlags, access};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The database to read: the agent's own where that is allowed (`agent.database_group`), else a fresh copy of the
/// caller's part of it.
///
/// # Errors
/// In words, if the agent does not answer or the copy can't be kept.
pub(super) fn database(socket: &Path, of_agent: &Path) -> Result<PathBuf, String> {
    if access(of_agent, AccessFlags::R_OK).is_ok() {
        return Ok(of_agent.to_owned());
    }
    let lent = borrow(socket).map_err(|unreachable| unreachable.message)?;
    keep(lent).map_err(|error| format!("no room for a copy of your runs: {error}"))
}

fn borrow(socket: &Path) -> Result<File, Unreachable> {
    let mut stream = reach::connect(socket)?;
    let answer = wire::send(&mut stream, &Request::History).and_then(|()| wire::receive(&mut stream));
    match answer {
        Ok(Reply::Lent) => {}
        Ok(Reply::Refused(why)) => return Err(reach::broken(socket, &why)),
        Ok(_) => return Err(reach::broken(socket, "it answered something else")),
        Err(error) => return Err(reach::broken(socket, &error.to_string())),
    }
    let lent =
        wire::receive_descriptors(&stream).map_err(|error| reach::broken(socket, &error.to_string()))?;
    let lent: Option<OwnedFd> = lent.into_iter().next();
    lent.map(File::from).ok_or_else(|| reach::broken(socket, "it handed nothing over"))
}

fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// As a file that SQLite can open by its name; the last one is replaced as a whole.
fn keep(mut lent: File) -> io::Result<PathBuf> {
    let directory = trust::own_directory()?;
    let (fresh, path) =
        (directory.join(format!("history.{}", std::process::id())), directory.join("history.db"));
    _ = fs::remove_file(&fresh);
    let written = private_file(&fresh).and_then(|mut file| {
        use std::io::{Seek, SeekFrom};
        lent.seek(SeekFrom::Start(0))?;
        io::copy(&mut lent, &mut file)?;
        fs::rename(&fresh, &path)
    });
    written.inspect_err(|_| _ = fs::remove_file(&fresh))?;
    Ok(path)
}
