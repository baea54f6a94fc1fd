//! standin: profiles every task of one Linux host with eBPF, remembers what it needed, sizes the next one.
//!
//! Data goes left to right once: [`probe`] → [`fingerprint`] → [`store`] → [`predict`] → [`size`] →
//! [`cgroup`]. [`agent`] wires them, [`wire`] is what the launcher and the agent say to each other,
//! [`launch`] starts commands, [`cli`] talks to people. Lower modules know nothing of upper ones.

pub mod agent;
pub mod backtest;
pub mod balance;
pub mod causes;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod fingerprint;
pub mod host;
pub mod launch;
pub mod live;
pub mod metrics;
pub mod pidfd;
pub mod predict;
pub mod printable;
pub mod probe;
pub mod report;
pub mod service;
pub mod shadow;
pub mod size;
pub mod steer;
pub mod store;
pub mod trust;
pub mod units;
pub mod wire;

#[cfg(test)]
mod hostile;

#[cfg(test)]
#[path = "../../tests/support/skip.rs"]
mod skip;
