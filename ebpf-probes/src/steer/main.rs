//! The programs that steer a service's connections to one of its instances. Loaded once per service, with
//! maps of its own. User space gives every instance a slot and says which one is active; the rest happens
//! where the kernel looks for a listener, so nothing is in the path of a request.
//!
//! | file | hook | what it does |
//! |---|---|---|
//! | `bind.rs` | cgroup bind4, bind6 | lets all instances bind the same address |
//! | `listen.rs` | sockops | registers listeners, counts connections, routes those that warm |
//! | `select.rs` | sk_reuseport | picks the listener of the active instance |
//! | `dying.rs` | tp_btf signal_generate, signal_deliver, sched_process_exit | sees an instance die |
//! | `latency.rs` | cgroup_skb | counts answers that are late, if asked to |
//!
//! `node-agent/src/steer` is the other side. Built by `cargo xtask ebpf`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the bpf target has no atomic types; see maps::count")]

mod bind;
mod dying;
#[path = "../kernel.rs"]
#[allow(dead_code, reason = "shared with the probes, which use all of it")]
mod kernel;
mod latency;
mod listen;
mod maps;
mod select;

// Helpers such as bpf_ktime_get_ns need a licence that the kernel takes for GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
