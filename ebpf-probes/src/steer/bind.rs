//! All instances of a service bind the same address: SO_REUSEPORT is set on their sockets before the kernel
//! looks for conflicts, and the socket is tagged with its instance and address.
//!
//! | | |
//! |---|---|
//! | hooks | `cgroup/bind4`, `cgroup/bind6` on the service's cgroup |
//! | maps | `INSTANCES`, `CONTROL`; `GROUPS`, `TAGS`, `SERVED` |
//! | cost | 1-2 µs once per bind |
//! | floor | Linux 5.13 (`SO_REUSEPORT` by `bpf_setsockopt`, which bind hooks have since 5.11) |
//! | fallback | none: the service is restarted without a shadow |
//!
//! An address in use by others stays refused, unless they set SO_REUSEPORT themselves under the same user;
//! user space looks for such.
use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_current_cgroup_id, bpf_setsockopt, bpf_sk_storage_get},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use ebpf_probes::steer::{GROUPS_MAX, GroupKey, PORTS_MAX, Tag};

use crate::maps::{self, count, fetch_increment};

const SOL_SOCKET: i32 = 1;
const SO_REUSEPORT: i32 = 15;
pub(crate) const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// The bind goes on, whatever happens here.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(bind4)]
fn bind4(context: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context; each field is read by itself, as the verifier wants it.
    unsafe {
        let bind = context.sock_addr;
        let address = [read(&raw const (*bind).user_ip4), 0, 0, 0];
        share(bind, address);
    }
    ALLOW
}

#[cgroup_sock_addr(bind6)]
fn bind6(context: SockAddrContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        let bind = context.sock_addr;
        let words = &raw const (*bind).user_ip6;
        let word = |index: usize| read(words.cast::<u32>().add(index));
        let address = [word(0), word(1), word(2), word(3)];
        share(bind, address);
    }
    ALLOW
}

/// Volatile, so that the compiler does not merge loads into wider ones, which the verifier refuses.
///
/// # Safety
/// `field` must point into the context.
#[inline(always)]
pub(crate) unsafe fn read(field: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::read_volatile(field) }
}

/// # Safety
/// `bind` must be the kernel's context.
#[inline(always)]
unsafe fn share(bind: *mut bpf_sock_addr, address: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        let protocol = read(&raw const (*bind).protocol);
        let port = u32::from(u16::from_be(read(&raw const (*bind).user_port) as u16));
        let family = read(&raw const (*bind).family);
        if port == 0 || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) || !is_served(port) {
            return;
        }
        let cgroup = bpf_get_current_cgroup_id();
        let Some(slot) = maps::INSTANCES.get_ptr(&cgroup).map(|slot| *slot) else { return };
        let sock = (*bind).__bindgen_anon_1.sk;
        if sock.is_null() {
            return;
        }
        let Some(group) = group(&GroupKey { protocol, family, port, address }) else {
            return count!(listeners_lost);
        };
        let mut on = 1i32;
        let size = size_of::<i32>() as i32;
        if bpf_setsockopt(bind.cast(), SOL_SOCKET, SO_REUSEPORT, (&raw mut on).cast(), size) != 0 {
            return count!(listeners_lost);
        }
        _ = maps::SERVED.insert(&port, &1, 0);
        tag(sock, Tag { slot, group });
    }
}

/// Whether a port is the service's.
#[inline(always)]
fn is_served(port: u32) -> bool {
    let Some(control) = maps::control() else { return false };
    // SAFETY: points into a map value that user space changes word by word.
    unsafe {
        let ports = (&raw const (*control).ports).cast::<u64>();
        if core::ptr::read_volatile(ports) == 0 {
            return true;
        }
        for index in 0..PORTS_MAX {
            if core::ptr::read_volatile(ports.add(index)) == u64::from(port) {
                return true;
            }
        }
    }
    false
}

/// The number of an address, given at its first bind.
#[inline(always)]
fn group(key: &GroupKey) -> Option<u32> {
    // SAFETY: groups are never removed, and their numbers never change.
    unsafe {
        if let Some(group) = maps::GROUPS.get_ptr(key) {
            return Some(*group);
        }
        let number = fetch_increment(maps::GROUPS_USED.get_ptr_mut(0)?);
        if number >= u64::from(GROUPS_MAX) {
            return None;
        }
        // Another CPU may have been quicker: then its number holds.
        _ = maps::GROUPS.insert(key, &(number as u32), u64::from(BPF_NOEXIST));
        maps::GROUPS.get_ptr(key).map(|group| *group)
    }
}

/// # Safety
/// `sock` must be the context's socket.
#[inline(always)]
unsafe fn tag(sock: *mut bpf_sock, tag: Tag) {
    // SAFETY: the caller's promise; the storage is a map value.
    unsafe {
        let storage = bpf_sk_storage_get(
            (&raw const maps::TAGS).cast_mut().cast(),
            sock.cast(),
            core::ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
        .cast::<Tag>();
        if storage.is_null() {
            return count!(listeners_lost);
        }
        (*storage).slot = tag.slot;
        (*storage).group = tag.group;
    }
}
