//! A host that runs out of memory: what is needed least gives memory back, in order, until there is room again.
//!
//! 1. The claims of [`Agent::claims`], in the order in which they were added: warm spares and whatever else can go
//!    without any task noticing. Each is asked for what is still missing.
//! 2. Tasks that idle: their memory is reclaimed (`memory.reclaim`; v1 `memory.force_empty`), which costs them page
//!    faults when they go on. Their promises shrink where others wait (`queue`).
//!
//! Noticed by a trigger on the host's memory pressure where the kernel has one (PSI, Linux 5.2), and by looking
//! once a second everywhere.

use super::Agent;
use crate::cgroup::RunCgroup;
use crate::store::event::Event;
use crate::units::format_bytes;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tasks wait for memory in 150 ms of a second: `Documentation/accounting/psi.rst`.
const TRIGGER: &[u8] = b"some 150000 1000000\0";
const PRESSURE: &str = "/proc/pressure/memory";

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Least amount that is worth asking for, bytes.
const WANTED_LEAST: u64 = 64 << 20;

/// Memory that somebody holds and can give back.
pub(super) trait Claim {
    /// What it is, for the log: `shadows of web`.
    fn what(&self) -> String;

    /// Gives back up to `bytes`; returns how many. Must not wait.
    fn give_back(&self, bytes: u64) -> u64;
}

/// Watches the host until the agent stops.
pub(super) async fn watch(agent: Rc<Agent>) {
    let trigger = trigger();
    let mut stop = agent.stop.subscribe();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = pressed(trigger.as_ref()) => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let room = agent.engine.borrow().room().memory_bytes;
        if room < WANTED_LEAST {
            relieve(&agent, WANTED_LEAST - room);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn trigger() -> Option<AsyncFd<OwnedFd>> {
    let mut file = File::options().read(true).write(true).open(PRESSURE).ok()?;
    file.write_all(TRIGGER).ok()?;
    super::watch(file, Interest::PRIORITY).ok()
}

async fn pressed(trigger: Option<&AsyncFd<OwnedFd>>) {
    match trigger {
        Some(trigger) => match trigger.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn relieve(agent: &Agent, wanted: u64) {
    let mut missing = wanted;
    for claim in agent.claims.borrow().iter() {
        if missing == 0 {
            break;
        }
        let freed = claim.give_back(missing);
        if freed > 0 {
            agent.writer.log(reclaimed(&claim.what(), freed));
        }
        missing = missing.saturating_sub(freed);
    }
    if missing > 0 {
        agent.wanted.send_replace(missing);
    }
}

fn reclaimed(what: &str, bytes: u64) -> Event {
    let message = format!("{} taken back from {what}: the host is out of room", format_bytes(bytes as f64));
    Event::new("reclaimed", message).details(&serde_json::json!({ "bytes": bytes }))
}

/// Takes memory of an idle task back, aside: the kernel does it while the writer waits.
pub(super) async fn take_back(cgroup: RunCgroup, bytes: u64) -> Option<Event> {
    let freed = tokio::task::spawn_blocking(move || cgroup.reclaim(bytes)).await.ok()?;
    (freed > 0).then(|| reclaimed("an idle task", freed))
}
