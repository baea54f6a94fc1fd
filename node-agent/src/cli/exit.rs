//! From arguments to an exit code: [`CODES`] is the one table of them.

use super::settings::Settings;
use super::table::printable;
use super::{
    Cli, Verb, agent, backtest, completions, db, doctor, events, explain, import, ls, oci_hook, predict, ps,
    queue, report, runs, show, top,
};
use crate::causes::in_one_line;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Exit codes and what they mean: help, `docs/cli.md` and the README have them from here.
pub const CODES: [(&str, &str); 6] = [
    ("the job's", "`run`: the command's own exit code; death by a signal ends standin by the same signal"),
    ("0", "done"),
    (
        "1",
        "a read verb found no such task or run; `agent --check`: the agent would have to do without something",
    ),
    ("125", "standin itself failed, or was asked for something that can't be"),
    ("126", "`run`: the command can't be executed"),
    ("127", "`run`: the command was not found"),
];

/// What `standin --help` ends with.
pub(super) fn overview() -> String {
    let codes: String =
        CODES.iter().map(|(code, meaning)| format!("  {code:<10} {}\n", meaning.replace('`', ""))).collect();
    format!(
        "\
Examples:
  standin run -- make -j4              profile a build; the next one is predicted and sized
  standin ls                           what is known, a line per task
  standin show make                    what it is like, at a glance
  standin report --html host.html      everything as a page
  sqlite3 \"$(standin db path)\" 'select * from task_summary'

Exit codes:
{codes}"
    )
}

/// Done.
const DONE: u8 = 0;
/// A read verb found nothing of that name.
pub(super) const NOT_KNOWN: u8 = 1;
/// Standin's own failure.
pub(super) const FAILED: u8 = 125;
/// It works, but something is missing.
pub(super) const INCOMPLETE: u8 = 1;

/// Runs one command line and gives its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<_> = arguments.into_iter().collect();
    if completions::answer(&arguments) {
        return DONE;
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            _ = error.print();
            return DONE;
        }
        Err(error) => {
            complain(&bad_usage(&error, &arguments));
            return FAILED;
        }
    };
    // A hook that fails keeps a container from starting.
    let failed = if matches!(&cli.verb, Verb::OciHook(hook) if hook.is_called()) { DONE } else { FAILED };
    let done = match cli.verb {
        // It needs no settings, and a configuration that is broken must not spoil a shell's start.
        Verb::Completions(arguments) => completions::run(&arguments),
        verb => Settings::resolve(cli.overrides)
            .map_err(anyhow::Error::from)
            .and_then(|settings| run(settings, verb)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            complain(&in_one_line(error.as_ref()));
            failed
        }
    }
}

fn run(settings: Settings, verb: Verb) -> anyhow::Result<u8> {
    match verb {
        Verb::Run(arguments) => super::run::run(&settings, *arguments),
        Verb::Agent(arguments) => agent::run(settings, &arguments),
        Verb::Ps(arguments) => ps::ps(&settings, &arguments),
        Verb::Top(arguments) => top::run(&settings, &arguments),
        Verb::Failover(arguments) => ps::failover(&settings, &arguments),
        Verb::Stop(arguments) => ps::stop(&settings, &arguments),
        Verb::Ls(arguments) => ls::run(&settings, &arguments),
        Verb::Show(arguments) => show::run(&settings, &arguments),
        Verb::Runs(arguments) => runs::run(&settings, &arguments),
        Verb::Report(arguments) => report::run(&settings, &arguments),
        Verb::Predict(arguments) => predict::run(&settings, &arguments),
        Verb::Explain(arguments) => explain::run(&settings, &arguments),
        Verb::Backtest(arguments) => backtest::run(&settings, &arguments),
        Verb::Import(arguments) => import::run(&settings, &arguments),
        Verb::OciHook(arguments) => oci_hook::run(&settings, &arguments),
        Verb::Queue(arguments) => queue::run(&settings, &arguments),
        Verb::Events(arguments) => events::run(&settings, &arguments),
        Verb::Doctor(arguments) => doctor::run(&settings, &arguments),
        Verb::Db(verb) => db::run(&settings, &verb),
        Verb::Completions(arguments) => completions::run(&arguments),
    }
}

/// What is wrong with the command line, what is allowed, and where to read on: clap's several paragraphs in
/// one line.
fn bad_usage(error: &clap::Error, arguments: &[OsString]) -> String {
    let help = match verb_of(arguments) {
        Some(verb) => format!("see `standin {verb} --help`"),
        None => "see `standin --help`; to run a command write `standin run -- CMD`".into(),
    };
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return format!("nothing asked; {help}");
    }
    let text = error.render().to_string().replace("\n  tip: ", "\n\n  tip: ");
    let is_news = |text: &&str| !text.starts_with("Usage: ") && !text.starts_with("For more information");
    let paragraphs = text.split("\n\n").map(str::trim).filter(is_news).filter(|text| !text.is_empty());
    let problem = paragraphs.map(|text| text.trim_start_matches("error: ")).collect::<Vec<_>>().join("; ");
    format!("{problem}; {help}")
}

/// The verb of a command line that does not parse.
fn verb_of(arguments: &[OsString]) -> Option<String> {
    let command = Cli::command();
    let verb = arguments.iter().skip(1).find(|argument| command.find_subcommand(argument).is_some())?;
    verb.to_str().map(str::to_owned)
}

/// One line on stderr, whatever the message holds: names and paths in it come from users, and must not move
/// the cursor.
pub(super) fn complain(message: &str) {
    let line = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    _ = writeln!(std::io::stderr(), "standin: {}", printable(&line));
}

/// Output for people. A reader who has gone is no failure.
pub(super) fn print(text: impl Display) -> io::Result<()> {
    print_bytes(text.to_string().as_bytes())
}

/// The same for what need not be text.
pub(super) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    reached(bytes).map(drop)
}

/// The same for output that goes on: whether anybody reads it still.
pub(super) fn print_on(text: impl Display) -> io::Result<bool> {
    reached(text.to_string().as_bytes())
}

/// Whether a pipe has a reader still: nothing that is written would tell while there is nothing to write.
fn is_read(out: &impl AsFd) -> bool {
    let mut out = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let polled = poll(&mut out, PollTimeout::ZERO);
    polled.is_err() || !out[0].revents().unwrap_or(PollFlags::empty()).contains(PollFlags::POLLERR)
}

/// `false` where the reader has gone, which a caller who ignores SIGPIPE lets us live to see.
fn reached(bytes: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("failed to write to stdout: {error}"))),
        Ok(()) => Ok(is_read(&out)),
    }
}
