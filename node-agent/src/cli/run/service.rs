//! `standin run --shadows N -- SERVER`: the launcher stays and supervises the service.

use super::{Launcher, denied};
use crate::agent::embedded::Embedded;
use crate::balance::{Restart, Rules};
use crate::cli::ask::Answer;
use crate::cli::exit::complain;
use crate::launch::{Command, pass_on};
use crate::service::probe::Probe;
use crate::service::{
    ControlPlace, Lodged, Options, Recorder, ServiceError, ShadowKind, control_directory, supervise,
};
use crate::wire::{Leftover, Start};
use anyhow::bail;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Services")]
pub(in crate::cli) struct ServiceArgs {
    /// Keep a service running: with N warm shadows, or between MIN and MAX of them; 0 restarts it when it dies
    #[arg(long, value_name = "N|MIN..MAX", value_parser = parse_shadows)]
    shadows: Option<(usize, usize)>,
    /// How a shadow comes to be
    #[arg(long, value_enum, default_value = "spawned", requires = "shadows")]
    shadow: ShadowArg,
    /// A forked shadow is made anew after so long
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "5m", requires = "shadows")]
    refresh: Duration,
    /// http://HOST:PORT/PATH or a command: must succeed before an instance serves, and while it does
    #[arg(long, value_name = "URL|CMD", value_parser = Probe::parse, requires = "shadows")]
    ready_probe: Option<Probe>,
    /// Pause between ready probes of the primary; three that fail in a row move the traffic
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s", requires = "shadows")]
    probe_interval: Duration,
    /// How long one ready probe may take
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "2s", requires = "shadows")]
    probe_timeout: Duration,
    /// A command that warms a shadow: its connections to the service go to that shadow
    #[arg(long, value_name = "CMD", requires = "shadows")]
    warm_with: Option<OsString>,
    /// A port of the service (repeatable) [default: all that it listens on]
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "shadows")]
    ports: Vec<u16>,
    /// Listen on ADDRESS:PORT and give the socket to the service, as systemd does (LISTEN_FDS) (repeatable)
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address, requires = "shadows")]
    listen: Vec<SocketAddr>,
    /// The service says READY=1 to NOTIFY_SOCKET when it is ready
    #[arg(long, requires = "shadows")]
    notify: bool,
    /// Move the traffic when most answers take longer (from the request's last bytes to the answer's first)
    #[arg(long = "max-latency", value_name = "TIME", value_parser = parse_time, requires = "shadows")]
    latency_max: Option<Duration>,
    /// Which ends of the service are failures
    #[arg(long, value_enum, default_value = "on-failure", requires = "shadows")]
    restart: RestartArg,
    /// Only one instance may run unfrozen: an old one is dead before its shadow goes on
    #[arg(long, requires = "shadows")]
    single_writer: bool,
    /// Failovers per minute that happen at once; further ones wait
    #[arg(long, value_name = "N", default_value_t = Rules::default().failovers_max, requires = "shadows")]
    failovers_max: usize,
    /// How long a shadow may take to get ready [default: four times what the first instance took, at least 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "shadows")]
    start_timeout: Option<Duration>,
    /// How long an instance that is told to end may take before it is killed
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10s", requires = "shadows")]
    stop_timeout: Duration,
    /// How long an instance may take to finish its connections when a failover was asked for
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "30s", requires = "shadows")]
    drain_timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShadowArg {
    /// The command is started once more, and frozen when it is warm
    Spawned,
    /// The primary is made to fork: the shadow shares its memory (single-threaded servers)
    Cow,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RestartArg {
    /// A signal, or an exit code other than 0; exit 0 ends the service
    OnFailure,
    /// Every end
    Always,
}

/// `2` or `1..3`.
fn parse_shadows(text: &str) -> Result<(usize, usize), String> {
    let most = crate::steer::SLOTS_MAX as usize - 3;
    let allowed = || format!("allowed is a number from 0 to {most}, or MIN..MAX, such as 1..3");
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number <= most).ok_or_else(allowed);
    let (min, max) = match text.split_once("..") {
        Some((min, max)) => (number(min)?, number(max)?),
        None => (number(text)?, number(text)?),
    };
    if min <= max { Ok((min, max)) } else { Err(allowed()) }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    crate::units::parse_duration(text).map_err(|error| error.to_string())
}

