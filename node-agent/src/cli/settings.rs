//! Overrides, configuration and defaults, resolved to the places that are used.

use super::exit::complain;
use super::{Overrides, own_history, reach};
use crate::config::{Config, ConfigError, DEFAULT_DATABASE, DEFAULT_SOCKET};
use nix::unistd::{User, geteuid, getuid};
use std::path::PathBuf;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: Config,
    /// Where it was read from, if that was named.
    pub(super) config_path: Option<PathBuf>,
    pub(super) database: PathBuf,
    pub(super) socket: PathBuf,
    /// Somebody named the database for this call.
    is_database_named: bool,
    /// Somebody named a database for this call, and no socket: then no agent, which has its own, is meant.
    pub(super) prefers_embedded: bool,
}

impl Settings {
    pub(super) fn resolve(overrides: Overrides) -> Result<Self, ConfigError> {
        let given = |flag: Option<PathBuf>, variable| flag.or_else(|| path_in(variable));
        let config_path = given(overrides.config, "STANDIN_CONFIG");
        let config = Config::load(config_path.as_deref())?;
        let (db, socket) = (given(overrides.db, "STANDIN_DB"), given(overrides.socket, "STANDIN_SOCKET"));
        let is_database_named = db.is_some();
        let named_database_only = is_database_named && socket.is_none();
        let configured = config.agent.database.clone().filter(|_| geteuid().is_root());
        let database = db.or(configured).unwrap_or_else(default_database);
        let socket = socket.unwrap_or_else(|| config.agent.socket.clone());
        let prefers_embedded = named_database_only && socket.as_os_str() == DEFAULT_SOCKET;
        Ok(Self { config, config_path, database, socket, is_database_named, prefers_embedded })
    }

    /// The database that read verbs look into: for ordinary users who named none their part of the agent's, where one
    /// answers, as it records their runs.
    pub(super) fn database_to_read(&self) -> PathBuf {
        if self.is_database_named || geteuid().is_root() {
            return self.database.clone();
        }
        let Ok(status) = reach::status(&self.socket) else { return self.database.clone() };
        let of_agent = PathBuf::from(status.database);
        own_history::database(&self.socket, &of_agent).unwrap_or_else(|why| {
            complain(&why);
            of_agent
        })
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
