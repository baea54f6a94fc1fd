//! `standin agent`: the daemon.

use super::doctor;
use super::exit::print;
use super::settings::Settings;
use crate::agent::server;
use crate::config::Config;
use clap::{Args, ValueEnum};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin agent                        measure and record for the whole host, until SIGTERM
  standin agent --check                say what it would have to do without, and end
  standin agent --check=config         look at the configuration alone")]
pub(super) struct AgentArgs {
    /// Start nothing: only check what the agent needs. Exits with 1 if it would have to do without something, with
    /// 125 if it would not start
    #[arg(
        long,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        value_enum
    )]
    check: Option<Check>,
}

/// What is checked.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Check {
    /// Configuration, database, socket, cgroups and probes
    All,
    /// The configuration alone
    Config,
}

pub(super) fn run(settings: Settings, arguments: &AgentArgs) -> anyhow::Result<u8> {
    match arguments.check {
        Some(Check::All) => return doctor::check(&settings),
        Some(Check::Config) => {
            let (database, socket) = (settings.database.display(), settings.socket.display());
            print(format_args!("configuration is valid; database {database}, socket {socket}\n"))?;
            return Ok(0);
        }
        None => {}
    }
    log_to_journal_or_stderr();
    // A launcher that goes away must not take the agent along.
    // SAFETY: only the disposition of one signal of this process is set, to no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let path = settings.config_path;
    let read_config: server::ReadConfig = Arc::new(move || Config::load(path.as_deref()));
    server::serve(settings.config, settings.database, &settings.socket, &read_config)?;
    Ok(0)
}

/// What is logged where `RUST_LOG` says nothing: every copy of a user's runs is a database that is migrated.
const LEVELS: &str = "info,rusqlite_migration=warn";

/// Under systemd straight into the journal, with fields; elsewhere to stderr. `RUST_LOG` chooses the level.
fn log_to_journal_or_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVELS));
    let registry = tracing_subscriber::registry().with(filter);
    match std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok()) {
        Some(journal) => registry.with(journal).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init(),
    }
}
