//! The supervisor: starts instances when the guard asks for them, passes signals on, answers `ps`, records
//! failovers, and ends when the last instance has.

use super::control::{self, Card};
use super::guard::{Failover, Guard, Line, Report};
use super::home::Home;
use super::places::Place;
use super::{Options, ShadowKind, adopt, fork, health, record, sockets};
use crate::balance::How;
use crate::cgroup::InstanceCgroup;
use crate::host;
use crate::launch::{Command, Dispositions, StartError};
use crate::steer::{Address, Steering, Wanted};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{AccessFlags, access};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinSet, LocalSet};

/// Signals that the supervisor reads.
const HANDLED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
];

/// Name of the cgroup that warming commands run in.
pub(crate) const WARMING: &str = "warm";

/// How long killed processes may take to leave their cgroups at the end.
const LEAVE_WAIT: Duration = Duration::from_secs(5);

/// Why a service could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A command that can't be executed, or a process that can't be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A system call of the supervisor's own.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A socket for the service.
    #[error("--listen {address}: {source}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// More sockets than can be handed over.
    #[error("--listen can be given {0} times")]
    TooMany(usize),
    /// Another service of that name runs.
    #[error("a service named {0} runs already: choose another --name, or end it with: standin stop {0}")]
    Taken(String),
}

fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> ServiceError {
    move |errno| ServiceError::System { what, source: errno.into() }
}

/// What everybody in the supervisor needs.
pub(super) struct Service {
    pub(super) options: Options,
    pub(super) command: Command,
    pub(super) line: Line,
    pub(super) original: Dispositions,
    /// The v2 directory of the run.
    pub(super) run: Option<PathBuf>,
    pub(super) entrances: Vec<File>,
    pub(super) is_steered: bool,
    /// What is lent to every instance where connections are not steered.
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) warming: Option<InstanceCgroup>,
    /// Instances started so far.
    pub(super) started: Cell<u64>,
    /// Where the service was last seen to listen.
    pub(super) addresses: RefCell<Vec<Address>>,
    /// Something about the listeners has changed.
    pub(super) changed: Notify,
    /// One instance is warmed at a time: the kernel side tells one set of connections apart.
    pub(super) turn: Semaphore,
    /// How shadows come to be, as far as that is possible.
    pub(super) kind: Cell<ShadowKind>,
    /// How long the first instance took to get ready.
    pub(super) start_took: Cell<Option<Duration>>,
    /// `errno` of the first instance's `execve`.
    pub(super) exec_errno: Cell<Option<i32>>,
    pub(super) stopping: Cell<bool>,
    /// `oom_score_adj` of this process, and of instances that serve.
    oom_score: i32,
    say: Box<dyn Fn(&str)>,
}

impl Service {
    /// The number of a new instance.
    pub(super) fn next_number(&self) -> u64 {
        self.started.set(self.started.get() + 1);
        self.started.get()
    }

    pub(super) fn say(&self, text: &str) {
        (self.say)(text);
    }
}

/// Runs a service to its end; gives the status, as `wait(2)` has it, of the instance that ended it.
///
/// # Errors
/// [`ServiceError`] if it did not start.
pub fn supervise(
    options: Options,
    command: Command,
    home: &mut dyn Home,
    place: &Place,
    recorder: record::Recorder,
    say: Box<dyn Fn(&str)>,
) -> Result<i32, ServiceError> {
    let handled = SigSet::from_iter(HANDLED);
    let original = Dispositions::take_over(&handled).map_err(system("signals"))?;
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(system("signalfd"))?;
    let control = control::listen(place, &options.name)?;
    let ground = match adopt::left(place) {
        Some(found) => Ground::inherit(found, say.as_ref()),
        None => {
            let pins = place.pins_to_be();
            pins.iter().for_each(|pins| adopt::sweep(pins));
            Ground::prepare(home, &options, pins.as_deref(), say.as_ref())
        }
    };
    host::share_arenas();
    // Also a test of the addresses: who can't have them is told before anything runs.
    let sockets = sockets::open_all(&options.listen, ground.steering.is_some())?;
    let (reports, reported) = mpsc::unbounded_channel();
    let shadows = if ground.steering.is_some() { options.shadows.0 } else { 0 };
    let is_steered = ground.steering.is_some();
    let started = ground.left.as_ref().map_or(0, adopt::Found::last_number);
    let left = ground.left.map(adopt::Found::into_left);
    let line = Guard::start(ground.steering, left, options.rules, shadows, options.stop_timeout, reports)
        .map_err(system("eventfd"))?;
    let entrances = home.entrances().iter().filter_map(|file| file.try_clone().ok()).collect();
    let service = Rc::new(Service {
        line: line.clone(),
        original,
        run: ground.run,
        entrances,
        is_steered,
        sockets: if is_steered { Vec::new() } else { sockets },
        warming: ground.warming,
        started: Cell::new(started),
        addresses: RefCell::default(),
        changed: Notify::new(),
        turn: Semaphore::new(1),
        kind: Cell::new(options.kind),
        start_took: Cell::new(None),
        exec_errno: Cell::new(None),
        stopping: Cell::new(false),
        oom_score: super::bring_up::own_oom_score(),
        say,
        command,
        options,
    });
    let card = Arc::new(Mutex::new(Card::new(&service, is_steered)));
    let (stop, stopped) = mpsc::unbounded_channel();
    control.serve(line, Arc::clone(&card), stop);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServiceError::System { what: "event loop", source })?;
    let supervisor = Supervisor { service: Rc::clone(&service), card, recorder, records: RefCell::default() };
    let how = LocalSet::new().block_on(&runtime, supervisor.run(home, signals, reported, stopped));
    finish(&service);
    _ = std::fs::remove_file(&place.socket);
    service.original.restore();
    match service.exec_errno.get() {
        Some(errno) => Err(StartError::Execute(errno).into()),
        None => Ok(how.map_or(0, |how| how.0)),
    }
}

