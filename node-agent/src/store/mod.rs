//! The database.
pub mod record;
