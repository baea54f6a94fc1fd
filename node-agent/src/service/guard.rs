//! The thread that nothing else delays: it watches the instances, decides, and moves the traffic.
//!
//! In come commands from the supervisor (an instance was born, is ready, is to be stopped) and the kernel's
//! events; out go reports of what the supervisor has to do at leisure (start an instance, record a failover).
//! Everything that a failover needs is open before it happens.

mod act;
mod live;
mod watch;

pub(super) use live::{Left, Live, View};

use crate::balance::{Action, Balance, Cause, Event, How, Rules, Slow, Stall};
use crate::cgroup::InstanceCgroup;
use crate::steer::{Address, Listener, SLOTS_MAX, Steered, Steering};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Looks at the active instance while connections wait.
const TICK_BUSY: Duration = Duration::from_millis(5);
/// Looks at it otherwise.
const TICK_IDLE: Duration = Duration::from_millis(25);
/// Priority of the thread among real-time ones: above ordinary work, below the kernel's own threads.
const PRIORITY: i32 = 10;

/// What the supervisor says.
pub(super) enum Command {
    /// An instance will be born in this cgroup: give it a slot.
    Admit { number: u64, cgroup: Option<InstanceCgroup>, reply: Sender<Result<u32, String>> },
    /// Its process is there, held; once this is answered it may go on.
    Born { slot: u32, pid: i32, pidfd: OwnedFd, is_copy: bool, reply: Sender<()> },
    /// It has executed its program.
    Executes(u32),
    /// An instance could not be started; the slot, if it had got one.
    NotStarted(Option<u32>),
    /// It is given these listeners; the answer says what is wrong with them.
    Lend(u32, Vec<Listener>, Sender<Result<(), String>>),
    /// It can serve.
    Ready(u32),
    /// It is to be ended, being of no use: why.
    Discard(u32, String),
    /// The primary is sick.
    Sick(u32, Cause),
    /// It is well again.
    Well(u32),
    /// Fail over on purpose.
    Asked(Sender<Result<(), String>>),
    /// A retiring instance has nothing left to do.
    Drained(u32),
    /// So many shadows are wanted.
    Wanted(usize),
    /// Connections of the warming cgroup go to this instance.
    Warm(Option<u32>, Sender<()>),
    /// A warming connection will come from this port.
    WarmFrom(u16, Sender<()>),
    /// Send a signal to the main process of the primary.
    Signal(i32),
    /// End the service.
    Stop,
    /// What is there?
    Look(Sender<Snapshot>),
    /// The service is over: take the steering away, and end.
    Quit(Sender<()>),
}

/// What the supervisor hears.
#[derive(Debug)]
pub(super) enum Report {
    /// Start an instance after a pause.
    Start(Duration),
    /// An instance listens somewhere new.
    Listens,
    /// It serves now, without anything having been moved.
    Serves(u32),
    /// The traffic was moved.
    FailedOver(Box<Failover>),
    /// An instance retires: tell when it has finished.
    Retires(u32),
    /// Tell the user.
    Say(String),
    /// All instances are gone.
    Finished(Option<How>),
}

/// A failover, as it is recorded.
#[derive(Clone, Debug)]
pub(super) struct Failover {
    /// Milliseconds since 1970 of the moment that it begins with: the death, or its detection.
    pub(super) at_ms: i64,
    pub(super) cause: Cause,
    /// Number and process of the old instance.
    pub(super) from: Option<(u64, i32)>,
    /// Of the new one.
    pub(super) to: (u64, i32),
    /// What was done, and when: microseconds after `at_ms`.
    pub(super) steps: Vec<(&'static str, u64)>,
    /// Connections that waited in the old one's queues.
    pub(super) queued: u64,
    /// Connections that the kernel moved, half-open ones included.
    pub(super) migrated: u64,
    /// Connections that the old one had accepted and not finished, where it could still be asked.
    pub(super) open: Option<u64>,
}

/// The state of the service at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) instances: Vec<View>,
    /// Where the primary listens.
    pub(super) addresses: Vec<Address>,
    pub(super) primary: Option<u32>,
    /// The first instance that gets ready will serve.
    pub(super) is_vacant: bool,
    pub(super) steered: Steered,
    /// From when on a queue that nobody serves is a hang.
    pub(super) stall_threshold: Duration,
}

