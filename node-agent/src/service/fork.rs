//! Forked shadows (`--shadow cow`): copies of the primary as it is, made anew at intervals. They share its memory
//! and its listeners; so a copy needs no bringing up, and takes over by being thawed once the primary is gone.

use super::guard::Command as Say;
use super::supervisor::{Service, name};
use super::{ShadowKind, guard};
use crate::cgroup::InstanceCgroup;
use crate::shadow::cow::{self, CowError};
use crate::steer::Listener;
use nix::unistd::Pid;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

/// Why there is no copy.
pub(super) struct NoCopy {
    /// The slot that had been taken.
    pub(super) slot: Option<u32>,
    pub(super) why: String,
    /// There will never be one.
    pub(super) is_final: bool,
}

/// Pause before the next try where the primary is at work.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

impl Service {
    /// Makes a copy of the primary into a shadow.
    pub(super) async fn fork(&self) -> Result<(), NoCopy> {
        let before = |why: String| NoCopy { slot: None, why, is_final: false };
        let primary = self.primary().ok_or_else(|| before("nobody serves".into()))?;
        let number = self.next_number();
        let run = self.run.clone().ok_or_else(|| before("no cgroup for a shadow".into()))?;
        let cgroup =
            InstanceCgroup::create(&run, &format!("i{number}")).map_err(|error| before(error.to_string()))?;
        let place = cgroup.path().to_owned();
        let admitted = self.line.ask(|reply| Say::Admit { number, cgroup: Some(cgroup), reply });
        let slot = admitted.unwrap_or(Err("the service is ending".into())).map_err(before)?;
        let failed = |why: String| NoCopy { slot: Some(slot), why, is_final: false };
        let copy = loop {
            let (pid, place) = (Pid::from_raw(primary.pid), place.clone());
            let made = tokio::task::spawn_blocking(move || cow::fork_frozen(pid, &place)).await;
            match made.map_err(|error| failed(error.to_string()))? {
                Ok(copy) => break copy,
                Err(CowError::Busy(_)) if !self.stopping.get() => tokio::time::sleep(BUSY_PAUSE).await,
                Err(error) => {
                    let is_final = matches!(error, CowError::Refused(_) | CowError::Unsupported);
                    return Err(NoCopy { is_final, ..failed(error.to_string()) });
                }
            }
        };
        let pid = copy.pid.as_raw();
        super::bring_up::set_oom_score(&[pid], super::bring_up::SHADOW_OOM_SCORE);
        let listeners = listeners(primary.pid);
        self.line.ask(|reply| Say::Born { slot, pid, pidfd: copy.pidfd, is_copy: true, reply });
        let lent = self.line.ask(|reply| Say::Lend(slot, listeners, reply));
        lent.unwrap_or(Ok(())).map_err(failed)?;
        self.line.say(Say::Ready(slot));
        let pause_ms = copy.pause.as_secs_f64() * 1e3;
        tracing::debug!(
            "{} is a copy of {}; it stood still for {pause_ms:.1} ms",
            name(number, pid),
            primary.pid
        );
        Ok(())
    }

    /// What can't be copied has spawned shadows from then on.
    pub(super) fn no_copy(&self, problem: &NoCopy) {
        let mut said = format!("--shadow cow: {}", problem.why);
        if problem.is_final {
            self.kind.set(ShadowKind::Spawned);
            said += "; shadows are started instead";
        }
        self.say(&said);
        self.line.say(Say::NotStarted(problem.slot));
    }

    fn primary(&self) -> Option<guard::View> {
        let look = self.line.look();
        look.instances.into_iter().find(|view| Some(view.slot) == look.primary)
    }
}

/// The sockets that a process serves on: the copy's are the same.
fn listeners(pid: i32) -> Vec<Listener> {
    crate::steer::find(&[pid], &HashSet::new()).unwrap_or_default()
}

/// Makes copies anew at intervals: they do not know what the primary has learnt since.
pub(super) async fn refresh(service: Rc<Service>) {
    loop {
        tokio::time::sleep(service.options.refresh).await;
        let copies = service.line.look().instances.into_iter().filter(|view| view.is_copy && view.is_frozen);
        for view in copies {
            let said = format!("{} is made anew", name(view.number, view.pid));
            service.line.say(Say::Discard(view.slot, said));
        }
    }
}
