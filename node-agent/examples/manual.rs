//! Writes the manual that is made of the command line: a page per verb. `cargo xtask dist` calls it: `manual DIRECTORY`.

use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?;
    fs::create_dir_all(&directory)?;
    clap_mangen::generate_to(standin::cli::command(), Path::new(&directory))
}
