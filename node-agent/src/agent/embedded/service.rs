//! The home of a service where there is no agent: the launcher measures the run itself, beside supervising it.

use super::{Embedded, Outcome, unknown_exit};
use crate::agent::{Plan, Task};
use crate::host::ProcessId;
use crate::launch::Exit;
use crate::service::Home;
use crate::store::record::RunId;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between measurements where there is nothing to measure.
const IDLE: Duration = Duration::from_secs(3600);

/// See the head of this file.
pub struct EmbeddedHome<'a> {
    embedded: Embedded<'a>,
    plan: Plan,
    task: Option<Task>,
    run: Option<RunId>,
    entrances: Vec<File>,
    recorded: Instant,
}

impl<'a> Embedded<'a> {
    /// Makes the cgroup of a service's run and begins its record.
    pub fn settle(mut self, plan: Plan) -> EmbeddedHome<'a> {
        let mut task = self.admit(&plan);
        let run = self.begin(&plan, task.as_ref());
        if let Some(run) = run {
            self.recorded(|store| store.set_main(run, &ProcessId::current()));
        }
        if let (Some(task), Ok(engine)) = (&mut task, &mut self.engine) {
            task.start(engine, 0);
        }
        let mut entrances = task.as_ref().and_then(|task| task.cgroup().entrances().ok()).unwrap_or_default();
        // The v2 entrance is the last one; instances are born in cgroups below it.
        entrances.pop();
        EmbeddedHome { embedded: self, plan, task, run, entrances, recorded: Instant::now() }
    }
}

impl EmbeddedHome<'_> {
    /// Closes the record. `status` is that of the instance that ended the service.
    pub fn finish(mut self, status: i32) -> Outcome {
        let exit = Exit { status, ..unknown_exit() };
        let (measured, ending) = match self.task.take() {
            Some(task) => {
                self.embedded.notes.extend(task.notes().iter().cloned());
                self.embedded.release_measured(task, status)
            }
            None => Default::default(),
        };
        self.embedded.record(self.plan, self.run, measured, ending, exit)
    }
}

impl Home for EmbeddedHome<'_> {
    fn cgroup(&self) -> Option<PathBuf> {
        self.task.as_ref().map(|task| task.cgroup().v2())
    }

    fn entrances(&self) -> &[File] {
        &self.entrances
    }

    fn measure(&mut self) -> Duration {
        let Some(task) = &mut self.task else { return IDLE };
        self.embedded.measure(task, self.run, &mut self.recorded);
        task.interval()
    }
}
