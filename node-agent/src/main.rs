//! Dispatch only.
fn main() {}
