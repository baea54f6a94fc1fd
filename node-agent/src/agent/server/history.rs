//! A user's own part of the database, handed over as a sealed file in memory: the database itself is root's, as
//! everybody's command lines are in it.

use super::Agent;
use super::connection::{answer, refuse};
use super::steering::hand_over;
use crate::store::{Store, StoreError};
use crate::wire::Reply;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use tokio::net::UnixStream;

/// Makes it and hands it over. One at a time: it takes memory, and nobody's job waits for it.
pub(super) async fn lend(agent: &Rc<Agent>, stream: &mut UnixStream, uid: u32) {
    let Ok(_turn) = agent.copying.acquire().await else { return };
    let database = agent.database.clone();
    let made = tokio::task::spawn_blocking(move || in_memory(&database, uid)).await;
    match made {
        Ok(Ok(file)) => {
            answer(stream, &Reply::Lent).await;
            if let Err(error) = hand_over(stream, &[file]).await {
                tracing::debug!("a part of the database was not handed over: {error}");
            }
        }
        Ok(Err(why)) => refuse(stream, &why).await,
        Err(error) => refuse(stream, &error.to_string()).await,
    }
}

fn in_memory(database: &Path, uid: u32) -> Result<OwnedFd, String> {
    let bytes = Store::own_part(database, uid).map_err(|error: StoreError| error.to_string())?;
    sealed(&bytes).map_err(|error| format!("no memory for it: {error}"))
}

/// A file that is what it is: neither side can change it under the other.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"standin-history", flags)?);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}
