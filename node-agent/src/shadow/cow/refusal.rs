//! Which processes can't be copied safely: pure rules over what `inspect` has read, each with the reason that
//! the user gets to see.

use super::descriptor::Kind;
use super::inspect::{Holdings, Mapping, Standing};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Why a process is not copied. Its `Display` is the one line to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has more than one thread; fork copies one.
    Threads(u32),
    /// It has child processes; they would stay the primary's.
    Children(usize),
    /// It is the first process of a pid namespace, which can't have a sibling.
    NamespaceInit,
    /// Its code is not 64-bit x86.
    NotX86_64,
    /// Another process traces it.
    Traced {
        /// Process id of the tracer.
        by: i32,
    },
    /// The kernel refuses to let it be traced.
    TraceDenied,
    /// It, or what started it, forbids to look into it (`PR_SET_DUMPABLE`, a change of user).
    NotDumpable,
    /// A seccomp filter decides on its calls.
    Seccomp,
    /// It runs with a shadow stack (CET), which a call made for it would break.
    ShadowStack,
    /// It is stopped by a signal.
    Stopped,
    /// Its cgroup is frozen.
    Frozen,
    /// Signals wait that it has blocked; the copy would not get them.
    PendingSignals {
        /// Bit `n - 1` for signal `n`.
        mask: u64,
    },
    /// It writes to memory that others see.
    SharedMemory {
        /// Addresses.
        range: Range<u64>,
        /// File or kind of memory, as the kernel calls it.
        name: String,
    },
    /// It has memory that fork does not copy (`MADV_DONTFORK`).
    NotInherited {
        /// Addresses.
        range: Range<u64>,
    },
    /// It has locked memory, which would not be locked in the copy.
    LockedMemory {
        /// How much, in KiB.
        kib: u64,
    },
    /// It holds a lock on a file.
    FileLock {
        /// The descriptor through which it is held, where that is known.
        fd: Option<i32>,
    },
    /// An interval timer runs (`setitimer`, `alarm`); fork does not copy it.
    IntervalTimer,
    /// It has POSIX timers; fork does not copy them.
    PosixTimers(usize),
    /// It has a descriptor that can't be shared with a copy and not be made anew.
    Descriptor {
        /// The descriptor.
        fd: i32,
        /// What it is open to, as the kernel calls it.
        what: String,
    },
    /// Its program does not bear another process id.
    PidBound {
        /// The program's part in question.
        what: String,
    },
    /// No place was found in its code through which calls can be made safely.
    NoCallSite,
    /// What has to be known is not told.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::ErrorKind,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(threads) => write!(f, "it has {threads} threads, of which a fork copies one"),
            Self::Children(children) => {
                write!(f, "it has child processes ({children}), which a copy would not have")
            }
            Self::NamespaceInit => f.write_str("it is the first process of a pid namespace"),
            Self::NotX86_64 => f.write_str("its program is not 64-bit x86 code"),
            Self::Traced { by } => write!(f, "process {by} traces it already"),
            Self::TraceDenied => f.write_str("the kernel does not allow to trace it (needs CAP_SYS_PTRACE)"),
            Self::NotDumpable => {
                f.write_str("it is not dumpable: it may not be looked into (PR_SET_DUMPABLE)")
            }
            Self::Seccomp => f.write_str("a seccomp filter decides on its system calls"),
            Self::ShadowStack => f.write_str("it runs with a shadow stack (CET)"),
            Self::Stopped => f.write_str("it is stopped; continue it with SIGCONT"),
            Self::Frozen => f.write_str("its cgroup is frozen; thaw it (cgroup.freeze)"),
            Self::PendingSignals { mask } => {
                write!(
                    f,
                    "it has blocked signals that wait for it (mask {mask:#x}), which a copy would not get"
                )
            }
            Self::SharedMemory { range, name } => {
                let name = if name.is_empty() { "anonymous" } else { name };
                write!(f, "it writes to shared memory at {:#x}-{:#x} ({name})", range.start, range.end)
            }
            Self::NotInherited { range } => {
                let Range { start, end } = range;
                write!(f, "its memory at {start:#x}-{end:#x} is not copied by a fork (MADV_DONTFORK)")
            }
            Self::LockedMemory { kib } => {
                write!(f, "it has locked {kib} KiB of memory, and a fork unlocks them")
            }
            Self::FileLock { fd: Some(fd) } => write!(f, "it holds a file lock through descriptor {fd}"),
            Self::FileLock { fd: None } => f.write_str("it holds a file lock (see /proc/locks)"),
            Self::IntervalTimer => {
                f.write_str("an interval timer runs (setitimer, alarm), which a fork drops")
            }
            Self::PosixTimers(timers) => write!(f, "it has POSIX timers ({timers}), which a fork drops"),
            Self::Descriptor { fd, what } => {
                write!(f, "its descriptor {fd} is {what}, which can't be copied")
            }
            Self::PidBound { what } => write!(f, "{what} does not work under another process id"),
            Self::NoCallSite => f.write_str("its code has no system call that a call could be made through"),
            Self::Unreadable { path, error } => write!(f, "{} can't be read: {error}", path.display()),
        }
    }
}

