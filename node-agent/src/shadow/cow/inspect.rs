//! Reads what `/proc` tells of a process: into plain data for the rules in `refusal`.

use super::descriptor::{self, Kind};
use super::refusal::Reason;
use crate::cgroup::{Hierarchies, cgroup_of};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::ops::Range;
use std::path::PathBuf;

/// One mapping of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `rwxs` or `rwxp`, as the kernel writes it.
    pub permissions: String,
    /// A path, `[stack]` and its like, or nothing.
    pub name: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?.to_owned();
        let name = words.nth(3).unwrap_or_default().trim_start().to_owned();
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { start: address(start)?, end: address(end)?, permissions, name })
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether other processes see what is written to it.
    pub(super) fn is_shared_and_writable(&self) -> bool {
        self.permissions.as_bytes().get(1) == Some(&b'w') && self.permissions.ends_with('s')
    }

    /// Readable code that is not written to.
    pub(super) fn is_plain_code(&self) -> bool {
        self.permissions == "r-xp" && !self.name.starts_with("[v")
    }

    /// The last part of the path.
    pub(super) fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// The addresses.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// What a process is doing and what watches it.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// Threads.
    pub threads: u32,
    /// Children, ended ones that were not waited for included.
    pub children: Vec<i32>,
    /// The parent, as this process sees it.
    pub parent: i32,
    /// Who traces it; 0 for nobody.
    pub tracer: i32,
    /// The letter of its state (`proc_pid_status(5)`).
    pub state: char,
    /// Mode of seccomp; 0 for none.
    pub seccomp: u32,
    /// Its id in its own pid namespace.
    pub own_pid: i32,
    /// Signals that are pending and blocked.
    pub pending_blocked: u64,
    /// Signals that are pending and about to be delivered.
    pub pending_deliverable: u64,
    /// Locked memory, in KiB.
    pub locked_kib: u64,
    /// It runs with a shadow stack.
    pub shadow_stack: bool,
    /// Its cgroup is frozen.
    pub frozen: bool,
    /// POSIX timers (`timer_create`).
    pub posix_timers: usize,
    /// Locks of files by byte range (`fcntl`), held by the process.
    pub range_locks: usize,
}

/// What a process has: memory and descriptors.
#[derive(Clone, Debug, Default)]
pub(super) struct Holdings {
    /// All mappings.
    pub mappings: Vec<Mapping>,
    /// All descriptors.
    pub descriptors: Vec<(i32, Kind)>,
    /// Descriptors of files that are locked through them.
    pub locked_files: Vec<i32>,
    /// The program is 64-bit x86 code.
    pub is_x86_64: bool,
}

fn path(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Reads a file of `/proc/PID`.
///
/// # Errors
/// [`Reason::Unreadable`] with the file: what can't be read can't be judged.
pub(super) fn text(pid: Pid, name: &str) -> Result<String, Reason> {
    let path = path(pid, name);
    fs::read_to_string(&path).map_err(|error| unreadable(path, &error))
}

/// What it means for a copy that a file of `/proc` can't be read.
pub(super) fn unreadable(path: impl Into<PathBuf>, error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Reason::TraceDenied,
        error => Reason::Unreadable { path: path.into(), error },
    }
}

/// All mappings of a process.
pub(super) fn mappings(pid: Pid) -> Result<Vec<Mapping>, Reason> {
    Ok(parse_mappings(&text(pid, "maps")?))
}

pub(super) fn parse_mappings(maps: &str) -> Vec<Mapping> {
    maps.lines().filter_map(Mapping::parse).collect()
}

impl Standing {
    /// Reads it, but for [`Standing::frozen`].
    pub(super) fn read(pid: Pid) -> Result<Self, Reason> {
        let mut standing = Self::parse(&text(pid, "status")?);
        let children = text(pid, &format!("task/{pid}/children"))?;
        standing.children = children.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        standing.posix_timers = text(pid, "timers")?.lines().filter(|line| line.starts_with("ID:")).count();
        let path = PathBuf::from("/proc/locks");
        let locks = fs::read_to_string(&path).map_err(|error| unreadable(path, &error))?;
        standing.range_locks = locks_of(&locks, pid.as_raw());
        Ok(standing)
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim()
        };
        let first = |name| field(name).split_whitespace().next().unwrap_or_default();
        let number = |name| first(name).parse::<i32>().unwrap_or_default();
        let signals = |name| u64::from_str_radix(field(name), 16).unwrap_or_default();
        let (pending, blocked) = (signals("SigPnd") | signals("ShdPnd"), signals("SigBlk"));
        Self {
            threads: number("Threads").cast_unsigned(),
            parent: number("PPid"),
            tracer: number("TracerPid"),
            state: field("State").chars().next().unwrap_or_default(),
            seccomp: number("Seccomp").cast_unsigned(),
            own_pid: field("NSpid").split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0),
            pending_blocked: pending & blocked,
            pending_deliverable: pending & !blocked,
            locked_kib: first("VmLck").parse().unwrap_or_default(),
            shadow_stack: field("x86_Thread_features").contains("shstk"),
            ..Self::default()
        }
    }
}

