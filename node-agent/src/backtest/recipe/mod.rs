//! Ways of sizing memory. Each is written from its published formula.

mod largest;
mod percentile;
mod preset;
mod standin;
mod tovar;
mod vpa;
mod witt;

pub use standin::{Retry, Standin};

use super::trace::Task;

/// Runs of a kind that a recipe needs before it takes the place of the user's request.
pub const RUNS_LEAST: usize = 2;
/// A limit that grows in place grows by this.
pub const RAISE: f64 = 1.25;

/// What a recipe asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// Bytes.
    pub bytes: f64,
    /// It knew no run of this kind.
    pub cold: bool,
}

/// A way of sizing. It learns only through these calls.
pub trait Recipe {
    /// What it is called in tables.
    fn name(&self) -> &str;
    /// A task starts.
    fn reserve(&mut self, task: &Task, place: usize) -> Asked;
    /// The `failures`th attempt failed with `reserved` bytes: what now?
    fn retry(&mut self, task: &Task, place: usize, reserved: f64, failures: u32) -> f64;
    /// A task ended well, so that its peak is known.
    fn finished(&mut self, task: &Task, place: usize);
    /// How far a limit may grow in place while the task runs; `None` if it does not.
    fn grows_to(&self, _task: &Task, _host_bytes: f64) -> Option<f64> {
        None
    }
}

/// All recipes, the user's preset first and standin last.
pub fn all(retry: Retry, host_bytes: f64) -> Vec<Box<dyn Recipe>> {
    vec![
        Box::new(preset::Preset::new(host_bytes)),
        Box::new(largest::Largest::new(host_bytes)),
        Box::new(percentile::Percentile::new(host_bytes)),
        Box::new(vpa::Vpa::new(host_bytes)),
        Box::new(witt::WittLr::new(host_bytes)),
        Box::new(tovar::Tovar::new(host_bytes)),
        Box::new(Standin::new(retry, host_bytes)),
    ]
}

/// The user's request, or all of the host where there is none.
fn request(task: &Task, host_bytes: f64) -> f64 {
    task.memory_request_bytes.unwrap_or(host_bytes)
}
