//! Reaching the agent, and saying in words why it can't be reached.

use crate::wire::{self, AgentStatus, Reply, Request};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the agent may take to answer before the caller does without it.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Longest path of a socket, bytes: `sun_path` of unix(7) with its final NUL.
const PATH_BYTES_MAX: usize = 107;

/// Why nobody was reached.
#[derive(Debug)]
pub(super) struct Unreachable {
    /// There is no such path: no agent was ever started there.
    pub(super) absent: bool,
    /// For people: `no agent at PATH: why`.
    pub(super) message: String,
}

/// A connection to the agent that listens on `socket`, which gives up after [`ANSWER_MAX`].
pub(super) fn connect(socket: &Path) -> Result<UnixStream, Unreachable> {
    let connected = UnixStream::connect(socket).and_then(|stream| {
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(stream)
    });
    connected.map_err(|error| Unreachable {
        absent: error.kind() == ErrorKind::NotFound,
        message: format!("no agent at {}: {}", socket.display(), why(socket, &error)),
    })
}

/// What the agent that listens on `socket` is.
pub(super) fn status(socket: &Path) -> Result<AgentStatus, Unreachable> {
    match ask(socket, &Request::Status)? {
        Reply::Status(status) => Ok(status),
        _ => Err(broken(socket, "it answered something else")),
    }
}

/// One question to the agent, and its answer.
pub(super) fn ask(socket: &Path, request: &Request) -> Result<Reply, Unreachable> {
    let mut stream = connect(socket)?;
    let answer = wire::send(&mut stream, request).and_then(|()| wire::receive(&mut stream));
    answer.map_err(|error| broken(socket, &error.to_string()))
}

pub(super) fn broken(socket: &Path, problem: &str) -> Unreachable {
    Unreachable { absent: false, message: format!("agent at {}: {problem}", socket.display()) }
}

fn why(socket: &Path, error: &io::Error) -> String {
    let is_socket = || socket.metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
    match error.kind() {
        ErrorKind::NotFound => "there is no such socket".into(),
        ErrorKind::ConnectionRefused if is_socket() => "nobody listens there".into(),
        ErrorKind::ConnectionRefused => "that is no socket".into(),
        ErrorKind::PermissionDenied => {
            "no permission; it is for root and the group of the configuration's agent.socket_group".into()
        }
        ErrorKind::InvalidInput => {
            let bytes = socket.as_os_str().len();
            format!("a socket's path may be {PATH_BYTES_MAX} bytes long, this one is {bytes}")
        }
        _ => error.to_string(),
    }
}
