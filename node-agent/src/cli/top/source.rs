//! Where moments come from: the agent and the services for the present, the database for the past and for when there
//! is no agent. Blocks; `watch` has it on a thread of its own, so that a slow answer stops no key.

use super::detail::Detail;
use super::state::When;
use super::view::{PAST_SPAN_MS, Trails, View, past};
use crate::cli::reach;
use crate::cli::settings::Settings;
use crate::host;
use crate::service::control::{Status, statuses};
use crate::service::control_directory;
use crate::store::event::{EventRow, Filter};
use crate::store::record::RunId;
use crate::store::{Reader, StoreError};
use crate::wire::{Reply, Request};
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Pause between two looks at services: their memory takes longer to count.
const SERVICES_EVERY: Duration = Duration::from_secs(2);

/// How long before a past moment an event is shown with it, milliseconds.
const EVENTS_SPAN_MS: i64 = 120_000;

/// Most events of one run, and of one moment.
const EVENTS_MAX: usize = 200;

/// Pause between the first two looks: the second has rates.
const FIRST_PAUSE: Duration = Duration::from_millis(400);

/// See the head of this file.
pub(super) struct Source {
    settings: Settings,
    trails: Trails,
    reader: Option<Reader>,
    services: (Option<Instant>, Vec<Status>),
}

/// What is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) when: When,
    /// The task whose detail is shown, and its run where that is known.
    pub(super) detail: Option<(u64, Option<i64>)>,
}

/// What came.
pub(super) struct Update {
    pub(super) wanted: Wanted,
    /// `None`: the moment that is shown stands still.
    pub(super) view: Option<View>,
    pub(super) detail: Option<Detail>,
}

impl Source {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            trails: Trails::default(),
            reader: None,
            services: (None, Vec::new()),
        }
    }

    /// A moment.
    pub(super) fn look(&mut self, when: When) -> View {
        match when {
            When::Past(at_ms) => self.past(at_ms),
            When::Now | When::Paused => self.present(),
        }
    }

    fn present(&mut self) -> View {
        let services = self.services();
        let why = match reach::ask(&self.settings.socket, &Request::Live) {
            Ok(Reply::Live(now)) => return self.trails.view(*now, services),
            Ok(Reply::Refused(why)) => why,
            Ok(_) => "the agent answered something else".into(),
            Err(unreachable) if unreachable.absent => {
                format!("{}; start one with: standin agent", unreachable.message)
            }
            Err(unreachable) => unreachable.message,
        };
        let mut view = self.past(host::now_ms());
        // Whether whoever measures them lives the database alone does not know.
        let open = self.read(Reader::open_runs).unwrap_or_default();
        let going_on: HashSet<i64> =
            open.into_iter().filter(|run| run.owner.is_alive()).map(|run| run.id.0).collect();
        view.rows.retain(|row| row.run_id.is_some_and(|run| going_on.contains(&run)));
        let records = match &view.hint {
            Some(no_records) => no_records.clone(),
            None => "what follows is the last record of runs that are under way".into(),
        };
        let hint = Some(format!("{why}. {records}"));
        View { services, hint, events: Vec::new(), ..view }
    }

    fn services(&mut self) -> Vec<Status> {
        let (looked, services) = &mut self.services;
        if looked.is_none_or(|looked| looked.elapsed() >= SERVICES_EVERY) {
            *services = statuses(&control_directory(&self.settings.socket));
            *looked = Some(Instant::now());
        }
        services.clone()
    }

    fn past(&mut self, at_ms: i64) -> View {
        let filter = Filter { since_ms: at_ms - EVENTS_SPAN_MS, until_ms: Some(at_ms), ..Filter::default() };
        let found = self
            .read(|reader| Ok((reader.moment(at_ms, PAST_SPAN_MS)?, reader.events(&filter, EVENTS_MAX)?)));
        match found {
            Ok((runs, events)) => past(at_ms, runs, events),
            Err(error) => View { at_ms, hint: Some(error.to_string()), ..View::default() },
        }
    }

    /// Reads from the database, opening it where that was not done yet or failed.
    fn read<T>(&mut self, what: impl FnOnce(&Reader) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::open(&self.settings.database_to_read())?,
        };
        let found = what(&reader)?;
        self.reader = Some(reader);
        Ok(found)
    }

    /// Everything about a task of a moment.
    pub(super) fn detail(&mut self, id: u64, run: Option<i64>, when: When) -> Option<Detail> {
        let live = match when {
            When::Past(_) => None,
            When::Now | When::Paused => match reach::ask(&self.settings.socket, &Request::LiveTask(id)) {
                Ok(Reply::LiveTask(detail)) => Some(Detail::live(id, *detail)),
                _ => None,
            },
        };
        let until_ms = match when {
            When::Past(at_ms) => Some(at_ms),
            When::Now | When::Paused => None,
        };
        let run = run?;
        let recorded = |source: &mut Self| source.read(|reader| reader.run(RunId(run))).ok().flatten();
        let detail = live.or_else(|| recorded(self).map(|run| Detail { id, ..Detail::recorded(run) }))?;
        Some(Detail { events: self.events(run, until_ms), ..detail })
    }

    /// What happened to a run, oldest first.
    fn events(&mut self, run: i64, until_ms: Option<i64>) -> Vec<EventRow> {
        let filter = Filter { run: Some(run), until_ms, ..Filter::default() };
        let mut events = self.read(|reader| reader.events(&filter, EVENTS_MAX)).unwrap_or_default();
        events.reverse();
        events
    }
}

/// Looks every `interval`, and at once when something else is wanted, until nobody listens any more.
pub(super) fn watch(mut source: Source, interval: Duration) -> (Sender<Wanted>, Receiver<Update>) {
    let (want, wanted) = channel::<Wanted>();
    let (tell, updates) = channel();
    let work = move || {
        let mut now = Wanted::default();
        let mut pause = interval.min(FIRST_PAUSE);
        let mut is_news = true;
        loop {
            // A past moment, and one that stands still, change only when another one is wanted.
            let view = match now.when {
                When::Now => Some(source.look(now.when)),
                When::Past(_) if is_news => Some(source.look(now.when)),
                When::Past(_) | When::Paused => None,
            };
            let detail = now.detail.and_then(|(id, run)| source.detail(id, run, now.when));
            if tell.send(Update { wanted: now, view, detail }).is_err() {
                return;
            }
            is_news = match wanted.recv_timeout(pause) {
                Ok(next) => {
                    // Of many keys the last one counts.
                    now = wanted.try_iter().last().unwrap_or(next);
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            pause = interval;
        }
    };
    // Without it there is nothing to show, which the other side notices.
    _ = std::thread::Builder::new().name("watch".into()).spawn(work);
    (want, updates)
}
