//! The configuration file: TOML, every key optional, nothing unknown accepted.

mod sizing;

pub use sizing::{Admission, Host, License, Share, Size, TaskRule};

use crate::size::Policy;
pub use crate::store::Retention;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where it is read from when nobody says otherwise. Need not exist.
pub const DEFAULT_PATH: &str = "/etc/standin/config.toml";

/// The agent's socket when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/standin/agent.sock";

/// Root's database when nobody says otherwise.
pub const DEFAULT_DATABASE: &str = "/var/lib/standin/standin.db";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// See [`Agent`].
    pub agent: Agent,
    /// See [`Run`].
    pub run: Run,
    /// See [`Retention`].
    pub retention: Retention,
    /// See [`Metrics`].
    pub metrics: Metrics,
    /// See [`Host`].
    pub host: Host,
    /// See [`Admission`].
    pub admission: Admission,
    /// Pools of licences by name: see [`License`].
    pub license: BTreeMap<String, License>,
    /// What holds for single kinds of tasks: see [`TaskRule`].
    pub task: BTreeMap<String, TaskRule>,
}

/// `[agent]`: what the daemon is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// Database file.
    pub database: Option<PathBuf>,
    /// Unix socket.
    pub socket: PathBuf,
    /// Group whose members may use the socket; nobody but root if there is no such group.
    pub socket_group: String,
    /// Group whose members may read the whole database, with the runs of all users; nobody but root if empty.
    pub database_group: String,
    /// Cgroup under which runs get theirs: a relative path of plain names.
    pub cgroup_parent: String,
    /// Whether BPF programs are loaded; without them the kernel's own accounts serve.
    pub probes: bool,
    /// BPF file system that keeps the probes counting while no agent is there; by default `/sys/fs/bpf`, else one
    /// that the agent mounts on `/run/standin/bpf`.
    pub bpffs: Option<PathBuf>,
    /// Most cgroups of others (systemd units, containers) that are measured at once; 0 for none.
    pub host_cgroups: u32,
    /// Seconds after which what was measured of a cgroup of others is recorded and the next record of it begins; 0: not
    /// before it ends.
    pub host_record_s: u64,
    /// Most of the time of all CPUs that the probes may take, percent; the dearest is given up above it.
    pub budget_percent: f64,
    /// Seconds between two counts of what they take.
    pub cost_interval_s: u64,
    /// Most tasks measured at once.
    pub tasks_max: u32,
    /// Seconds between two records of a run that is under way.
    pub checkpoint_s: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            database: None,
            socket: DEFAULT_SOCKET.into(),
            socket_group: "standin".into(),
            database_group: String::new(),
            cgroup_parent: "standin".into(),
            probes: true,
            bpffs: None,
            host_cgroups: 128,
            host_record_s: 3600,
            budget_percent: 5.0,
            cost_interval_s: 60,
            tasks_max: 1024,
            checkpoint_s: 10,
        }
    }
}

/// `[run]`: how tasks are treated.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// `elastic`, `strict` or `observe`.
    pub policy: Policy,
    /// Probability with which a task may exceed its predicted upper bound: between 0 and 1.
    pub risk: f64,
    /// Whether the policy `elastic` sets CPU quotas, which follow the task.
    pub cpu_quota: bool,
}

impl Default for Run {
    fn default() -> Self {
        Self { policy: Policy::Elastic, risk: 0.05, cpu_quota: false }
    }
}

/// `[metrics]`: where they are served, as Prometheus text. Nowhere, if nothing is named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Unix socket, for root and the group of the agent's.
    pub socket: Option<PathBuf>,
    /// Address and port of this host itself: `127.0.0.1:9750`. Whoever is on the host may read there.
    pub listen: Option<SocketAddr>,
    /// Most kinds of tasks, each with a user, that have series of their own; 0 for none.
    pub tasks_max: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { socket: None, listen: None, tasks_max: 100 }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than root could have written it, and root reads it.
    #[error(transparent)]
    Untrusted(#[from] crate::trust::Untrusted),
    /// The file is not what is allowed.
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where it can be told.
        line: Option<usize>,
        /// What is wrong, and what is allowed.
        message: String,
    },
}

