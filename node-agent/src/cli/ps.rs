//! `standin ps`, `failover` and `stop`: the services that run, and what can be done to them.

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::settings::Settings;
use super::table::{Align, Table};
use super::{completions, when};
use crate::service::adopt;
use crate::service::control::{Reply, Request, Status, ask, sockets, statuses};
use crate::service::{ControlPlace, control_directory};
use crate::units::format_bytes;
use anyhow::bail;
use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin ps                           services with their primaries and shadows
  standin ps --json | jq .services[].instances")]
pub(super) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin failover web                 move the traffic to a shadow; the old instance finishes and ends")]
pub(super) struct FailoverArgs {
    /// Name of the service
    #[arg(add = ArgValueCandidates::new(completions::services))]
    service: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin stop web                     SIGTERM to the primary; its exit code is that of standin run")]
pub(super) struct StopArgs {
    /// Name of the service
    #[arg(add = ArgValueCandidates::new(completions::services))]
    service: String,
}

#[derive(Serialize)]
struct Services {
    version: u32,
    services: Vec<Status>,
}

pub(super) fn ps(settings: &Settings, arguments: &PsArgs) -> anyhow::Result<u8> {
    let services = statuses(&control_directory(&settings.socket));
    if arguments.json {
        print_json(&Services { version: JSON_VERSION, services })?;
        return Ok(0);
    }
    if services.is_empty() {
        print(format_args!("no service runs; start one with: standin run --shadows 1 -- COMMAND\n"))?;
        return Ok(0);
    }
    print(table(&services))?;
    Ok(0)
}

/// Names of the services that have a socket, whether they answer or not.
pub(super) fn names(directory: &Path) -> Vec<String> {
    sockets(directory).filter_map(|socket| Some(socket.file_stem()?.to_str()?.to_owned())).collect()
}

fn table(services: &[Status]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("INSTANCE", Align::Right),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("SINCE", Align::Left),
        ("PRIVATE", Align::Right),
        ("SHARED", Align::Right),
        ("QUEUE", Align::Right),
        ("LISTENS ON", Align::Left),
        ("FAILOVERS", Align::Right),
    ]);
    for service in services {
        for (index, instance) in service.instances.iter().enumerate() {
            let of_service = |text: String| if index == 0 { text } else { String::new() };
            table.row([
                of_service(service.name.clone()),
                instance.number.to_string(),
                instance.role.clone(),
                if instance.is_frozen { "frozen" } else { "running" }.into(),
                instance.pid.to_string(),
                when::ago(instance.since_ms),
                format_bytes(instance.private_bytes as f64),
                format_bytes(instance.shared_bytes as f64),
                instance.queue.to_string(),
                of_service(service.addresses.join(" ")),
                of_service(service.failovers.to_string()),
            ]);
        }
    }
    table
}

pub(super) fn failover(settings: &Settings, arguments: &FailoverArgs) -> anyhow::Result<u8> {
    tell(settings, &arguments.service, &Request::FailOver)
}

pub(super) fn stop(settings: &Settings, arguments: &StopArgs) -> anyhow::Result<u8> {
    tell(settings, &arguments.service, &Request::Stop)
}

fn tell(settings: &Settings, service: &str, request: &Request) -> anyhow::Result<u8> {
    let place = ControlPlace::new(&control_directory(&settings.socket), service);
    match ask(&place.socket, request) {
        Ok(Reply::Done) => Ok(0),
        Ok(Reply::Refused(why)) => bail!("{service}: {why}"),
        Ok(Reply::Status(_)) => bail!("{service}: it answered something else"),
        Err(_) => match adopt::left(&place) {
            Some(left) if *request == Request::Stop => {
                left.kill();
                Ok(0)
            }
            Some(left) => {
                bail!("{service} has no supervisor ({}): start it again to have it taken up", left.describe())
            }
            None => bail!("no service named {service} runs; standin ps lists those that do"),
        },
    }
}
