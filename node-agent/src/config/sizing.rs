//! The sections about sizing: what is kept free, what happens when the host is full, pools of licences, and
//! what holds for single kinds of tasks.

use crate::size::Policy;
use crate::size::admission::{PRIORITY_BOUND, WhenFull};
use crate::units;
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;

/// Most licences that one pool may have.
const LICENSES_MAX: u32 = 1_000_000;

/// `[host]`: what tasks leave alone.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Host {
    /// Memory that tasks can't have together: a size or a percentage of the host's. 0 keeps nothing.
    pub reserve_memory: Share,
}

impl Default for Host {
    fn default() -> Self {
        Self { reserve_memory: Share::Percent(5.0) }
    }
}

/// `[admission]`: what happens to a task that the host has no room for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admission {
    /// `start`, `wait` or `fail`, where the command line does not say.
    pub when_full: WhenFull,
    /// Cores may be promised this many times: tasks share them without harm.
    pub cpu_overcommit: f64,
    /// Memory that a task is taken to need of which nothing is known.
    pub unknown_memory: Size,
}

impl Default for Admission {
    fn default() -> Self {
        Self { when_full: WhenFull::Start, cpu_overcommit: 2.0, unknown_memory: Size(128 << 20) }
    }
}

/// `[license.NAME]`: a pool of licences.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct License {
    /// How many there are.
    pub total: u32,
    /// The server's `ADDRESS:PORT`. A task's connections to it are taken for the licences that it uses.
    #[serde(default)]
    pub server: Option<String>,
}

/// `[task.NAME]`: what holds for one kind of task. The command line wins.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskRule {
    /// As in `[run]`.
    pub policy: Option<Policy>,
    /// As in `[admission]`.
    pub when_full: Option<WhenFull>,
    /// Who waits less: −100 to 100, 0 is normal.
    pub priority: Option<i32>,
    /// Hard memory limit.
    pub limit_memory: Option<Size>,
    /// CPU limit, cores.
    pub limit_cpu: Option<f64>,
    /// Limit on tasks.
    pub limit_tasks: Option<u64>,
    /// Limit on reads from each disk, per second.
    pub limit_read: Option<Size>,
    /// Limit on writes to each disk, per second.
    pub limit_write: Option<Size>,
    /// Memory that it is promised at least.
    pub reserve_memory: Option<Size>,
    /// Cores that it is promised at least.
    pub reserve_cpu: Option<f64>,
    /// Whether the policy `elastic` sets a CPU quota that follows it.
    pub cpu_quota: Option<bool>,
    /// Licences that it takes.
    pub licenses: BTreeMap<String, u32>,
}

/// A size in bytes, as people write it: `"512M"`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A part of what the host has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// So many bytes.
    Bytes(u64),
    /// So much of it, 0–100.
    Percent(f64),
}

impl Share {
    /// That part of `whole`, and no more than it.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.min(whole),
            Self::Percent(percent) => ((whole as f64 * percent / 100.0) as u64).min(whole),
        }
    }
}

/// A number or a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a size such as \"512M\"")]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => units::parse_bytes(&text).map(Self).map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self::Bytes(bytes)),
            Written::Text(text) => match text.strip_suffix('%') {
                None => units::parse_bytes(&text).map(Self::Bytes).map_err(de::Error::custom),
                Some(number) => number
                    .trim()
                    .parse()
                    .ok()
                    .filter(|percent| (0.0..=90.0).contains(percent))
                    .map(Self::Percent)
                    .ok_or_else(|| {
                        de::Error::custom(format!("{text:?} is no share: allowed is \"0%\" to \"90%\""))
                    }),
            },
        }
    }
}

/// Keys whose values types can't bound, with what is wrong.
pub(super) fn check(config: &super::Config) -> Result<(), (String, String)> {
    let overcommit = config.admission.cpu_overcommit;
    if !(0.1..=1000.0).contains(&overcommit) {
        return Err(("admission.cpu_overcommit".into(), format!("is {overcommit}: allowed is 0.1 to 1000")));
    }
    for (name, pool) in &config.license {
        if pool.total > LICENSES_MAX {
            let message = format!("is {}: allowed is 0 to {LICENSES_MAX}", pool.total);
            return Err((format!("license.{name}.total"), message));
        }
        if let Some(server) = &pool.server
            && server
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            let message = format!("is {server:?}: allowed is ADDRESS:PORT, such as \"10.0.0.7:27000\"");
            return Err((format!("license.{name}.server"), message));
        }
    }
    config.task.iter().try_for_each(|(name, rule)| check_rule(config, name, rule))
}

fn check_rule(config: &super::Config, name: &str, rule: &TaskRule) -> Result<(), (String, String)> {
    let wrong = |key: &str, message: String| Err((format!("task.{name}.{key}"), message));
    if let Some(priority) =
        rule.priority.filter(|priority| !(-PRIORITY_BOUND..=PRIORITY_BOUND).contains(priority))
    {
        return wrong("priority", format!("is {priority}: allowed is -100 to 100"));
    }
    for (key, cores) in [("limit_cpu", rule.limit_cpu), ("reserve_cpu", rule.reserve_cpu)] {
        if let Some(cores) = cores.filter(|cores| !(0.01..=10_000.0).contains(cores)) {
            return wrong(key, format!("is {cores}: allowed is a number of cores between 0.01 and 10000"));
        }
    }
    if let (Some(Size(limit)), Some(Size(reserve))) = (rule.limit_memory, rule.reserve_memory)
        && reserve > limit
    {
        return wrong("reserve_memory", "is more than limit_memory".into());
    }
    for (license, count) in &rule.licenses {
        match config.license.get(license) {
            None => return wrong("licenses", format!("names {license:?}: there is no [license.{license}]")),
            Some(pool) if *count > pool.total => {
                return wrong(
                    "licenses",
                    format!("asks for {count} of {license}, of which there are {}", pool.total),
                );
            }
            Some(_) => {}
        }
    }
    Ok(())
}
