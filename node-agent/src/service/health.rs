//! What goes on beside: the ready probe of the primary, the number of shadows, the end of an instance that retires.

use super::control::Card;
use super::guard::Command as Say;
use super::record::Recorder;
use super::supervisor::Service;
use crate::balance::{Cause, Load, Reason, scale};
use crate::host;
use crate::shadow;
use crate::steer;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Ready probes that have to fail in a row before the primary is taken for sick.
const FAILURES: u32 = 3;
/// Pause between two looks at the number of shadows.
const LEVEL_PAUSE: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
/// Pause between two looks whether a retiring instance has finished.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);

/// Probes whoever serves.
pub(super) async fn watch(service: Rc<Service>) {
    let Some(probe) = service.options.ready_probe.clone() else { return };
    let mut failures = (0, 0);
    loop {
        tokio::time::sleep(service.options.probe_interval).await;
        let Some((slot, number)) = primary(&service) else { continue };
        let answer = service.ask(&probe, number, false).await;
        if primary(&service) != Some((slot, number)) {
            continue;
        }
        let in_a_row = if failures.0 == number { failures.1 } else { 0 };
        match answer {
            Ok(()) if in_a_row >= FAILURES => {
                failures = (number, 0);
                service.line.say(Say::Well(slot));
            }
            Ok(()) => failures = (number, 0),
            Err(why) => {
                failures = (number, in_a_row + 1);
                if failures.1 >= FAILURES {
                    service.line.say(Say::Sick(
                        slot,
                        Cause::Unready(format!("{why}, {} times in a row", failures.1)),
                    ));
                }
            }
        }
    }
}

fn primary(service: &Service) -> Option<(u32, u64)> {
    let look = service.line.look();
    let slot = look.primary?;
    look.instances.iter().find(|view| view.slot == slot).map(|view| (slot, view.number))
}

/// Keeps the number of shadows at what is worth its memory.
pub(super) async fn level(service: Rc<Service>, card: Arc<Mutex<Card>>) {
    let (min, max) = service.options.shadows;
    let mut wanted = min;
    let mut reclaimed = false;
    loop {
        tokio::time::sleep(LEVEL_PAUSE).await;
        let shadow_bytes = shadow_bytes(&service);
        let Ok(mut card) = card.lock() else { return };
        let load = load(card.recent_failures(), card.demand(), shadow_bytes);
        let (now_wanted, reason) = scale(min, max, wanted, &load);
        card.wants(now_wanted, reason);
        drop(card);
        if reason == Reason::Memory && !reclaimed {
            // Shadows give their memory back before one of them goes.
            reclaimed = true;
            give_back(&service);
            continue;
        }
        reclaimed = reason == Reason::Memory;
        if now_wanted != wanted {
            service.say(&format!("{now_wanted} shadows instead of {wanted}: {}", reason.words()));
            wanted = now_wanted;
            service.line.say(Say::Wanted(wanted));
        }
    }
}

/// Asks for the memory of frozen shadows to be paged out.
fn give_back(service: &Service) {
    let frozen = service.line.look().instances.into_iter().filter(|view| view.is_frozen && !view.is_copy);
    let bytes: u64 = frozen.flat_map(|view| view.pids()).map(shadow::page_out).sum();
    if bytes > 0 {
        service.say("the host is short of memory: that of the shadows is paged out");
    }
}

/// Books the connections of each hour, and learns how busy the next one will be.
pub(super) async fn hours(service: Rc<Service>, card: Arc<Mutex<Card>>, recorder: Recorder) {
    let mut counted = 0;
    let mut booked = None;
    loop {
        let (recorder, hour) = (recorder.clone(), host::hour_of_week().cast_unsigned());
        let asked = tokio::task::spawn_blocking(move || recorder.hour(hour, booked)).await;
        if let (Ok(demand), Ok(mut card)) = (asked, card.lock()) {
            card.expects(demand);
        }
        tokio::time::sleep(HOUR).await;
        let established = service.line.look().steered.established;
        booked = Some((hour, (established - counted) as f64));
        counted = established;
    }
}

fn load(failures: usize, demand: Option<f64>, shadow_bytes: u64) -> Load {
    use procfs::{Current, Meminfo};
    let memory = Meminfo::current().ok();
    let pressure = procfs::MemoryPressure::current().map_or(0.0, |pressure| f64::from(pressure.some.avg10));
    Load {
        failures,
        demand,
        available_bytes: memory.as_ref().and_then(|memory| memory.mem_available).unwrap_or(u64::MAX),
        total_bytes: memory.map_or(0, |memory| memory.mem_total),
        shadow_bytes,
        pressure,
    }
}

/// Cheap, and on the safe side: what is shared counts as well.
fn resident_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * host::page_bytes()
}

/// What one more shadow would hold.
fn shadow_bytes(service: &Service) -> u64 {
    let look = service.line.look();
    let primary = look.instances.iter().find(|view| Some(view.slot) == look.primary);
    primary.map_or(0, |view| view.pids().iter().map(|pid| resident_bytes(*pid)).sum())
}

/// Waits until a retiring instance has finished what it has accepted.
pub(super) async fn drain(service: Rc<Service>, slot: u32) {
    let until = Instant::now() + service.options.drain_timeout;
    loop {
        tokio::time::sleep(DRAIN_PAUSE).await;
        let look = service.line.look();
        let Some(view) = look.instances.into_iter().find(|view| view.slot == slot) else { return };
        let open = steer::connections(&view.pids());
        if view.queue == 0 && open == 0 {
            break;
        }
        if Instant::now() >= until {
            service.say(&format!(
                "instance {} still has {open} connections after {} s; it is told to end all the same",
                view.number,
                service.options.drain_timeout.as_secs()
            ));
            break;
        }
    }
    service.line.say(Say::Drained(slot));
}
