//! An instance from the fork to the moment when it can serve: it listens where the service does, the ready probe
//! succeeds, and it has been warmed. Its connections meanwhile are told apart by their source port.

use super::ShadowKind;
use super::guard::{Command as Say, Snapshot, View};
use super::probe::{self, Probe, Setting};
use super::sockets::{self, Notice};
use super::supervisor::{Service, list, name};
use crate::cgroup::InstanceCgroup;
use crate::launch::{Bond, Held, Place, StartError};
use crate::steer::{Address, strangers};
use std::collections::HashSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Further listeners of a first instance are waited for so long after the last one: servers open them at once. A
/// shadow runs so long after that before it is frozen.
const SETTLE: Duration = Duration::from_millis(60);
/// Pause between looks while nothing is heard.
const LOOK: Duration = Duration::from_millis(20);
/// Pause between ready probes of an instance that is starting.
const PROBE_PAUSE: Duration = Duration::from_millis(100);
/// Least time that a shadow has to get ready.
const START_MIN: Duration = Duration::from_secs(60);
/// A warming command may take so long.
const WARM_MAX: Duration = Duration::from_secs(600);
/// When it is said that nothing listens yet.
const SILENT: Duration = Duration::from_secs(10);
/// `oom_score_adj` of a shadow: the first to go.
pub(super) const SHADOW_OOM_SCORE: i32 = 900;

/// An instance that was started.
struct Born {
    slot: u32,
    number: u64,
    notice: Option<Notice>,
}

impl Service {
    /// Starts an instance after a pause, and brings it up.
    pub(super) async fn start(self: Rc<Self>, after: Duration) {
        tokio::time::sleep(after).await;
        if self.stopping.get() {
            return self.line.say(Say::NotStarted(None));
        }
        if self.kind.get() == ShadowKind::Forked && !self.line.look().is_vacant {
            return match self.fork().await {
                Ok(()) => {}
                Err(problem) => self.no_copy(&problem),
            };
        }
        match self.spawn() {
            Ok(born) => self.bring_up(born).await,
            Err((slot, why)) => {
                self.say(&why);
                self.line.say(Say::NotStarted(slot));
            }
        }
    }

    /// Forks an instance into a cgroup of its own.
    fn spawn(&self) -> Result<Born, (Option<u32>, String)> {
        let number = self.next_number();
        let is_shadow = !self.line.look().is_vacant;
        let before = |error: String| (None, error);
        let create = |run: &PathBuf| InstanceCgroup::create(run, &format!("i{number}"));
        let cgroup = self.run.as_ref().map(create).transpose().map_err(|error| before(error.to_string()))?;
        let directory = cgroup.as_ref().map(|cgroup| cgroup.directory().try_clone()).transpose();
        let directory = directory.map_err(|error| before(error.to_string()))?;
        let admitted = self.line.ask(|reply| Say::Admit { number, cgroup, reply });
        let slot = admitted.unwrap_or(Err("the service is ending".into())).map_err(|why| (None, why))?;
        let failed = |error: String| (Some(slot), error);
        let sockets = self.sockets().map_err(failed)?;
        if !sockets.is_empty() {
            let lent = self.line.ask(|reply| Say::Lend(slot, sockets::listeners(&sockets), reply));
            lent.unwrap_or(Ok(())).map_err(failed)?;
        }
        let notice = self.options.notify.then(|| Notice::new(number)).transpose();
        let notice = notice.map_err(|error| failed(error.to_string()))?;
        let mut variables = vec![("STANDIN_INSTANCE", OsString::from(number.to_string()))];
        variables.extend(sockets::variables(&sockets));
        variables.extend(notice.as_ref().map(Notice::variable));
        if is_shadow {
            variables.push(("SHADOW", "1".into()));
        }
        let mut prepared = self.command.prepare_with(&variables);
        if !sockets.is_empty() {
            prepared = prepared.with_own_pid_as("LISTEN_PID");
        }
        // What was left of it is found by its pins, which are root's.
        let bond = if nix::unistd::geteuid().is_root() { Bond::Service } else { Bond::BoundService };
        let place = Place { cgroup: directory.as_ref(), entrances: &self.entrances, descriptors: &sockets };
        let mut process = Held::fork(&self.command, &prepared, place, &self.original, bond)
            .map_err(|error| failed(error.to_string()))?;
        if is_shadow {
            set_oom_score(&[process.pid()], SHADOW_OOM_SCORE);
        }
        let pid = process.pid();
        let pidfd: OwnedFd = process.pidfd().try_clone().map_err(|error| failed(error.to_string()))?;
        self.line.ask(|reply| Say::Born { slot, pid, pidfd, is_copy: false, reply });
        match process.release() {
            Err(StartError::Execute(errno)) if number == 1 => self.exec_errno.set(Some(errno)),
            Err(_) => {}
            Ok(()) => self.line.say(Say::Executes(slot)),
        }
        Ok(Born { slot, number, notice })
    }