impl Config {
    /// Reads `path`, or the default file where that exists.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and key. A default file that is absent is no error.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let wanted = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(wanted) {
            Ok(text) => {
                crate::trust::check_file_of_root(wanted)?;
                Self::parse(wanted, &text)
            }
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: wanted.into(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |line, message| ConfigError::Invalid { path: path.into(), line, message };
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text.get(..span.start).unwrap_or("").matches('\n').count());
            invalid(line.map(|before| before + 1), in_words(text, line, error.message()))
        })?;
        config.check().map_err(|(key, message)| {
            let line = text.lines().position(|line| key_of(line) == key.rsplit('.').next());
            invalid(line.map(|before| before + 1), format!("{key} {message}"))
        })?;
        Ok(config)
    }

    /// What types can't say: the key, and what is wrong with it.
    fn check(&self) -> Result<(), (String, String)> {
        sizing::check(self)?;
        if !(self.run.risk > 0.0 && self.run.risk < 1.0) {
            let allowed = "allowed is a number between 0 and 1, such as 0.05";
            return Err(("run.risk".into(), format!("is {}: {allowed}", self.run.risk)));
        }
        let plain = |name: &str| !name.is_empty() && name != "." && name != "..";
        if !self.agent.cgroup_parent.split('/').all(plain) {
            let allowed = "allowed is a relative path such as \"standin\"";
            return Err((
                "agent.cgroup_parent".into(),
                format!("is {:?}: {allowed}", self.agent.cgroup_parent),
            ));
        }
        if !(self.agent.budget_percent > 0.0 && self.agent.budget_percent <= 100.0) {
            let allowed = "allowed is a number above 0, up to 100";
            return Err((
                "agent.budget_percent".into(),
                format!("is {}: {allowed}", self.agent.budget_percent),
            ));
        }
        if let Some(address) = self.metrics.listen.filter(|address| !address.ip().is_loopback()) {
            let allowed =
                "allowed is an address of this host itself, such as \"127.0.0.1:9750\": there is no password";
            return Err(("metrics.listen".into(), format!("is \"{address}\": {allowed}")));
        }
        let bounds = [
            ("metrics.tasks_max", u64::from(self.metrics.tasks_max), 0, 10_000),
            ("agent.host_cgroups", u64::from(self.agent.host_cgroups), 0, 65_536),
            ("agent.host_record_s", self.agent.host_record_s, 0, 2_592_000),
            ("agent.cost_interval_s", self.agent.cost_interval_s, 2, 86_400),
            ("agent.tasks_max", u64::from(self.agent.tasks_max), 1, 65_536),
            ("agent.checkpoint_s", self.agent.checkpoint_s, 1, 3_600),
            ("retention.runs_per_task", u64::from(self.retention.runs_per_task), 1, 10_000_000),
            ("retention.runs", u64::from(self.retention.runs), 1, 100_000_000),
            ("retention.events", u64::from(self.retention.events), 1, 100_000_000),
            ("retention.days", u64::from(self.retention.days), 1, 36_500),
        ];
        match bounds.into_iter().find(|&(_, value, least, most)| value < least || value > most) {
            Some((key, value, least, most)) => {
                Err((key.into(), format!("is {value}: allowed is {least} to {most}")))
            }
            None => Ok(()),
        }
    }
}

/// What the parser says, with the key it speaks of and without the names of Rust's types.
fn in_words(text: &str, line: Option<usize>, message: &str) -> String {
    let message = message.replace('\n', " ");
    let message = ["u32", "u64"].iter().fold(message, |message, name| {
        message.replace(&format!("expected {name}"), "expected a whole number that is not negative")
    });
    let message = message.replace("expected f64", "expected a number").replace("path string", "a path");
    let tables = ["Agent", "Run", "Metrics", "Retention", "Host", "Admission", "License", "TaskRule"];
    let message = tables.iter().fold(message, |message, name| {
        message.replace(&format!("struct {name}"), "a table, written [agent], [run], [task.NAME], …")
    });
    match line.and_then(|line| text.lines().nth(line)).and_then(key_of) {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("{key}: {message}"),
        _ => message,
    }
}

