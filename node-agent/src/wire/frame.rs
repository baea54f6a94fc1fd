//! One message on the socket: `STDN`, protocol version (u16), length (u32), then that many bytes of bincode;
//! all little-endian. A frame is at most [`FRAME_BYTES_MAX`] long, checked before anything is allocated.

use super::PROTOCOL_VERSION;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// Longest body.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Longest request that an agent reads: a command line, features, and what is around them. Answers may be longer.
pub const REQUEST_BYTES_MAX: usize = 128 << 10;

/// Length of what stands before the body.
pub const HEADER_BYTES: usize = 10;

const MAGIC: [u8; 4] = *b"STDN";

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed, or the peer closed it.
    #[error("connection failed: {0}")]
    Io(io::Error),
    /// The peer took longer than the socket's time limit.
    #[error("no answer in time")]
    Silent,
    /// What came is no frame.
    #[error("the peer does not speak standin's protocol")]
    NotAFrame,
    /// Another version of standin.
    #[error(
        "the peer speaks protocol {0}, this is {PROTOCOL_VERSION}: agent and launcher must be of one version"
    )]
    Version(u16),
    /// Longer than is allowed: its length, and the most.
    #[error("message of {0} bytes; the limit is {1}")]
    TooLong(usize, usize),
    /// The body is not what was expected.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The agent understood and said no.
    #[error("the agent refused: {0}")]
    Refused(String),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

fn format() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// A message as a frame.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let body = bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    let length = u32::try_from(body.len()).map_err(|_| WireError::TooLong(body.len(), FRAME_BYTES_MAX))?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(body.len(), FRAME_BYTES_MAX));
    }
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend(MAGIC);
    frame.extend(PROTOCOL_VERSION.to_le_bytes());
    frame.extend(length.to_le_bytes());
    frame.extend(body);
    Ok(frame)
}

/// How many bytes follow this header.
///
/// # Errors
/// [`WireError::NotAFrame`], [`WireError::Version`], [`WireError::TooLong`].
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, WireError> {
    let [m0, m1, m2, m3, v0, v1, l0, l1, l2, l3] = header;
    let version = u16::from_le_bytes([v0, v1]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    match [m0, m1, m2, m3] == MAGIC {
        false => Err(WireError::NotAFrame),
        true if version != PROTOCOL_VERSION => Err(WireError::Version(version)),
        true if length > FRAME_BYTES_MAX => Err(WireError::TooLong(length, FRAME_BYTES_MAX)),
        true => Ok(length),
    }
}

/// The message in a body.
///
/// # Errors
/// [`WireError::Malformed`], also if bytes are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    let malformed = |error: bincode::error::DecodeError| WireError::Malformed(error.to_string());
    let (message, used) = bincode::serde::decode_from_slice(body, format()).map_err(malformed)?;
    if used == body.len() {
        Ok(message)
    } else {
        Err(WireError::Malformed(format!("{} bytes too many", body.len() - used)))
    }
}

/// Writes a message, blocking.
///
/// # Errors
/// [`WireError::TooLong`] and [`WireError::Io`].
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<(), WireError> {
    Ok(stream.write_all(&encode(message)?)?)
}

/// Reads a message, blocking.
///
/// # Errors
/// Any [`WireError`].
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, WireError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use crate::fingerprint::key::FeatureValue;
    use crate::hostile;
    use crate::size::{Limit, Origin};
    use proptest::prelude::*;
    use std::time::Duration;

    fn started() -> Reply {
        Reply::Started(Box::new(Started {
            prediction: Prediction::default(),
            limits: Limits(vec![
                (Limit::MemoryMax(1 << 30), Origin::Manual),
                (Limit::CpuMax(1.5), Origin::Predicted),
            ]),
            notes: vec!["note".into()],
        }))
    }

    #[test]
    fn messages_survive_the_way() {
        let mut bytes = Vec::new();
        send(&mut bytes, &started()).unwrap();
        assert_eq!(receive::<Reply>(&mut bytes.as_slice()).unwrap(), started());
    }

    #[test]
    fn another_version_is_named() {
        let mut frame = encode(&Request::Status).unwrap();
        frame[4] = 99;
        assert!(matches!(receive::<Request>(&mut frame.as_slice()), Err(WireError::Version(99))));
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_allocated() {
        let mut frame = encode(&Request::Status).unwrap();
        frame[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(receive::<Request>(&mut frame.as_slice()), Err(WireError::TooLong(..))));
    }

    fn start() -> Start {
        Start {
            pid: Some(7),
            task_type: "sort".into(),
            command: vec!["sort".into(), "file".into()],
            directory: "/srv".into(),
            features: vec![
                Feature { name: "rows".into(), value: FeatureValue::Number(1e6) },
                Feature { name: "mode".into(), value: FeatureValue::Category("fast".into()) },
            ],
            policy: Some(Policy::Strict),
            manual: Manual { memory_bytes: Some(1 << 30), cpu_cores: Some(1.5), ..Manual::default() },
            leftover: Leftover::Kill,
            admission: Asked {
                when_full: Some(WhenFull::Wait),
                wait_max_ms: Some(1000),
                priority: Some(-3),
                licenses: Licenses::from([("cad".into(), 2)]),
                since_ms: 5,
            },
        }
    }

    /// A frame of each kind of request.
    fn requests() -> Vec<Vec<u8>> {
        let failover = NewFailover {
            service: "web".into(),
            uid: 0,
            at_ms: 1,
            cause: "died".into(),
            evidence: "killed by SIGKILL".into(),
            from_instance: Some(1),
            from_pid: None,
            to_instance: 2,
            to_pid: 20,
            steps: vec![("noticed".into(), 120)],
            queued: 7,
            migrated: 9,
            open: None,
        };
        let container = Container {
            id: "abc".into(),
            start: start(),
            has_cpu_weight: true,
            has_io_weight: false,
            has_memory_target: true,
        };
        let wanted = Wanted { ports: vec![80, 443], latency_max: Some(Duration::from_millis(5)) };
        let all = [
            Request::Start(Box::new(start())),
            Request::Container(Box::new(container)),
            Request::FailedOver(Box::new(failover)),
            Request::Steer(wanted),
            Request::ExecFailed(2),
            Request::Wait,
            Request::Status,
            Request::Queue,
            Request::History,
        ];
        all.iter().map(|request| encode(request).unwrap()).collect()
    }

    #[test]
    fn what_launchers_send_is_within_bounds() {
        for frame in requests() {
            assert_eq!(receive::<Request>(&mut frame.as_slice()).unwrap().check(), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn hostile_frames(bytes in hostile::bytes(200)) {
            _ = decode::<Request>(&bytes);
            _ = decode::<Reply>(&bytes);
            _ = receive::<Request>(&mut bytes.as_slice());
        }

        /// Whatever is understood is within bounds or refused, and is what its frame says: as one, and again.
        #[test]
        fn hostile_requests(bytes in hostile::bent(requests())) {
            if let Ok(request) = receive::<Request>(&mut bytes.as_slice()) {
                _ = request.check();
                let again = encode(&request).unwrap();
                prop_assert_eq!(encode(&receive::<Request>(&mut again.as_slice()).unwrap()).unwrap(), again);
            }
        }

        #[test]
        fn hostile_replies(bytes in hostile::bent(vec![encode(&started()).unwrap(), encode(&Reply::Lent).unwrap()])) {
            if let Ok(reply) = receive::<Reply>(&mut bytes.as_slice()) {
                prop_assert!(encode(&reply).is_ok());
            }
        }
    }
}