    async fn bring_up(self: Rc<Self>, born: Born) {
        let Born { slot, number, notice } = born;
        let began = Instant::now();
        let view = match self.is_steered {
            true => self.listens(slot, number, began).await,
            false => self.starting(&self.line.look(), number),
        };
        let Some(view) = view else { return };
        tokio::task::spawn_local(Rc::clone(&self).look_for_strangers(view.addresses.clone()));
        let Ok(_turn) = self.turn.acquire().await else { return };
        self.line.ask(|reply| Say::Warm(Some(slot), reply));
        let ready = self.says_so(&view, notice, began).await && self.answers(&view, began).await;
        if ready && !self.line.look().is_vacant {
            // It listens, but what it does between that and its first request it should do before it is frozen.
            tokio::time::sleep(SETTLE).await;
            self.warm(&view).await;
        }
        self.line.ask(|reply| Say::Warm(None, reply));
        if ready {
            self.start_took.set(self.start_took.get().or(Some(began.elapsed())));
            self.line.say(Say::Ready(slot));
        }
    }

    /// The instance, as long as it is there and starting.
    fn starting(&self, look: &Snapshot, number: u64) -> Option<View> {
        let view = look.instances.iter().find(|view| view.number == number)?;
        (view.role == Some(crate::balance::Role::Starting)).then(|| view.clone())
    }

    /// Waits until it listens where the service does. `None` if it is gone or was given up.
    async fn listens(&self, slot: u32, number: u64, began: Instant) -> Option<View> {
        let mut seen = (0, Instant::now());
        let mut said = false;
        loop {
            let changed = tokio::time::timeout(LOOK, self.changed.notified());
            let look = self.line.look();
            let view = self.starting(&look, number)?;
            let wanted = self.addresses.borrow().clone();
            if view.addresses.len() != seen.0 {
                seen = (view.addresses.len(), Instant::now());
            }
            let is_complete = if wanted.is_empty() {
                !view.addresses.is_empty() && seen.1.elapsed() >= SETTLE
            } else {
                wanted.iter().all(|address| view.addresses.contains(address))
            };
            if is_complete {
                if wanted.is_empty() {
                    self.addresses.replace(view.addresses.clone());
                }
                return Some(view);
            }
            if look.primary.is_some() && began.elapsed() >= self.patience() {
                let missing = list(&wanted);
                self.discard(
                    slot,
                    number,
                    &format!("it listens on {}, not on {missing}", list(&view.addresses)),
                );
                return None;
            }
            if !said && wanted.is_empty() && began.elapsed() >= SILENT {
                said = true;
                self.say(&self.why_silent(&view));
            }
            _ = changed.await;
        }
    }

    /// What is said of an instance that listens on nothing.
    fn why_silent(&self, view: &View) -> String {
        let seconds = SILENT.as_secs();
        let pids: HashSet<i32> = view.pids().iter().copied().collect();
        if listens_on_unix_sockets(&pids) {
            return "it listens on unix sockets only: these can't be steered, so it has no shadow; it is restarted when it dies".into();
        }
        let ports = &self.options.ports;
        let where_ = if ports.is_empty() { "anything".to_owned() } else { format!("--port {ports:?}") };
        format!("it has not listened on {where_} within {seconds} s; shadows are started once it does")
    }

    fn patience(&self) -> Duration {
        let took = self.start_took.get().unwrap_or_default();
        self.options.start_timeout.unwrap_or_else(|| START_MIN.max(took * 4))
    }

    fn discard(&self, slot: u32, number: u64, why: &str) {
        let seconds = self.patience().as_secs_f64();
        let said = format!("instance {number} was not ready within {seconds:.0} s and is given up: {why}");
        self.line.say(Say::Discard(slot, said));
    }

    /// Beside the rest, for it takes its time.
    async fn look_for_strangers(self: Rc<Self>, addresses: Vec<Address>) {
        let own = self.pids();
        let looked = tokio::task::spawn_blocking(move || strangers(&addresses, &own)).await;
        // An instance may have begun to listen meanwhile.
        let own = self.pids();
        for (pid, address) in looked.unwrap_or_default().into_iter().filter(|(pid, _)| !own.contains(pid)) {
            self.say(&format!(
                "{address} is also served by process {pid}, which is not of this service and gets a part of its connections: stop it or use another port"
            ));
        }
    }

    /// All processes of the service, and this one.
    fn pids(&self) -> HashSet<i32> {
        let instances = self.line.look().instances;
        instances.into_iter().flat_map(|view| view.pids()).chain([std::process::id().cast_signed()]).collect()
    }

