//! Whose word a path is: what root reads as its configuration, writes as its database and takes up from pins must not
//! be something that another user could have put there.
//!
//! A path is trusted if only root and the caller can change what it means: the file and its directory belong to one of
//! them and nobody else may write there, and no directory above lets anybody else rename what is in it (a sticky one
//! such as `/tmp` does not).

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Mode bits by which a group or everybody may write.
const GROUP_WRITE: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// Only the owner of an entry may rename it, whoever may write the directory.
const STICKY: u32 = 0o1000;

/// `/dev/null`, which everybody may write and nobody can put anything into.
const NULL_DEVICE: u64 = libc::makedev(1, 3);

/// Why a path is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {why}: whoever can write there could put something else in its place; {cure}", path.display())]
pub struct Untrusted {
    /// The file or directory that others can change.
    pub path: PathBuf,
    why: String,
    cure: &'static str,
}

impl From<Untrusted> for io::Error {
    fn from(error: Untrusted) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}

/// Whether nobody but root and the caller can change `file`, which need not exist yet, or put others beside it.
///
/// # Errors
/// [`Untrusted`], naming the first place that others can change.
pub fn check_file(file: &Path) -> Result<(), Untrusted> {
    let file = absolute(file);
    if let Ok(metadata) = file.metadata() {
        if metadata.rdev() == NULL_DEVICE {
            return Ok(());
        }
        judge(&file, &metadata, Closed::All)?;
    }
    file.parent().map_or(Ok(()), check_directory)
}

/// Whether nobody but root and the caller can change what is in `directory`, or put another in its place. Where it does
/// not exist yet this is asked of those above it.
///
/// # Errors
/// As [`check_file`].
pub fn check_directory(directory: &Path) -> Result<(), Untrusted> {
    let named = absolute(directory);
    // Where a link leads is decided by who owns it, and by the directories that it is in.
    let meant = named.canonicalize().unwrap_or_else(|_| named.clone());
    for chain in [&named, &meant] {
        for place in chain.ancestors() {
            let Ok(metadata) = fs::symlink_metadata(place) else { continue };
            let closed = match (metadata.is_symlink(), place == chain) {
                (true, _) => Closed::Owned,
                (false, true) => Closed::All,
                (false, false) => Closed::ButForSticky,
            };
            judge(place, &metadata, closed)?;
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether root asks: what others do with their own paths harms nobody else.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// [`check_file`] where root asks.
///
/// # Errors
/// As [`check_file`].
pub fn check_file_of_root(file: &Path) -> Result<(), Untrusted> {
    if is_root() { check_file(file) } else { Ok(()) }
}

/// [`check_directory`] where root asks.
///
/// # Errors
/// As [`check_file`].
pub fn check_directory_of_root(directory: &Path) -> Result<(), Untrusted> {
    if is_root() { check_directory(directory) } else { Ok(()) }
}

/// Makes a directory that nobody but the caller can look into, or takes the one that is there if it is like that.
///
/// # Errors
/// What the file system says, or [`Untrusted`].
pub fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path)?;
    let untrusted = |why: &str| Untrusted { path: path.to_owned(), why: why.into(), cure: CURE_PRIVATE };
    if !metadata.is_dir() {
        return Err(untrusted("is no directory").into());
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(untrusted(&format!("belongs to {}", crate::host::user_name(metadata.uid()))).into());
    }
    Ok(check_directory(path)?)
}

/// The directory of an ordinary user's sockets and copies: `$XDG_RUNTIME_DIR/standin`, else `/tmp/standin-UID`. Made or
/// checked, so that nobody else can have put anything there.
///
/// # Errors
/// As [`private_directory`].
pub fn own_directory() -> io::Result<PathBuf> {
    let path = own_directory_to_be();
    private_directory(&path)?;
    Ok(path)
}

/// Where [`own_directory`] is or will be.
pub fn own_directory_to_be() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    match runtime {
        Some(runtime) => runtime.join("standin"),
        None => std::env::temp_dir().join(format!("standin-{}", nix::unistd::geteuid())),
    }
}

