//! A task's life in the daemon: sampled until it ends, recorded, released.

use super::licenses::Uses;
use super::live::{self, Asked};
use super::pressure;
use super::queue::{self, Place};
use super::{Agent, Process};
use crate::agent::{Followed, Task};
use crate::fingerprint::key::{Feature, TaskKey};
use crate::fingerprint::{Fingerprint, Measured};
use crate::host;
use crate::live::Totals;
use crate::predict::Prediction;
use crate::store::StoreError;
use crate::store::event::Event;
use crate::store::record::{Ending, RunId};
use crate::wire::{Finished, Leftover};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// Pauses while the last burst of an ended process is on its way out, and how often at most.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);
const SETTLE_TRIES: u32 = 20;

/// How long a launcher may take, once its task has ended, to say whether the command could be executed.
const REPORT_WAIT: Duration = Duration::from_secs(5);

/// Everything a run needs to be brought to its end.
pub(super) struct Life {
    pub(super) record: Record,
    pub(super) key: TaskKey,
    pub(super) features: Vec<Feature>,
    pub(super) user: String,
    pub(super) process: Process,
    pub(super) task: Task,
    pub(super) leftover: Leftover,
    pub(super) notes: Vec<String>,
    /// Its promise, given back as soon as its main process has ended.
    pub(super) place: Option<Place>,
    /// What happened before the number of its run was known.
    pub(super) events: Vec<Event>,
    /// Licences that it was seen to use.
    pub(super) licenses: Uses,
}

/// The row of a run: under way to the database, there, or refused by it.
pub(super) struct Record {
    begun: Option<oneshot::Receiver<Result<RunId, StoreError>>>,
    run: Option<RunId>,
}

impl Record {
    /// A row that is on its way.
    pub(super) fn begun(answer: oneshot::Receiver<Result<RunId, StoreError>>) -> Self {
        Self { begun: Some(answer), run: None }
    }

    /// No row.
    fn gone() -> Self {
        Self { begun: None, run: None }
    }

    /// A row that is there.
    pub(super) fn known(run: RunId) -> Self {
        Self { begun: None, run: Some(run) }
    }

    /// The row if it is there by now.
    pub(super) fn now(&mut self) -> Option<RunId> {
        if let Some(Ok(Ok(run))) = self.begun.as_mut().map(oneshot::Receiver::try_recv) {
            *self = Self::known(run);
        }
        self.run
    }

    /// The row if it was known to be there when [`Record::now`] looked last.
    pub(super) fn known_run(&self) -> Option<RunId> {
        self.run
    }

    /// Waits for the database's answer.
    pub(super) async fn settled(mut self) -> Result<RunId, StoreError> {
        match (self.now(), self.begun) {
            (Some(run), _) => Ok(run),
            (None, Some(answer)) => answer.await.unwrap_or(Err(StoreError::WriterGone)),
            (None, None) => Err(StoreError::WriterGone),
        }
    }
}

/// Leads a task to its end. `executed` brings the `errno` if the command could not be executed; `finish` is
/// told the record.
pub(super) async fn lead(
    agent: Rc<Agent>,
    mut life: Life,
    executed: oneshot::Receiver<Option<i32>>,
    finish: oneshot::Sender<Box<Finished>>,
) {
    agent.active.set(agent.active.get() + 1);
    let (shown, mut asked) = live::show(&agent, &life);
    let stopped = follow(&agent, &mut life, &mut asked).await;
    let counted = shown.end();
    agent.active.set(agent.active.get() - 1);
    if stopped {
        checkpoint(&agent, &mut life);
        life.task.let_go();
        return;
    }
    // A launcher that says nothing must not hold what the task had.
    let reported = tokio::time::timeout(REPORT_WAIT, executed).await;
    let exec_errno = reported.ok().and_then(Result::ok).flatten();
    let (key, features) = (life.key.clone(), life.features.clone());
    let finished = conclude(&agent, life, exec_errno, &counted).await;
    let ended_well = finished.ending.exit_code == Some(0);
    _ = finish.send(Box::new(finished));
    agent.forecast(key, features, ended_well);
}

/// Samples until the run is over; `true` if the agent stops first.
async fn follow(agent: &Agent, life: &mut Life, asked: &mut Asked) -> bool {
    let ended = async |life: &Life| _ = life.process.pidfd.readable().await;
    if sample_until(agent, life, asked, ended).await {
        return true;
    }
    if life.leftover != Leftover::Wait {
        return false;
    }
    let events =
        life.task.cgroup().events().ok().and_then(|events| super::watch(events, Interest::PRIORITY).ok());
    let Some(events) = events else { return false };
    let emptied = async |life: &Life| {
        while life.task.cgroup().is_populated() {
            if let Ok(mut ready) = events.ready(Interest::PRIORITY).await {
                ready.clear_ready();
            }
        }
    };
    sample_until(agent, life, asked, emptied).await
}

async fn sample_until(agent: &Agent, life: &mut Life, asked: &mut Asked, over: impl AsyncFn(&Life)) -> bool {
    let mut recorded = Instant::now();
    let mut stop = agent.stop.subscribe();
    let limits = life.task.cgroup().memory_events();
    let limits = limits.and_then(|events| super::watch(events, Interest::PRIORITY).ok());
    let mut wanted = agent.wanted.subscribe();
    loop {
        let pause = life.task.interval();
        tokio::select! {
            () = over(life) => return false,
            Ok(()) = wanted.changed(), if life.task.is_idle() => {
                let bytes = *wanted.borrow_and_update();
                life.events.extend(pressure::take_back(life.task.cgroup().clone(), bytes).await);
            }
            () = met(limits.as_ref()) => {}
            Some(answer) = asked.recv() => {
                let measured = life.task.measured(&agent.engine.borrow());
                // Whoever asked may have gone.
                _ = answer.send(live::detail(measured, life.task.plan()));
            }
            _ = stop.wait_for(|stop| *stop) => return true,
            () = tokio::time::sleep(pause) => {}
        }
        let followed = life.task.sample(&agent.engine.borrow());
        life.events.extend(followed.iter().map(Followed::event));
        look_after(agent, life);
        if recorded.elapsed() >= Duration::from_secs(agent.config().agent.checkpoint_s) {
            recorded = Instant::now();
            checkpoint(agent, life);
        }
    }
}