/// What connections are steered by, where that is possible.
struct Ground {
    /// The v2 directory below which instances live.
    run: Option<PathBuf>,
    steering: Option<Steering>,
    warming: Option<InstanceCgroup>,
    left: Option<adopt::Found>,
}

impl Ground {
    /// Without it the service is restarted when it dies, and clients are refused meanwhile.
    fn prepare(home: &mut dyn Home, options: &Options, pins: Option<&Path>, say: &dyn Fn(&str)) -> Self {
        let Some(run) = home.cgroup() else {
            say(
                "connections are not steered (no cgroup can be made, which takes root): no shadow; it is restarted when it dies",
            );
            return Self { run: None, steering: None, warming: None, left: None };
        };
        let wanted = Wanted { ports: options.ports.clone(), latency_max: options.latency_max };
        let steering = home.steering(&wanted).unwrap_or_else(|| Self::steer(&run, &wanted, pins));
        match steering {
            Ok((steering, warming)) => {
                if let Some(why) = &steering.without_early_death {
                    say(&format!("a death is only seen when its memory is gone: {why}"));
                }
                Self { run: Some(run), steering: Some(steering), warming: Some(warming), left: None }
            }
            Err(why) => {
                say(&format!("connections are not steered ({why}): no shadow; it is restarted when it dies"));
                // Instances have cgroups all the same, where they can be made: they are killed as a whole then.
                let run = Some(run).filter(|run| access(run, AccessFlags::W_OK).is_ok());
                Self { run, steering: None, warming: None, left: None }
            }
        }
    }

    fn steer(run: &Path, wanted: &Wanted, pins: Option<&Path>) -> Result<(Steering, InstanceCgroup), String> {
        let warming = InstanceCgroup::create(run, WARMING).map_err(|error| error.to_string())?;
        let directory = File::open(run).map_err(|error| error.to_string())?;
        let steering = Steering::load(&directory, warming.directory(), wanted, pins);
        Ok((steering.map_err(|error| error.to_string())?, warming))
    }

    /// Takes up what a supervisor that died has left.
    fn inherit(mut found: adopt::Found, say: &dyn Fn(&str)) -> Self {
        say(&format!("taking up the service as its supervisor left it: {}", found.describe()));
        let warming = found.run.join(WARMING);
        let warming = InstanceCgroup::open(&warming).or_else(|_| InstanceCgroup::create(&found.run, WARMING));
        Self {
            run: Some(found.run.clone()),
            steering: found.steering.take(),
            warming: warming.ok(),
            left: Some(found),
        }
    }
}

/// Waits for the last processes to be gone.
fn finish(service: &Service) {
    let until = std::time::Instant::now() + LEAVE_WAIT;
    while !service.line.look().instances.is_empty() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    service.line.ask(super::guard::Command::Quit);
    if let Some(warming) = &service.warming {
        warming.kill();
        _ = warming.wait_until_empty(LEAVE_WAIT);
        _ = warming.remove();
    }
    // Not ours if it was taken up, and removed with the run otherwise: in use, it stays.
    if let Some(run) = &service.run {
        _ = std::fs::remove_dir(run);
    }
}

struct Supervisor {
    service: Rc<Service>,
    card: Arc<Mutex<Card>>,
    recorder: record::Recorder,
    /// Failovers on their way into the database.
    records: RefCell<JoinSet<()>>,
}

