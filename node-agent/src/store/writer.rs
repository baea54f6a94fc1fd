//! One thread that owns the [`Store`]: commands come in over a bounded channel, what is waiting becomes one
//! transaction, and answers go out after it is committed.
//!
//! What was committed is on the disk at most a second later (`SYNC_AFTER`), and as long as the disk takes: the log
//! is synced by this thread when something has waited that long, never more often. So a power cut takes the last
//! second, and a busy agent does not make the disk busy.
//!
//! Nothing here makes an event loop wait: a full channel answers [`StoreError::QueueFull`] at once. When a
//! batch fails, its commands are written one by one, so that each keeps its own error and one that cannot be
//! written (a full disk, a run that ended already) does not take others with it. Failures are counted, and said in the
//! log when they begin and when they end: a full disk would fill the log as well.

use super::event::Event;
use super::record::{Ending, LicensesUsed, NewFailover, NewRun, RunId};
use super::{Retention, Store, StoreError};
use crate::fingerprint::Measured;
use crate::host::ProcessId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most commands that may wait.
pub const QUEUE_MAX: usize = 8192;

/// Most commands written in one transaction.
const BATCH_MAX: usize = 256;

/// How long what was committed may wait until the log is synced.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// Called once, on the writer's thread, when a command is written or has failed. It must neither
/// block nor panic: the thread would end, and every command after it fail with [`StoreError::WriterGone`].
pub type Reply<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Handle to the writer's thread. Dropping it writes what is waiting and ends the thread.
pub struct Writer {
    sender: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<Store>>,
    failures: Arc<Failures>,
    /// Commands that were sent and are not written.
    queued: Arc<AtomicU64>,
}

/// What could not be written.
#[derive(Debug, Default)]
struct Failures {
    /// Since the start.
    all: AtomicU64,
    /// Since the last thing that could.
    in_a_row: AtomicU64,
}

impl Failures {
    /// Counts something that was written, or was not and why.
    fn count(&self, error: Option<&StoreError>) {
        match error {
            // Nothing is wrong with the database then.
            Some(StoreError::NotRunning { .. }) => _ = self.all.fetch_add(1, Ordering::Relaxed),
            Some(error) => {
                self.all.fetch_add(1, Ordering::Relaxed);
                if self.in_a_row.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!("not recorded, and so for all until it is said otherwise: {error}");
                }
            }
            None => match self.in_a_row.swap(0, Ordering::Relaxed) {
                0 => {}
                failed => tracing::warn!("recording again; {failed} records are missing"),
            },
        }
    }
}

/// What to write. Kept until it is committed, so that it can be tried again alone.
enum Step {
    Begin(Box<NewRun>),
    SetMain(RunId, ProcessId),
    Checkpoint(RunId, Box<Measured>),
    Finish(RunId, i64, Ending, Box<Measured>),
    Log(Box<Event>),
    Licenses(RunId, LicensesUsed),
    FailedOver(Box<NewFailover>),
}

