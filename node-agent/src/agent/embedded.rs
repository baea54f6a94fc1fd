//! The launcher leads its one task itself: no daemon, nothing set up. As root with probes, cgroup and limits;
//! otherwise with the kernel's accounts of its child only. The same record comes out.

mod service;

pub use service::EmbeddedHome;

use super::terms::{Terms, terms};
use super::{Engine, EngineOptions, Plan, Task, recover};
use crate::config::Config;
use crate::fingerprint::Measured;
use crate::fingerprint::from_rusage;
use crate::fingerprint::key::{self, Feature, TaskKey};
use crate::host::{self, ProcessId};
use crate::launch::{Child, Command, Exit, StartError};
use crate::predict::{History, predict};
use crate::store::Store;
use crate::store::record::{Ending, Engine as EngineKind, NewRun, RunId};
use crate::wire::{Finished, Leftover, Start};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most tasks that the embedded engine's probes have room for: its own, and nobody else's.
const TASKS_MAX: u32 = 4;

/// Old runs are dropped once in so many runs: looking for them reads the whole table.
const PRUNE_EVERY: i64 = 256;

/// Until a run has lasted that long it is looked at so often that nothing is stale.
const SETTLE_AFTER: Duration = Duration::from_secs(2);

/// How long the last processes of the task may take to leave its cgroup before it is left to the next sweep.
const LEAVE_WAIT: Duration = Duration::from_millis(200);

/// A task led by the launcher.
pub struct Embedded<'a> {
    config: &'a Config,
    start: Start,
    engine: Result<Engine, String>,
    store: Result<Store, String>,
    history: History,
    features: Vec<Feature>,
    notes: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Status of the main process as `wait(2)` has it.
    pub status: i32,
    /// The record.
    pub finished: Finished,
    /// The kernel's own account of the main process and the children it waited for.
    pub usage: libc::rusage,
}

impl<'a> Embedded<'a> {
    /// Sets up what there is: none of it may be missing so badly that the job can't run.
    pub fn prepare(config: &'a Config, start: Start, database: &Path) -> Self {
        let engine = if nix::unistd::geteuid().is_root() {
            let options = EngineOptions { tasks_max: TASKS_MAX, ..EngineOptions::new(config) };
            Engine::new(&options).map_err(|error| error.to_string())
        } else {
            Err("not root: no probes and no limits, only the kernel's accounts of the process".into())
        };
        let mut notes = Vec::new();
        let store = match Store::open(database) {
            Ok(opened) => {
                notes.extend(opened.moved_aside.map(|path| {
                    format!(
                        "the database was corrupt: it was moved to {} and a new one begun",
                        path.display()
                    )
                }));
                Ok(opened.store)
            }
            Err(error) => Err(error.to_string()),
        };
        let features = key::of_run(start.features.clone());
        let mut embedded =
            Self { config, start, features, engine, store, history: History::default(), notes };
        embedded.look_back();
        embedded
    }

    /// Closes runs whose launcher died, and reads the history of this task.
    fn look_back(&mut self) {
        let Ok(store) = &mut self.store else { return };
        let hierarchies = self.engine.as_ref().ok().map(Engine::hierarchies);
        if let Err(error) = recover::close_lost_runs(store, hierarchies) {
            self.notes.push(error.to_string());
        }
        if let Ok(engine) = &self.engine {
            recover::sweep_cgroups(engine.hierarchies(), engine.parent());
        }
        let key = TaskKey { task_type: self.start.task_type.clone(), uid: uid() };
        match store.history(&key) {
            Ok(history) => self.history = history,
            Err(error) => self.notes.push(error.to_string()),
        }
    }

    /// Which mode this is and what is missing, in one line.
    pub fn mode(&self) -> String {
        let mode = match &self.engine {
            Err(why) => why.clone(),
            Ok(engine) => match engine.probes() {
                Ok(_) => "measuring this run with own probes".into(),
                Err(why) => format!("no probes ({why}), using the kernel's accounts"),
            },
        };
        match &self.store {
            Ok(_) => mode,
            Err(why) => format!("{mode}; not recorded: {why}"),
        }
    }

