//! `standin run`: the launcher.
//!
//! With an agent it asks to be taken in and then becomes the command: same pid, terminal, environment,
//! descriptors. Where it has to stay (no agent; `--json`, `--wait-all`), it runs the command as a child and
//! ends as the command ends.

mod service;

use super::ask::{Answer, Asking};
use super::exit::{FAILED, complain};
use super::settings::Settings;
use super::sizing::SizingArgs;
use super::{output, reach};
use crate::agent::embedded::{Embedded, Outcome};
use crate::fingerprint::key::{self, Feature, FeatureValue};
use crate::launch::{Child, Command, StartError, Unrunnable, pass_on};
use crate::size::Policy;
use crate::wire::{self, COMMAND_BYTES_MAX, Finished, Leftover, Reply, Request, Start, Started, WireError};
use anyhow::{Context, bail};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin run -- xz -T2 big.tar
  standin run --name nightly --feature rows=1000000 -- ./job.sh
  standin run --policy strict --json result.json -- make -j4
  standin run --shadows 1 --ready-probe http://localhost:8080/ -- python3 -m http.server 8080")]
pub(super) struct RunArgs {
    /// Name of the task [default: from the command: the program, script or subcommand]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// A file that the task will read (repeatable); files named in the command count anyway
    #[arg(long, value_name = "FILE")]
    input: Vec<OsString>,
    /// Something its needs may depend on (repeatable)
    #[arg(long, value_name = "K=V", value_parser = parse_feature)]
    feature: Vec<Feature>,
    /// How hard predicted limits are [default: elastic, or the configuration's]
    #[arg(long, value_enum)]
    policy: Option<PolicyArg>,
    /// Write the run's result to FILE; standin stays until the end for it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The run ends when its last process does, not when the command does
    #[arg(long)]
    wait_all: bool,
    /// What becomes of processes that the command leaves behind
    #[arg(long, value_enum, default_value = "leave", conflicts_with = "wait_all")]
    leftover: LeftoverArg,
    /// Say nothing on stderr
    #[arg(long, short)]
    quiet: bool,
    /// Fail with 125 where no agent answers, instead of measuring the run here
    #[arg(long, conflicts_with = "no_agent")]
    require_agent: bool,
    /// Measure the run here even if an agent answers
    #[arg(long)]
    no_agent: bool,
    #[command(flatten)]
    sizing: SizingArgs,
    #[command(flatten)]
    service: service::ServiceArgs,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyArg {
    /// Limits that can't harm
    Elastic,
    /// Hard limits at the predicted bound
    Strict,
    /// Predict and record, limit nothing
    Observe,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LeftoverArg {
    /// They go on, without limits
    Leave,
    /// They are killed
    Kill,
}

pub(super) fn parse_feature(text: &str) -> Result<Feature, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok(Feature { name: key::clean(name), value: FeatureValue::parse(value) })
        }
        _ => Err("allowed is NAME=VALUE, such as rows=1000".into()),
    }
}

pub(super) fn run(settings: &Settings, mut arguments: RunArgs) -> anyhow::Result<u8> {
    let command = match Command::resolve(std::mem::take(&mut arguments.command)) {
        Ok(command) => command,
        Err(problem) => return Ok(cannot_run(&problem)),
    };
    let result = match &arguments.json {
        Some(path) => {
            Some(File::create(path).with_context(|| format!("failed to create {}", path.display()))?)
        }
        None => None,
    };
    let start = request(&command, &arguments)?;
    if start.features.len() > key::FEATURES_MAX {
        let allowed = key::FEATURES_MAX - (start.features.len() - arguments.feature.len());
        bail!("--feature was given {} times: allowed is {allowed} times", arguments.feature.len());
    }
    let mut launcher = Launcher { settings, arguments, command, result };
    launcher.say_missing_inputs();
    if launcher.arguments.service.is_given() {
        return launcher.serve(start);
    }
    match launcher.agent() {
        Ok(Some(agent)) => match launcher.with_agent(agent, &start) {
            Ok(code) => Ok(code),
            Err(problem) => {
                let problem = format!("agent at {}: {problem}", settings.socket.display());
                launcher.without_agent(start, Some(problem))
            }
        },
        Ok(None) => launcher.without_agent(start, None),
        Err(problem) => launcher.without_agent(start, Some(problem)),
    }
}

