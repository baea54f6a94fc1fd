//! Asking a service how it is, and telling it to fail over or to stop: a unix socket per service, on which the
//! supervisor answers one frame with one. Root and the user who runs the service may.

use super::adopt;
use super::guard::{Command as Say, Failover, Line, View};
use super::places::Place;
use super::supervisor::{Service, ServiceError};
use crate::balance::{Reason, Role};
use crate::host;
use crate::wire;
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How long the other side may take to say what it wants, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Failovers that are remembered for the number of shadows.
const REMEMBERED: usize = 64;

/// What can be asked of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How is it?
    Status,
    /// Move the traffic to a shadow.
    FailOver,
    /// End.
    Stop,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// How it is.
    Status(Box<Status>),
    /// It will be done.
    Done,
    /// It can't be done; for people.
    Refused(String),
}

/// A service, as `standin ps` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The command line.
    pub command: Vec<String>,
    /// The supervisor.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// `steered` (shadows, no connection refused) or `restart` (started anew when it dies).
    pub mode: String,
    /// Shadows that are wanted now.
    pub shadows: usize,
    /// The least and the most that were asked for.
    pub shadows_min: usize,
    /// See above.
    pub shadows_max: usize,
    /// Why so many are wanted now.
    pub reason: String,
    /// All that are there.
    pub instances: Vec<Instance>,
    /// Connections since it began.
    pub connections: u64,
    /// Times that the traffic was moved.
    pub failovers: u64,
    /// The last one.
    pub last_failover: Option<LastFailover>,
    /// A queue that nobody serves for longer is a hang, milliseconds.
    pub stall_threshold_ms: u64,
    /// Listeners that could not be steered.
    pub listeners_lost: u64,
}

/// When the traffic was moved last, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailover {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// In words.
    pub evidence: String,
}

/// One instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Counts the instances of the service.
    pub number: u64,
    /// Its main process.
    pub pid: i32,
    /// `primary`, `shadow`, `starting`, `retiring` or `ending`.
    pub role: String,
    /// It uses no CPU.
    pub is_frozen: bool,
    /// Milliseconds since 1970: it is what it is since then.
    pub since_ms: i64,
    /// Memory that is its own, bytes.
    pub private_bytes: u64,
    /// Its share of memory that it has in common with others, bytes.
    pub shared_bytes: u64,
    /// Connections that wait to be accepted.
    pub queue: u64,
}

/// What a service knows about itself beyond what the guard tells.
pub(super) struct Card {
    status: Status,
    recent: VecDeque<(i64, bool)>,
    demand: Option<f64>,
}

impl Card {
    pub(super) fn new(service: &Service, is_steered: bool) -> Self {
        let (min, max) = service.options.shadows;
        let command = service.command.argv().iter().map(|argument| argument.to_string_lossy().into_owned());
        let status = Status {
            name: service.options.name.clone(),
            command: command.collect(),
            pid: std::process::id(),
            since_ms: host::now_ms(),
            mode: if is_steered { "steered" } else { "restart" }.into(),
            shadows: if is_steered { min } else { 0 },
            shadows_min: min,
            shadows_max: max,
            reason: Reason::Usual.words().into(),
            ..Status::default()
        };
        Self { status, recent: VecDeque::new(), demand: None }
    }

