//! standin's BPF programs: what the kernel does for tracked cgroups goes in, sums and histograms in maps
//! come out, and user space reads those once a second. Only the end of a process is an event.
//!
//! Every program attaches to a BTF tracepoint and stands on its own: user space loads each by itself, and
//! one that a kernel refuses leaves the others working. `node-agent/src/probe` is the other side.
//!
//! Built by `cargo xtask ebpf`, never by a plain `cargo build`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "the bpf target has no atomic types; see maps::add")]

mod block_io;
mod demand;
mod faults;
mod host;
mod kernel;
mod lifecycle;
mod maps;
mod sched;
mod socket;

// Helpers such as bpf_ktime_get_ns need a licence that the kernel takes for GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
