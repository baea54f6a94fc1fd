//! Starting a command so that it can't tell it was started by standin: found like `execvp` finds it,
//! executed in place, or as a child whose signals, exit code and death by signal are passed on.

mod command;
mod held;
mod supervise;

pub use command::{Command, Prepared, Unrunnable};
pub use held::{Bond, DESCRIPTORS_MAX, Dispositions, Exit, Held, Place, StartError};
pub use supervise::{Child, pass_on};
