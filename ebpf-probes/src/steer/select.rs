//! Picks the listener for a new connection or datagram, and for what has to leave a listener that closes: the
//! active instance's, else the next one's, else anybody's. So a listener that closes hands its queue on inside
//! the kernel, with nobody's help.
//!
//! | | |
//! |---|---|
//! | hook | `sk_reuseport/migrate`, attached to the group by each address's first listener |
//! | maps | `CONTROL`, `GROUPS`, `MEMBERS`, `LISTENERS`, `WARMING` |
//! | cost | 0.3-0.4 µs per new connection |
//! | floor | Linux 5.14 (`BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`) |
//! | fallback | none: the service is restarted without a shadow |
use aya_ebpf::{
    EbpfContext as _,
    bindings::{sk_action, sk_reuseport_md},
    helpers::bpf_sk_select_reuseport,
    macros::sk_reuseport,
    programs::SkReuseportContext,
};
use ebpf_probes::steer::{GROUPS_MAX, GroupKey, MEMBERS_MAX, NOBODY, SLOTS_MAX, listener_key};

use crate::{
    bind::{AF_INET6, read},
    maps::{self, count},
};

/// Listeners of an instance that are tried when the chosen one is closed.
const TRIES: u32 = 8;

#[sk_reuseport(migrate)]
fn select(context: SkReuseportContext) -> u32 {
    if !pick(&context) {
        count!(unsteered);
    }
    // Without a choice the kernel takes one of the group by hash.
    sk_action::SK_PASS
}

#[inline(always)]
fn pick(context: &SkReuseportContext) -> bool {
    // SAFETY: groups are never removed.
    let Some(group) = (unsafe { maps::GROUPS.get_ptr(&address(context)).map(|group| *group) }) else {
        return false;
    };
    let Some(control) = maps::control() else { return false };
    // SAFETY: map values that others change; each is one word.
    let (active, next, warming) = unsafe {
        let word = |field: *const u64| core::ptr::read_volatile(field);
        (
            word(&raw const (*control).active),
            word(&raw const (*control).next),
            word(&raw const (*control).warming),
        )
    };
    let migrates = context.migrating_sk().is_some();
    if !migrates && warming != NOBODY && is_warming(context) && offer(context, warming, group) {
        count!(warming);
        return true;
    }
    if migrates {
        count!(migrated);
    }
    if offer(context, active, group) {
        count!(to_active);
        return true;
    }
    let found =
        offer(context, next, group) || (0..SLOTS_MAX).any(|slot| offer(context, u64::from(slot), group));
    if found {
        count!(to_other);
    }
    found
}

/// The address that the group listens on.
#[inline(always)]
fn address(context: &SkReuseportContext) -> GroupKey {
    let sock = context.sk().sock;
    // SAFETY: a socket that the verifier knows; each field is read by itself.
    unsafe {
        let family = read(&raw const (*sock).family);
        let word = |index: usize| read((&raw const (*sock).src_ip6).cast::<u32>().add(index));
        let address = if family == AF_INET6 {
            [word(0), word(1), word(2), word(3)]
        } else {
            [read(&raw const (*sock).src_ip4), 0, 0, 0]
        };
        let protocol = read(&raw const (*sock).protocol);
        GroupKey { protocol, family, port: read(&raw const (*sock).src_port), address }
    }
}

/// Whether the packet is one of the warming cgroup: its source port tells, the first word of the header.
#[inline(always)]
fn is_warming(context: &SkReuseportContext) -> bool {
    let (start, end) = (context.data(), context.data_end());
    if start + 4 > end {
        return false;
    }
    // SAFETY: within the packet, as was just checked.
    let port = u16::from_be(unsafe { *(start as *const u16) });
    maps::WARMING.get_ptr(&u32::from(port)).is_some()
}

/// Gives it to a listener of `slot`, by hash where there are several.
#[inline(always)]
fn offer(context: &SkReuseportContext, slot: u64, group: u32) -> bool {
    if slot >= u64::from(SLOTS_MAX) || group >= GROUPS_MAX {
        return false;
    }
    let slot = slot as u32;
    let Some(members) = maps::MEMBERS.get_ptr(slot * GROUPS_MAX + group) else { return false };
    // SAFETY: a map value, one word.
    let members = (unsafe { core::ptr::read_volatile(members) } as u32).min(MEMBERS_MAX);
    if members == 0 {
        return false;
    }
    let chosen = context.hash() % members;
    // As often for a few listeners, round and round: verifiers before Linux 6.4 follow no loop whose count is a variable.
    (0..TRIES).any(|further| choose(context, listener_key(slot, group, (chosen + further) % members)))
}

#[inline(always)]
fn choose(context: &SkReuseportContext, mut key: u32) -> bool {
    let context: *mut sk_reuseport_md = context.as_ptr().cast();
    let listeners = (&raw const maps::LISTENERS).cast_mut().cast();
    // SAFETY: the kernel's context, a map, and a key on the stack.
    unsafe { bpf_sk_select_reuseport(context, listeners, (&raw mut key).cast(), 0) == 0 }
}