const CURE: &str =
    "have it belong to root and be writable by nobody else (chown root, chmod go-w), or name another";
const CURE_PRIVATE: &str = "remove it, or set XDG_RUNTIME_DIR to a directory of your own";

/// What is asked of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    /// It belongs to root or the caller.
    Owned,
    /// And nobody else may write there.
    All,
    /// And nobody else may write there, unless what is there can't be renamed by them.
    ButForSticky,
}

fn judge(place: &Path, metadata: &Metadata, closed: Closed) -> Result<(), Untrusted> {
    let own = nix::unistd::geteuid().as_raw();
    let why = match fault((metadata.uid(), metadata.gid(), metadata.mode()), own, closed) {
        None => return Ok(()),
        Some(Fault::Owner) => format!("belongs to {}", crate::host::user_name(metadata.uid())),
        Some(Fault::Mode) => "can be written by other users".into(),
    };
    Err(Untrusted { path: place.to_owned(), why, cure: CURE })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Owner,
    Mode,
}

fn fault((uid, gid, mode): (u32, u32, u32), own: u32, closed: Closed) -> Option<Fault> {
    if uid != 0 && uid != own {
        return Some(Fault::Owner);
    }
    // Root's group is root.
    let is_open = mode & OTHERS_WRITE != 0 || (mode & GROUP_WRITE != 0 && gid != 0);
    let minds = match closed {
        Closed::Owned => false,
        Closed::All => true,
        Closed::ButForSticky => mode & STICKY == 0,
    };
    (is_open && minds).then_some(Fault::Mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn owners_and_modes() {
        let fault = |uid, gid, mode, closed| fault((uid, gid, mode), 0, closed);
        assert_eq!(fault(0, 0, 0o755, Closed::All), None);
        assert_eq!(fault(1000, 0, 0o755, Closed::Owned), Some(Fault::Owner));
        assert_eq!(fault(0, 0, 0o775, Closed::All), None, "the group of root");
        assert_eq!(fault(0, 50, 0o775, Closed::All), Some(Fault::Mode));
        assert_eq!(fault(0, 0, 0o1777, Closed::All), Some(Fault::Mode));
        assert_eq!(fault(0, 0, 0o1777, Closed::ButForSticky), None);
        assert_eq!(fault(0, 0, 0o777, Closed::ButForSticky), Some(Fault::Mode));
        assert_eq!(super::fault((1000, 1000, 0o700), 1000, Closed::All), None);
    }

    #[test]
    fn a_file_is_as_safe_as_its_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("state");
        fs::create_dir(&directory).unwrap();
        let file = directory.join("standin.db");
        set_mode(&directory, 0o755);
        assert_eq!(check_file(&file), Ok(()), "neither need be there");
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o644);
        assert_eq!(check_file(&file), Ok(()));
        set_mode(&file, 0o666);
        assert_eq!(check_file(&file).unwrap_err().path, file);
        set_mode(&file, 0o644);
        set_mode(&directory, 0o1777);
        let error = check_file(&file).unwrap_err();
        assert_eq!(error.path, directory, "what lies beside it counts as well");
        assert!(error.to_string().contains("can be written by other users"), "{error}");
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let scratch = tempfile::tempdir().unwrap();
        let open = scratch.path().join("open");
        fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        let link = scratch.path().join("link");
        symlink(&open, &link).unwrap();
        assert_eq!(check_directory(&link).unwrap_err().path, open);
    }

    #[test]
    fn a_private_directory_is_made_or_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let own = scratch.path().join("own");
        private_directory(&own).unwrap();
        private_directory(&own).unwrap();
        assert_eq!(own.metadata().unwrap().mode() & 0o777, 0o700);
        let link = scratch.path().join("link");
        symlink(&own, &link).unwrap();
        assert!(private_directory(&link).unwrap_err().to_string().contains("is no directory"));
        set_mode(&own, 0o777);
        assert!(private_directory(&own).is_err());
    }
}
