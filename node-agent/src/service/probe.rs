//! The ready probe: a URL that has to answer with a status below 400, or a command that has to end with 0.

use crate::launch::{self, Bond, Command, Dispositions, Held};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// Longest head of an answer that is read.
const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Pause between two looks whether a command has ended.
const LOOK: Duration = Duration::from_millis(5);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `http://HOST[:PORT][/PATH]`.
    Http {
        /// Host and port.
        authority: String,
        /// Path and query.
        path: String,
    },
    /// For `sh -c`.
    Command(OsString),
}

impl Probe {
    /// A URL where it starts with `http://`, else a command.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("http://") else {
            if text.starts_with("https://") {
                return Err("https is not spoken; use a command, such as 'curl -fsk https://…'".into());
            }
            return Ok(Self::Command(text.into()));
        };
        let (authority, path) = rest
            .split_once('/')
            .map_or((rest, String::from("/")), |(authority, path)| (authority, format!("/{path}")));
        if authority.is_empty() {
            return Err("allowed is http://HOST[:PORT][/PATH] or a command".into());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self::Http { authority, path })
    }
}

/// Where a command of ours runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// Its cgroup.
    pub(super) cgroup: Option<&'a File>,
    /// What it gets back of the launcher's signal state.
    pub(super) original: &'a Dispositions,
    /// Its environment, on top of the launcher's.
    pub(super) variables: &'a [(&'static str, OsString)],
}

/// Runs a shell command to its end; `Err` says why it is no success.
pub(super) async fn command(text: &OsString, patience: Duration, setting: Setting<'_>) -> Result<(), String> {
    let command =
        Command::resolve(vec!["sh".into(), "-c".into(), text.clone()]).map_err(|error| error.to_string())?;
    let prepared = command.prepare_with(setting.variables);
    let place = launch::Place { cgroup: setting.cgroup, entrances: &[], descriptors: &[] };
    let mut process = Held::fork(&command, &prepared, place, setting.original, Bond::Service)
        .map_err(|error| error.to_string())?;
    process.release().map_err(|error| error.to_string())?;
    let until = tokio::time::Instant::now() + patience;
    loop {
        if let Some(exit) = process.try_reap() {
            return if exit.status == 0 { Ok(()) } else { Err(crate::balance::How(exit.status).to_string()) };
        }
        if tokio::time::Instant::now() >= until {
            process.abandon();
            return Err(format!("not done within {} ms", patience.as_millis()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks over HTTP. `announce` is told the source port before the connection is made.
pub(super) async fn http(
    authority: &str,
    path: &str,
    patience: Duration,
    announce: impl AsyncFn(u16),
) -> Result<(), String> {
    let asked = ask(authority, path, announce);
    match tokio::time::timeout(patience, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", patience.as_millis())),
    }
}

async fn ask(authority: &str, path: &str, announce: impl AsyncFn(u16)) -> Result<(), String> {
    let addresses = lookup_host(authority).await.map_err(|error| format!("{authority}: {error}"))?;
    let mut last = format!("{authority}: no address");
    for address in addresses {
        match connect(address, &announce).await {
            Ok(stream) => return status(stream, authority, path).await,
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}

/// Connects, announcing the source port first.
pub(super) async fn connect(address: SocketAddr, announce: &impl AsyncFn(u16)) -> io::Result<TcpStream> {
    let (socket, any) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, "0.0.0.0:0"),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, "[::]:0"),
    };
    if let Ok(any) = any.parse() {
        socket.bind(any)?;
    }
    announce(socket.local_addr()?.port()).await;
    socket.connect(address).await
}

async fn status(mut stream: TcpStream, authority: &str, path: &str) -> Result<(), String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: standin\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head);
        match (response.code, parsed) {
            (Some(code), _) if code < 400 => return Ok(()),
            (Some(code), _) => return Err(format!("status {code}")),
            (None, Err(error)) => return Err(format!("not HTTP: {error}")),
            (None, Ok(_)) if head.len() >= HEAD_MAX => {
                return Err("not HTTP: no end of the first line".into());
            }
            (None, Ok(_)) => {}
        }
        if stream.read_buf(&mut head).await.map_err(|error| error.to_string())? == 0 {
            return Err("closed without an answer".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_commands_are_told_apart() {
        let http =
            |authority: &str, path: &str| Probe::Http { authority: authority.into(), path: path.into() };
        assert_eq!(Probe::parse("http://localhost:8080/health?x"), Ok(http("localhost:8080", "/health?x")));
        assert_eq!(Probe::parse("http://[::1]:80"), Ok(http("[::1]:80", "/")));
        assert_eq!(Probe::parse("http://host/"), Ok(http("host:80", "/")));
        assert_eq!(Probe::parse("redis-cli ping"), Ok(Probe::Command("redis-cli ping".into())));
        assert!(Probe::parse("https://host").is_err());
        assert!(Probe::parse("http://").is_err());
    }

    #[test]
    fn an_answer_below_400_is_ready() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let answers = ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 503 Busy\r\nA: b\r\n\r\n", "SSH-2.0-x\r\n", ""];
        let server = std::thread::spawn(move || {
            for answer in answers {
                use std::io::{Read, Write};
                let (mut stream, _) = listener.accept().unwrap();
                _ = stream.read(&mut [0; 1024]);
                _ = stream.write_all(answer.as_bytes());
            }
        });
        let ask = || {
            runtime.block_on(http(&authority, "/", Duration::from_secs(10), async |port| assert_ne!(port, 0)))
        };
        assert_eq!(ask(), Ok(()));
        assert_eq!(ask(), Err("status 503".into()));
        assert!(ask().unwrap_err().contains("not HTTP"));
        assert!(ask().unwrap_err().contains("closed"));
        server.join().unwrap();
    }
}