/// What a sample means to others: the ledger, the pools, the log.
fn look_after(agent: &Agent, life: &mut Life) {
    let run = life.record.now();
    agent.board.sampled(&life.task, run);
    if let Some(place) = &life.place {
        place.used(life.task.memory_bytes(), life.task.is_idle());
        life.licenses.look(agent, &life.task, &life.process.id);
        for (license, used) in life.licenses.used() {
            place.uses_licenses(license, used.peak);
        }
    }
    if let Some(run) = run {
        if let Some(place) = &life.place {
            place.recorded(run);
        }
        log(agent, std::mem::take(&mut life.events), &life.key.task_type, Some(run));
    }
}

fn log(agent: &Agent, events: Vec<Event>, task_type: &str, run: Option<RunId>) {
    for event in events {
        agent.writer.log(event.task(task_type).run(run));
    }
}

/// Shortest pause between two looks because of that: a task that lives at its limit meets it all the time.
const MET_PAUSE: Duration = Duration::from_millis(50);

/// The task met a limit on memory; never where that can't be told.
async fn met(limits: Option<&AsyncFd<OwnedFd>>) {
    tokio::time::sleep(MET_PAUSE).await;
    match limits {
        Some(limits) => match limits.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn checkpoint(agent: &Agent, life: &mut Life) {
    if let Some(run) = life.record.now() {
        agent.writer.checkpoint(run, life.task.measured(&agent.engine.borrow()));
    }
}

/// How the main process ended, if anybody tells: the probes at once, its pidfd when its parent has waited for it.
async fn exit_status(agent: &Agent, life: &Life) -> Option<i32> {
    let pid = life.process.id.pid;
    let mut by_pidfd = None;
    for _ in 0..SETTLE_TRIES {
        if agent.engine.borrow_mut().has_seen_end(pid) {
            break;
        }
        by_pidfd = life.process.exit_status();
        if by_pidfd.is_some() {
            break;
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
    let seen = agent.engine.borrow_mut().take_exit(pid);
    seen.map(|exit| exit.status).or(by_pidfd)
}

/// `counted` is what the metrics have of it.
async fn conclude(agent: &Agent, mut life: Life, exec_errno: Option<i32>, counted: &Totals) -> Finished {
    for _ in 0..SETTLE_TRIES {
        if life.task.is_settled(&agent.engine.borrow()) {
            break;
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
    life.licenses.look_at_peers(agent, &life.task);
    let status = exit_status(agent, &life).await;
    let plan = life.task.plan().clone();
    life.notes.extend(
        life.task.notes().iter().filter(|note| !life.notes.contains(note)).cloned().collect::<Vec<_>>(),
    );
    let (measured, mut ending) = {
        let mut engine = agent.engine.borrow_mut();
        life.task.finish(&mut engine, status, life.leftover)
    };
    ending.exec_errno = exec_errno;
    tally(agent, (&life.key, &life.user), (&measured.fingerprint, counted), (&plan.prediction, &ending));
    // Others may have its room before the disk has its record.
    let place = life.place.take();
    life.events.extend(place.as_ref().and_then(released));
    drop(place);
    let record = std::mem::replace(&mut life.record, Record::gone());
    let run = match self::record(agent, record, ending, measured.clone()).await {
        Ok(run) => {
            if !life.licenses.used().is_empty() {
                agent.writer.licenses_used(run, life.licenses.used().clone());
            }
            Some(run)
        }
        Err(error) => {
            // The writer has said why, once.
            tracing::debug!("a run of {} is not recorded: {error}", life.key.task_type);
            life.notes.push(format!("not recorded: {error}"));
            None
        }
    };
    log(agent, life.events, &life.key.task_type, run);
    Finished {
        run: run.map(|run| run.0),
        task_type: life.key.task_type,
        user: life.user,
        ending,
        measured,
        prediction: plan.prediction,
        limits: plan.limits,
        notes: life.notes,
    }
}

/// Adds a run that is over to what all have used.
fn tally(
    agent: &Agent,
    (key, user): (&TaskKey, &str),
    (did, counted): (&Fingerprint, &Totals),
    (prediction, ending): (&Prediction, &Ending),
) {
    let task = &key.task_type;
    let is_finished = ending.exit_code == Some(0);
    let mut tally = agent.tally.borrow_mut();
    tally.used(task, user, &Totals::of(did, counted).since(counted));
    tally.ended(task, user, is_finished);
    // One that failed may have stopped half-way.
    if is_finished && !ending.out_of_memory {
        tally.judge(prediction, did);
    }
}

/// The end of a promise that others may wait for.
fn released(place: &Place) -> Option<Event> {
    let licenses = &place.admission().promise.licenses;
    if licenses.is_empty() {
        return None;
    }
    let message = format!("gave back {}", queue::in_words(licenses));
    Some(Event::new("license_returned", message).details(&serde_json::json!(licenses)))
}

async fn record(
    agent: &Agent,
    record: Record,
    ending: Ending,
    measured: Measured,
) -> Result<RunId, StoreError> {
    let run = record.settled().await?;
    agent.finish(run, host::now_ms(), ending, measured).await?;
    Ok(run)
}
