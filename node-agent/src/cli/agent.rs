//! `standin agent`: the daemon.

use super::exit::print;
use super::settings::Settings;
use crate::agent::server;
use clap::Args;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Only check the configuration
    #[arg(long)]
    check: bool,
}

pub(super) fn run(settings: Settings, arguments: &AgentArgs) -> anyhow::Result<u8> {
    if arguments.check {
        let (database, socket) = (settings.database.display(), settings.socket.display());
        print(format_args!("configuration is valid; database {database}, socket {socket}\n"))?;
        return Ok(0);
    }
    log_to_journal_or_stderr();
    // A launcher that goes away must not take the agent along.
    // SAFETY: only the disposition of one signal of this process is set, to no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    server::serve(settings.config, settings.database, &settings.socket)?;
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
