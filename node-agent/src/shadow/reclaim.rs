//! The memory of a frozen shadow, given back: it is asked to be paged out, and comes back as it is touched. What has
//! no place on a disk (anonymous memory without swap) stays.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

/// Ranges per system call (`UIO_MAXIOV` of include/uapi/linux/uio.h).
const RANGES_MAX: usize = 1024;

/// Asks for the memory of a process to be paged out (`process_madvise(2)`, Linux 5.10); gives the bytes that the
/// kernel went through. 0 if it refuses, as it does to ordinary users.
pub fn page_out(pid: i32) -> u64 {
    let Some(process) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return 0;
    };
    ranges(pid).chunks(RANGES_MAX).map(|ranges| advise(&process, ranges)).sum()
}

fn advise(process: &OwnedFd, ranges: &[libc::iovec]) -> u64 {
    let (descriptor, count) = (process.as_raw_fd(), ranges.len());
    // SAFETY: the ranges are addresses of another process, which the kernel checks.
    let done = unsafe {
        libc::syscall(libc::SYS_process_madvise, descriptor, ranges.as_ptr(), count, libc::MADV_PAGEOUT, 0)
    };
    u64::try_from(done).unwrap_or(0)
}

/// What a process has mapped for itself, without what can't be paged out.
fn ranges(pid: i32) -> Vec<libc::iovec> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let range = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_private = fields.next()?.ends_with('p');
        let is_special = line.ends_with("[vvar]") || line.ends_with("[vdso]") || line.ends_with("[vsyscall]");
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (is_private && !is_special).then_some(libc::iovec {
            iov_base: std::ptr::without_provenance_mut(start),
            iov_len: end - start,
        })
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_goes_on_without_its_memory() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::skip("needs root");
        }
        let mut command = std::process::Command::new("sh");
        let command = command.args(["-c", "read line; exit 3"]).stdin(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while crate::host::task_state(&fs::read_to_string(&stat).unwrap()) != Some('S') {}
        assert!(page_out(child.id().cast_signed()) > 100_000);
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert_eq!(page_out(i32::MAX), 0, "there is none");
    }
}