/// A bare port stands for all addresses, both families where the host has them.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    let address = port.map(|port| SocketAddr::from(([0; 8], port))).or_else(|| text.parse().ok());
    address
        .filter(|address| address.port() > 0)
        .ok_or_else(|| "allowed is ADDRESS:PORT or PORT, such as 127.0.0.1:8080 or [::1]:8080".into())
}

impl ServiceArgs {
    /// Whether a service is meant.
    pub(super) fn is_given(&self) -> bool {
        self.shadows.is_some()
    }

    fn options(&self, name: &str) -> Options {
        Options {
            name: name.to_owned(),
            shadows: self.shadows.unwrap_or_default(),
            kind: match self.shadow {
                ShadowArg::Spawned => ShadowKind::Spawned,
                ShadowArg::Cow => ShadowKind::Forked,
            },
            refresh: self.refresh,
            ready_probe: self.ready_probe.clone(),
            probe_interval: self.probe_interval,
            probe_timeout: self.probe_timeout,
            warm_with: self.warm_with.clone(),
            ports: self.ports.clone(),
            latency_max: self.latency_max,
            listen: self.listen.clone(),
            notify: self.notify,
            rules: Rules {
                restart: match self.restart {
                    RestartArg::OnFailure => Restart::OnFailure,
                    RestartArg::Always => Restart::Always,
                },
                single_writer: self.single_writer,
                failovers_max: self.failovers_max,
                ..Rules::default()
            },
            start_timeout: self.start_timeout,
            stop_timeout: self.stop_timeout,
            drain_timeout: self.drain_timeout,
        }
    }
}

impl Launcher<'_> {
    /// Runs the command as a service. An agent, if there is one, measures it; failover needs none.
    pub(super) fn serve(&mut self, mut start: Start) -> anyhow::Result<u8> {
        let options = self.arguments.service.options(&start.task_type);
        let place = ControlPlace::new(&control_directory(&self.settings.socket), &options.name);
        let database = self.settings.database.clone();
        let uid = nix::unistd::geteuid();
        let mut recorder =
            Recorder { database, agent: None, service: options.name.clone(), uid: uid.as_raw() };
        // Root's service outlives its launcher, to be taken up by the next; others' ends with it.
        start.leftover = if uid.is_root() { Leftover::Leave } else { Leftover::Kill };
        let is_quiet = self.arguments.quiet;
        let say = move |text: &str| {
            if !is_quiet {
                complain(text);
            }
        };
        let command = Command::resolve(self.command.argv().to_vec())?;
        match self.agent() {
            Ok(Some(mut agent)) => match self.asking().start(&mut agent, &start, || None) {
                Ok(Answer::Started(started)) => {
                    self.say_plan(&started);
                    recorder.agent = (!uid.is_root()).then(|| self.settings.socket.clone());
                    let mut home = Lodged::with(agent);
                    let status = supervise(options, command, &mut home, &place, recorder, Box::new(say));
                    return self.end_service(status);
                }
                Ok(Answer::Denied(why)) => return Ok(denied(&why)),
                Ok(Answer::Interrupted(signal)) => return Ok(pass_on(signal as i32)),
                Err(problem) => self.say(&format!("agent at {}: {problem}", self.settings.socket.display())),
            },
            Ok(None) => {}
            Err(problem) if self.arguments.require_agent => bail!("--require-agent: {problem}"),
            Err(problem) => self.say(&problem),
        }
        let embedded = Embedded::prepare(&self.settings.config, start, &self.settings.database);
        self.say(&embedded.mode());
        let plan = embedded.plan();
        let mut home = embedded.settle(plan);
        let status = supervise(options, command, &mut home, &place, recorder, Box::new(say));
        let outcome = home.finish(status.as_ref().copied().unwrap_or(0));
        outcome.finished.notes.iter().for_each(|note| self.say(note));
        self.tell(&outcome.finished, None);
        self.end_service(status)
    }

    fn end_service(&self, status: Result<i32, ServiceError>) -> anyhow::Result<u8> {
        match status {
            Ok(status) => Ok(pass_on(status)),
            Err(ServiceError::Start(error)) => Ok(self.not_started(&error)),
            Err(error) => Err(error.into()),
        }
    }
}
