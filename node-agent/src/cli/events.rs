//! `standin events`: what standin did to tasks, and when: limits that followed, waits for room, licences.

use super::exit::{print, print_on};
use super::output::{JSON_VERSION, print_json};
use super::settings::Settings;
use super::sizing::parse_time;
use super::table::{Align, Table, printable};
use super::{completions, runs, when};
use crate::host;
use crate::store::Reader;
use crate::store::event::{EventRow, Filter, Severity};
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use serde::Serialize;
use std::time::Duration;

/// Pause between two looks for new events under `--follow`.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

/// Most events shown at once under `--follow`.
const FOLLOW_MAX: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin events                                what happened last
  standin events --run 12                       how the limits of a run followed it
  standin events --severity warning --since 1h  what went wrong in the last hour
  standin events --follow")]
pub(super) struct EventsArgs {
    /// Only events about this kind of task
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(completions::tasks))]
    task: Option<String>,
    /// Only events about this run
    #[arg(long, value_name = "N")]
    run: Option<i64>,
    /// Only events about this service
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(completions::services))]
    service: Option<String>,
    /// Only events of this kind, such as limit_raised
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only events that matter at least so much
    #[arg(long, value_enum, default_value = "info")]
    severity: SeverityArg,
    /// Only events of the last 30s, 15m, 2h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Duration>,
    /// How many at most: the newest
    #[arg(long, short = 'n', default_value_t = 50, value_name = "N", value_parser = runs::parse_limit)]
    #[arg(allow_negative_numbers = true)]
    limit: usize,
    /// Go on with what happens, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print JSON; with --follow an object per line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SeverityArg {
    /// Everything
    Info,
    /// A task is worse off than it should be, or soon will be
    Warning,
    /// Something failed
    Error,
}

impl EventsArgs {
    fn filter(&self) -> Filter {
        let span_ms = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Filter {
            kind: self.kind.clone(),
            task_type: self.task.clone(),
            run: self.run,
            service: self.service.clone(),
            severity: match self.severity {
                SeverityArg::Info => Severity::Info,
                SeverityArg::Warning => Severity::Warning,
                SeverityArg::Error => Severity::Error,
            },
            since_ms: self.since.map_or(0, |span| host::now_ms().saturating_sub(span_ms(span))),
            until_ms: None,
            after: 0,
        }
    }
}

#[derive(Serialize)]
struct Events {
    version: u32,
    events: Vec<EventRow>,
}

pub(super) fn run(settings: &Settings, arguments: &EventsArgs) -> anyhow::Result<u8> {
    let mut reader = Reader::open(&settings.database_to_read())?;
    let mut filter = arguments.filter();
    let mut events = reader.events(&filter, arguments.limit)?;
    if arguments.follow {
        while show_lines(&mut events, arguments.json, &mut filter)? {
            std::thread::sleep(FOLLOW_PAUSE);
            // What an ordinary user reads is a copy.
            reader = Reader::open(&settings.database_to_read())?;
            events = reader.events(&filter, FOLLOW_MAX)?;
        }
        return Ok(0);
    }
    if arguments.json {
        print_json(&Events { version: JSON_VERSION, events })?;
    } else if events.is_empty() {
        print(if filter == Filter::default() {
            "nothing happened yet\n"
        } else {
            "no event is like that\n"
        })?;
    } else {
        print(table(&events))?;
    }
    Ok(0)
}

/// Oldest first, a line each; the filter then wants what comes after them. `false` if nobody reads on.
fn show_lines(events: &mut Vec<EventRow>, json: bool, filter: &mut Filter) -> anyhow::Result<bool> {
    let mut lines = String::new();
    for event in events.drain(..).rev() {
        filter.after = event.event_id;
        if json {
            lines += &format!("{}\n", serde_json::to_string(&event)?);
        } else {
            let (about, message) = (about(&event), printable(&event.message));
            let (time, name) = (when::clock(event.at_ms), event.severity.name());
            lines += &format!("{time}  {name:<7}  {}  {message}\n", printable(&about));
        }
    }
    Ok(print_on(lines)?)
}

fn table(events: &[EventRow]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("TIME", Left),
        ("", Left),
        ("KIND", Left),
        ("RUN", Right),
        ("ABOUT", Left),
        ("EVENT", Left),
    ]);
    for event in events {
        let run = event.run_id.map_or_else(|| "-".into(), |run| run.0.to_string());
        let severity = if event.severity == Severity::Info { "" } else { event.severity.name() };
        table.row([
            when::clock(event.at_ms),
            severity.into(),
            event.kind.clone(),
            run,
            about(event),
            event.message.clone(),
        ]);
    }
    table
}

/// The service or the task.
fn about(event: &EventRow) -> String {
    event.service.as_ref().or(event.task_type.as_ref()).cloned().unwrap_or_else(|| "-".into())
}
