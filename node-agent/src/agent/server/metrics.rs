//! Serves the metrics: on a thread of its own, so that no scraper delays the agent. From the event loop a scrape needs
//! one look at all tasks, which is handed out to whoever asks within its time anyway; events, failovers and services
//! are read on the other thread.

use super::{Agent, socket};
use crate::config::Metrics;
use crate::metrics::{Beside, Seen, encode, http};
use crate::service::control;
use crate::service::control_directory;
use crate::store::{Reader, StoreError};
use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;

/// Most scrapers at once; further ones wait to be accepted.
const SCRAPERS_MAX: usize = 16;

/// Pause between two looks at services: their memory takes longer to count.
const SERVICES_EVERY: Duration = Duration::from_secs(5);

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A question to the event loop.
type Ask = oneshot::Sender<Seen>;

/// Where scrapers come in.
struct Doors {
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<TcpListener>,
}

/// Opens what the configuration asks for. What can't be opened is logged: tasks are measured without.
fn open(config: &Metrics, group: &str) -> Doors {
    let unix = config.socket.as_deref().map(|path| {
        let listener = socket::listen(path, group)?.into_std()?;
        tracing::info!("metrics on {}", path.display());
        Ok::<_, anyhow::Error>(listener)
    });
    let tcp = config.listen.map(|address| {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tracing::info!("metrics on http://{}/metrics", listener.local_addr()?);
        Ok::<_, anyhow::Error>(listener)
    });
    fn or_warn<T>(opened: Option<anyhow::Result<T>>, key: &str) -> Option<T> {
        let refused = |error: &anyhow::Error| tracing::warn!("no metrics on metrics.{key}: {error:#}");
        opened.and_then(|opened| opened.inspect_err(refused).ok())
    }
    Doors { unix: or_warn(unix, "socket"), tcp: or_warn(tcp, "listen") }
}

/// Begins to serve, if the configuration wants it. The socket that was made is to be removed at the end.
pub(super) fn start(agent: &Rc<Agent>, agent_socket: &Path) -> Option<PathBuf> {
    let config = agent.config();
    let doors = open(&config.metrics, &config.agent.socket_group);
    if doors.unix.is_none() && doors.tcp.is_none() {
        return None;
    }
    let made = config.metrics.socket.clone().filter(|_| doors.unix.is_some());
    let (ask, mut asked) = mpsc::channel::<Ask>(SCRAPERS_MAX);
    let desk = Desk::new(agent.database.clone(), control_directory(agent_socket), ask);
    let started = std::thread::Builder::new().name("metrics".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, serve(doors, desk)));
        if let Err(error) = served {
            tracing::warn!("metrics are no longer served: {error}");
        }
    });
    if let Err(error) = started {
        tracing::warn!("metrics are not served: {error}");
        return made;
    }
    let agent = Rc::clone(agent);
    tokio::task::spawn_local(async move {
        while let Some(answer) = asked.recv().await {
            // A scraper that has gone wants nothing.
            _ = answer.send(agent.seen());
        }
    });
    made
}

/// What the metrics' thread reads, and how it asks the event loop.
struct Desk {
    ask: mpsc::Sender<Ask>,
    database: PathBuf,
    services: PathBuf,
    beside: RefCell<Beside>,
    /// The last event and failover that are counted, once they are known.
    counted: RefCell<Option<(i64, i64)>>,
    looked: RefCell<Option<Instant>>,
}

async fn serve(doors: Doors, desk: Desk) -> io::Result<()> {
    let desk = Rc::new(desk);
    // From now on events count.
    desk.count();
    let scrapers = Arc::new(Semaphore::new(SCRAPERS_MAX));
    let unix = doors.unix.map(tokio::net::UnixListener::from_std).transpose()?;
    let tcp = doors.tcp.map(tokio::net::TcpListener::from_std).transpose()?;
    loop {
        let permit = Arc::clone(&scrapers).acquire_owned().await.map_err(io::Error::other)?;
        let answered = |stream| {
            let desk = Rc::clone(&desk);
            async move {
                // A scraper that hangs up or is silent costs its connection.
                _ = http::serve(stream, || desk.text()).await;
                drop(permit);
            }
        };
        tokio::select! {
            accepted = async { unix.as_ref()?.accept().await.into() }, if unix.is_some() => match accepted {
                Some(Ok((stream, _))) => drop(tokio::task::spawn_local(answered(boxed(stream)))),
                _ => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            accepted = async { tcp.as_ref()?.accept().await.into() }, if tcp.is_some() => match accepted {
                Some(Ok((stream, _))) => drop(tokio::task::spawn_local(answered(boxed(stream)))),
                _ => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

fn boxed(stream: impl Stream + 'static) -> Box<dyn Stream> {
    Box::new(stream)
}

impl Desk {
    fn new(database: PathBuf, services: PathBuf, ask: mpsc::Sender<Ask>) -> Self {
        let (beside, counted, looked) = Default::default();
        Self { ask, database, services, beside, counted, looked }
    }

    async fn text(&self) -> Result<String, String> {
        let (answer, seen) = oneshot::channel();
        let stopping = |_| "the agent is stopping".to_owned();
        self.ask.send(answer).await.map_err(|_| stopping(()))?;
        let seen = seen.await.map_err(|_| stopping(()))?;
        self.look_at_services().await;
        self.count();
        self.beside.borrow_mut().scrapes += 1;
        encode(&seen, &self.beside.borrow())
    }

    /// Counts what was logged since the last time. A database that can't be read now is read later.
    fn count(&self) {
        if let Err(error) = self.try_count() {
            tracing::debug!("events are not counted: {error}");
        }
    }

    fn try_count(&self) -> Result<(), StoreError> {
        let reader = Reader::open(&self.database)?;
        let mut counted = self.counted.borrow_mut();
        let Some((event, failover)) = *counted else {
            *counted = Some(reader.tail_ends()?);
            return Ok(());
        };
        let (events, failovers) = (reader.events_after(event)?, reader.failovers_after(failover)?);
        *counted = Some((events.last, failovers.last));
        let mut beside = self.beside.borrow_mut();
        for (kind, severity, count) in events.counts {
            beside.add_events(kind, severity, count);
        }
        for (service, cause, count) in failovers.counts {
            beside.add_failovers(service, cause, count);
        }
        Ok(())
    }

    /// Asks the services, aside: one that hangs takes its time.
    async fn look_at_services(&self) {
        let is_fresh = self.looked.borrow().is_some_and(|looked| looked.elapsed() < SERVICES_EVERY);
        if is_fresh {
            return;
        }
        *self.looked.borrow_mut() = Some(Instant::now());
        let directory = self.services.clone();
        if let Ok(services) = tokio::task::spawn_blocking(move || control::statuses(&directory)).await {
            self.beside.borrow_mut().services = services;
        }
    }
}
