//! One launcher's connection: who is it, what does it want, and is it allowed to.

use super::licenses::Uses;
use super::life::{self, Life, Record};
use super::queue::{Denied, Entry, Place};
use super::{Agent, Process, container, history, steering};
use crate::agent::terms::{Terms, duration_ms, promise, terms};
use crate::fingerprint::key::{self, TaskKey};
use crate::host::ProcessId;
use crate::predict::Prediction;
use crate::size::admission::Licenses;
use crate::store::StoreError;
use crate::store::record::NewFailover;
use crate::wire::{self, Reply, Request, Start, Started, WireError};
use serde::Serialize;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// How long a launcher may take to say what it wants.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long a launcher may take to read an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Longest of what is said after a run was started, bytes.
const LATER_BYTES_MAX: usize = 1024;

/// The process at the other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    pid: i32,
    uid: u32,
}

/// Serves one connection to its end.
pub(super) async fn serve(agent: &Rc<Agent>, mut stream: UnixStream) {
    let Some(peer) = peer(&stream) else { return };
    let Some(guest) = agent.guests.welcome(peer.uid) else {
        return refuse(&mut stream, "too many connections are open").await;
    };
    let read = async {
        let _turn = guest.reading.acquire().await;
        receive(&mut stream, wire::REQUEST_BYTES_MAX).await
    };
    let request = match tokio::time::timeout(FIRST_REQUEST, read).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return refuse(&mut stream, &error.to_string()).await,
        Err(_) => return,
    };
    match request {
        Request::Start(start) => start_task(agent, stream, peer, *start).await,
        Request::Status => answer(&mut stream, &Reply::Status(agent.status())).await,
        Request::Queue => {
            let free = agent.engine.borrow().room().memory_bytes;
            answer(
                &mut stream,
                &Reply::Queue(Box::new(agent.queue.status(peer.uid, free, agent.board.names()))),
            )
            .await;
        }
        Request::Live => answer(&mut stream, &Reply::Live(Box::new(agent.snapshot(peer.uid)))).await,
        Request::LiveTask(id) => match agent.task_detail(id, peer.uid).await {
            Some(detail) => answer(&mut stream, &Reply::LiveTask(Box::new(detail))).await,
            None => refuse(&mut stream, "that task is over, or another user's").await,
        },
        Request::Container(container) => match container::take_up(agent, peer.uid, &container) {
            Ok(started) => answer(&mut stream, &Reply::Started(Box::new(started))).await,
            Err(why) => refuse(&mut stream, &why).await,
        },
        Request::History => history::lend(agent, &mut stream, peer.uid).await,
        Request::FailedOver(failover) => record_failover(agent, &mut stream, peer, *failover).await,
        Request::ExecFailed(_) | Request::Wait | Request::Steer(_) => {
            refuse(&mut stream, "no run was started on this connection").await;
        }
    }
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    Some(Peer { pid: credentials.pid()?, uid: credentials.uid() })
}

async fn start_task(agent: &Rc<Agent>, mut stream: UnixStream, peer: Peer, start: Start) {
    // A launcher that was kept waiting too long measures its task itself by now.
    if has_hung_up(&stream) {
        return;
    }
    let (life, started) = match admit(agent, &mut stream, peer, start).await {
        Ok(admitted) => admitted,
        Err(NotStarted::Refused(why)) => return refuse(&mut stream, &why).await,
        Err(NotStarted::Denied(Denied::Because(why))) => {
            return answer(&mut stream, &Reply::Denied(why)).await;
        }
        Err(NotStarted::Denied(Denied::Gone)) => return,
    };
    let cgroup = life.task.cgroup().path().to_owned();
    let (tell, executed) = oneshot::channel();
    let (finish, finished) = oneshot::channel();
    agent.spawn(life::lead(Rc::clone(agent), life, executed, finish));
    answer(&mut stream, &Reply::Started(Box::new(started))).await;
    let mut request = receive(&mut stream, LATER_BYTES_MAX).await;
    while let Ok(Request::Steer(wanted)) = &request {
        match steering::prepare(&cgroup, peer.uid, wanted) {
            Ok(descriptors) => {
                answer(&mut stream, &Reply::Lent).await;
                _ = steering::hand_over(&stream, &descriptors).await;
            }
            Err(why) => refuse(&mut stream, &why).await,
        }
        request = receive(&mut stream, LATER_BYTES_MAX).await;
    }
    match request {
        Ok(Request::ExecFailed(errno)) => _ = tell.send(Some(errno)),
        Ok(Request::Wait) => {
            _ = tell.send(None);
            match finished.await {
                Ok(finished) => answer(&mut stream, &Reply::Finished(finished)).await,
                Err(_) => {
                    refuse(&mut stream, "the agent is stopping; the task goes on without its report").await;
                }
            }
        }
        // The socket closed on exec (or the launcher died): the process itself tells the rest.
        _ => _ = tell.send(None),
    }
}

