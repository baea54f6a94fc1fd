//! From arguments to an exit code: the one table of them.
//!
//! | code | meaning |
//! |---|---|
//! | the job's | `run`: the command's own exit code; death by a signal is passed on as that |
//! | 0 | done |
//! | 1 | a read verb found no such task or run |
//! | 125 | standin itself failed, or was asked for something that can't be |
//! | 126 | `run`: the command can't be executed |
//! | 127 | `run`: the command was not found |

use super::settings::Settings;
use super::{Cli, Verb, agent, db, doctor, ls, predict, run, runs, show};
use clap::Parser;
use clap::error::ErrorKind;
use std::ffi::OsString;

/// Done.
const DONE: u8 = 0;
/// A read verb found nothing of that name.
pub(super) const NOT_KNOWN: u8 = 1;
/// Standin's own failure.
pub(super) const FAILED: u8 = 125;

/// Runs one command line and gives its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { DONE } else { FAILED };
        }
    };
    let done =
        Settings::resolve(&cli.overrides).map_err(anyhow::Error::from).and_then(|settings| match cli.verb {
            Verb::Run(arguments) => run::run(&settings, arguments),
            Verb::Agent(arguments) => agent::run(settings, &arguments),
            Verb::Ls(arguments) => ls::run(&settings, &arguments),
            Verb::Show(arguments) => show::run(&settings, &arguments),
            Verb::Runs(arguments) => runs::run(&settings, &arguments),
            Verb::Predict(arguments) => predict::run(&settings, &arguments),
            Verb::Doctor(arguments) => doctor::run(&settings, &arguments),
            Verb::Db(verb) => db::run(&settings, &verb),
        });
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            FAILED
        }
    }
}

/// One line on stderr, whatever the message holds.
pub(super) fn complain(message: &str) {
    use std::io::Write;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    _ = writeln!(std::io::stderr(), "standin: {line}");
}
