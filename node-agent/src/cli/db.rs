//! `standin db`: where the database is.

use super::exit::print_bytes;
use super::settings::Settings;
use clap::Subcommand;
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, Subcommand)]
pub(super) enum DbVerb {
    /// Print the path of the database
    #[command(after_help = "\
Examples:
  standin db path
  sqlite3 \"$(standin db path)\" 'select * from task_summary'")]
    Path,
}

pub(super) fn run(settings: &Settings, verb: &DbVerb) -> anyhow::Result<u8> {
    match verb {
        // The bytes as they are: this is for `sqlite3 "$(standin db path)"`.
        DbVerb::Path => print_bytes(&[settings.database_to_read().as_os_str().as_bytes(), b"\n"].concat())?,
    }
    Ok(0)
}