/// Records a failover of a service of the caller's.
async fn record_failover(agent: &Rc<Agent>, stream: &mut UnixStream, peer: Peer, failover: NewFailover) {
    if !agent.failovers.borrow_mut().allows(peer.uid) {
        return refuse(stream, "too many failovers within a minute: this one is not recorded").await;
    }
    let (done, answered) = oneshot::channel();
    let failover = NewFailover { uid: peer.uid, ..failover };
    agent.writer.failed_over(failover, Box::new(move |result| _ = done.send(result)));
    match answered.await.unwrap_or(Err(StoreError::WriterGone)) {
        Ok(()) => answer(stream, &Reply::Done).await,
        Err(error) => refuse(stream, &error.to_string()).await,
    }
}

/// Why there is no run.
enum NotStarted {
    Refused(String),
    Denied(Denied),
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

/// Takes the process into a new run, once there is room. `Err` says why not; then nothing of it is left.
async fn admit(
    agent: &Rc<Agent>,
    stream: &mut UnixStream,
    peer: Peer,
    start: Start,
) -> Result<(Life, Started), NotStarted> {
    let pid = start.pid.unwrap_or(peer.pid);
    let process = Process::open(pid).map_err(|error| format!("process {pid} can't be watched: {error}"))?;
    check_owner(&process.id, peer)?;
    let uid = peer.uid;
    let key = TaskKey { task_type: key::clean(&start.task_type), uid };
    let mut notes = Vec::new();
    let terms = terms(&agent.config(), &key.task_type, &start);
    let features = key::of_run(start.features.clone());
    let prediction = agent.predict(&key, &features).unwrap_or_else(|error| {
        notes.push(format!("no history: {error}"));
        Default::default()
    });
    if terms.priority > 0 && uid != 0 && start.admission.priority.is_some() {
        let why = "a priority above 0 is for root: leave --priority out, or take one below".to_owned();
        return Err(NotStarted::Denied(Denied::Because(why)));
    }
    let place = match enter(agent, stream, (&key, pid), start.admission.since_ms, &terms, &prediction).await {
        Ok(place) => place,
        Err(denied) => return Err(NotStarted::Denied(denied)),
    };
    // Its place must not go to a process that no longer wants it, and may wait for it on another connection. Nor may
    // another process be taken in that has got its number meanwhile.
    if has_hung_up(stream) || !process.is_running() {
        return Err(NotStarted::Denied(Denied::Gone));
    }
    let task = {
        let mut engine = agent.engine.borrow_mut();
        let plan = engine.plan(prediction, terms.policy, terms.manual);
        let mut task = engine.admit(plan).map_err(|error| error.to_string())?;
        let entered = task.cgroup().enter(pid).map_err(|error| error.to_string());
        // It still runs, so it is the one that was moved.
        let entered = entered.and_then(|()| match process.is_running() {
            true => Ok(()),
            false => Err(format!("process {pid} has ended")),
        });
        if let Err(why) = entered {
            task.finish(&mut engine, None, wire::Leftover::Leave);
            return Err(why.into());
        }
        task.start(&mut engine, 1);
        task.set_main(&mut engine, pid);
        task
    };
    let run = agent.new_run(&task, &process.id, &key, (&start, &features), place.admission());
    let user = run.user.clone();
    // A task does not wait for the disk: whether it could be recorded shows later.
    let record = Record::begun(agent.begin(run));
    notes.extend(task.notes().iter().cloned());
    notes.extend(
        place.events().iter().filter(|event| event.is_warning()).map(|event| event.message().to_owned()),
    );
    let started = Started {
        prediction: task.plan().prediction.clone(),
        limits: task.plan().limits.clone(),
        notes: notes.clone(),
    };
    let events = place.events();
    let (leftover, licenses, place) = (start.leftover, Uses::default(), Some(place));
    let life = Life { record, key, features, user, process, task, leftover, notes, place, events, licenses };
    Ok((life, started))
}

/// Waits for its place among the others, if it has to.
async fn enter(
    agent: &Rc<Agent>,
    stream: &mut UnixStream,
    (key, pid): (&TaskKey, i32),
    since_ms: i64,
    terms: &Terms,
    prediction: &Prediction,
) -> Result<Place, Denied> {
    let licenses = match &terms.licenses {
        Some(licenses) => licenses.clone(),
        None if agent.queue.has_pools() => agent.learned_licenses(key),
        None => Licenses::new(),
    };
    let entry = Entry {
        task_type: key.task_type.clone(),
        uid: key.uid,
        pid,
        priority: terms.priority,
        promise: promise(prediction, terms, licenses, &agent.config()),
        duration_ms: duration_ms(prediction),
        since_uptime_ms: agent.queue.arrival_uptime_ms(since_ms),
        run: None,
    };
    agent.enter(stream, entry, terms).await
}

/// Whether the other end is closed.
fn has_hung_up(stream: &UnixStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // Told whether it is asked for or not.
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut watched, PollTimeout::ZERO).is_ok()
        && watched[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Ends when the launcher has gone. What it says while it waits is nothing that belongs here.
pub(super) async fn gone(stream: &UnixStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// A user may only have own processes taken in: the caller itself, or a child of it.
fn check_owner(process: &ProcessId, peer: Peer) -> Result<(), String> {
    let refused = || format!("process {} is not yours to start", process.pid);
    let proc = procfs::process::Process::new(process.pid).map_err(|_| refused())?;
    let parent = proc.stat().map_err(|_| refused())?.ppid;
    let uid = proc.status().map_err(|_| refused())?.ruid;
    let related = process.pid == peer.pid || parent == peer.pid;
    if related && (uid == peer.uid || peer.uid == 0) { Ok(()) } else { Err(refused()) }
}

async fn receive(stream: &mut UnixStream, bytes_max: usize) -> Result<Request, WireError> {
    let mut header = [0; wire::HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let length = wire::body_length(header)?;
    if length > bytes_max {
        return Err(WireError::TooLong(length, bytes_max));
    }
    // Grows with what comes: a length alone takes no memory.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(WireError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    let request: Request = wire::decode(&body)?;
    request.check().map_err(WireError::Malformed)?;
    Ok(request)
}

/// Whether the answer has gone out. Who does not take it in time is gone.
pub(super) async fn is_answered(stream: &mut UnixStream, reply: &(impl Serialize + Sync)) -> bool {
    let send = async {
        stream.write_all(&wire::encode(reply)?).await?;
        Ok::<(), WireError>(())
    };
    let sent = tokio::time::timeout(ANSWER_WAIT, send).await.unwrap_or(Err(WireError::Silent));
    match &sent {
        Err(WireError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => tracing::debug!("failed to answer: {error}"),
        Ok(()) => {}
    }
    sent.is_ok()
}

/// The same where nothing follows.
pub(super) async fn answer(stream: &mut UnixStream, reply: &(impl Serialize + Sync)) {
    is_answered(stream, reply).await;
}

pub(super) async fn refuse(stream: &mut UnixStream, why: &str) {
    tracing::debug!("refused a request: {why}");
    answer(stream, &Reply::Refused(why.to_owned())).await;
}
