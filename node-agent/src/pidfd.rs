//! How a process ended that is no child of ours, as its pidfd tells: the descriptor has to be open when the process ends,
//! and its parent must have waited for it. Linux 6.15 and newer (`PIDFD_INFO_EXIT`, include/uapi/linux/pidfd.h).

use std::os::fd::{AsRawFd, BorrowedFd};

/// The exit status is wanted, and told.
const INFO_EXIT: u64 = 1 << 3;

/// The kernel's `struct pidfd_info`, as it was first (`PIDFD_INFO_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
pub struct Info {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<Info>() == 64);

nix::ioctl_readwrite!(
    /// `PIDFD_GET_INFO`.
    pidfd_get_info,
    0xff,
    11,
    Info
);

/// The status as in wait(2); `None` while it has not ended or is not waited for, and on older kernels.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: the kernel writes no more than the size that is part of the request's number.
    unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn the_status_is_there_once_the_parent_has_waited() {
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(exit_status(pidfd.as_fd()), None);
        child.wait().unwrap();
        match exit_status(pidfd.as_fd()) {
            Some(status) => assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7)),
            None => crate::skip::skip("the kernel does not tell (Linux 6.15)"),
        }
    }
}
