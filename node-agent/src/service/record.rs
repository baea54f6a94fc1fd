//! Failovers into the database.

use super::guard::Failover;
use crate::balance::demand;
use crate::store::record::NewFailover;
use crate::store::{Reader, Store};
use crate::wire::{self, Reply, Request};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Longest evidence that is kept, characters: a probe's answer may be in it.
const EVIDENCE_MAX: usize = 250;

/// Where failovers of a service are recorded.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// The database.
    pub database: PathBuf,
    /// The agent that records, where the database is its own.
    pub agent: Option<PathBuf>,
    /// Name of the service.
    pub service: String,
    /// Who runs it.
    pub uid: u32,
}

impl Recorder {
    /// Records one; blocks. A database that refuses costs the record, and a word in the log.
    pub(super) fn record(&self, failover: &Failover) {
        let row = self.row(failover);
        let recorded = match &self.agent {
            Some(agent) => tell(agent, row),
            None => Store::open(&self.database)
                .and_then(|mut opened| opened.store.add_failover(&row))
                .map_err(|error| error.to_string()),
        };
        if let Err(error) = recorded {
            eprintln!("standin: a failover is not recorded: {error}");
        }
    }

    /// Books the connections of an hour of the week, and gives how busy the present one and the next are as a rule;
    /// blocks.
    pub(super) fn hour(&self, hour_of_week: u32, booked: Option<(u32, f64)>) -> Option<f64> {
        if self.agent.is_some() {
            return None;
        }
        let booked = Store::open(&self.database).and_then(|mut opened| match booked {
            Some((hour, connections)) => {
                opened.store.add_service_hour(&self.service, self.uid, hour, connections)
            }
            None => Ok(()),
        });
        let hours = booked
            .and_then(|()| Reader::open(&self.database))
            .and_then(|reader| reader.service_hours(&self.service, self.uid));
        // Without it the number of shadows follows the failures alone.
        demand(&hours.ok()?, hour_of_week)
    }

    fn row(&self, failover: &Failover) -> NewFailover {
        let number =
            |who: Option<(u64, i32)>| who.map(|(number, _)| i64::try_from(number).unwrap_or(i64::MAX));
        NewFailover {
            service: self.service.clone(),
            uid: self.uid,
            at_ms: failover.at_ms,
            cause: failover.cause.word().into(),
            evidence: failover.cause.to_string().chars().take(EVIDENCE_MAX).collect(),
            from_instance: number(failover.from),
            from_pid: failover.from.map(|(_, pid)| pid),
            to_instance: number(Some(failover.to)).unwrap_or(0),
            to_pid: failover.to.1,
            steps: failover.steps.iter().map(|(step, us)| ((*step).to_owned(), *us)).collect(),
            queued: failover.queued,
            migrated: failover.migrated,
            open: failover.open,
        }
    }
}

/// Has the agent record it.
fn tell(agent: &Path, row: NewFailover) -> Result<(), String> {
    let mut stream = UnixStream::connect(agent).map_err(|error| error.to_string())?;
    let sent = wire::send(&mut stream, &Request::FailedOver(Box::new(row)));
    match sent.and_then(|()| wire::receive(&mut stream)) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Refused(why)) => Err(why),
        Ok(_) => Err("the agent answered something else".into()),
        Err(error) => Err(error.to_string()),
    }
}
