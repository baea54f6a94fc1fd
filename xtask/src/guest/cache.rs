//! Things that take long to make and depend on few others: made once, kept outside of the checkout under a name that
//! tells what they depend on. A new machine starts without; so everything here can be made again.
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where they are: `$XDG_CACHE_HOME/standin-vm`.
pub(crate) fn directory() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME names a directory")?;
    Ok(base.join("standin-vm"))
}

/// The entry `kind-HASH` for what it depends on. `make` gets a path to make it at; it shows under its name only when
/// that has succeeded. Other entries of its kind are dropped.
pub(crate) fn entry(
    kind: &str,
    depends_on: &[&str],
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let directory = directory()?;
    fs::create_dir_all(&directory)?;
    let mut hasher = DefaultHasher::new();
    depends_on.hash(&mut hasher);
    let path = directory.join(format!("{kind}-{:016x}", hasher.finish()));
    if path.exists() {
        return Ok(path);
    }
    drop_others(&directory, kind)?;
    let draft = directory.join(format!("draft-{kind}-{}", std::process::id()));
    println!("making {}", path.display());
    let made = make(&draft).and_then(|()| Ok(fs::rename(&draft, &path)?));
    if made.is_err() {
        _ = remove(&draft);
    }
    made.with_context(|| format!("failed to make {}", path.display()))?;
    Ok(path)
}

fn drop_others(directory: &Path, kind: &str) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|hash| hash.len() == 16)
        {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(())
}