/// The agent lets the task not start: no other way is tried.
fn denied(why: &str) -> u8 {
    complain(&format!("not started: {why}"));
    FAILED
}

fn cannot_run(problem: &Unrunnable) -> u8 {
    complain(&problem.to_string());
    problem.exit_code()
}

/// What is asked of the engine, whichever it is.
fn request(command: &Command, arguments: &RunArgs) -> anyhow::Result<Start> {
    let directory = std::env::current_dir().unwrap_or_default();
    let mut features = key::input_features(command.argv(), &arguments.input, &directory);
    features.extend(arguments.feature.iter().cloned());
    let mut room = COMMAND_BYTES_MAX;
    let shown = command.argv().iter().map(|argument| argument.to_string_lossy().into_owned());
    let command_shown = shown.take_while(|argument| {
        let fits = argument.len() < room;
        room = room.saturating_sub(argument.len() + 1);
        fits
    });
    Ok(Start {
        pid: None,
        task_type: arguments.name.as_deref().map_or_else(|| key::task_type(command.argv()), key::clean),
        command: command_shown.collect(),
        directory: directory.to_string_lossy().into_owned(),
        features,
        policy: arguments.policy.map(|policy| match policy {
            PolicyArg::Elastic => Policy::Elastic,
            PolicyArg::Strict => Policy::Strict,
            PolicyArg::Observe => Policy::Observe,
        }),
        manual: arguments.sizing.manual()?,
        leftover: match arguments.leftover {
            _ if arguments.wait_all => Leftover::Wait,
            LeftoverArg::Leave => Leftover::Leave,
            LeftoverArg::Kill => Leftover::Kill,
        },
        admission: arguments.sizing.asked(),
    })
}

struct Launcher<'a> {
    settings: &'a Settings,
    arguments: RunArgs,
    command: Command,
    result: Option<File>,
}

