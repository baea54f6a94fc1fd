//! The server that is killed: this program again, told to serve. It marks every request that it has read in a
//! file, so that of one that was lost it can be told whether a dead process had it already, and answers with its
//! pid. `/deadlock` locks it up for ever.
//!
//! Arguments: port, MiB of memory to fill before it listens, threads, microseconds of work per request, file.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// First argument of this program where it is to serve.
pub(crate) const ARGUMENT: &str = "serve";

const PAGE: usize = 4096;

/// What one such server is told.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) mebibytes: usize,
    pub(crate) threads: usize,
    pub(crate) work: Duration,
    pub(crate) marks: PathBuf,
    /// Milliseconds after which a proxy gives up on it.
    pub(crate) silence_ms: u32,
}

impl Shape {
    /// Small, and able to do eight times what it is asked for.
    pub(crate) fn light(marks: PathBuf) -> Self {
        Self {
            mebibytes: 0,
            threads: 8,
            work: Duration::from_millis(1),
            marks,
            silence_ms: crate::proxy::PATIENT_MS,
        }
    }

    /// Its command line on `port`.
    pub(crate) fn command(&self, port: u16) -> Vec<String> {
        let program = std::env::current_exe().expect("this program has a path");
        let numbers = [usize::from(port), self.mebibytes, self.threads, self.work.as_micros() as usize];
        let mut command = vec![program.display().to_string(), ARGUMENT.into()];
        command.extend(numbers.iter().map(ToString::to_string));
        command.push(self.marks.display().to_string());
        command
    }
}

/// Numbers of requests, given once each.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// `count` numbers in a row.
pub(crate) fn numbers(count: u64) -> u64 {
    NUMBERS.fetch_add(count, Ordering::Relaxed)
}

/// The request of a number.
pub(crate) fn request(number: u64) -> Vec<u8> {
    format!("GET /{number} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The same, on a connection that is kept.
pub(crate) fn request_kept(number: u64) -> Vec<u8> {
    format!("GET /{number} HTTP/1.1\r\nHost: bench\r\nConnection: keep-alive\r\n\r\n").into_bytes()
}

/// How many of `numbers` a server has read.
pub(crate) fn read_by_a_server(marks: &Path, numbers: &[u64]) -> u64 {
    let Ok(file) = File::open(marks) else { return 0 };
    let is_marked = |number: &&u64| {
        let mut mark = [0];
        file.read_at(&mut mark, **number).is_ok_and(|length| length == 1) && mark[0] == 1
    };
    numbers.iter().filter(is_marked).count() as u64
}

/// Locked for ever by `/deadlock`.
static GATE: Mutex<()> = Mutex::new(());

/// Serves until it is killed.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let number = |index: usize| -> Result<usize> {
        Ok(arguments.get(index).context("serve PORT MIB THREADS US FILE")?.parse()?)
    };
    let (port, mebibytes, threads) = (u16::try_from(number(0)?)?, number(1)?, number(2)?);
    let work = Duration::from_micros(number(3)? as u64);
    let path = arguments.get(4).context("no file for marks")?;
    let marks = File::options().create(true).truncate(false).write(true).open(path)?;
    let mut memory = vec![0u8; mebibytes << 20];
    memory.iter_mut().step_by(PAGE).for_each(|page| *page = 1);
    std::hint::black_box(&memory);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    std::thread::scope(|scope| {
        let serve = || listener.incoming().flatten().for_each(|stream| converse(stream, work, &marks));
        (1..threads).for_each(|_| _ = scope.spawn(serve));
        serve();
    });
    Ok(())
}

/// Answers on one connection until the client asks for no more.
fn converse(mut stream: TcpStream, work: Duration, marks: &File) {
    let answer = |kept: &str| {
        let pid = std::process::id().to_string();
        let length = pid.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: {kept}\r\n\r\n{pid}")
    };
    let mut request = [0; 2048];
    _ = stream.set_nodelay(true);
    while let Ok(length @ 1..) = stream.read(&mut request) {
        let text = String::from_utf8_lossy(&request[..length]);
        let path = text.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        if let Ok(number) = path.parse() {
            _ = marks.write_at(&[1], number);
        }
        let gate = GATE.lock();
        if path == "deadlock" {
            loop {
                std::thread::park();
            }
        }
        drop(gate);
        if !work.is_zero() {
            std::thread::sleep(work);
        }
        let is_kept = text.contains("onnection: keep-alive");
        let answer = answer(if is_kept { "keep-alive" } else { "close" });
        if stream.write_all(answer.as_bytes()).is_err() || !is_kept {
            return;
        }
    }
}