impl std::error::Error for Reason {}

/// Judges what the process is doing. `tracer` is who may trace it: 0, or the thread that does.
pub(super) fn judge_standing(standing: &Standing, tracer: i32) -> Result<(), Reason> {
    const SIGNALS_THAT_STOP: char = 'T';
    let rules = [
        (standing.threads != 1, Reason::Threads(standing.threads)),
        (!standing.children.is_empty(), Reason::Children(standing.children.len())),
        (standing.own_pid == 1, Reason::NamespaceInit),
        (standing.tracer != tracer, Reason::Traced { by: standing.tracer }),
        (standing.seccomp != 0, Reason::Seccomp),
        (standing.shadow_stack, Reason::ShadowStack),
        (standing.state == SIGNALS_THAT_STOP, Reason::Stopped),
        (standing.frozen, Reason::Frozen),
        (standing.pending_blocked != 0, Reason::PendingSignals { mask: standing.pending_blocked }),
        (standing.locked_kib != 0, Reason::LockedMemory { kib: standing.locked_kib }),
        (standing.range_locks != 0, Reason::FileLock { fd: None }),
        (standing.posix_timers != 0, Reason::PosixTimers(standing.posix_timers)),
    ];
    rules.into_iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, reason)| Err(reason))
}

/// Judges what the process has.
pub(super) fn judge_holdings(holdings: &Holdings) -> Result<(), Reason> {
    if !holdings.is_x86_64 {
        return Err(Reason::NotX86_64);
    }
    for (fd, kind) in &holdings.descriptors {
        if let Kind::Unknown(what) = kind {
            return Err(Reason::Descriptor { fd: *fd, what: what.clone() });
        }
    }
    if let Some(mapping) = holdings.mappings.iter().find(|mapping| mapping.is_shared_and_writable()) {
        return Err(Reason::SharedMemory { range: mapping.range(), name: mapping.name.clone() });
    }
    if let Some(fd) = holdings.locked_files.first() {
        return Err(Reason::FileLock { fd: Some(*fd) });
    }
    match holdings.mappings.iter().find_map(pid_bound) {
        Some(what) => Err(Reason::PidBound { what }),
        None => Ok(()),
    }
}

/// Parts of programs that remember the process id. asyncio up to Python 3.11 finds no running loop where
/// `getpid()` has changed (gh-100363); its accelerator module is loaded where asyncio is.
fn pid_bound(mapping: &Mapping) -> Option<String> {
    const LAST_BOUND_MINOR: u32 = 11;
    let version = mapping.file_name().strip_prefix("_asyncio.cpython-3")?;
    let minor: u32 = version.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()?;
    (minor <= LAST_BOUND_MINOR).then(|| format!("asyncio of Python 3.{minor} (3.12 does)"))
}

