//! One failure under load, seen from the client: what was lost, and when somebody else answered.

use crate::load::{self, Fates, Load};
use crate::server::{numbers, read_by_a_server, request};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Load before the failure.
const LEAD: Duration = Duration::from_millis(250);
/// Load after somebody has answered.
const TAIL: Duration = Duration::from_millis(250);
/// Pause before somebody who was refused tries again.
const RETRY: Duration = Duration::from_micros(200);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Numbers kept for one load.
const NUMBERS: u64 = 1_000_000;

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Kill,
    Stop,
    /// By a request, sent to this address: a proxy would send it to the stand-in as well.
    Deadlock(SocketAddr),
}

impl Blow {
    fn deal(self, victim: u32) {
        let signal = match self {
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Deadlock(address) => {
                if let Ok(mut stream) = TcpStream::connect(address) {
                    _ = stream.write_all(b"GET /deadlock HTTP/1.1\r\nHost: bench\r\n\r\n");
                    // It has to stay open until the server has read it.
                    std::mem::forget(stream);
                }
                return;
            }
        };
        crate::support::signal(victim, signal);
    }
}

/// The load that a failure happens under.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Under<'a> {
    /// New connections per second.
    pub(crate) rate: u32,
    /// Where the server marks what it has read; its answers are pids then.
    pub(crate) marks: Option<&'a Path>,
    /// What is sent instead to a server that does not.
    pub(crate) request: &'static [u8],
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strike {
    /// What an answer took before the failure.
    pub(crate) usual: Duration,
    /// From the failure to the first answer, by another one, to a request made after it.
    pub(crate) first_answer: Duration,
    pub(crate) fates: Fates,
    /// Lost ones that a server had read.
    pub(crate) in_process: u64,
}

impl Strike {
    /// Lost ones that no server had read, and that were not refused either.
    pub(crate) fn unread(&self) -> u64 {
        (self.fates.failed() - self.fates.refused - self.fates.unserved).saturating_sub(self.in_process)
    }
}

/// Deals one blow to `victim`, which serves at `address`.
pub(crate) fn strike(blow: Blow, address: SocketAddr, victim: u32, under: Under<'_>) -> Strike {
    let first = numbers(NUMBERS);
    let own = under.marks.is_some();
    let make = move |number| if own { request(number) } else { under.request.to_vec() };
    let load = Load::numbered(address, under.rate, first, make);
    std::thread::sleep(LEAD);
    let question = if own { request(0) } else { under.request.to_vec() };
    let usual = until_answered(address, &question, None, Instant::now());
    let began = Instant::now();
    blow.deal(victim);
    let first_answer = until_answered(address, &question, own.then_some(victim), began);
    std::thread::sleep(TAIL);
    let fates = load.finish();
    let in_process = under.marks.map_or(0, |marks| read_by_a_server(marks, &fates.lost));
    Strike { usual, first_answer, fates, in_process }
}

/// Asks until another one than `victim` answers; how long after `began` that was.
fn until_answered(address: SocketAddr, question: &[u8], victim: Option<u32>, began: Instant) -> Duration {
    while began.elapsed() < PATIENCE {
        match (exchange(address, question), victim) {
            (Some(answer), Some(victim)) if load::last_line(&answer).is_some_and(|pid| pid != victim) => {
                return began.elapsed();
            }
            (Some(_), None) => return began.elapsed(),
            _ => std::thread::sleep(RETRY),
        }
    }
    PATIENCE
}

fn exchange(address: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(question).ok()?;
    let mut answer = [0; 512];
    match stream.read(&mut answer) {
        Ok(length @ 1..) => Some(answer[..length].to_vec()),
        _ => None,
    }
}

/// Opens `count` connections with a request each as quickly as it can, deals the blow, and waits for the answers.
/// Gives how many were lost that a server had read, and how many that none had.
pub(crate) fn strike_at_a_queue(address: SocketAddr, victim: u32, count: u64, marks: &Path) -> (u64, u64) {
    let first = numbers(count);
    let open = |number| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(load::TIMEOUT)).ok()?;
        stream.write_all(&request(number)).ok().map(|()| (number, stream))
    };
    let waiting: Vec<(u64, Option<TcpStream>)> =
        (first..first + count).map(|number| (number, open(number).map(|(_, stream)| stream))).collect();
    Blow::Kill.deal(victim);
    let is_lost = |stream: Option<TcpStream>| {
        let mut answer = [0; 512];
        stream.is_none_or(|mut stream| {
            let answered = stream.read(&mut answer).unwrap_or(0);
            load::last_line(&answer[..answered]).is_none()
        })
    };
    let lost: Vec<u64> =
        waiting.into_iter().filter_map(|(number, stream)| is_lost(stream).then_some(number)).collect();
    let read = read_by_a_server(marks, &lost);
    (read, lost.len() as u64 - read)
}