/// Whether the process's v2 cgroup is frozen; `false` where there is none.
pub(super) fn is_frozen(pid: Pid) -> bool {
    let events = || {
        let cgroup = cgroup_of(&Hierarchies::detect().ok()?.unified, pid)?;
        fs::read_to_string(cgroup.join("cgroup.events")).ok()
    };
    events().is_some_and(|events| events.lines().any(|line| line == "frozen 1"))
}

/// Entries of `/proc/locks` that a process holds. Those of a process that waits have an arrow.
fn locks_of(locks: &str, pid: i32) -> usize {
    let holder = |line: &str| line.split_whitespace().nth(4)?.parse().ok();
    locks.lines().filter(|line| !line.contains("->") && holder(line) == Some(pid)).count()
}

impl Holdings {
    /// Reads them.
    pub(super) fn read(pid: Pid) -> Result<Self, Reason> {
        let descriptors = descriptor::kinds(pid)?;
        let may_be_locked = descriptors.iter().filter(|(_, kind)| matches!(kind, Kind::File));
        let is_locked = |fd: &i32| {
            text(pid, &format!("fdinfo/{fd}"))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
        };
        let locked_files = may_be_locked.map(|(fd, _)| *fd).filter(is_locked).collect();
        Ok(Self { mappings: mappings(pid)?, descriptors, locked_files, is_x86_64: is_x86_64(pid)? })
    }
}

/// Looks at the head of the program's file: class (64-bit) and machine.
fn is_x86_64(pid: Pid) -> Result<bool, Reason> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u8 = 62;
    let path = path(pid, "exe");
    let mut head = [0; 20];
    fs::File::open(&path)
        .and_then(|mut file| file.read_exact(&mut head))
        .map_err(|error| unreadable(path, &error))?;
    Ok(head.starts_with(b"\x7fELF") && head[4] == CLASS_64 && head[18] == MACHINE_X86_64)
}

/// Reads memory of another process.
pub(super) fn read_memory(pid: Pid, address: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let base = usize::try_from(address).map_err(io::Error::other)?;
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base, len }])?;
    if read == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes memory of another process.
pub(super) fn write_memory(pid: Pid, address: u64, bytes: &[u8]) -> io::Result<()> {
    let base = usize::try_from(address).map_err(io::Error::other)?;
    let written = process_vm_writev(pid, &[IoSlice::new(bytes)], &[RemoteIoVec { base, len: bytes.len() }])?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_spaces_in_names_and_without_names() {
        let maps = "7f01000-7f02000 rw-s 00000000 00:01 1024    /dev/shm/a b (deleted)\n\
                    7f02000-7f04000 r-xp 00000000 00:00 0 \n";
        let mappings = parse_mappings(maps);
        assert_eq!(mappings[0].name, "/dev/shm/a b (deleted)");
        assert!(mappings[0].is_shared_and_writable());
        assert_eq!((mappings[1].len(), mappings[1].name.as_str()), (0x2000, ""));
        assert!(mappings[1].is_plain_code());
    }

    #[test]
    fn status_is_read() {
        let status = "State:\tT (stopped)\nPPid:\t7\nTracerPid:\t9\nNSpid:\t4711\t1\nVmLck:\t      64 kB\nThreads:\t3\n\
                      SigPnd:\t0000000000000200\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000004000\n\
                      Seccomp:\t2\nSeccomp_filters:\t1\nx86_Thread_features:\tshstk wrss\n";
        let standing = Standing::parse(status);
        assert_eq!((standing.threads, standing.parent, standing.tracer, standing.state), (3, 7, 9, 'T'));
        assert_eq!((standing.seccomp, standing.own_pid, standing.locked_kib), (2, 1, 64));
        assert_eq!((standing.pending_blocked, standing.pending_deliverable), (0x4000, 0x200));
        assert!(standing.shadow_stack);
    }

    #[test]
    fn only_locks_that_are_held_count() {
        let locks = "1: POSIX  ADVISORY  WRITE 42 fd:00:2531452 0 EOF\n\
                     1: -> POSIX  ADVISORY  WRITE 43 fd:00:2531452 0 EOF\n\
                     2: OFDLCK ADVISORY  READ -1 00:06:8 0 EOF\n";
        assert_eq!(locks_of(locks, 42), 1);
        assert_eq!(locks_of(locks, 43), 0);
        assert_eq!(locks_of(locks, 2531452), 0);
    }

    #[test]
    fn this_process_is_what_it_is() {
        let standing = Standing::read(Pid::this()).unwrap();
        assert!(standing.threads >= 1);
        assert_eq!(standing.own_pid, Pid::this().as_raw());
        assert!(Holdings::read(Pid::this()).unwrap().is_x86_64);
    }
}
