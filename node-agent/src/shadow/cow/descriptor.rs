//! What a process's descriptors are open to, and the state of those that its copy needs anew: epoll instances,
//! event counters and timers are objects that primary and copy would share.

use super::inspect::{text, unreadable};
use super::refusal::Reason;
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What a descriptor is open to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file with a name: shared with the copy, as any fork shares it.
    File,
    /// A pipe, a terminal, an inotify queue: likewise.
    Shared,
    /// The socket with this inode; whether it is connected is asked later.
    Socket(u64),
    /// An epoll instance.
    Epoll,
    /// An event counter (`eventfd`).
    Event,
    /// A timer (`timerfd`).
    Timer,
    /// Anything else, by the kernel's name: io_uring, perf events, userfaultfd, devices.
    Unknown(String),
}

/// An object that the copy needs anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Descriptors of it, and whether they are closed by `execve`.
    pub descriptors: Vec<(i32, bool)>,
    /// `O_NONBLOCK` is set.
    pub nonblocking: bool,
    /// Which, and in what state.
    pub state: State,
}

/// State of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// What an epoll instance watches.
    Epoll(Vec<Watched>),
    /// A counter's value; with `semaphore`, reads take one at a time.
    Event {
        /// The value.
        count: u64,
        /// `EFD_SEMAPHORE`
        semaphore: bool,
    },
    /// A timer.
    Timer {
        /// `CLOCK_…`
        clock: i32,
        /// Expirations that were not read yet.
        ticks: u64,
        /// Time until it expires, as seconds and nanoseconds; zeroes for a timer that is not set.
        left: (i64, i64),
        /// Time between expirations.
        interval: (i64, i64),
    },
}

/// One descriptor that an epoll instance watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// The descriptor's number when it was added.
    pub fd: i32,
    /// `EPOLL…`
    pub events: u32,
    /// What the program gets back.
    pub data: u64,
    /// Inode of what was added.
    pub inode: u64,
}

/// All descriptors of a process and what they are, in order.
pub(super) fn kinds(pid: Pid) -> Result<Vec<(i32, Kind)>, Reason> {
    let path = format!("/proc/{pid}/fd");
    let directory = fs::read_dir(&path).map_err(|error| unreadable(&path, &error))?;
    let numbers = directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that is gone by now was closed in between.
    let mut kinds: Vec<(i32, Kind)> =
        numbers.filter_map(|fd| Some((fd, kind(Path::new(&format!("{path}/{fd}")))?))).collect();
    kinds.sort_unstable_by_key(|(fd, _)| *fd);
    Ok(kinds)
}

fn kind(link: &Path) -> Option<Kind> {
    let target = fs::read_link(link).ok()?.to_string_lossy().into_owned();
    if !target.starts_with('/') {
        return Some(nameless(target));
    }
    let metadata = fs::metadata(link).ok()?;
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    Some(match is_device {
        false if kind.is_fifo() => Kind::Shared,
        false => Kind::File,
        true if kind.is_char_device() && is_harmless(metadata.rdev()) => Kind::Shared,
        true => Kind::Unknown(target),
    })
}

fn nameless(target: String) -> Kind {
    match target.as_str() {
        "anon_inode:[eventpoll]" => Kind::Epoll,
        "anon_inode:[eventfd]" => Kind::Event,
        "anon_inode:[timerfd]" => Kind::Timer,
        "anon_inode:[signalfd]" | "anon_inode:inotify" | "anon_inode:[pidfd]" => Kind::Shared,
        _ => match target.split_once(':') {
            Some(("socket", inode)) => Kind::Socket(inode_in(inode)),
            Some(("pipe" | "pidfd", _)) => Kind::Shared,
            _ => Kind::Unknown(target),
        },
    }
}

/// `[123]`
fn inode_in(text: &str) -> u64 {
    text.trim_matches(['[', ']']).parse().unwrap_or_default()
}

/// `/dev/null` and the like, and terminals (Documentation/admin-guide/devices.txt). Any other device may hold
/// state of the one process that opened it.
fn is_harmless(device: u64) -> bool {
    const MEMORY: u32 = 1;
    const NULL_ZERO_FULL_RANDOM_URANDOM: [u32; 5] = [3, 5, 7, 8, 9];
    const TERMINALS: [u32; 2] = [4, 5];
    const PSEUDO_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;
    let (major, minor) = (libc::major(device), libc::minor(device));
    (major == MEMORY && NULL_ZERO_FULL_RANDOM_URANDOM.contains(&minor))
        || TERMINALS.contains(&major)
        || PSEUDO_TERMINALS.contains(&major)
}

/// Reads the state of all objects among `kinds` that the copy needs anew.
pub(super) fn objects(pid: Pid, kinds: &[(i32, Kind)]) -> Result<Vec<Object>, Reason> {
    let mut objects: Vec<Object> = Vec::new();
    for (fd, kind) in kinds {
        if !matches!(kind, Kind::Epoll | Kind::Event | Kind::Timer) {
            continue;
        }
        let info = text(pid, &format!("fdinfo/{fd}"))?;
        let flags = flags(&info);
        let descriptor = (*fd, flags & libc::O_CLOEXEC != 0);
        match objects.iter_mut().find(|object| is_same_object(pid, object.descriptors[0].0, *fd)) {
            Some(object) => object.descriptors.push(descriptor),
            None => objects.push(Object {
                descriptors: vec![descriptor],
                nonblocking: flags & libc::O_NONBLOCK != 0,
                state: state(kind, &info),
            }),
        }
    }
    Ok(objects)
}

