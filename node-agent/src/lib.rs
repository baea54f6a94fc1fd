//! standin: profiles every task of one Linux host with eBPF, remembers what it needed, sizes the next one.

pub mod fingerprint;
pub mod host;
pub mod predict;
pub mod size;
pub mod store;
pub mod units;
