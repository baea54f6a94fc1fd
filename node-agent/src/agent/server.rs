//! The daemon: one thread, one event loop. Every connection and every task is a local future; the database is
//! written by a thread of its own, so that a slow disk delays no task.
//!
//! The loop holds the [`Engine`] only between awaits. What a killed agent leaves behind is taken up by the
//! next one: tasks that still run are measured on, others are closed with what is known.

mod adopt;
mod budget;
mod connection;
mod container;
mod forecast;
mod guests;
mod history;
mod keeper;
mod licenses;
mod life;
mod live;
mod manager;
mod metrics;
mod others;
mod pressure;
mod queue;
mod rate;
mod reload;
mod socket;
mod steering;
mod strays;

use super::{Engine, EngineOptions, Task, recover, terms};
use crate::agent::learnt::LearntTasks;
use crate::config::{Config, ConfigError};
use crate::fingerprint::Measured;
use crate::fingerprint::key::{Feature, TaskKey};
use crate::host::{self, OwnCost, ProcessId};
use crate::metrics::Tally;
use crate::pidfd;
use crate::probe::{Found, Probes, State};
use crate::store::record::{Admission, Ending, Engine as EngineKind, NewRun, RunId};
use crate::store::{Reader, Store, StoreError, Writer};
use crate::wire::{AgentStatus, Start};
use anyhow::{Context, bail};
use forecast::Forecasts;
use guests::Guests;
use life::Life;
use manager::Manager;
use queue::{Entry, Queue};
use rate::Rate;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};

/// Pause between two looks at exits and released cgroups.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Pause between two prunings of old runs, and most runs between them: a user in a loop makes thousands an hour.
const PRUNING: Duration = Duration::from_secs(3600);
const PRUNE_EVERY_RUNS: u64 = 1000;

/// Threads for work that blocks: predictions made ahead, reclaim, copies of users' parts of the database.
const BLOCKING_THREADS_MAX: usize = 4;

/// What the daemon shares between its futures.
struct Agent {
    /// As it was read last; see [`Agent::config`].
    config: RefCell<Rc<Config>>,
    database: PathBuf,
    identity: ProcessId,
    engine: RefCell<Engine>,
    writer: Writer,
    reader: RefCell<Reader>,
    forecasts: RefCell<Forecasts>,
    learnt: RefCell<LearntTasks>,
    others: RefCell<others::Others>,
    budget: RefCell<budget::Budget>,
    /// How long the last look at what the probes have took.
    drain: Cell<Duration>,
    /// Licence servers whose connections are counted.
    pools: RefCell<licenses::Pools>,
    /// Who gives memory back first when the host is out of room. Warm spares are to be added here.
    claims: RefCell<Vec<Box<dyn pressure::Claim>>>,
    /// Memory that idle tasks are to give back, bytes.
    wanted: watch::Sender<u64>,
    /// Promises, and who waits for one.
    queue: Queue,
    /// Tasks under way, as they are shown.
    board: live::Board,
    /// What all tasks have used since the agent started.
    tally: RefCell<Tally>,
    /// Tasks under way.
    active: Cell<usize>,
    /// Runs recorded.
    recorded: Cell<u64>,
    manager: Manager,
    /// Who is connected.
    guests: Rc<Guests>,
    /// Failovers that users have recorded.
    failovers: RefCell<Rate>,
    /// Copies of a user's part of the database that are being made.
    copying: Semaphore,
    /// Becomes true when the daemon ends.
    stop: watch::Sender<bool>,
    lives: RefCell<JoinSet<()>>,
}

/// A process that is watched for its end.
struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    fn open(pid: i32) -> io::Result<Self> {
        let raw = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::NONBLOCK)?;
        let id = ProcessId::of(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { id, pidfd: watch(pidfd, Interest::READABLE)? })
    }

    /// Whether it still runs: then its number is nobody else's.
    fn is_running(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut watched = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut watched, PollTimeout::ZERO) == Ok(0)
    }
}

impl Process {
    /// How it ended, where the kernel tells by its pidfd. What the probes tell is there sooner; but in a namespace of
    /// processes they call it by another number.
    fn exit_status(&self) -> Option<i32> {
        pidfd::exit_status(self.pidfd.as_fd())
    }
}

/// Has the event loop watch a descriptor.
fn watch<F: Into<OwnedFd>>(fd: F, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same, for as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd.into(), interest)? })
}

/// Where the configuration is read again from.
pub type ReadConfig = Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Runs the daemon until SIGTERM or SIGINT. Tasks under way go on without it. At SIGHUP `read_config` is asked for
/// the configuration again.
///
/// # Errors
/// Whatever keeps it from starting: no cgroups, no database, a socket that another agent holds.
pub fn serve(
    config: Config,
    database: PathBuf,
    socket: &Path,
    read_config: &ReadConfig,
) -> anyhow::Result<()> {
    host::share_arenas();
    let _keeper = keeper::start(Path::new(&config.agent.cgroup_parent));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, run(config, database, socket, read_config))
}

