//! `standin db`: where the database is.

use super::settings::Settings;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum DbVerb {
    /// Print the path of the database
    Path,
}

pub(super) fn run(settings: &Settings, verb: &DbVerb) -> anyhow::Result<u8> {
    match verb {
        DbVerb::Path => println!("{}", settings.database.display()),
    }
    Ok(0)
}
