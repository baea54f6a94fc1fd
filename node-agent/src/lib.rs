//! standin: profiles every task of one Linux host with eBPF, remembers what it needed, sizes the next one.

pub mod cgroup;
pub mod config;
pub mod fingerprint;
pub mod host;
pub mod launch;
pub mod predict;
pub mod probe;
pub mod size;
pub mod store;
pub mod wire;
