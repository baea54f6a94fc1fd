//! Options of `standin run` about sizing: limits and promises by hand, and what happens when there is no room.

use crate::size::Manual;
use crate::size::admission::{Licenses, PRIORITY_BOUND, WhenFull};
use crate::units;
use crate::wire::Asked;
use anyhow::bail;
use clap::Args;
use std::time::Duration;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits and promises")]
pub(super) struct SizingArgs {
    /// Hard memory limit, such as 512M or 2G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    limit_memory: Option<u64>,
    /// CPU limit in cores, such as 1.5
    #[arg(long, value_name = "CORES", value_parser = parse_cores)]
    limit_cpu: Option<f64>,
    /// Limit on processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit_tasks: Option<u64>,
    /// Limit on reads from each disk, per second
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    limit_read: Option<u64>,
    /// Limit on writes to each disk, per second
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    limit_write: Option<u64>,
    /// Promise it at least so much memory: predicted limits stay above
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    reserve_memory: Option<u64>,
    /// Promise it at least so many cores
    #[arg(long, value_name = "CORES", value_parser = parse_cores)]
    reserve_cpu: Option<f64>,
    /// Under the policy elastic, set a CPU quota that follows the task
    #[arg(long)]
    cpu_quota: bool,
    /// Where the host has no room, wait for it, at most TIME such as 10m
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = parse_time)]
    #[arg(conflicts_with = "no_wait")]
    wait: Option<Option<Duration>>,
    /// Where the host has no room, fail with 125
    #[arg(long)]
    no_wait: bool,
    /// Who waits less, -100 to 100 [default: 0]; more than 0 is for root
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i32).range(i64::from(-PRIORITY_BOUND)..=i64::from(PRIORITY_BOUND)))]
    priority: Option<i32>,
    /// Take licences of a pool (repeatable): waits until they are free
    #[arg(long, value_name = "NAME[=N]", value_parser = parse_license)]
    license: Vec<(String, u32)>,
}

impl SizingArgs {
    /// Limits and promises by hand.
    pub(super) fn manual(&self) -> anyhow::Result<Manual> {
        if let (Some(limit), Some(reserve)) = (self.limit_memory, self.reserve_memory)
            && reserve > limit
        {
            bail!(
                "--reserve-memory is more than --limit-memory: a task can't be promised what it may not have"
            );
        }
        Ok(Manual {
            memory_bytes: self.limit_memory,
            cpu_cores: self.limit_cpu,
            tasks: self.limit_tasks,
            io_read_bytes_per_s: self.limit_read,
            io_write_bytes_per_s: self.limit_write,
            memory_floor_bytes: self.reserve_memory,
            cpu_floor_cores: self.reserve_cpu,
            cpu_quota: self.cpu_quota.then_some(true),
        })
    }

    /// What is asked of the queue.
    pub(super) fn asked(&self) -> Asked {
        Asked {
            when_full: match (&self.wait, self.no_wait) {
                (Some(_), _) => Some(WhenFull::Wait),
                (None, true) => Some(WhenFull::Fail),
                (None, false) => None,
            },
            wait_max_ms: self.wait.flatten().map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
            priority: self.priority,
            licenses: self.license.iter().cloned().collect::<Licenses>(),
            since_ms: crate::host::now_ms(),
        }
    }

    /// What only an agent can do, in words.
    pub(super) fn needs_agent(&self) -> Option<&'static str> {
        let waits = self.wait.is_some() || self.no_wait || self.priority.is_some();
        if waits { Some("the queue is kept by an agent: the task starts at once") } else { None }
    }

    /// Whether it is to wait where there is no room.
    pub(super) fn waits(&self) -> bool {
        self.wait.is_some()
    }

    pub(super) fn takes_licenses(&self) -> bool {
        self.license.iter().any(|(_, count)| *count > 0)
    }
}

pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).map_err(|error| error.to_string())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|error| error.to_string())
}

fn parse_cores(text: &str) -> Result<f64, String> {
    let allowed = || "allowed is a number of cores between 0.01 and 10000, such as 1.5".to_owned();
    let cores = text.parse().map_err(|_| allowed())?;
    if (0.01..=10_000.0).contains(&cores) { Ok(cores) } else { Err(allowed()) }
}

fn parse_license(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text.split_once('=').unwrap_or((text, "1"));
    match count.parse() {
        Ok(count) if !name.is_empty() => Ok((name.to_owned(), count)),
        _ => Err("allowed is NAME or NAME=N, such as cad=2".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_license_is_one_unless_said() {
        assert_eq!(parse_license("cad"), Ok(("cad".into(), 1)));
        assert_eq!(parse_license("cad=0"), Ok(("cad".into(), 0)));
        for bad in ["", "=1", "cad=", "cad=-1", "cad=x"] {
            assert!(parse_license(bad).unwrap_err().contains("NAME=N"), "{bad}");
        }
    }
}