/// The key of a line `key = value`.
fn key_of(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        Config::parse(Path::new("config.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_required() {
        assert_eq!(Config::parse(Path::new("x"), "").unwrap(), Config::default());
    }

    #[test]
    fn sizes_and_shares_are_written_as_people_do() {
        let text = "[host]\nreserve_memory = \"2G\"\n[admission]\nunknown_memory = 1000\n
                    [task.\"cargo build\"]\nlimit_memory = \"1.5GiB\"\n";
        let config = Config::parse(Path::new("x"), text).unwrap();
        assert_eq!(config.host.reserve_memory, Share::Bytes(2 << 30));
        assert_eq!(config.admission.unknown_memory, Size(1000));
        assert_eq!(config.task["cargo build"].limit_memory, Some(Size(3 << 29)));
        assert_eq!(Share::Percent(5.0).of(1000), 50);
        assert_eq!(Share::Bytes(5000).of(1000), 1000);
    }

    #[test]
    fn errors_name_the_line_the_key_and_what_is_allowed() {
        let unknown = error("[run]\nspeed = 3\n");
        assert!(
            unknown.starts_with("config.toml:2:") && unknown.contains("speed") && unknown.contains("policy"),
            "{unknown}"
        );
        let policy = error("[run]\npolicy = \"hard\"\n");
        assert!(
            policy.contains("hard") && policy.contains("elastic") && policy.contains("strict"),
            "{policy}"
        );
        assert!(error("[run]\nrisk = 2.0\n").contains("run.risk is 2"));
        assert!(error("[agent]\ncgroup_parent = \"../x\"\n").contains("cgroup_parent"));
        assert!(error("[agent]\ntasks_max = 0\n").contains("1 to 65536"));
        assert!(error("# x\n\n[retention]\ndays = 0\n").starts_with("config.toml:4: retention.days is 0"));
        assert!(error("[host]\nreserve_memory = \"5 bananas\"\n").contains("reserve_memory"));
        assert!(error("[host]\nreserve_memory = \"95%\"\n").contains("90%"));
        assert!(error("[host]\nreserve = 1\n").contains("reserve_memory"));
        assert!(error("[admission]\nwhen_full = \"pray\"\n").contains("wait"));
        assert!(error("[license.x]\n").contains("total"));
        assert!(error("[license.x]\ntotal = -1\n").contains("not negative"));
        assert!(error("[license.x]\ntotal = 1\nserver = \"nowhere\"\n").contains("ADDRESS:PORT"));
        assert!(error("[task.a]\nlimit_memory = \"1Q\"\n").contains("limit_memory"));
        assert!(error("[task.a]\nlicenses = { x = 1 }\n").contains("[license.x]"));
        let more = error("[license.x]\ntotal = 1\n[task.a]\nlicenses = { x = 2 }\n");
        assert!(more.contains("asks for 2 of x"), "{more}");
        let less = error("[task.a]\nlimit_memory = 100\nreserve_memory = \"1K\"\n");
        assert!(less.starts_with("config.toml:3: task.a.reserve_memory"), "{less}");
        let open = error("[metrics]\nlisten = \"0.0.0.0:9750\"\n");
        assert!(
            open.starts_with("config.toml:2: metrics.listen is \"0.0.0.0:9750\"")
                && open.contains("127.0.0.1"),
            "{open}"
        );
        assert!(error("[metrics]\nlisten = \"9750\"\n").starts_with("config.toml:2: listen: "));
        let kind = error("[agent]\ntasks_max = \"x\"\n");
        assert!(kind.starts_with("config.toml:2: tasks_max: ") && kind.contains("whole number"), "{kind}");
        assert!(!error("[agent\n").contains('\n'));
    }

    const LINES: &[&str] = &[
        "[agent]",
        "[run]",
        "[host]",
        "[admission]",
        "[retention]",
        "[license.x]",
        "[task.a]",
        "[task.\"b c\"]",
        "[[agent]]",
        "policy = \"strict\"",
        "cgroup_parent = \"a/b\"",
        "cgroup_parent = \"../x\"",
        "cgroup_parent = \"/\"",
        "total = 2",
        "licenses = { x = 1 }",
        "server = \"127.0.0.1:1\"",
        "when_full = \"wait\"",
    ];
    const KEYS: &[&str] = &[
        "tasks_max",
        "host_cgroups",
        "budget_percent",
        "cost_interval_s",
        "checkpoint_s",
        "risk",
        "runs_per_task",
        "events",
        "days",
        "reserve_memory",
        "cpu_overcommit",
        "unknown_memory",
        "total",
        "priority",
        "limit_memory",
        "limit_cpu",
        "limit_tasks",
        "reserve_cpu",
        "limit_read",
    ];

    fn config_text() -> impl Strategy<Value = String> {
        let value = prop_oneof![hostile::number(), hostile::number().prop_map(|text| format!("{text:?}"))];
        let line = prop_oneof![
            3 => hostile::word_of(LINES),
            4 => (prop::sample::select(KEYS), value).prop_map(|(key, value)| format!("{key} = {value}")),
        ];
        proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        /// What is taken can be used; what is not is told in one line.
        #[test]
        fn hostile_configs(text in config_text()) {
            match Config::parse(Path::new("config.toml"), &text) {
                Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
                Ok(config) => {
                    prop_assert!(config.run.risk > 0.0 && config.run.risk < 1.0);
                    prop_assert!(config.host.reserve_memory.of(1 << 30) <= 1 << 30);
                    prop_assert!(config.admission.cpu_overcommit.is_finite());
                    let plain = |part: &str| !matches!(part, "" | "." | "..");
                    prop_assert!(config.agent.cgroup_parent.split('/').all(plain));
                    for rule in config.task.values() {
                        let cores = [rule.limit_cpu, rule.reserve_cpu];
                        prop_assert!(cores.iter().flatten().all(|cores| cores.is_finite() && *cores > 0.0));
                    }
                }
            }
        }
    }
}
