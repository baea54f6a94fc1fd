//! An open-loop load: a new connection per request at a fixed rate, whatever became of the ones before, so that a
//! server that stands still shows as requests that wait. Every request's fate is told.
#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "this is no library")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request that has no answer by then has timed out.
pub const TIMEOUT: Duration = Duration::from_secs(8);

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Fates {
    pub answered: u64,
    /// Nobody listened.
    pub refused: u64,
    /// The connection was lost after it was made.
    pub reset: u64,
    /// Closed without an answer.
    pub empty: u64,
    pub timed_out: u64,
    /// Of the answered ones, from the moment when the request was due, microseconds.
    pub latencies_us: Vec<u64>,
}

impl Fates {
    pub fn failed(&self) -> u64 {
        self.refused + self.reset + self.empty + self.timed_out
    }

    pub fn sent(&self) -> u64 {
        self.answered + self.failed()
    }

    /// A quantile of the latencies, microseconds.
    pub fn latency_us(&self, quantile: f64) -> u64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * quantile) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or(0)
    }
}

enum Fate {
    Answered,
    Refused,
    Reset,
    Empty,
}

/// A load in the background.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Fates>,
}

impl Load {
    /// `rate` connections per second to `address`, each with `request`.
    pub fn start(address: SocketAddr, rate: u32, request: &'static [u8]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(drive(address, rate, request, &stopped, &counted))
        });
        Self { stop, sent, thread }
    }

    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, and waits for the last answers.
    pub fn finish(self) -> Fates {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load ran")
    }
}

async fn drive(
    address: SocketAddr,
    rate: u32,
    request: &'static [u8],
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Fates {
    let pause = Duration::from_secs(1) / rate;
    let (mut due, mut under_way) = (Instant::now(), tokio::task::JoinSet::new());
    let mut fates = Fates::default();
    while !stop.load(Ordering::Relaxed) {
        while Instant::now() >= due {
            under_way.spawn(one(address, request, due));
            sent.fetch_add(1, Ordering::Relaxed);
            due += pause;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            Some(Ok(fate)) = under_way.join_next() => book(&mut fates, fate),
        }
    }
    while let Some(Ok(fate)) = under_way.join_next().await {
        book(&mut fates, fate);
    }
    fates
}

fn book(fates: &mut Fates, (fate, latency): (Option<Fate>, Duration)) {
    match fate {
        Some(Fate::Answered) => {
            fates.answered += 1;
            fates.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        Some(Fate::Refused) => fates.refused += 1,
        Some(Fate::Reset) => fates.reset += 1,
        Some(Fate::Empty) => fates.empty += 1,
        None => fates.timed_out += 1,
    }
}

async fn one(address: SocketAddr, request: &'static [u8], due: Instant) -> (Option<Fate>, Duration) {
    let fate = tokio::time::timeout(TIMEOUT, exchange(address, request)).await.ok();
    (fate, due.elapsed())
}

async fn exchange(address: SocketAddr, request: &[u8]) -> Fate {
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Fate::Refused,
        Err(_) => return Fate::Reset,
    };
    let mut answer = [0; 512];
    if stream.write_all(request).await.is_err() {
        return Fate::Reset;
    }
    match stream.read(&mut answer).await {
        Ok(0) => Fate::Empty,
        Ok(_) => Fate::Answered,
        Err(_) => Fate::Reset,
    }
}
