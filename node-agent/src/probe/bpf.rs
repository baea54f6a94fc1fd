//! The few `bpf(2)` commands that the loader library has no way to: what a program has cost, and the switch for
//! counting it. Layouts and numbers are of include/uapi/linux/bpf.h and do not change.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_ENABLE_STATS: libc::c_long = 32;

/// `BPF_STATS_RUN_TIME`: the only kind there is.
const RUN_TIME: u64 = 0;

/// Bytes of `struct bpf_prog_info` up to and with `verified_insns`, and where the fields are.
const PROGRAM_INFO_BYTES: usize = 224;
const RUN_TIME_NS: usize = 192;
const RUN_COUNT: usize = 200;
const RECURSION_MISSES: usize = 208;

/// Bytes of `struct bpf_link_info` up to and with `prog_id`, and where that is.
const LINK_INFO_BYTES: usize = 12;
const LINK_PROGRAM_ID: usize = 8;

/// What the kernel tells of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// Time in it while times were counted, the counting itself included.
    pub(super) run_ns: u64,
    /// How often it ran in that time.
    pub(super) runs: u64,
    /// How often it was not run, because it was running on that CPU already.
    pub(super) missed: u64,
}

fn call(command: libc::c_long, words: &mut [u64]) -> io::Result<libc::c_long> {
    // SAFETY: an attribute of that many bytes, whose pointers the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(command: libc::c_long, words: &mut [u64]) -> io::Result<OwnedFd> {
    let fd = call(command, words)?;
    // SAFETY: these commands give a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has the kernel count times of programs, until the result is dropped; costs some 20 ns per run of every program
/// of the host.
pub(super) fn enable_stats() -> io::Result<OwnedFd> {
    descriptor(BPF_ENABLE_STATS, &mut [RUN_TIME])
}

/// The program of a pinned link.
pub(super) fn program_of_link(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let link = descriptor(BPF_OBJ_GET, &mut [name.as_ptr() as u64, 0])?;
    let mut info = [0u8; LINK_INFO_BYTES];
    fill(&link, &mut info)?;
    let id = u32_at(&info, LINK_PROGRAM_ID);
    descriptor(BPF_PROG_GET_FD_BY_ID, &mut [id.into()])
}

/// What a program has cost up to now.
pub(super) fn program_info(program: &OwnedFd) -> io::Result<ProgramInfo> {
    let mut info = [0u8; PROGRAM_INFO_BYTES];
    fill(program, &mut info)?;
    let at = |offset: usize| u64::from(u32_at(&info, offset)) | u64::from(u32_at(&info, offset + 4)) << 32;
    Ok(ProgramInfo { run_ns: at(RUN_TIME_NS), runs: at(RUN_COUNT), missed: at(RECURSION_MISSES) })
}

fn fill(object: &impl AsFd, info: &mut [u8]) -> io::Result<()> {
    let fd = object.as_fd().as_raw_fd().cast_unsigned();
    let length = info.len() as u64;
    call(BPF_OBJ_GET_INFO_BY_FD, &mut [u64::from(fd) | length << 32, info.as_mut_ptr() as u64]).map(|_| ())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..offset + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}
