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

pub use exit::main;

use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

/// Profiles every task with eBPF, remembers what it needed, and sizes the next one before it starts.
#[derive(Debug, Parser)]
#[command(name = "standin", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  standin run -- make -j4              profile a build; the next one is predicted and sized
  standin ls                           what is known, a line per task
  standin show make                    its fingerprint
  sqlite3 \"$(standin db path)\" 'select * from task_summary'

Exit codes: the job's own; 125 standin failed, 126 the command can't be executed, 127 it was not found;
a job killed by a signal ends standin by the same signal.";

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
    #[command(subcommand)]
    Db(db::DbVerb),
}
