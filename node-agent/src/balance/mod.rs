//! Who serves: the decisions of a service, as pure functions over plain data.
//!
//! [`Balance`] takes what happened to the instances and says what to do ([`decide`](Balance::decide)); [`Stall`]
//! tells a hang from a busy machine; [`scale`] says how many shadows are worth their memory. Nothing here does any
//! I/O, reads a clock or knows a process: that is `service`.

mod decide;
mod pace;
mod scale;
mod slow;
mod stall;
mod terms;
#[cfg(test)]
mod tests;

pub use decide::Balance;
pub use pace::Pace;
pub use scale::{Load, Reason, demand, recent, scale};
pub use slow::{Slow, Verdict};
pub use stall::{Evidence, Look, Stall};
pub use terms::{Action, Cause, Event, How, Restart, Role, Rules};
