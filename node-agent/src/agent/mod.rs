//! The life of a task, from the request to the record, and the two programs that lead one: the daemon, and the
//! launcher itself where there is no daemon.
//!
//! [`Engine`] does what both need: cgroup, limits, probes, measurement. It blocks for microseconds only and
//! knows no database. [`server`] serves many tasks over the socket, [`embedded`] leads one.

mod all_tasks;
pub mod embedded;
mod engine;
mod follow;
pub mod learnt;
mod recover;
pub mod server;
mod task;
mod terms;

pub use engine::{Engine, EngineOptions};
pub use follow::Followed;
pub use task::{Plan, Task};
