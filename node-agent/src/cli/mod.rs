//! The command line: what can be asked for, and the table of exit codes. One file per verb.

mod agent;
mod ask;
mod backtest;
mod completions;
mod db;
mod demand;
mod doctor;
mod events;
mod exit;
mod explain;
mod glance;
mod import;
mod ls;
mod numbers;
mod oci_hook;
mod output;
mod own_history;
mod predict;
mod progress;
mod ps;
mod queue;
mod reach;
mod report;
mod run;
mod runs;
mod settings;
mod show;
mod sizing;
mod table;
mod top;
mod trace_file;
mod when;

pub use exit::{CODES, main};

use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

/// Profiles every task with eBPF, remembers what it needed, and sizes the next one before it starts.
#[derive(Debug, Parser)]
#[command(name = "standin", version, max_term_width = 100, after_help = exit::overview())]
struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    verb: Verb,
}

/// Where things are. Flags win over the environment, which wins over the configuration. The environment is
/// read in `settings`: to clap an empty variable would be an error.
#[derive(Clone, Debug, Args)]
struct Overrides {
    /// Database file [env: STANDIN_DB]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things are")]
    db: Option<PathBuf>,
    /// The agent's unix socket [env: STANDIN_SOCKET]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Where things are")]
    socket: Option<PathBuf>,
    /// Configuration file [default: /etc/standin/config.toml, if it exists] [env: STANDIN_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things are")]
    config: Option<PathBuf>,
}

/// The whole command line, for manual pages and completions that are made of it.
pub fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command: profiled, remembered, sized
    Run(Box<run::RunArgs>),
    /// Run the agent that measures and records for the whole host
    Agent(agent::AgentArgs),
    /// List the services that run, with their shadows
    Ps(ps::PsArgs),
    /// Watch tasks, services and the queue, now or at a moment of the past
    Top(top::TopArgs),
    /// Move the traffic of a service to a shadow
    Failover(ps::FailoverArgs),
    /// End a service
    Stop(ps::StopArgs),
    /// List the tasks that are known
    Ls(ls::LsArgs),
    /// Show the fingerprint of a task
    Show(show::ShowArgs),
    /// List runs, newest first
    Runs(runs::RunsArgs),
    /// Write a page about a task or the whole host: runs, predictions, failovers, what was saved
    Report(report::ReportArgs),
    /// Say what a task will need, and why
    Predict(predict::PredictArgs),
    /// Say why memory is sized as it is: what each way would cost, and which feature matters
    Explain(explain::ExplainArgs),
    /// Replay the past: what would each way of sizing memory have wasted?
    Backtest(backtest::BacktestArgs),
    /// Take runs that were measured elsewhere into the database
    Import(import::ImportArgs),
    /// What container runtimes call: size and measure the container they have just made
    OciHook(oci_hook::OciHookArgs),
    /// Show what is promised to which task, and who waits
    Queue(queue::QueueArgs),
    /// Say what standin did to tasks, and when: limits that followed, waits, releases
    Events(events::EventsArgs),
    /// Print what a shell needs to complete command lines
    Completions(completions::CompletionsArgs),
    /// Say what works on this host, and what does not and why
    Doctor(doctor::DoctorArgs),
    /// About the database
    #[command(
        subcommand,
        after_help = "\
Examples:
  sqlite3 \"$(standin db path)\" 'select * from task_summary'"
    )]
    Db(db::DbVerb),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verbs and verbs of verbs, with how they are called.
    fn verbs(command: &clap::Command, name: &str) -> Vec<(String, clap::Command)> {
        let own = (name.to_owned(), command.clone());
        let below = command.get_subcommands().filter(|verb| verb.get_name() != "help");
        std::iter::once(own)
            .chain(below.flat_map(|verb| verbs(verb, &format!("{name} {}", verb.get_name()))))
            .collect()
    }

    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let after = help.split_once("Examples:\n").map(|(_, after)| after.to_owned()).unwrap_or_default();
        after.lines().take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn every_verb_has_examples() {
        for (name, command) in verbs(&command(), "standin") {
            let examples = examples(&command);
            let of_verb = examples.iter().any(|line| line.contains(&name));
            assert!(of_verb, "{name} --help has no example of itself: {examples:?}");
        }
    }

    /// What help shows can be typed: every call of standin in it is understood.
    #[test]
    fn examples_are_understood() {
        let mut tried = 0;
        for (name, command) in verbs(&command(), "standin") {
            for line in examples(&command) {
                let Some(call) = line.strip_prefix("standin ") else { continue };
                // A word about it is two spaces away; a pipe leads out of it.
                let call = call.split("  ").next().unwrap_or_default();
                let call = call.split(['|', '>']).next().unwrap_or_default();
                let words = call.split_whitespace().collect::<Vec<_>>().join(" ");
                let words = split(&words);
                let arguments = std::iter::once("standin".to_owned()).chain(words);
                let understood = Cli::try_parse_from(arguments);
                assert!(understood.is_ok(), "{name}: {line}: {:?}", understood.err().map(|e| e.to_string()));
                tried += 1;
            }
        }
        assert!(tried > 40, "{tried}");
    }

    /// Words, those between single quotes together.
    fn split(line: &str) -> Vec<String> {
        let parts = line.split('\'').enumerate();
        parts
            .flat_map(|(place, part)| match place % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }
}