    /// Waits for the instance's own word, where it gives one.
    async fn says_so(&self, view: &View, notice: Option<Notice>, began: Instant) -> bool {
        let Some(notice) = notice else { return true };
        let is_shadow = self.line.look().primary.is_some();
        let patience = is_shadow.then(|| self.patience().saturating_sub(began.elapsed()));
        let goes_on = || self.starting(&self.line.look(), view.number).is_some();
        let ready = notice.ready(patience, goes_on).await;
        if !ready && goes_on() {
            self.discard(view.slot, view.number, "it did not say READY=1");
        }
        ready
    }

    /// Waits until it takes a connection: sockets that it is given listen long before it is up.
    async fn accepts(&self, view: &View, began: Instant) -> bool {
        let Some(Address { socket, .. }) = view.addresses.first() else { return true };
        let mut address = *socket;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv6() {
                Ipv6Addr::LOCALHOST.into()
            } else {
                Ipv4Addr::LOCALHOST.into()
            });
        }
        let announce = async |port| _ = self.line.ask(|reply| Say::WarmFrom(port, reply));
        let Ok(_connection) = probe::connect(address, &announce).await else { return true };
        loop {
            let look = self.line.look();
            let Some(view) = self.starting(&look, view.number) else { return false };
            if view.queue == 0 {
                return true;
            }
            if look.primary.is_some() && began.elapsed() >= self.patience() {
                self.discard(view.slot, view.number, "it takes no connection");
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the ready probe succeeds.
    async fn answers(&self, view: &View, began: Instant) -> bool {
        let Some(probe) = &self.options.ready_probe else {
            let is_given = !self.options.listen.is_empty() && !self.options.notify && self.is_steered;
            return !is_given || self.accepts(view, began).await;
        };
        loop {
            let answer = self.ask(probe, view.number, true).await;
            let look = self.line.look();
            if self.starting(&look, view.number).is_none() {
                return false;
            }
            let Err(why) = answer else { return true };
            if look.primary.is_some() && began.elapsed() >= self.patience() {
                self.discard(view.slot, view.number, &format!("the ready probe fails: {why}"));
                return false;
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// Asks the ready probe: of the instance that is being warmed, or of whoever serves.
    pub(super) async fn ask(&self, probe: &Probe, number: u64, warming: bool) -> Result<(), String> {
        let patience = self.options.probe_timeout;
        match probe {
            Probe::Http { authority, path } => {
                let announce = async |port| {
                    if warming {
                        self.line.ask(|reply| Say::WarmFrom(port, reply));
                    }
                };
                probe::http(authority, path, patience, announce).await
            }
            Probe::Command(text) => {
                probe::command(text, patience, self.setting(number, warming, &mut vec![])).await
            }
        }
    }

    async fn warm(&self, view: &View) {
        let Some(text) = &self.options.warm_with else { return };
        if let Err(why) = probe::command(text, WARM_MAX, self.setting(view.number, true, &mut vec![])).await {
            self.say(&format!("--warm-with: {why}; {} stays as warm as it is", name(view.number, view.pid)));
        }
    }

    fn setting<'a>(
        &'a self,
        number: u64,
        warming: bool,
        variables: &'a mut Vec<(&'static str, OsString)>,
    ) -> Setting<'a> {
        variables.push(("STANDIN_INSTANCE", number.to_string().into()));
        let cgroup = self.warming.as_ref().filter(|_| warming).map(InstanceCgroup::directory);
        Setting { cgroup, original: &self.original, variables }
    }
}

/// How readily the kernel kills this process.
pub(super) fn own_oom_score() -> i32 {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj");
    score.ok().and_then(|score| score.trim().parse().ok()).unwrap_or(0)
}

/// Sets how readily the kernel kills processes when memory is short, -1000 to 1000. Only root may lower it again,
/// so for others it is left alone.
pub(super) fn set_oom_score(pids: &[i32], score: i32) {
    if nix::unistd::geteuid().is_root() {
        for pid in pids {
            _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
        }
    }
}

fn listens_on_unix_sockets(pids: &HashSet<i32>) -> bool {
    use procfs::process::{FDTarget, Process};
    // `Num RefCount Protocol Flags Type St Inode Path`; the flag is `__SO_ACCEPTCON` of include/linux/net.h.
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if *fields.get(3)? == "00010000" { fields.get(6)?.parse().ok() } else { None }
    };
    let listening: HashSet<u64> = sockets.lines().filter_map(inode).collect();
    let descriptors = pids.iter().filter_map(|pid| Process::new(*pid).ok()?.fd().ok()).flatten().flatten();
    descriptors
        .into_iter()
        .any(|descriptor| matches!(descriptor.target, FDTarget::Socket(inode) if listening.contains(&inode)))
}