async fn run(
    config: Config,
    database: PathBuf,
    socket: &Path,
    read_config: &ReadConfig,
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let door = socket::open(socket, &config.agent.socket_group)?;
    let mut hangup = signal(SignalKind::hangup())?;
    let agent = Agent::start(config, database).inspect_err(|_| door.close(socket))?;
    agent.report_probes();
    tokio::task::spawn_local(pressure::watch(Rc::clone(&agent)));
    let metrics = metrics::start(&agent, socket);
    tracing::info!("listening on {}, recording in {}", socket.display(), agent.database.display());
    agent.manager.ready();

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut pruning = tokio::time::interval(PRUNING);
    loop {
        tokio::select! {
            accepted = door.listener.accept() => match accepted {
                Ok((stream, _)) => agent.serve(stream),
                Err(error) => {
                    tracing::warn!("failed to accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = housekeeping.tick() => {
                agent.keep_house();
                // Only here: whoever hears of it knows that requests and housekeeping get their turn.
                agent.manager.alive(|| agent.in_words());
            }
            _ = hangup.recv() => agent.reload(read_config),
            _ = pruning.tick() => agent.prune(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    agent.manager.stopping();
    door.close(socket);
    metrics.inspect(|socket| _ = std::fs::remove_file(socket));
    agent.end().await;
    Ok(())
}

/// Every task holds a few descriptors; the soft limit is often 1024. Tasks do not inherit this.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Agent {
    /// Loads probes, opens the database and takes up what the last agent left.
    fn start(config: Config, database: PathBuf) -> anyhow::Result<Rc<Self>> {
        let mut engine = Engine::new(&EngineOptions { pinned: true, ..EngineOptions::new(&config) })?;
        if !engine.hierarchies().is_writable(engine.parent()) {
            bail!("the agent has to make cgroups and must be root; `standin run` works without an agent");
        }
        let opened = Store::open(&database)?;
        if let Err(error) = socket::share(&database, &config.agent.database_group) {
            tracing::warn!("the database can't be read by group {}: {error}", config.agent.database_group);
        }
        if let Some(path) = &opened.moved_aside {
            tracing::warn!(
                "the database was corrupt: it was moved to {} and a new one begun",
                path.display()
            );
        }
        let mut store = opened.store;
        // Those that are taken up get their limits again; nobody would follow the others.
        keeper::let_go(engine.hierarchies(), engine.parent());
        if let Err(error) = strays::record(&engine, &mut store, config.run.policy) {
            tracing::warn!("tasks without a record stay without: {error}");
        }
        let (adopted, of_others) = adopt::runs(&mut engine, &mut store)?;
        let tasks: Vec<_> = adopted.iter().map(|(life, _)| life.task.cgroup().id()).collect();
        let others = others::Others::start(&mut engine, config.agent.host_cgroups, of_others, &tasks);
        recover::sweep_cgroups(engine.hierarchies(), engine.parent());
        let reader = Reader::open(&database).context("failed to read the database just opened")?;
        let queue = Queue::new(terms::total(&config, engine.capacity()));
        let tally = Tally::new(config.metrics.tasks_max as usize);
        let agent = Rc::new(Self {
            queue,
            claims: RefCell::default(),
            wanted: watch::Sender::new(0),
            pools: RefCell::new(licenses::Pools::new(&config)),
            config: RefCell::new(Rc::new(config)),
            manager: Manager::default(),
            database,
            identity: ProcessId::current(),
            engine: RefCell::new(engine),
            writer: Writer::start(store)?,
            reader: RefCell::new(reader),
            forecasts: RefCell::default(),
            learnt: RefCell::default(),
            others: RefCell::new(others),
            budget: RefCell::default(),
            drain: Cell::default(),
            board: live::Board::default(),
            tally: RefCell::new(tally),
            active: Cell::new(0),
            recorded: Cell::new(0),
            guests: Rc::default(),
            failovers: RefCell::new(Rate::of(rate::FAILOVERS_MAX)),
            copying: Semaphore::new(1),
            stop: watch::Sender::new(false),
            lives: RefCell::new(JoinSet::new()),
        });
        for (mut life, admission) in adopted {
            life.place = Some(agent.hold_again(&life, admission));
            // The command runs; nobody waits for its report.
            let (tell, executed) = oneshot::channel();
            _ = tell.send(None);
            agent.spawn(life::lead(Rc::clone(&agent), life, executed, oneshot::channel().0));
        }
        Ok(agent)
    }

    /// The configuration that holds now: it changes when the daemon is told to read it again.
    fn config(&self) -> Rc<Config> {
        Rc::clone(&self.config.borrow())
    }

    /// How things are, for the service manager's status line.
    fn in_words(&self) -> String {
        format!("{} tasks running, {} recorded", self.active.get(), self.recorded.get())
    }

    fn report_probes(&self) {
        match self.engine.borrow().probes().map(Probes::found) {
            Ok(Found::TakenUp) => tracing::info!("the probes have counted on while no agent was there"),
            Ok(Found::Replaced) => tracing::warn!("the probes of another version were replaced"),
            Ok(Found::Nothing) | Err(_) => {}
        }
        for (name, state) in self.status().probes {
            match state {
                Ok(hook) => tracing::debug!("probe {name}: {hook}"),
                Err(why) => tracing::warn!("probe {name} is not attached: {why}"),
            }
        }
    }

    /// The promise that a run had which is taken up.
    fn hold_again(self: &Rc<Self>, life: &Life, admission: Admission) -> queue::Place {
        let entry = Entry {
            task_type: life.key.task_type.clone(),
            uid: life.key.uid,
            pid: life.process.id.pid,
            priority: admission.priority,
            promise: admission.promise.clone(),
            duration_ms: None,
            since_uptime_ms: host::uptime_ms(),
            run: None,
        };
        self.hold(entry, admission)
    }

    /// Lets a future lead a task.
    fn spawn(&self, life: impl Future<Output = ()> + 'static) {
        self.lives.borrow_mut().spawn_local(life);
    }

    fn serve(self: &Rc<Self>, stream: UnixStream) {
        let agent = Rc::clone(self);
        tokio::task::spawn_local(async move { connection::serve(&agent, stream).await });
    }

    fn keep_house(self: &Rc<Self>) {
        self.keep_budget();
        self.keep_others();
        let mut engine = self.engine.borrow_mut();
        let begun = Instant::now();
        engine.drain_exits();
        engine.settle_stale();
        self.drain.set(begun.elapsed());
        engine.sweep();
        engine.protect_tasks();
        let mut lives = self.lives.borrow_mut();
        while let Some(ended) = lives.try_join_next() {
            if let Err(error) = ended {
                tracing::error!("the life of a task broke off: {error}");
            }
        }
    }

    fn count_recorded(&self) {
        let recorded = self.recorded.get() + 1;
        self.recorded.set(recorded);
        if recorded.is_multiple_of(PRUNE_EVERY_RUNS) {
            self.prune();
        }
    }

    fn prune(&self) {
        let report = |result| match result {
            Ok(0) => {}
            Ok(runs) => tracing::info!("{runs} old runs dropped"),
            Err(error) => tracing::warn!("old runs not dropped: {error}"),
        };
        self.writer.prune(self.config().retention, Box::new(report));
    }

    /// Records how far every task has come, and ends; the tasks go on.
    async fn end(&self) {
        let going_on = self.active.get();
        tracing::info!("stopping; {going_on} tasks go on");
        _ = self.stop.send(true);
        let mut lives = self.lives.take();
        while lives.join_next().await.is_some() {}
        self.checkpoint_others();
        if going_on == 0 {
            self.engine.borrow_mut().unpin();
        }
    }

    /// The record of a run that starts now.
    fn new_run(
        &self,
        task: &Task,
        main: &ProcessId,
        key: &TaskKey,
        (start, features): (&Start, &[Feature]),
        admission: &Admission,
    ) -> NewRun {
        NewRun {
            key: key.clone(),
            user: host::user_name(key.uid),
            command: start.command.clone(),
            directory: start.directory.clone(),
            started_at_ms: host::now_ms(),
            engine: EngineKind::Agent,
            owner: self.identity.clone(),
            main: Some(main.clone()),
            cgroup: Some((task.cgroup().path().display().to_string(), task.cgroup().id())),
            policy: task.plan().policy,
            features: features.to_vec(),
            prediction: task.plan().prediction.clone(),
            limits: task.plan().limits.clone(),
            admission: Some(admission.clone()),
        }
    }

    fn begin(&self, run: NewRun) -> oneshot::Receiver<Result<RunId, StoreError>> {
        let (done, answer) = oneshot::channel();
        self.writer.begin(run, Box::new(move |result| _ = done.send(result)));
        answer
    }

    async fn finish(
        &self,
        run: RunId,
        ended_at_ms: i64,
        ending: Ending,
        measured: Measured,
    ) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.writer.finish(run, ended_at_ms, ending, measured, Box::new(move |result| _ = done.send(result)));
        answer.await.unwrap_or(Err(StoreError::WriterGone))?;
        self.count_recorded();
        Ok(())
    }

    fn status(&self) -> AgentStatus {
        let engine = self.engine.borrow();
        let probes = match engine.probes() {
            Ok(probes) => probes
                .status()
                .iter()
                .map(|probe| match &probe.state {
                    State::Attached { hook } => (probe.name.to_owned(), Ok(hook.clone())),
                    State::Unavailable { why, .. } => (probe.name.to_owned(), Err(why.clone())),
                })
                .collect(),
            Err(why) => vec![("all".to_owned(), Err(why.to_owned()))],
        };
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            database: self.database.display().to_string(),
            running: self.active.get(),
            recorded: self.recorded.get(),
            probes,
            lost: engine.lost(),
            costs: self.budget.borrow().costs().to_vec(),
            own: OwnCost::of_this_process(self.drain.get()),
        }
    }
}
