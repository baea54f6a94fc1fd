//! `standin db`: where the database is.

use super::settings::Settings;
use clap::Subcommand;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[derive(Debug, Subcommand)]
pub(super) enum DbVerb {
    /// Print the path of the database
    Path,
}

pub(super) fn run(settings: &Settings, verb: &DbVerb) -> anyhow::Result<u8> {
    match verb {
        // The bytes as they are: this is for `sqlite3 "$(standin db path)"`.
        DbVerb::Path => print_path(&settings.database)?,
    }
    Ok(0)
}

fn print_path(path: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(path.as_os_str().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}
