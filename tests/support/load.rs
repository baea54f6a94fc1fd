//! An open-loop load: a new connection per request at a fixed rate, whatever became of the ones before, so that a
//! server that stands still shows as requests that wait. Every request's fate is told, and of those that failed
//! the number, by which a server that keeps a list can tell whether it had read them.
#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "this is no library")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request that has no answer by then has timed out.
pub const TIMEOUT: Duration = Duration::from_secs(8);

/// Real-time priority of clients; the guard of standin is above.
const PRIORITY: i32 = 5;

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
    /// Answered with a 5xx status, as a proxy does that finds no server.
    pub unserved: u64,
    /// Of the answered ones, from the moment when the request was due, microseconds.
    pub latencies_us: Vec<u64>,
    /// Numbers of those that failed.
    pub lost: Vec<u64>,
    /// Answers by the pid that is their last line, where that is one.
    pub by_pid: BTreeMap<u32, u64>,
}

impl Fates {
    pub fn failed(&self) -> u64 {
        self.refused + self.reset + self.empty + self.timed_out + self.unserved
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
    Answered(Option<u32>),
    Refused,
    Reset,
    Empty,
    Unserved,
}

/// What became of one request.
struct End {
    number: u64,
    /// `None` if it has timed out.
    fate: Option<Fate>,
    latency: Duration,
}

/// Makes the request of a number.
type Make = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

/// A load in the background.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Fates>,
}

impl Load {
    /// `rate` connections per second to `address`, each with `request`.
    pub fn start(address: SocketAddr, rate: u32, request: &'static [u8]) -> Self {
        Self::numbered(address, rate, 0, move |_| request.to_vec())
    }

    /// The same, each with the request that `make` gives for its number; the first one's is `first`.
    pub fn numbered(
        address: SocketAddr,
        rate: u32,
        first: u64,
        make: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let make: Make = Arc::new(make);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            be_prompt();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(drive(address, rate, first, &make, &stopped, &counted))
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

/// Makes this thread one that ordinary work does not delay; what it starts is ordinary. A client
/// that comes late opens all connections that are due before it sends one request, and a failure then costs them all.
pub fn be_prompt() {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: plain system call on this thread. Where it is refused, times are those of ordinary clients.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter);
    }
}

async fn drive(
    address: SocketAddr,
    rate: u32,
    first: u64,
    make: &Make,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Fates {
    let pause = Duration::from_secs(1) / rate;
    let (mut due, mut under_way) = (Instant::now(), tokio::task::JoinSet::new());
    let mut fates = Fates::default();
    while !stop.load(Ordering::Relaxed) {
        while Instant::now() >= due {
            let number = first + sent.fetch_add(1, Ordering::Relaxed);
            under_way.spawn(one(address, number, make(number), due));
            due += pause;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            Some(Ok(end)) = under_way.join_next() => book(&mut fates, end),
        }
    }
    while let Some(Ok(end)) = under_way.join_next().await {
        book(&mut fates, end);
    }
    fates
}

fn book(fates: &mut Fates, End { number, fate, latency }: End) {
    match fate {
        Some(Fate::Answered(pid)) => {
            fates.answered += 1;
            fates.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            pid.into_iter().for_each(|pid| *fates.by_pid.entry(pid).or_default() += 1);
            return;
        }
        Some(Fate::Refused) => fates.refused += 1,
        Some(Fate::Reset) => fates.reset += 1,
        Some(Fate::Empty) => fates.empty += 1,
        Some(Fate::Unserved) => fates.unserved += 1,
        None => fates.timed_out += 1,
    }
    fates.lost.push(number);
}

async fn one(address: SocketAddr, number: u64, request: Vec<u8>, due: Instant) -> End {
    let fate = tokio::time::timeout(TIMEOUT, exchange(address, &request)).await.ok();
    End { number, fate, latency: due.elapsed() }
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
        Ok(length) if is_unserved(&answer[..length]) => Fate::Unserved,
        Ok(length) => Fate::Answered(last_line(&answer[..length])),
        Err(_) => Fate::Reset,
    }
}

fn is_unserved(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/1.") && answer.get(9) == Some(&b'5')
}

/// The last line as a number.
pub fn last_line(answer: &[u8]) -> Option<u32> {
    std::str::from_utf8(answer).ok()?.lines().last()?.trim().parse().ok()
}