/// What the primary's memory has and the copy's has not.
pub(super) fn judge_inheritance(primary: &[Mapping], copy: &[Mapping]) -> Result<(), Reason> {
    // Of the kernel's own (uprobes), made anew when needed.
    const NOT_THE_PROGRAMS: &str = "[uprobes]";
    let is_missing = |mapping: &&Mapping| {
        mapping.name != NOT_THE_PROGRAMS && !copy.iter().any(|other| other.range() == mapping.range())
    };
    match primary.iter().find(is_missing) {
        Some(mapping) => Err(Reason::NotInherited { range: mapping.range() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::cow::inspect::parse_mappings;

    fn plain() -> Standing {
        Standing { threads: 1, own_pid: 4711, state: 'S', ..Standing::default() }
    }

    #[test]
    fn a_plain_process_passes() {
        assert_eq!(judge_standing(&plain(), 0), Ok(()));
        assert_eq!(judge_standing(&Standing { tracer: 9, ..plain() }, 9), Ok(()));
        assert_eq!(judge_holdings(&Holdings { is_x86_64: true, ..Holdings::default() }), Ok(()));
    }

    #[test]
    fn each_rule_refuses_by_itself() {
        let cases = [
            (Standing { threads: 2, ..plain() }, Reason::Threads(2)),
            (Standing { children: vec![5], ..plain() }, Reason::Children(1)),
            (Standing { own_pid: 1, ..plain() }, Reason::NamespaceInit),
            (Standing { tracer: 9, ..plain() }, Reason::Traced { by: 9 }),
            (Standing { seccomp: 2, ..plain() }, Reason::Seccomp),
            (Standing { shadow_stack: true, ..plain() }, Reason::ShadowStack),
            (Standing { state: 'T', ..plain() }, Reason::Stopped),
            (Standing { frozen: true, ..plain() }, Reason::Frozen),
            (Standing { pending_blocked: 4, ..plain() }, Reason::PendingSignals { mask: 4 }),
            (Standing { locked_kib: 64, ..plain() }, Reason::LockedMemory { kib: 64 }),
            (Standing { range_locks: 1, ..plain() }, Reason::FileLock { fd: None }),
            (Standing { posix_timers: 1, ..plain() }, Reason::PosixTimers(1)),
        ];
        for (standing, reason) in cases {
            assert_eq!(judge_standing(&standing, 0), Err(reason));
        }
    }

    fn with_maps(maps: &str) -> Holdings {
        Holdings { mappings: parse_mappings(maps), is_x86_64: true, ..Holdings::default() }
    }

    #[test]
    fn shared_memory_is_refused_only_where_it_is_written() {
        let written = judge_holdings(&with_maps("1000-2000 rw-s 0 0:1 7 /dev/zero (deleted)"));
        assert_eq!(
            written,
            Err(Reason::SharedMemory { range: 0x1000..0x2000, name: "/dev/zero (deleted)".into() })
        );
        assert_eq!(judge_holdings(&with_maps("1000-2000 r--s 0 0:1 7 /usr/lib/gconv.cache")), Ok(()));
        assert_eq!(judge_holdings(&with_maps("1000-2000 rw-p 0 0:1 7 /opt/table")), Ok(()));
    }

    #[test]
    fn asyncio_is_refused_up_to_3_11() {
        let line =
            |version| format!("1000-2000 r-xp 0 0:1 7 /lib-dynload/_asyncio.cpython-{version}-x86_64.so");
        let refused = judge_holdings(&with_maps(&line("311")));
        assert!(matches!(refused, Err(Reason::PidBound { what }) if what.contains("3.11")));
        assert!(judge_holdings(&with_maps(&line("38"))).is_err());
        assert_eq!(judge_holdings(&with_maps(&line("312"))), Ok(()));
    }

    #[test]
    fn memory_that_the_copy_lacks_is_named() {
        let primary = parse_mappings("1000-2000 rw-p 0 0:0 0\n3000-4000 rw-p 0 0:0 0\n");
        assert_eq!(judge_inheritance(&primary, &primary), Ok(()));
        let lacking = judge_inheritance(&primary, &primary[..1]);
        assert_eq!(lacking, Err(Reason::NotInherited { range: 0x3000..0x4000 }));
    }
}
