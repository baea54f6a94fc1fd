//! Writes what is made of the command line: a manual page per verb, and completions for bash, zsh and fish.
//! `cargo xtask dist` calls it: `manual DIRECTORY`.

use clap_complete::Shell;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Shells, and what their completions are called where they look for them.
const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "standin"), (Shell::Zsh, "_standin"), (Shell::Fish, "standin.fish")];

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?;
    let directory = Path::new(&directory);
    fs::create_dir_all(directory)?;
    let command = standin::cli::command();
    clap_mangen::generate_to(command.clone(), directory)?;
    for (shell, name) in SHELLS {
        let mut file = File::create(directory.join(name))?;
        clap_complete::generate(shell, &mut command.clone(), "standin", &mut file);
    }
    Ok(())
}