impl Launcher<'_> {
    fn say(&self, message: &str) {
        if !self.arguments.quiet {
            complain(message);
        }
    }

    fn asking(&self) -> Asking<'_> {
        let is_patient = self.arguments.require_agent || self.arguments.sizing.waits();
        Asking { socket: &self.settings.socket, quiet: self.arguments.quiet, is_patient }
    }

    fn say_missing_inputs(&self) {
        for input in self.arguments.input.iter().map(Path::new) {
            match input.metadata() {
                Ok(metadata) if metadata.is_file() => {}
                Ok(_) => self.say(&format!("--input {}: not counted: it is no file", input.display())),
                Err(error) => self.say(&format!("--input {}: not counted: {error}", input.display())),
            }
        }
    }

    /// A connection to the agent. `Ok(None)` if none is meant; `Err` says why there is none.
    fn agent(&self) -> Result<Option<UnixStream>, String> {
        if self.arguments.no_agent || (self.settings.prefers_embedded && !self.arguments.require_agent) {
            return Ok(None);
        }
        let usual = self.settings.socket.as_os_str() == crate::config::DEFAULT_SOCKET;
        match reach::connect(&self.settings.socket) {
            Ok(stream) => Ok(Some(stream)),
            Err(unreachable) if usual && unreachable.absent && !self.arguments.require_agent => {
                Err("no agent".into())
            }
            Err(unreachable) => Err(unreachable.message),
        }
    }

    /// Lets the agent take the run in. `Err` only while the command has not been started.
    fn with_agent(&mut self, agent: UnixStream, start: &Start) -> Result<u8, WireError> {
        if self.result.is_some() || self.arguments.wait_all {
            self.stay(agent, start)
        } else {
            self.become_command(agent, start)
        }
    }

    fn become_command(&self, mut agent: UnixStream, start: &Start) -> Result<u8, WireError> {
        let prepared = self.command.prepare();
        let started = match self.asking().start(&mut agent, start, || None)? {
            Answer::Started(started) => started,
            Answer::Denied(why) => return Ok(denied(&why)),
            Answer::Interrupted(_) => return Ok(FAILED),
        };
        self.say_plan(&started);
        let errno = self.command.execute(&prepared) as i32;
        _ = wire::send(&mut agent, &Request::ExecFailed(errno));
        Ok(cannot_run(&Unrunnable::from_errno(&self.command.name(), errno)))
    }

    fn stay(&mut self, mut agent: UnixStream, start: &Start) -> Result<u8, WireError> {
        let mut child = match Child::fork(&self.command, None, &[]) {
            Ok(child) => child,
            Err(error) => {
                complain(&error.to_string());
                return Ok(FAILED);
            }
        };
        let start = Start { pid: Some(child.pid()), ..start.clone() };
        let started = match self.asking().start(&mut agent, &start, || child.told_to_end()) {
            Ok(Answer::Started(started)) => started,
            Ok(Answer::Denied(why)) => {
                child.abandon();
                return Ok(denied(&why));
            }
            Ok(Answer::Interrupted(signal)) => {
                child.abandon();
                return Ok(pass_on(signal as i32));
            }
            Err(error) => {
                child.abandon();
                return Err(error);
            }
        };
        self.say_plan(&started);
        if let Err(error) = child.release() {
            if let StartError::Execute(errno) = error {
                _ = wire::send(&mut agent, &Request::ExecFailed(errno));
            }
            return Ok(self.not_started(&error));
        }
        while !child.wait_for(Duration::from_secs(3600)) {}
        let exit = child.reap().map_err(WireError::Io)?;
        match self.wait_for_record(agent) {
            Ok(finished) => self.tell(&finished, Some(&exit.usage)),
            Err(problem) => self.say(&format!("no result: {problem}")),
        }
        Ok(pass_on(exit.status))
    }

    /// Under `--wait-all` this takes as long as the last process.
    fn wait_for_record(&self, mut agent: UnixStream) -> Result<Finished, String> {
        let answer = agent
            .set_read_timeout(None)
            .map_err(WireError::Io)
            .and_then(|()| wire::send(&mut agent, &Request::Wait))
            .and_then(|()| wire::receive::<Reply>(&mut agent));
        match answer {
            Ok(Reply::Finished(finished)) => Ok(*finished),
            Ok(Reply::Refused(why)) => Err(why),
            Ok(_) => Err("the agent answered something else".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Measures the run here. `problem` says why an agent that was expected does not.
    fn without_agent(&mut self, start: Start, problem: Option<String>) -> anyhow::Result<u8> {
        if self.arguments.require_agent {
            bail!("--require-agent: {}", problem.unwrap_or_default());
        }
        if self.arguments.sizing.takes_licenses() {
            let why = problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
            bail!("licences are counted by an agent{why}: start one, or leave --license out");
        }
        let embedded = Embedded::prepare(&self.settings.config, start, &self.settings.database);
        match problem {
            Some(problem) => self.say(&format!("{problem}; {}", embedded.mode())),
            None => self.say(&embedded.mode()),
        }
        let plan = embedded.plan();
        self.say(&output::plan(&plan.prediction, &plan.limits));
        if let Some(without) = self.arguments.sizing.needs_agent() {
            self.say(without);
        }
        if plan.manual.has_limits() && plan.limits.0.is_empty() {
            self.say("the limits asked for are not set: that takes root, or an agent");
        }
        match embedded.run(&self.command, plan) {
            Ok(Outcome { status, finished, usage }) => {
                finished.notes.iter().for_each(|note| self.say(note));
                self.tell(&finished, Some(&usage));
                Ok(pass_on(status))
            }
            Err(error) => Ok(self.not_started(&error)),
        }
    }

    fn not_started(&self, error: &StartError) -> u8 {
        match error {
            StartError::Execute(errno) => cannot_run(&Unrunnable::from_errno(&self.command.name(), *errno)),
            StartError::Fork(_) => {
                complain(&error.to_string());
                FAILED
            }
        }
    }

    fn say_plan(&self, started: &Started) {
        started.notes.iter().for_each(|note| self.say(note));
        self.say(&output::plan(&started.prediction, &started.limits));
    }

    /// The result for people and for `--json`.
    fn tell(&self, finished: &Finished, usage: Option<&libc::rusage>) {
        self.say(&output::run(finished));
        if let Some(file) = &self.result
            && let Err(error) = output::write_json(file, finished, usage)
        {
            complain(&format!("failed to write the result: {error}"));
        }
    }
}
