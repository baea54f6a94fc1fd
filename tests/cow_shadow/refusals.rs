//! Each safety rule against a real process that breaks it.

use crate::support::{self, wait_until};
use crate::{Cgroup, Primary, Server, copy, program, require, require_copies, wait_until_idle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use standin::shadow::cow::{Busy, CowError, Reason, fork_frozen};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Why a process that does `what` is refused; `None` where the machine can't do it.
fn refusal(what: &str) -> Option<Reason> {
    let directory = tempfile::tempdir().unwrap();
    let into = Cgroup::new();
    let mut command = Command::new(program("refused").unwrap());
    let mut process = Primary::start(command.arg(what).arg(directory.path().join("file")));
    let Ok(target) = process.line().parse() else {
        assert_eq!(process.child.wait().unwrap().code(), Some(77), "{what}");
        support::skip(&format!("this machine can't do {what}"));
        return None;
    };
    let target = Pid::from_raw(target);
    wait_until_idle(target);
    let reason = match copy(target, &into) {
        Err(CowError::Refused(reason)) => reason,
        other => panic!("{what}: {other:?}"),
    };
    eprintln!("{what}: {reason}");
    assert!(!reason.to_string().contains('\n'));
    assert_eq!(into.members(), "", "{what}: no copy is left");
    wait_until_idle(target);
    Some(reason)
}

macro_rules! assert_refused {
    ($what:expr, $reason:pat) => {
        if let Some(reason) = refusal($what) {
            assert!(matches!(reason, $reason), "{}: {reason:?}", $what);
        }
    };
}

#[test]
fn more_than_a_fork_copies() {
    require_copies!();
    assert_refused!("threads", Reason::Threads(2));
    assert_refused!("children", Reason::Children(1));
    assert_refused!("dontfork", Reason::NotInherited { .. });
    assert_refused!("mlock", Reason::LockedMemory { kib: 64 });
    assert_refused!("itimer", Reason::IntervalTimer);
    assert_refused!("timer", Reason::PosixTimers(1));
    assert_refused!("pending", Reason::PendingSignals { mask: 0x200 });
}

#[test]
fn what_primary_and_copy_would_share() {
    require_copies!();
    assert_refused!("shared", Reason::SharedMemory { .. });
    assert_refused!("lock", Reason::FileLock { fd: Some(_) });
    assert_refused!("flock", Reason::FileLock { fd: Some(_) });
    for what in ["io_uring", "perf", "userfaultfd", "device"] {
        assert_refused!(what, Reason::Descriptor { .. });
    }
}

#[test]
fn what_may_not_be_traced() {
    require_copies!();
    assert_refused!("traced", Reason::Traced { .. });
    assert_refused!("namespace", Reason::NamespaceInit);
    assert_refused!("seccomp", Reason::Seccomp);
    assert_refused!("undumpable", Reason::NotDumpable);
}

#[test]
fn a_stopped_process_stays_stopped() {
    require_copies!();
    let into = Cgroup::new();
    let server = Server::start("poll", 1);
    let pid = server.process.pid();
    kill(pid, Signal::SIGSTOP).unwrap();
    let is_stopped =
        || fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("State:\tT (stopped)");
    wait_until("it is stopped", is_stopped);
    let refused = fork_frozen(pid, &into.0);
    assert!(matches!(refused, Err(CowError::Refused(Reason::Stopped))), "{refused:?}");
    assert!(is_stopped());
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(server.connect().ask(), pid);
}

#[test]
fn a_frozen_process_is_refused() {
    require_copies!();
    let (home, into) = (Cgroup::new(), Cgroup::new());
    let server = Server::start("poll", 1);
    fs::write(home.0.join("cgroup.procs"), server.process.pid().to_string()).unwrap();
    fs::write(home.0.join("cgroup.freeze"), "1").unwrap();
    wait_until("it is frozen", || {
        fs::read_to_string(home.0.join("cgroup.events")).unwrap().contains("frozen 1")
    });
    let refused = fork_frozen(server.process.pid(), &into.0);
    assert!(matches!(refused, Err(CowError::Refused(Reason::Frozen))), "{refused:?}");
    home.thaw();
    assert_eq!(server.connect().ask(), server.process.pid());
}

/// A 32-bit program by hand, for want of a 32-bit C library: `pause()` for ever.
fn program_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // l: mov $29, %eax; int $0x80; jmp l
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let size = HEADERS + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves =
        |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let words = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    halves(&mut file, &[2, 3]);
    words(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    halves(&mut file, &[52, 32, 1, 0, 0, 0]);
    words(&mut file, &[1, 0, BASE, BASE, size, size, 5, 0x1000]);
    file.extend(code);
    file
}

#[test]
fn a_32_bit_program_is_refused() {
    require_copies!();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    fs::write(&path, program_of_32_bits()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let Ok(child) = Command::new(&path).stdout(std::process::Stdio::piped()).spawn() else {
        return support::skip("the kernel runs no 32-bit programs");
    };
    let process = support::Job(child);
    let pid = Pid::from_raw(process.0.id().cast_signed());
    wait_until_idle(pid);
    let into = Cgroup::new();
    let refused = copy(pid, &into);
    assert!(matches!(refused, Err(CowError::Refused(Reason::NotX86_64))), "{refused:?}");
}

#[test]
fn a_process_of_another_user_is_refused() {
    require_copies!();
    let into = Cgroup::new();
    let server = Server::start("poll", 1);
    let output = crate::survival::tracer(&server, &into, "nobody").output().unwrap();
    let text = support::stdout(&output) + &support::stderr(&output);
    assert!(text.contains(&Reason::TraceDenied.to_string()), "{text}");
    assert_eq!(server.connect().ask(), server.process.pid());
}

#[test]
fn a_server_of_another_user_is_copied() {
    require_copies!();
    let into = Cgroup::new();
    let mut process =
        Primary::start(support::as_nobody(Command::new(program("server").unwrap()).args(["epoll", "1"])));
    let port: u16 = process.line().parse().unwrap();
    wait_until_idle(process.pid());
    let copy = copy(process.pid(), &into).unwrap();
    process.kill();
    into.thaw();
    let server = Server { process, port };
    assert_eq!(server.connect().ask(), copy.pid);
}

#[test]
fn a_process_at_work_is_left_alone() {
    require_copies!();
    let into = Cgroup::new();
    let mut process = Primary::start(Command::new("sh").args(["-c", "echo at work; while :; do :; done"]));
    assert_eq!(process.line(), "at work");
    let busy = fork_frozen(process.pid(), &into.0);
    assert!(matches!(busy, Err(CowError::Busy(Busy::Works))), "{busy:?}");
    assert!(process.is_free());
}

#[test]
fn what_is_not_there_is_said() {
    require_copies!();
    let into = Cgroup::new();
    let mut server = Server::start("poll", 1);
    let pid = server.process.pid();
    let no_cgroup = fork_frozen(pid, std::path::Path::new("/tmp")).unwrap_err().to_string();
    assert!(no_cgroup.contains("give a cgroup of the v2 hierarchy"), "{no_cgroup}");
    server.process.kill();
    let gone = fork_frozen(pid, &into.0);
    assert!(matches!(gone, Err(CowError::Ended)), "{gone:?}");
}
