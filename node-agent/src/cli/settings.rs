//! Overrides, configuration and defaults, resolved to the places that are used.

use super::Overrides;
use crate::config::{Config, ConfigError, DEFAULT_DATABASE, DEFAULT_SOCKET};
use nix::unistd::{User, geteuid, getuid};
use std::path::PathBuf;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) database: PathBuf,
    pub(super) socket: PathBuf,
    /// Somebody named a database for this call, and no socket: then no agent, which has its own, is meant.
    pub(super) prefers_embedded: bool,
}

impl Settings {
    pub(super) fn resolve(overrides: Overrides) -> Result<Self, ConfigError> {
        let given = |flag: Option<PathBuf>, variable| flag.or_else(|| path_in(variable));
        let config = Config::load(given(overrides.config, "STANDIN_CONFIG").as_deref())?;
        let (db, socket) = (given(overrides.db, "STANDIN_DB"), given(overrides.socket, "STANDIN_SOCKET"));
        let named_database_only = db.is_some() && socket.is_none();
        let database = db.or_else(|| config.agent.database.clone()).unwrap_or_else(default_database);
        let socket = socket.unwrap_or_else(|| config.agent.socket.clone());
        let prefers_embedded = named_database_only && socket.as_os_str() == DEFAULT_SOCKET;
        Ok(Self { config, database, socket, prefers_embedded })
    }
}

/// A path in the environment; an empty variable is none.
fn path_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Root's is the host's; others have their own (XDG base directories).
fn default_database() -> PathBuf {
    let home = || User::from_uid(getuid()).ok().flatten().map(|user| user.dir);
    let absolute = |name| path_in(name).filter(|path| path.is_absolute());
    let data =
        || absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME").or_else(home)?.join(".local/share")));
    match data().filter(|_| !geteuid().is_root()) {
        Some(data) => data.join("standin/standin.db"),
        None => DEFAULT_DATABASE.into(),
    }
}