/// Whether two descriptors were made from one another (`dup`). Without `kcmp` in the kernel: no.
fn is_same_object(pid: Pid, one: i32, other: i32) -> bool {
    const KCMP_FILE: i32 = 0;
    let pid = pid.as_raw();
    // SAFETY: plain system call without pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) == 0 }
}

/// The `flags` of a descriptor in its `fdinfo`, which has them in octal.
pub(super) fn flags(info: &str) -> i32 {
    let flags = field(info, "flags").and_then(|text| i32::from_str_radix(text, 8).ok());
    flags.unwrap_or_default()
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn state(kind: &Kind, info: &str) -> State {
    let number = |name| field(info, name).and_then(|text| text.parse().ok()).unwrap_or_default();
    match kind {
        Kind::Epoll => State::Epoll(info.lines().filter_map(watched).collect()),
        Kind::Timer => State::Timer {
            clock: i32::try_from(number("clockid")).unwrap_or_default(),
            ticks: number("ticks"),
            left: time(field(info, "it_value")),
            interval: time(field(info, "it_interval")),
        },
        _ => {
            let count = field(info, "eventfd-count").and_then(|text| u64::from_str_radix(text, 16).ok());
            State::Event { count: count.unwrap_or_default(), semaphore: number("eventfd-semaphore") != 0 }
        }
    }
}

/// `tfd: 5 events: 19 data: 5 pos:0 ino:1a2b sdev:9`, numbers in hexadecimal but the first and `pos`.
fn watched(line: &str) -> Option<Watched> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    let fd = words.next()?.parse().ok()?;
    let events = u32::from_str_radix(words.nth(1)?, 16).ok()?;
    let data = u64::from_str_radix(words.nth(1)?, 16).ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    Some(Watched { fd, events, data, inode: u64::from_str_radix(inode, 16).ok()? })
}

/// `(1, 500000000)`
fn time(text: Option<&str>) -> (i64, i64) {
    let inner = text.and_then(|text| text.strip_prefix('(')?.strip_suffix(')'));
    let parts = inner.and_then(|inner| inner.split_once(", "));
    parts.and_then(|(s, ns)| Some((s.parse().ok()?, ns.parse().ok()?))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_copied_is_named_and_all_else_is_not() {
        let kind = |target: &str| nameless(target.to_owned());
        assert_eq!(kind("socket:[123]"), Kind::Socket(123));
        assert_eq!(kind("pipe:[123]"), Kind::Shared);
        assert_eq!(kind("anon_inode:[eventfd]"), Kind::Event);
        for refused in
            ["anon_inode:[io_uring]", "anon_inode:[perf_event]", "anon_inode:[userfaultfd]", "x:[1]"]
        {
            assert_eq!(kind(refused), Kind::Unknown(refused.to_owned()));
        }
        assert!(is_harmless(libc::makedev(1, 3)) && is_harmless(libc::makedev(136, 0)));
        // /dev/mem, NVIDIA, RDMA
        assert!(!is_harmless(libc::makedev(1, 1)));
        assert!(!is_harmless(libc::makedev(195, 0)) && !is_harmless(libc::makedev(231, 192)));
    }

    #[test]
    fn an_epoll_instance_is_read() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1062\n\
                    tfd:        5 events: 80000019 data: ffff00000005  pos:0 ino:2a sdev:9\n";
        let watched = Watched { fd: 5, events: 0x8000_0019, data: 0xffff_0000_0005, inode: 0x2a };
        assert_eq!(state(&Kind::Epoll, info), State::Epoll(vec![watched]));
        assert_eq!(flags(info) & libc::O_CLOEXEC, libc::O_CLOEXEC);
    }

    #[test]
    fn counters_and_timers_are_read() {
        let info =
            "flags:\t02004002\neventfd-count:                1f\neventfd-id: 7\neventfd-semaphore: 1\n";
        assert_eq!(state(&Kind::Event, info), State::Event { count: 31, semaphore: true });
        let info = "clockid: 1\nticks: 2\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 0)\n";
        let timer = State::Timer { clock: 1, ticks: 2, left: (0, 49_406_829), interval: (1, 0) };
        assert_eq!(state(&Kind::Timer, info), timer);
    }

    #[test]
    fn descriptors_of_one_object_are_one_object() {
        use std::os::fd::AsRawFd;
        let poll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
        let twin = nix::unistd::dup(&poll.0).unwrap();
        let kinds = [(poll.0.as_raw_fd(), Kind::Epoll), (twin.as_raw_fd(), Kind::Epoll)];
        let objects = objects(Pid::this(), &kinds).unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0].descriptors.len(), 2);
    }
}