    /// What is decided for the task.
    pub fn plan(&self) -> Plan {
        let Terms { policy, manual, .. } = terms(self.config, &self.start.task_type, &self.start);
        let prediction = predict(&self.history, &self.features, self.config.run.risk);
        match &self.engine {
            Ok(engine) => engine.plan(prediction, policy, manual),
            Err(_) => Plan { prediction, policy, manual, ..Plan::default() },
        }
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// [`StartError`] if it did not start; that is recorded too.
    pub fn run(mut self, command: &Command, plan: Plan) -> Result<Outcome, StartError> {
        let task = self.admit(&plan);
        let run = self.begin(&plan, task.as_ref());
        match task {
            Some(task) => self.lead(command, plan, task, run),
            None => self.lead_without_cgroup(command, plan, run),
        }
    }

    /// Makes the task's cgroup; where that is not possible it is noted.
    fn admit(&mut self, plan: &Plan) -> Option<Task> {
        let admitted = self.engine.as_mut().ok()?.admit(plan.clone());
        admitted
            .inspect_err(|error| self.notes.push(format!("not measured by probes, no limits: {error}")))
            .ok()
    }

    fn begin(&mut self, plan: &Plan, task: Option<&Task>) -> Option<RunId> {
        let run = NewRun {
            key: TaskKey { task_type: self.start.task_type.clone(), uid: uid() },
            user: host::user_name(uid()),
            command: self.start.command.clone(),
            directory: self.start.directory.clone(),
            started_at_ms: host::now_ms(),
            engine: if task.is_some() { EngineKind::Embedded } else { EngineKind::Accounting },
            owner: ProcessId::current(),
            main: None,
            cgroup: task.map(|task| (task.cgroup().path().display().to_string(), task.cgroup().id())),
            policy: plan.policy,
            features: self.features.clone(),
            prediction: plan.prediction.clone(),
            limits: plan.limits.clone(),
            admission: None,
        };
        self.recorded(|store| store.begin_run(&run))
    }

    /// Does something with the store; a failure becomes a note, once.
    fn recorded<T>(
        &mut self,
        act: impl FnOnce(&mut Store) -> Result<T, crate::store::StoreError>,
    ) -> Option<T> {
        match act(self.store.as_mut().ok()?) {
            Ok(done) => Some(done),
            Err(error) => {
                let note = format!("not recorded: {error}");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                None
            }
        }
    }

    fn lead(
        mut self,
        command: &Command,
        plan: Plan,
        mut task: Task,
        run: Option<RunId>,
    ) -> Result<Outcome, StartError> {
        let directory = File::open(task.cgroup().v2()).ok();
        let entrances = task.cgroup().entrances().unwrap_or_default();
        // The v2 entrance is the last one; a child born in the cgroup need not pass it.
        let v1_entrances = &entrances[..entrances.len().saturating_sub(usize::from(directory.is_some()))];
        if let Ok(engine) = &mut self.engine {
            engine.protect_tasks();
            task.start(engine, 0);
        }
        let child = match self.launch(command, Some(&task), directory.as_ref(), v1_entrances, run) {
            Ok(child) => child,
            Err(error) => {
                self.release(task, Leftover::Kill);
                return Err(error);
            }
        };
        self.follow(&child, &mut task, run);
        let exit = child.reap().unwrap_or_else(|_| unknown_exit());
        if self.start.leftover == Leftover::Wait {
            self.follow_rest(&mut task, run);
        }
        let notes = task.notes().to_vec();
        self.notes.extend(notes);
        let duration = task.elapsed();
        let (mut measured, ending) = self.release_measured(task, exit.status);
        if let Some(Err(why)) = self.engine.as_ref().ok().map(Engine::probes) {
            measured.fill_from(&from_rusage(&exit.usage, duration, why));
        }
        Ok(self.record(plan, run, measured, ending, exit))
    }

    /// Starts the main process and records which one it is, or that it did not start.
    fn launch(
        &mut self,
        command: &Command,
        task: Option<&Task>,
        cgroup: Option<&File>,
        entrances: &[File],
        run: Option<RunId>,
    ) -> Result<Child, StartError> {
        let launched = Child::fork(command, cgroup, entrances).and_then(|mut child| {
            if let (Some(task), Ok(engine)) = (task, &mut self.engine) {
                task.set_main(engine, child.pid());
            }
            if let (Some(run), Some(main)) = (run, ProcessId::of(child.pid())) {
                self.recorded(|store| store.set_main(run, &main));
            }
            child.release().map(|()| child)
        });
        launched.inspect_err(|error| self.not_started(run, error))
    }

    /// Samples until the main process has ended.
    fn follow(&mut self, child: &Child, task: &mut Task, run: Option<RunId>) {
        let mut recorded = Instant::now();
        while !child.wait_for(task.interval()) {
            self.measure(task, run, &mut recorded);
        }
    }

    /// Samples until the cgroup is empty.
    fn follow_rest(&mut self, task: &mut Task, run: Option<RunId>) {
        let mut recorded = Instant::now();
        while task.cgroup().is_populated() {
            std::thread::sleep(task.interval());
            self.measure(task, run, &mut recorded);
        }
    }

    fn measure(&mut self, task: &mut Task, run: Option<RunId>, recorded: &mut Instant) {
        let mut followed = Vec::new();
        if let Ok(engine) = &mut self.engine {
            followed = task.sample(engine);
            engine.drain_exits();
            if task.elapsed() > SETTLE_AFTER {
                engine.settle_stale();
            }
        }
        for followed in followed {
            let event = followed.event().task(&self.start.task_type).run(run);
            self.recorded(|store| store.log(&event));
        }
        if recorded.elapsed() >= Duration::from_secs(self.config.agent.checkpoint_s) {
            *recorded = Instant::now();
            if let (Some(run), Ok(engine)) = (run, &self.engine) {
                let measured = task.measured(engine);
                self.recorded(|store| store.checkpoint(run, &measured));
            }
        }
    }

    fn release_measured(&mut self, task: Task, status: i32) -> (Measured, Ending) {
        let Ok(engine) = &mut self.engine else {
            return Default::default();
        };
        task.settle(engine);
        let result = task.finish(engine, Some(status), self.start.leftover);
        let patience = Instant::now() + LEAVE_WAIT;
        let leaves = self.start.leftover != Leftover::Leave;
        while !engine.sweep() && Instant::now() < patience && (leaves || !engine.has_leftovers()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        result
    }

    fn release(&mut self, task: Task, leftover: Leftover) {
        if let Ok(engine) = &mut self.engine {
            task.finish(engine, None, leftover);
        }
    }

    fn not_started(&mut self, run: Option<RunId>, error: &StartError) {
        let exec_errno = match error {
            StartError::Execute(errno) => *errno,
            StartError::Fork(errno) => *errno as i32,
        };
        let ending = Ending { exec_errno: Some(exec_errno), ..Ending::default() };
        if let Some(run) = run {
            self.recorded(|store| store.finish_run(run, host::now_ms(), &ending, &Measured::default()));
        }
    }

    /// Without a cgroup: only what `wait4` tells in the end.
    fn lead_without_cgroup(
        mut self,
        command: &Command,
        plan: Plan,
        run: Option<RunId>,
    ) -> Result<Outcome, StartError> {
        if self.start.leftover == Leftover::Wait {
            // Orphans become ours, so that their end can be waited for.
            // SAFETY: plain system call on this process.
            unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        }
        let started = Instant::now();
        let child = self.launch(command, None, None, &[], run)?;
        while !child.wait_for(Duration::from_secs(3600)) {}
        let exit = child.reap().unwrap_or_else(|_| unknown_exit());
        if self.start.leftover == Leftover::Wait {
            while nix::sys::wait::wait().is_ok() {}
        }
        let why = self.engine.as_ref().err().cloned().unwrap_or_else(|| "no cgroup could be made".into());
        let measured = from_rusage(&exit.usage, started.elapsed(), &why);
        let ending = Ending {
            exit_code: libc::WIFEXITED(exit.status).then(|| libc::WEXITSTATUS(exit.status)),
            signal: libc::WIFSIGNALED(exit.status).then(|| libc::WTERMSIG(exit.status)),
            ..Ending::default()
        };
        Ok(self.record(plan, run, measured, ending, exit))
    }

    fn record(
        mut self,
        plan: Plan,
        run: Option<RunId>,
        measured: Measured,
        ending: Ending,
        exit: Exit,
    ) -> Outcome {
        let recorded = run.and_then(|run| {
            self.recorded(|store| store.finish_run(run, host::now_ms(), &ending, &measured)).map(|()| run)
        });
        if recorded.is_some_and(|run| run.0 % PRUNE_EVERY == 0) {
            self.recorded(|store| store.prune(&self.config.retention));
        }
        let finished = Finished {
            run: recorded.map(|run| run.0),
            task_type: self.start.task_type,
            user: host::user_name(uid()),
            ending,
            measured,
            prediction: plan.prediction,
            limits: plan.limits,
            notes: self.notes,
        };
        Outcome { status: exit.status, finished, usage: exit.usage }
    }
}

fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Only if somebody else has reaped our child.
fn unknown_exit() -> Exit {
    // SAFETY: all-zero is a valid rusage.
    let usage = unsafe { std::mem::zeroed() };
    Exit { status: 0, usage }
}