enum Command {
    Write(Step, Reply<Option<RunId>>),
    Prune(Retention, Reply<usize>),
    Flush(Reply<()>),
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(store: Store) -> Result<Self, StoreError> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let failures = Arc::new(Failures::default());
        let path = store.path.clone();
        let queued = Arc::new(AtomicU64::new(0));
        let (counter, left) = (Arc::clone(&failures), Arc::clone(&queued));
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || work(store, &receiver, &counter, &left))
            .map_err(|source| StoreError::File { action: "start a writer for", path, source })?;
        Ok(Self { sender: Some(sender), thread: Some(thread), failures, queued })
    }

    /// Begins a run; `reply` gets its id. Never waits.
    pub fn begin(&self, run: NewRun, reply: Reply<RunId>) {
        self.try_write(Step::Begin(Box::new(run)), with_id(reply));
    }

    /// Begins a run and waits until it is written.
    ///
    /// # Errors
    /// As [`Store::begin_run`], or [`StoreError::WriterGone`].
    pub fn begin_blocking(&self, run: NewRun) -> Result<RunId, StoreError> {
        self.wait(|reply| Command::Write(Step::Begin(Box::new(run)), with_id(reply)))
    }

    /// Ends a run; `reply` is called when that is written. Never waits.
    pub fn finish(&self, id: RunId, ended_at_ms: i64, ending: Ending, measured: Measured, reply: Reply<()>) {
        let step = Step::Finish(id, ended_at_ms, ending, Box::new(measured));
        self.try_write(step, without_id(reply));
    }

    /// Ends a run and waits until that is written.
    ///
    /// # Errors
    /// As [`Store::finish_run`], or [`StoreError::WriterGone`].
    pub fn finish_blocking(
        &self,
        id: RunId,
        ended_at_ms: i64,
        ending: Ending,
        measured: Measured,
    ) -> Result<(), StoreError> {
        let step = Step::Finish(id, ended_at_ms, ending, Box::new(measured));
        self.wait(|reply| Command::Write(step, without_id(reply)))
    }

    /// Writes down the main process. A failure is counted and logged, as for a checkpoint. Never waits.
    pub fn set_main(&self, id: RunId, main: ProcessId) {
        self.try_write(Step::SetMain(id, main), logged());
    }

    /// Writes down the numbers so far. Never waits.
    pub fn checkpoint(&self, id: RunId, measured: Measured) {
        self.try_write(Step::Checkpoint(id, Box::new(measured)), logged());
    }

    /// Writes down that something happened, after what was sent before. Never waits.
    pub fn log(&self, event: Event) {
        self.try_write(Step::Log(Box::new(event)), logged());
    }

    /// Writes down how a run used licences. Never waits.
    pub fn licenses_used(&self, id: RunId, licenses: LicensesUsed) {
        self.try_write(Step::Licenses(id, licenses), logged());
    }

    /// Writes down that the traffic of a service was moved; `reply` is called when that is written. Never waits.
    pub fn failed_over(&self, failover: NewFailover, reply: Reply<()>) {
        self.try_write(Step::FailedOver(Box::new(failover)), without_id(reply));
    }

    /// Deletes old runs and events, see [`Store::prune`]; `reply` gets how many runs. Never waits.
    pub fn prune(&self, keep: Retention, reply: Reply<usize>) {
        self.try_send(Command::Prune(keep, reply));
    }

    /// Waits until everything sent before is written or has failed.
    ///
    /// # Errors
    /// [`StoreError::WriterGone`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.wait(Command::Flush)
    }

    /// Commands that could not be written, or found no room, since the start.
    pub fn failures(&self) -> u64 {
        self.failures.all.load(Ordering::Relaxed)
    }

    /// Commands that are not written yet.
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Writes what is waiting, ends the thread and returns the store.
    ///
    /// # Errors
    /// [`StoreError::WriterGone`] if the thread panicked.
    pub fn close(mut self) -> Result<Store, StoreError> {
        self.sender = None;
        let thread = self.thread.take().ok_or(StoreError::WriterGone)?;
        thread.join().map_err(|_| StoreError::WriterGone)
    }

    fn try_write(&self, step: Step, reply: Reply<Option<RunId>>) {
        self.try_send(Command::Write(step, reply));
    }

    fn try_send(&self, command: Command) {
        let Some(sender) = &self.sender else { return };
        self.queued.fetch_add(1, Ordering::Relaxed);
        let (command, error) = match sender.try_send(command) {
            Ok(()) => return,
            Err(TrySendError::Full(command)) => (command, StoreError::QueueFull { bound: QUEUE_MAX }),
            Err(TrySendError::Disconnected(command)) => (command, StoreError::WriterGone),
        };
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.failures.count(Some(&error));
        command.fail(error);
    }

    fn wait<T: Send + 'static>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (answer, answered) = channel();
        let reply: Reply<T> = Box::new(move |result| {
            // The asker waits below; if it is gone nobody wants the answer.
            let _ = answer.send(result);
        });
        let sender = self.sender.as_ref().ok_or(StoreError::WriterGone)?;
        self.queued.fetch_add(1, Ordering::Relaxed);
        sender.send(command(reply)).map_err(|_| StoreError::WriterGone)?;
        answered.recv().unwrap_or(Err(StoreError::WriterGone))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the database panicked");
        }
    }
}

impl Command {
    fn fail(self, error: StoreError) {
        match self {
            Self::Write(_, reply) => reply(Err(error)),
            Self::Prune(_, reply) => reply(Err(error)),
            Self::Flush(reply) => reply(Err(error)),
        }
    }
}

fn with_id(reply: Reply<RunId>) -> Reply<Option<RunId>> {
    Box::new(move |result| reply(result.and_then(|id| id.ok_or(StoreError::WriterGone))))
}

fn without_id(reply: Reply<()>) -> Reply<Option<RunId>> {
    Box::new(move |result| reply(result.map(|_| ())))
}

fn logged() -> Reply<Option<RunId>> {
    Box::new(|result| {
        if let Err(error) = result {
            tracing::debug!("not recorded: {error}");
        }
    })
}

