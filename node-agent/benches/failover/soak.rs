//! redis, nginx and node, each a service with a shadow, killed at random under load for as long as asked: how many
//! of the clients' requests failed. In the end standin itself must be as it was in the beginning.

use crate::Settings;
use crate::load::{Fates, Load};
use crate::own_view::logged;
use crate::real::{NGINX, NODE, REDIS, Real};
use crate::service::Service;
use crate::support::{Sandbox, signal};
use crate::table::spread;
use anyhow::{Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

const MINUTES: f64 = 10.0;
/// New connections per second to each.
const RATE: u32 = 200;
/// Pause between two kills, whoever is hit: at least, and the mean of what is drawn on top.
const PAUSE_MIN: f64 = 0.5;
const PAUSE_MEAN: f64 = 2.0;

/// Deaths, drawn with equal chances.
const SIGNALS: [i32; 4] = [libc::SIGKILL, libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT];

/// What the supervisor holds.
#[derive(Clone, Copy, Default)]
struct Holds {
    descriptors: usize,
    threads: usize,
    resident_mib: f64,
}

impl std::fmt::Display for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { descriptors, threads, resident_mib } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {resident_mib:.1} MiB resident")
    }
}

/// One service under load.
struct Soaked<'a> {
    real: Real,
    service: Service<'a>,
    load: Load,
    kills: u64,
    /// Of those, with no shadow ready.
    bare: u64,
    before: Holds,
}

pub(crate) fn run(settings: &Settings) -> Result<()> {
    let minutes = settings.minutes.unwrap_or(MINUTES);
    let sandbox = Sandbox::with_config("probes = false");
    let start = |real: Real| {
        let service = real.service(&sandbox);
        let load = Load::numbered(service.address(), RATE, 0, |_| real.request.to_vec());
        let before = holds(service.child.id());
        Soaked { real, service, load, kills: 0, bare: 0, before }
    };
    let mut soaked: Vec<Soaked<'_>> =
        [REDIS, NGINX, NODE].into_iter().filter(Real::is_there).map(start).collect();
    ensure!(!soaked.is_empty(), "none of the servers is installed");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    while Instant::now() < until {
        let pause = PAUSE_MIN - PAUSE_MEAN * (1.0 - random.fraction()).ln();
        std::thread::sleep(Duration::from_secs_f64(pause.min(10.0)));
        let index = (random.fraction() * soaked.len() as f64) as usize;
        kill(&mut soaked[index], SIGNALS[(random.fraction() * SIGNALS.len() as f64) as usize]);
    }
    std::thread::sleep(Duration::from_secs(2));
    println!(
        "\nkilled at random for {minutes} minutes under {RATE} new connections/s each (SIGKILL, SIGSEGV, SIGABRT)"
    );
    println!(
        "{:<10}{:>7}{:>10}{:>10}{:>9}{:>8}{:>8}{:>10}{:>12}{:>10}",
        "", "kills", "unarmed", "requests", "refused", "reset", "empty", "timeouts", "per kill", "longest"
    );
    soaked.into_iter().for_each(|soaked| report(soaked, &sandbox));
    Ok(())
}

fn kill(soaked: &mut Soaked<'_>, number: i32) {
    let Some(primary) = soaked.service.pids("primary").first().copied() else { return };
    soaked.kills += 1;
    soaked.bare += u64::from(soaked.service.pids("shadow").is_empty());
    signal(primary, number);
}

fn report(soaked: Soaked<'_>, sandbox: &Sandbox) {
    let Soaked { real, service, load, kills, bare, before } = soaked;
    let fates = load.finish();
    let Fates { refused, reset, empty, timed_out, .. } = fates;
    println!(
        "{:<10}{kills:>7}{bare:>10}{:>10}{refused:>9}{reset:>8}{empty:>8}{timed_out:>10}{:>12.2}{:>10.1}",
        real.name,
        fates.sent(),
        fates.failed() as f64 / kills.max(1) as f64,
        fates.latency_us(1.0) as f64 / 1e3
    );
    let rows = logged(sandbox, real.program_name());
    let sum = |of: fn(&crate::own_view::Logged) -> i64| rows.iter().map(of).sum::<i64>();
    let thawed: Vec<f64> = rows.iter().filter_map(|row| row.steps[3]).collect();
    println!(
        "  logged: {} failovers ({} died), {} queued, {} migrated; thawed after, ms {}",
        rows.len(),
        rows.iter().filter(|row| row.cause == "died").count(),
        sum(|row| row.queued),
        sum(|row| row.migrated),
        spread(&thawed)
    );
    let after = holds(service.child.id());
    println!("  the supervisor: {before} before, {after} after");
    drop(service);
}

fn holds(pid: u32) -> Holds {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).into_iter().flatten().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Holds { descriptors: count("fd"), threads: count("task"), resident_mib: kib.unwrap_or(0.0) / 1024.0 }
}

/// xorshift64*, Marsaglia 2003 and Vigna 2016: the same kills in every run.
struct Random(u64);

impl Random {
    /// From 0 up to 1.
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}
