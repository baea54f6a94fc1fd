//! `standin completions`: what a shell needs to complete command lines, names of tasks and services included.
//!
//! The script only hands the line to this program, which answers before it does anything else where
//! [`VARIABLE`] is set. Whatever goes wrong then, there is nothing to complete: a shell is no place for messages.

use super::exit::print_bytes;
use super::settings::Settings;
use super::{Cli, Overrides, ps};
use crate::service::control_directory;
use crate::store::Reader;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use std::ffi::OsString;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

/// Set by the script, to the name of its shell.
const VARIABLE: &str = "STANDIN_COMPLETE";

/// How long a look for names may take: somebody waits at the keyboard, and an agent that hangs must not show.
const PATIENCE: Duration = Duration::from_millis(300);

/// Most names that are offered.
const NAMES_MAX: usize = 1000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(standin completions bash)                                     in ~/.bashrc
  standin completions zsh > /usr/local/share/zsh/site-functions/_standin
  standin completions fish > ~/.config/fish/completions/standin.fish")]
pub(super) struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: ShellArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(arguments: &CompletionsArgs) -> anyhow::Result<u8> {
    let name = match arguments.shell {
        ShellArg::Bash => "bash",
        ShellArg::Zsh => "zsh",
        ShellArg::Fish => "fish",
    };
    let mut script = Vec::new();
    if let Some(shell) = Shells::builtins().completer(name) {
        shell.write_registration(VARIABLE, "standin", "standin", "standin", &mut script)?;
    }
    print_bytes(&script)?;
    Ok(0)
}

/// Answers a shell that asks, and says whether one did.
pub(super) fn answer(arguments: &[OsString]) -> bool {
    if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty()) {
        return false;
    }
    let directory = std::env::current_dir().ok();
    let environment = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    _ = environment.try_complete(arguments.iter().cloned(), directory.as_deref());
    // Nothing flushes for us at the end: the C runtime called us.
    _ = std::io::stdout().flush();
    true
}

/// Names of the tasks that are known, the latest first.
pub(super) fn tasks() -> Vec<CompletionCandidate> {
    in_time(|settings| {
        let tasks = Reader::open(&settings.database_to_read()).and_then(|reader| reader.tasks());
        tasks.unwrap_or_default().into_iter().map(|task| task.task_type).collect()
    })
}

/// Names of the services that run.
pub(super) fn services() -> Vec<CompletionCandidate> {
    in_time(|settings| ps::names(&control_directory(&settings.socket)))
}

/// What `look` finds with the settings of the environment, if it finds it soon.
fn in_time(look: impl FnOnce(&Settings) -> Vec<String> + Send + 'static) -> Vec<CompletionCandidate> {
    let (found, names) = mpsc::channel();
    std::thread::spawn(move || {
        let settings = Settings::resolve(Overrides { db: None, socket: None, config: None });
        _ = found.send(settings.map_or_else(|_| Vec::new(), |settings| look(&settings)));
    });
    let mut names = names.recv_timeout(PATIENCE).unwrap_or_default();
    // A name that would end the line, or move the cursor, is nothing to offer.
    names.retain(|name| !name.chars().any(char::is_control));
    names.sort();
    names.dedup();
    names.truncate(NAMES_MAX);
    names.into_iter().map(CompletionCandidate::new).collect()
}
