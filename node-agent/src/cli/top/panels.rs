//! The smaller tables: services, those who wait, and what happened.

use super::view::View;
use crate::cli::table::{Align, Table};
use crate::cli::when;
use crate::service::control::Status;
use crate::units::{format_bytes, format_duration};

/// Events of a past moment that are shown.
const EVENTS_SHOWN: usize = 8;

/// Longest name that an event is shown with, characters.
const ABOUT_MAX: usize = 20;

/// The services that run; `None` where there is none.
pub(super) fn services(view: &View) -> Option<Table> {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("SERVICE", Left),
        ("PRIMARY", Left),
        ("SHADOWS", Left),
        ("QUEUE", Right),
        ("FAILOVERS", Left),
        ("PRIVATE", Right),
        ("SHARED", Right),
        ("CONNS", Right),
    ]);
    for service in &view.services {
        table.row(service_row(service));
    }
    (!view.services.is_empty()).then_some(table)
}

fn service_row(service: &Status) -> [String; 8] {
    let of = |role: &'static str| service.instances.iter().filter(move |instance| instance.role == role);
    let primary = of("primary").next();
    let sum =
        |of: fn(&crate::service::control::Instance) -> u64| service.instances.iter().map(of).sum::<u64>();
    let shadows = match service.mode.as_str() {
        "steered" => {
            let starting = of("starting").count();
            let more = if starting > 0 { format!(", {starting} starting") } else { String::new() };
            format!("{} of {} ready{more}", of("shadow").count(), service.shadows)
        }
        mode => mode.to_owned(),
    };
    let failovers = match &service.last_failover {
        Some(last) => format!("{}, last {}", service.failovers, when::ago(last.at_ms)),
        None => service.failovers.to_string(),
    };
    [
        service.name.clone(),
        primary.map_or_else(|| "none".into(), |primary| format!("{} pid {}", primary.number, primary.pid)),
        shadows,
        sum(|instance| instance.queue).to_string(),
        failovers,
        format_bytes(sum(|instance| instance.private_bytes) as f64),
        format_bytes(sum(|instance| instance.shared_bytes) as f64),
        service.connections.to_string(),
    ]
}

/// Those who wait for room; `None` if nobody does.
pub(super) fn queue(view: &View) -> Option<Table> {
    use Align::{Left, Right};
    let waiting = view.queue.as_ref().map(|queue| &queue.waiting).filter(|waiting| !waiting.is_empty())?;
    let mut table = Table::new(&[
        ("WAITS", Left),
        ("USER", Left),
        ("PRIORITY", Right),
        ("MEMORY", Right),
        ("CORES", Right),
        ("CAME", Left),
        ("STARTS IN", Right),
    ]);
    for entry in waiting {
        table.row([
            entry.task_type.clone().unwrap_or_else(|| "(another user's)".into()),
            entry.user.clone(),
            entry.priority.to_string(),
            format_bytes(entry.memory_bytes as f64),
            format!("{:.2}", entry.promise.cpu_cores),
            when::ago(entry.since_ms),
            entry
                .expected_ms
                .map_or_else(|| "-".into(), |ms| format_duration((ms.max(0) as f64 / 1e3).round())),
        ]);
    }
    Some(table)
}

/// What happened before a moment of the past.
pub(super) fn events(view: &View) -> Option<Table> {
    let mut table =
        Table::new(&[("BEFORE", Align::Right), ("ABOUT", Align::Left), ("WHAT HAPPENED", Align::Left)]);
    for event in view.events.iter().take(EVENTS_SHOWN) {
        let before = format_duration(((view.at_ms - event.at_ms).max(0) / 1000) as f64);
        let about = event.service.clone().or_else(|| event.task_type.clone()).unwrap_or_default();
        let about = about.chars().take(ABOUT_MAX).collect();
        table.row([before, about, event.message.clone()]);
    }
    (!view.events.is_empty()).then_some(table)
}
