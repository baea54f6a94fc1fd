//! Tests that can't show anything on this host: they say why, where `cargo xtask test` counts it.

use std::fs::File;
use std::io::Write;

/// Says why a test can't show anything here. `STANDIN_SKIPPED` names the file that collects the reasons.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("STANDIN_SKIPPED") {
        let line = format!("{}: {why}\n", std::thread::current().name().unwrap_or("test"));
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }
}