/// How the supervisor talks to the guard.
#[derive(Clone)]
pub(super) struct Line {
    commands: Sender<Command>,
    bell: Arc<EventFd>,
}

impl Line {
    /// Says something. A guard that is gone hears nothing, and nothing is left to be done then.
    pub(super) fn say(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            _ = self.bell.write(1);
        }
    }

    /// Asks something; the guard answers within microseconds. `None` if it is gone.
    pub(super) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        self.say(command(reply));
        answer.recv().ok()
    }

    /// The state of the service.
    pub(super) fn look(&self) -> Snapshot {
        self.ask(Command::Look).unwrap_or_default()
    }
}

/// See the head of this file.
pub(super) struct Guard {
    /// `None` where connections can't be steered: then there is one instance at a time.
    steering: Option<Steering>,
    balance: Balance,
    live: BTreeMap<u32, Live>,
    stall: Stall,
    /// Connections wait, or the primary is stopped: it is looked at more often.
    is_alert: bool,
    /// The stall observer's last word was that the primary hangs.
    stalls: bool,
    slow: Slow,
    stop_patience: Duration,
    began: Instant,
    commands: Receiver<Command>,
    bell: Arc<EventFd>,
    reports: UnboundedSender<Report>,
}

impl Guard {
    /// Starts the thread.
    ///
    /// # Errors
    /// What `eventfd` says.
    pub(super) fn start(
        steering: Option<Steering>,
        left: Option<Left>,
        rules: Rules,
        shadows: usize,
        stop_patience: Duration,
        reports: UnboundedSender<Report>,
    ) -> nix::Result<Line> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, commands) = mpsc::channel();
        let (balance, live) = match left {
            None => (Balance::new(rules, shadows), BTreeMap::new()),
            Some(left) => (
                Balance::resume(rules, shadows, left.primary, &left.shadows(), Duration::ZERO),
                left.instances.into_iter().collect(),
            ),
        };
        let guard = Self {
            steering,
            balance,
            live,
            stall: Stall::new(TICK_BUSY),
            is_alert: false,
            stalls: false,
            slow: Slow::default(),
            stop_patience,
            began: Instant::now(),
            commands,
            bell: Arc::clone(&bell),
            reports,
        };
        std::thread::Builder::new()
            .name("guard".into())
            .spawn(move || guard.run())
            .map_err(|_| nix::errno::Errno::EAGAIN)?;
        Ok(Line { commands: sender, bell })
    }

    fn run(mut self) {
        be_prompt();
        self.take_up();
        self.decide(Event::Tick);
        while self.serve_commands() {
            self.wait();
            self.serve_kernel();
            self.watch();
            self.decide(Event::Tick);
            self.clean();
        }
    }

    /// Holds the listeners of instances that were there before, and sees which of them have died since.
    fn take_up(&mut self) {
        let slots: Vec<u32> = self.live.keys().copied().collect();
        for slot in slots {
            self.hold_listeners(slot, false);
            if self.live.get(&slot).is_some_and(|live| live.is_dead) {
                self.decide(Event::Died(slot, How(libc::SIGKILL)));
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn report(&self, report: Report) {
        _ = self.reports.send(report);
    }

    /// Takes in what happened, and does what follows.
    fn decide(&mut self, event: Event) {
        for action in self.balance.decide(event, self.now()) {
            self.act(action);
        }
    }

    /// `false` if there is nothing left to do.
    fn serve_commands(&mut self) -> bool {
        _ = self.bell.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Quit(reply)) => {
                    self.steering.iter_mut().for_each(Steering::unpin);
                    _ = reply.send(());
                    return false;
                }
                Ok(command) => self.serve(command),
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Admit { number, cgroup, reply } => _ = reply.send(self.admit(number, cgroup)),
            Command::Born { slot, pid, pidfd, is_copy, reply } => {
                self.born(slot, pid, pidfd, is_copy);
                _ = reply.send(());
            }
            Command::Executes(slot) => {
                if let Some(live) = self.live.get_mut(&slot) {
                    live.is_executed = true;
                }
            }
            Command::NotStarted(slot) => {
                if let Some((slot, live)) = slot.and_then(|slot| self.live.remove_entry(&slot)) {
                    self.forget_slot(slot, &live);
                }
                self.decide(Event::NotStarted);
            }
            Command::Lend(slot, listeners, reply) => _ = reply.send(self.lend(slot, listeners)),
            Command::Ready(slot) => self.decide(Event::Ready(slot)),
            Command::Discard(slot, why) => {
                self.report(Report::Say(why));
                if let Some(live) = self.live.get_mut(&slot) {
                    live.kill();
                }
            }
            Command::Sick(slot, cause) => self.decide(Event::Sick(slot, cause)),
            Command::Well(slot) => self.decide(Event::Well(slot)),
            Command::Asked(reply) => self.asked(&reply),
            Command::Drained(slot) => self.decide(Event::Drained(slot)),
            Command::Wanted(shadows) => self.decide(Event::Wanted(shadows)),
            Command::Warm(slot, reply) => {
                if let Some(steering) = &self.steering {
                    steering.switch().warm(slot);
                }
                _ = reply.send(());
            }
            Command::WarmFrom(port, reply) => {
                if let Some(steering) = &mut self.steering {
                    steering.warm_from(port);
                }
                _ = reply.send(());
            }
            Command::Signal(signal) => self.signal_primary(signal),
            Command::Stop => self.decide(Event::Stop),
            Command::Look(reply) => _ = reply.send(self.snapshot()),
            // Is dealt with where it is read.
            Command::Quit(_) => {}
        }
    }

    /// The first free slot.
    fn admit(&mut self, number: u64, cgroup: Option<InstanceCgroup>) -> Result<u32, String> {
        let slot = (0..SLOTS_MAX).find(|slot| !self.live.contains_key(slot));
        let slot =
            slot.ok_or_else(|| format!("{SLOTS_MAX} instances are there already, ending ones included"))?;
        if let (Some(steering), Some(cgroup)) = (&mut self.steering, &cgroup) {
            steering.add(slot, cgroup.id()).map_err(|error| error.to_string())?;
        }
        self.live.insert(slot, Live::new(number, cgroup));
        Ok(slot)
    }

    fn born(&mut self, slot: u32, pid: i32, pidfd: OwnedFd, is_copy: bool) {
        if let Some(live) = self.live.get_mut(&slot) {
            live.born(pid, pidfd, is_copy);
        }
        if let Some(steering) = &mut self.steering {
            steering.watch(slot, pid);
        }
        self.decide(Event::Started(slot));
    }

    fn lend(&mut self, slot: u32, listeners: Vec<Listener>) -> Result<(), String> {
        let (Some(live), Some(steering)) = (self.live.get_mut(&slot), &mut self.steering) else {
            return Ok(());
        };
        for listener in listeners {
            let steered = steering.group(listener.address).and_then(|group| {
                steering.register(slot, group, listener.as_fd())?;
                steering.steer(&listener)
            });
            steered.map_err(|error| format!("{}: {error}", listener.address))?;
            live.listeners.push(listener);
        }
        Ok(())
    }

    fn asked(&mut self, reply: &Sender<Result<(), String>>) {
        let mut answer = Ok(());
        for action in self.balance.decide(Event::Asked, self.now()) {
            match action {
                Action::Refuse(why) => answer = Err(why),
                action => self.act(action),
            }
        }
        _ = reply.send(answer);
    }

    fn signal_primary(&self, signal: i32) {
        let primary = self.balance.primary().and_then(|slot| self.live.get(&slot));
        if let Some(live) = primary {
            live.signal(signal);
        }
    }

    fn snapshot(&self) -> Snapshot {
        let role = |slot: &u32| self.balance.role(*slot);
        let primary = self.balance.primary();
        let addresses =
            primary.and_then(|slot| self.live.get(&slot)).map(Live::addresses).unwrap_or_default();
        Snapshot {
            instances: self.live.iter().map(|(slot, live)| live.view(*slot, role(slot))).collect(),
            addresses,
            primary,
            is_vacant: self.balance.is_vacant(),
            steered: self.steering.as_ref().map(Steering::steered).unwrap_or_default(),
            stall_threshold: self.stall.threshold(),
        }
    }
}

/// Runs this thread before ordinary ones, and keeps its memory where it is. That is root's: those of others wait
/// their turn like everybody.
fn be_prompt() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // SAFETY: plain system calls on this thread and process.
    unsafe {
        let parameter = libc::sched_param { sched_priority: PRIORITY };
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter);
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    }
}
