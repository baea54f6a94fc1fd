//! Dispatch only.
//!
//! The C entry point is used in place of Rust's, which sets SIGPIPE to be ignored and opens descriptors 0–2
//! where they are closed: a launched command would inherit both.
#![no_main]

/// Entry point.
// SAFETY: the C runtime calls `main` once; there is no other symbol of that name.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const std::ffi::c_char) -> i32 {
    standin::cli::main(std::env::args_os()).into()
}