impl Supervisor {
    async fn run(
        self,
        home: &mut dyn Home,
        signals: SignalFd,
        mut reports: UnboundedReceiver<Report>,
        mut stopped: UnboundedReceiver<()>,
    ) -> Option<How> {
        // SAFETY: the signalfd owns its descriptor, and nobody else closes it.
        let signals = unsafe { AsyncFd::register_with_interest(signals, Interest::READABLE) };
        let Ok(signals) = signals else { return None };
        tokio::task::spawn_local(health::watch(Rc::clone(&self.service)));
        if self.service.is_steered {
            tokio::task::spawn_local(health::level(Rc::clone(&self.service), Arc::clone(&self.card)));
            let recorder = self.recorder.clone();
            tokio::task::spawn_local(health::hours(
                Rc::clone(&self.service),
                Arc::clone(&self.card),
                recorder,
            ));
        }
        if self.service.options.kind == ShadowKind::Forked {
            tokio::task::spawn_local(fork::refresh(Rc::clone(&self.service)));
        }
        let mut pause = home.measure();
        loop {
            tokio::select! {
                report = reports.recv() => match report {
                    Some(Report::Finished(how)) => {
                        // The end of the event loop would drop those that have not begun.
                        let mut records = self.records.take();
                        while records.join_next().await.is_some() {}
                        return how;
                    }
                    Some(report) => self.serve(report),
                    None => return None,
                },
                ready = signals.readable() => {
                    if let Ok(mut ready) = ready {
                        while let Ok(Some(info)) = signals.get_ref().read_signal() {
                            self.signal(info.ssi_signo.cast_signed(), info.ssi_code);
                        }
                        ready.clear_ready();
                    }
                }
                Some(()) = stopped.recv() => self.stop(),
                () = tokio::time::sleep(pause) => pause = home.measure(),
            }
        }
    }

    fn serve(&self, report: Report) {
        match report {
            Report::Start(after) => _ = tokio::task::spawn_local(Rc::clone(&self.service).start(after)),
            Report::Listens => self.service.changed.notify_waiters(),
            Report::Serves(slot) => self.serves(slot),
            Report::FailedOver(failover) => self.failed_over(*failover),
            Report::Retires(slot) => {
                _ = tokio::task::spawn_local(health::drain(Rc::clone(&self.service), slot));
            }
            Report::Say(text) => self.service.say(&text),
            Report::Finished(_) => {}
        }
    }

    fn serves(&self, slot: u32) {
        let look = self.service.line.look();
        let Some(view) = look.instances.iter().find(|view| view.slot == slot) else { return };
        self.service.say(&format!("{} serves on {}", name(view.number, view.pid), list(&view.addresses)));
        // A shadow is the first that the kernel may kill when memory is short; a primary is not.
        super::bring_up::set_oom_score(&view.pids(), self.service.oom_score);
    }

    fn failed_over(&self, failover: Failover) {
        let ((number, pid), queued) = (failover.to, failover.queued);
        let took = failover.steps.iter().find(|(step, _)| *step == "thawed").map_or(0, |(_, us)| *us);
        self.service.say(&format!(
            "{}: {} took over after {:.1} ms, {queued} waiting, {} moved",
            failover.cause,
            name(number, pid),
            took as f64 / 1e3,
            failover.migrated,
        ));
        let look = self.service.line.look();
        if let Some(view) = look.instances.iter().find(|view| view.number == number) {
            super::bring_up::set_oom_score(&view.pids(), self.service.oom_score);
        }
        if let Ok(mut card) = self.card.lock() {
            card.failed_over(&failover);
        }
        let recorder = self.recorder.clone();
        let mut records = self.records.borrow_mut();
        while records.try_join_next().is_some() {}
        records.spawn_blocking(move || recorder.record(&failover));
    }

    fn stop(&self) {
        self.service.stopping.set(true);
        self.service.line.say(super::guard::Command::Stop);
    }

    /// Signals of the terminal and the usual ones to end end the service; others go to the primary. The kernel
    /// sends SIGHUP when the terminal is gone, people to have a configuration read again.
    fn signal(&self, signal: i32, code: i32) {
        let is_from_kernel = code > 0;
        match Signal::try_from(signal) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(Signal::SIGHUP) if !is_from_kernel => self.reload(),
            Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => {
                self.service.line.say(super::guard::Command::Signal(signal));
            }
            Ok(_) => self.stop(),
        }
    }

    /// The primary reads its configuration again; shadows have the old one, so new ones are made.
    fn reload(&self) {
        self.service.line.say(super::guard::Command::Signal(libc::SIGHUP));
        let shadows = self.service.line.look().instances;
        for view in shadows.iter().filter(|view| matches!(view.role, Some(crate::balance::Role::Ready))) {
            self.service.line.say(super::guard::Command::Discard(
                view.slot,
                format!("{} is made anew after SIGHUP", name(view.number, view.pid)),
            ));
        }
    }
}

/// How an instance is called.
pub(super) fn name(number: u64, pid: i32) -> String {
    format!("instance {number} (pid {pid})")
}

/// Addresses, for people.
pub(super) fn list(addresses: &[Address]) -> String {
    match addresses {
        [] => "nothing".into(),
        addresses => addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(", "),
    }
}
