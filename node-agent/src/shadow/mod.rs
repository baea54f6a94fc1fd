//! What shadows need beyond being started and frozen. [`cow`] makes one out of the running process itself, as a copy
//! that shares its memory; [`page_out`] gives the memory of a frozen one back.

pub mod cow;
mod reclaim;

pub use reclaim::page_out;
