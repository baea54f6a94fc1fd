//! A page for people: what tasks did, what was predicted, what failed over and what was saved, as one HTML file that
//! needs nothing else: no network, no script, no font of its own.
//!
//! [`gather`] reads everything from the database into a [`Report`]; [`page`] is a pure function from that to HTML.
//! Text of users becomes HTML in `markup` only, and a content security policy forbids the page to load or run
//! anything, should that ever fail.

mod gather;
mod host;
mod markup;
mod page;
mod palette;
mod plot;
mod task;

pub use gather::{Report, Scope, TaskPart, gather};
pub use page::{MARK, page};
