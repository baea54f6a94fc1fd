//! Just as much of HTTP/1.1 as a scraper needs: one request, one answer, and the connection is closed.

use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of a request, bytes, and most fields in it.
const HEAD_MAX: usize = 8192;
const FIELDS_MAX: usize = 64;

/// How long a scraper may take to ask and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The media type of the text.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics { with_body: bool },
    Front,
    Nothing,
    Method,
    Nonsense,
}

/// Answers one request; `metrics` is called if it is for them.
///
/// # Errors
/// The connection failed, or took too long.
pub async fn serve<F: Future<Output = Result<String, String>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: impl FnOnce() -> F,
) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, exchange(stream, metrics)).await?
}

async fn exchange<F: Future<Output = Result<String, String>>>(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    metrics: impl FnOnce() -> F,
) -> io::Result<()> {
    let asked = read(&mut stream).await?;
    let (status, body) = match asked {
        Asked::Metrics { .. } => match metrics().await {
            Ok(text) => ("200 OK", text),
            Err(why) => ("503 Service Unavailable", why + "\n"),
        },
        Asked::Front => ("200 OK", "standin: metrics are at /metrics\n".into()),
        Asked::Nothing => ("404 Not Found", "metrics are at /metrics\n".into()),
        Asked::Method => ("405 Method Not Allowed", "only GET and HEAD\n".into()),
        Asked::Nonsense => ("400 Bad Request", "that is no request of HTTP/1.1\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {TEXT}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if asked != (Asked::Metrics { with_body: false }) {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let mut head = Vec::new();
    loop {
        if let Some(asked) = parse(&head) {
            return Ok(asked);
        }
        if head.len() >= HEAD_MAX {
            return Ok(Asked::Nonsense);
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What a head asks for; `None` if it has not ended.
fn parse(head: &[u8]) -> Option<Asked> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Asked::Nonsense),
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    Some(match (request.method.unwrap_or_default(), path) {
        ("GET", "/metrics") => Asked::Metrics { with_body: true },
        ("HEAD", "/metrics") => Asked::Metrics { with_body: false },
        ("GET" | "HEAD", "/") => Asked::Front,
        ("GET" | "HEAD", _) => Asked::Nothing,
        _ => Asked::Method,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_scraper_asks_is_answered() {
        let asked = |line: &str| parse(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(asked("GET /metrics"), Some(Asked::Metrics { with_body: true }));
        assert_eq!(asked("GET /metrics?x=1"), Some(Asked::Metrics { with_body: true }));
        assert_eq!(asked("HEAD /metrics"), Some(Asked::Metrics { with_body: false }));
        assert_eq!(asked("GET /"), Some(Asked::Front));
        assert_eq!(asked("GET /../etc/passwd"), Some(Asked::Nothing));
        assert_eq!(asked("POST /metrics"), Some(Asked::Method));
        assert_eq!(parse(b"\x16\x03\x01\x02\x00"), Some(Asked::Nonsense));
        assert_eq!(parse(b"GET /metrics HT"), None);
    }
}