fn work(mut store: Store, commands: &Receiver<Command>, failures: &Failures, queued: &AtomicU64) -> Store {
    let mut batch = Vec::new();
    let mut unsynced = Unsynced::default();
    // Ends when all senders are gone and nothing waits.
    loop {
        let first = match unsynced.receive(commands) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                unsynced.sync(&store);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let waiting = std::iter::once(first).chain(commands.try_iter().take(BATCH_MAX - 1));
        let mut taken = 0;
        for command in waiting {
            taken += 1;
            match command {
                Command::Write(step, reply) => batch.push((step, reply)),
                Command::Prune(keep, reply) => {
                    write_batch(&mut store, &mut batch, failures);
                    reply(counted(store.prune(&keep), failures));
                }
                Command::Flush(reply) => {
                    write_batch(&mut store, &mut batch, failures);
                    reply(Ok(()));
                }
            }
        }
        write_batch(&mut store, &mut batch, failures);
        queued.fetch_sub(taken, Ordering::Relaxed);
        unsynced.add();
    }
    unsynced.sync(&store);
    store
}

/// What was committed since the log was synced.
#[derive(Default)]
struct Unsynced {
    /// When it must be synced; `None`: there is nothing.
    due: Option<Instant>,
    /// The last sync failed, and that was said.
    is_failing: bool,
}

impl Unsynced {
    fn add(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
    }

    /// The next command; a timeout when it is time to sync, however many commands wait.
    fn receive(&self, commands: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        let Some(due) = self.due else { return commands.recv().map_err(|_| RecvTimeoutError::Disconnected) };
        match due.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(RecvTimeoutError::Timeout),
            left => commands.recv_timeout(left),
        }
    }

    fn sync(&mut self, store: &Store) {
        if self.due.take().is_none() {
            return;
        }
        match store.sync() {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!("a power cut could take more than the last second: {error}");
            }
            Err(_) => {}
        }
    }
}

fn write_batch(store: &mut Store, batch: &mut Vec<(Step, Reply<Option<RunId>>)>, failures: &Failures) {
    if batch.len() > 1 {
        let written: Result<Vec<_>, _> =
            store.batch(|store| batch.iter().map(|(step, _)| step.write(store)).collect());
        if let Ok(ids) = written {
            failures.count(None);
            for ((_, reply), id) in batch.drain(..).zip(ids) {
                reply(Ok(id));
            }
            return;
        }
    }
    for (step, reply) in batch.drain(..) {
        reply(counted(step.write(store), failures));
    }
}

fn counted<T>(result: Result<T, StoreError>, failures: &Failures) -> Result<T, StoreError> {
    failures.count(result.as_ref().err());
    result
}

impl Step {
    fn write(&self, store: &mut Store) -> Result<Option<RunId>, StoreError> {
        match self {
            Self::Begin(run) => return store.begin_run(run).map(Some),
            Self::SetMain(id, main) => store.set_main(*id, main)?,
            Self::Checkpoint(id, measured) => store.checkpoint(*id, measured)?,
            Self::Finish(id, ended_at_ms, ending, measured) => {
                store.finish_run(*id, *ended_at_ms, ending, measured)?;
            }
            Self::Log(event) => store.log(event)?,
            Self::Licenses(id, licenses) => store.licenses_used(*id, licenses)?,
            Self::FailedOver(failover) => store.add_failover(failover)?,
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_synced_once_after_a_while_however_many_commands_wait() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("standin.db")).unwrap().store;
        let (sender, commands) = sync_channel(2);
        let mut unsynced = Unsynced::default();
        let receive = |unsynced: &Unsynced| {
            sender.try_send(Command::Flush(Box::new(|_| {}))).ok();
            unsynced.receive(&commands).map(|_| ())
        };
        assert_eq!(receive(&unsynced), Ok(()), "nothing is due");
        unsynced.due = Some(Instant::now());
        assert_eq!(receive(&unsynced), Err(RecvTimeoutError::Timeout));
        let due = unsynced.due;
        unsynced.add();
        assert_eq!(unsynced.due, due, "what comes later puts nothing off");
        unsynced.sync(&store);
        assert_eq!((unsynced.due, unsynced.is_failing), (None, false));
        assert_eq!(receive(&unsynced), Ok(()));
    }

    #[test]
    fn a_log_that_is_not_there_needs_no_sync() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("standin.db");
        let store = Store::open(&path).unwrap().store;
        assert!(store.sync().is_ok());
        std::fs::remove_file(directory.path().join("standin.db-wal")).ok();
        assert!(store.sync().is_ok());
    }
}