    pub(super) fn failed_over(&mut self, failover: &Failover) {
        self.status.failovers += 1;
        let evidence = failover.cause.to_string();
        self.status.last_failover = Some(LastFailover { at_ms: failover.at_ms, evidence });
        let was_asked_for = failover.cause == crate::balance::Cause::Asked;
        self.recent.push_back((failover.at_ms, !was_asked_for));
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// Failovers within the last hour that nobody asked for.
    pub(super) fn recent_failures(&self) -> usize {
        let hour = i64::try_from(crate::balance::recent().as_millis()).unwrap_or(i64::MAX);
        let begin = host::now_ms() - hour;
        self.recent.iter().filter(|(at_ms, counts)| *counts && *at_ms >= begin).count()
    }

    /// How busy this and the next hour are as a rule.
    pub(super) fn demand(&self) -> Option<f64> {
        self.demand
    }

    pub(super) fn expects(&mut self, demand: Option<f64>) {
        self.demand = demand;
    }

    pub(super) fn wants(&mut self, shadows: usize, reason: Reason) {
        self.status.shadows = shadows;
        self.status.reason = reason.words().into();
    }
}

/// The socket, before anything is answered on it.
pub(super) struct Control {
    listener: UnixListener,
}

/// Takes the name of a service.
///
/// # Errors
/// [`ServiceError::Taken`] if such a service answers, or what the file system says.
pub(super) fn listen(place: &Place, name: &str) -> Result<Control, ServiceError> {
    let failed = |source| ServiceError::System { what: "control socket", source };
    place.prepare().map_err(failed)?;
    if UnixStream::connect(&place.socket).is_ok() {
        return Err(ServiceError::Taken(name.into()));
    }
    // Left by a supervisor that was killed: nobody answered.
    _ = fs::remove_file(&place.socket);
    let listener = UnixListener::bind(&place.socket).map_err(failed)?;
    fs::set_permissions(&place.socket, fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(Control { listener })
}

impl Control {
    /// Answers until the process ends, on a thread of its own.
    pub(super) fn serve(self, line: Line, card: Arc<Mutex<Card>>, stop: UnboundedSender<()>) {
        let serve = move || {
            for mut stream in self.listener.incoming().flatten() {
                _ = stream.set_read_timeout(Some(PATIENCE));
                _ = stream.set_write_timeout(Some(PATIENCE));
                let reply = match wire::receive(&mut stream) {
                    Ok(request) if may(&stream) => answer(&request, &line, &card, &stop),
                    Ok(_) => Reply::Refused("it is another user's service".into()),
                    Err(error) => Reply::Refused(error.to_string()),
                };
                _ = wire::send(&mut stream, &reply);
            }
        };
        // Without it the service serves all the same; ps says that it does not answer.
        _ = std::thread::Builder::new().name("control".into()).spawn(serve);
    }
}

/// Whether the other side is root or who runs this.
fn may(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    peer(stream).is_some_and(|peer| peer == 0 || peer == own)
}

fn peer(stream: &UnixStream) -> Option<u32> {
    getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.uid())
}

/// Whether what answers at a socket is root's or ours: anybody else's tells what it likes.
fn is_believed(stream: &UnixStream) -> bool {
    nix::unistd::geteuid().is_root() || may(stream)
}

fn answer(request: &Request, line: &Line, card: &Mutex<Card>, stop: &UnboundedSender<()>) -> Reply {
    match request {
        Request::Status => match card.lock() {
            Ok(card) => Reply::Status(Box::new(status(&card, line))),
            Err(_) => Reply::Refused("the supervisor has failed".into()),
        },
        Request::FailOver => match line.ask(Say::Asked) {
            Some(Ok(())) => Reply::Done,
            Some(Err(why)) => Reply::Refused(why),
            None => Reply::Refused("the service is ending".into()),
        },
        Request::Stop => {
            _ = stop.send(());
            Reply::Done
        }
    }
}

fn status(card: &Card, line: &Line) -> Status {
    let look = line.look();
    let mut status = card.status.clone();
    status.addresses = look.addresses.iter().map(ToString::to_string).collect();
    status.instances = look.instances.iter().map(instance).collect();
    status.connections = look.steered.established;
    status.listeners_lost = look.steered.listeners_lost;
    status.stall_threshold_ms = u64::try_from(look.stall_threshold.as_millis()).unwrap_or(u64::MAX);
    status
}

fn instance(view: &View) -> Instance {
    let role = match view.role {
        Some(Role::Starting) => "starting",
        Some(Role::Ready) => "shadow",
        Some(Role::Primary) => "primary",
        Some(Role::Retiring) => "retiring",
        Some(Role::Ending) | None => "ending",
    };
    let memory = memory(&view.pids());
    Instance {
        number: view.number,
        pid: view.pid,
        role: role.into(),
        is_frozen: view.is_frozen,
        since_ms: view.since_ms,
        private_bytes: memory.private,
        shared_bytes: memory.shared,
        queue: view.queue,
    }
}

/// Memory of the processes of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Pages that nobody else has, bytes.
    pub(super) private: u64,
    /// Its proportional share of the others, bytes.
    pub(super) shared: u64,
}

/// Of all of them together.
pub(super) fn memory(pids: &[i32]) -> Memory {
    let text = |pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    pids.iter().map(|pid| memory_of(&text(pid))).fold(Memory::default(), |all, one| Memory {
        private: all.private.saturating_add(one.private),
        shared: all.shared.saturating_add(one.shared),
    })
}

/// From the `smaps_rollup` of a process.
fn memory_of(text: &str) -> Memory {
    let bytes = |key: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib: Option<u64> = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    let private = bytes("Private_Clean:").saturating_add(bytes("Private_Dirty:"));
    Memory { private, shared: bytes("Pss:").saturating_sub(private) }
}

/// Asks the service whose control socket is `socket`.
///
/// # Errors
/// For people: nobody answers there, or something else does.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
    if !is_believed(&stream) {
        return Err("another user answers there".into());
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    wire::send(&mut stream, request)
        .and_then(|()| wire::receive(&mut stream))
        .map_err(|error| error.to_string())
}

/// The control sockets below a directory, whether anybody answers or not.
pub fn sockets(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
}

/// Of all services that answer below `directory`, by name; those whose supervisor is gone are named. Blocks, and
/// waits for each that is slow.
pub fn statuses(directory: &Path) -> Vec<Status> {
    let mut found: Vec<Status> = sockets(directory)
        .filter_map(|socket| match ask(&socket, &Request::Status) {
            Ok(Reply::Status(status)) => Some(*status),
            _ => unsupervised(directory, &socket),
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// A service whose supervisor was killed.
fn unsupervised(directory: &Path, socket: &Path) -> Option<Status> {
    let name = socket.file_stem()?.to_str()?;
    let left = adopt::left(&Place::new(directory, name))?;
    let instances = left.survivors.iter().map(|survivor| survivor.describe()).collect();
    Some(Status { name: name.to_owned(), mode: "unsupervised".into(), instances, ..Status::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    #[test]
    fn memory_is_what_the_kernel_says_in_kib() {
        let text = "Rss: 20 kB\nPss: 12 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 4 kB\n";
        assert_eq!(memory_of(text), Memory { private: 7 << 10, shared: 5 << 10 });
    }

    fn frames() -> Vec<Vec<u8>> {
        let requests = [Request::Status, Request::FailOver, Request::Stop];
        let status = Status { name: "web".into(), instances: vec![Instance::default()], ..Status::default() };
        let reply = wire::encode(&Reply::Status(Box::new(status))).unwrap();
        requests.iter().map(|request| wire::encode(request).unwrap()).chain([reply]).collect()
    }

    proptest! {
        #[test]
        fn hostile_control(bytes in hostile::bent(frames())) {
            _ = wire::receive::<Request>(&mut bytes.as_slice());
            _ = wire::receive::<Reply>(&mut bytes.as_slice());
        }

        #[test]
        fn hostile_memory_maps(text in hostile::keyed_lines(&["Pss:", "Private_Clean:", "Private_Dirty:"])) {
            _ = memory_of(&text);
            _ = memory_of(&text.replace('\n', " kB\n"));
        }
    }
}
