//! The power is cut while jobs are recorded, and the disk is booted again.
//!
//! A machine with the package on a journalling root runs jobs and says on the serial line what it sees recorded, until
//! QEMU is killed. The power was cut at one of the writes of the last seconds, by chance: what was said later is forgotten,
//! and the disk is made what a disk with a volatile cache may have kept then (`write_log`). That disk is booted: nothing of
//! the machine that was killed is left. The guest is told what it had said, and checks: the database is sound, everything
//! is there that had been seen recorded [`MOMENTS_S`] before the cut, what was under way is closed as lost, the next job is
//! recorded. Then jobs run until the next cut.
//!
//! Killing QEMU alone would be too kind: the host's memory keeps what the guest wrote and never flushed.
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, ensure};
use fastrand::Rng;

use super::{
    kernel::Kernel,
    machine::{self, Machine, Word},
    write_log::WriteLog,
};
use crate::{
    guest::Payload,
    process::{done, status},
};

/// What runs in the guest.
const JOB: &str = include_str!("power-cut.sh");

/// How often the power is cut.
const CUTS: u32 = 3;

/// How long before the cut something must have been seen recorded to be there, in seconds of the guest. Promised is one,
/// and as long as the disk takes; an emulated machine may take some for everything. (The guest's kernel by itself would
/// write it after 30.)
const MOMENTS_S: f64 = 5.0;

/// Jobs run for so long after the first was seen to have ended, and the power is cut after so much of it at the earliest.
const JOBS_FOR: Duration = Duration::from_secs(16);
const CUT_FROM: Duration = Duration::from_secs(8);

/// Whether the guest said after each cut that all is well.
pub(super) fn test(
    kernel: &'static Kernel,
    guest: &Path,
    payload: &Payload,
    seed: Option<u64>,
) -> Result<bool> {
    let seed = seed.unwrap_or_else(|| SystemTime::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs()));
    println!("{:>4} | {CUTS} power cuts, --seed {seed}", kernel.name);
    let scratch = machine::scratch("power")?;
    let mut chance = Rng::with_seed(seed);
    let passed = prepare(guest, payload, &scratch).and_then(|()| cut(kernel, guest, &scratch, &mut chance));
    _ = fs::remove_dir_all(&scratch);
    passed
}

/// A copy of the guest's disk, with a journal: the guest itself does without.
fn prepare(guest: &Path, payload: &Payload, scratch: &Path) -> Result<()> {
    let disk = scratch.join("disk");
    done(Command::new("cp").arg("--sparse=always").args([&guest.join("disk"), &disk]))?;
    // It was mounted when the guest was frozen. 1: something was mended.
    let checked = status(Command::new("e2fsck").args(["-fy"]).arg(&disk).stdout(Stdio::null()))?;
    ensure!(matches!(checked.code(), Some(0 | 1)), "the guest's disk is damaged");
    done(Command::new("tune2fs").args(["-J", "size=16"]).arg(&disk).stdout(Stdio::null()))?;
    payload.lay(&scratch.join("payload"))?;
    Ok(fs::write(scratch.join("payload/run.sh"), JOB)?)
}

fn cut(kernel: &'static Kernel, guest: &Path, scratch: &Path, chance: &mut Rng) -> Result<bool> {
    let (disk, before, log) = (scratch.join("disk"), scratch.join("before"), scratch.join("log"));
    for round in 0..CUTS {
        fs::write(scratch.join("payload/round"), round.to_string())?;
        done(Command::new("cp").arg("--sparse=always").args([&disk, &before]))?;
        fs::write(&log, "")?;
        let mut machine = Machine::boot(kernel, guest, scratch)?;
        let Some((heard, from)) = hear(&mut machine, &log)? else { return Ok(false) };
        drop(machine);
        fs::rename(&before, &disk)?;
        let mut writes = WriteLog::open(&log)?;
        let list = list(&heard, writes.cut(from, chance)?);
        let kept = writes.replay(&disk, chance)?;
        let must = list.lines().filter(|line| line.starts_with("must ")).count();
        println!(
            "{:>4} | cut {}: {} runs were seen recorded, {must} early enough; {} blocks were flushed to the disk, of {} \
             more {} are lost",
            kernel.name,
            round + 1,
            list.lines().count(),
            kept.flushed,
            kept.by_luck + kept.lost,
            kept.lost
        );
        ensure!(must > 0, "nothing was recorded early enough to prove anything");
        fs::write(scratch.join("payload/heard"), list)?;
    }
    fs::write(scratch.join("payload/round"), CUTS.to_string())?;
    fs::write(scratch.join("payload/last"), "")?;
    fs::write(&log, "")?;
    Ok(Machine::boot(kernel, guest, scratch)?.run_to_its_end()? == 0)
}

/// What the guest said that it saw in the database.
struct Seen {
    /// When, in seconds since the guest was booted.
    seconds: f64,
    /// `TASK RESULT`; nothing new where it is empty.
    run: String,
    /// How long the log of the disk's writes was when it was heard: at least as long as when it was seen.
    log: u64,
}

impl Seen {
    /// `SECONDS` or `SECONDS TASK RESULT`.
    fn parse(word: &str, log: &Path) -> Result<Self> {
        let (seconds, run) = word.split_once(' ').unwrap_or((word, ""));
        Ok(Self { seconds: seconds.parse()?, run: run.to_owned(), log: fs::metadata(log)?.len() })
    }

    fn is_end(&self) -> bool {
        !self.run.is_empty() && !self.run.ends_with(" running")
    }

    fn task(&self) -> &str {
        self.run.split(' ').next().unwrap_or_default()
    }
}

/// What was heard until the log was so long, for the guest to look for: `must TASK RESULT` for what was seen early enough
/// to be there after a cut, `may TASK RESULT` for ends that were not.
fn list(heard: &[Seen], log: u64) -> String {
    let heard: Vec<_> = heard.iter().take_while(|seen| seen.log <= log).collect();
    let until_s = heard.last().map_or(0.0, |seen| seen.seconds);
    let is_early = |seen: &Seen| seen.seconds + MOMENTS_S <= until_s;
    let ended_early =
        |task: &str| heard.iter().any(|seen| is_early(seen) && seen.is_end() && seen.task() == task);
    let line = |seen: &&Seen| match (is_early(seen), seen.is_end()) {
        (true, true) => Some(format!("must {}\n", seen.run)),
        (true, false) if !seen.run.is_empty() && !ended_early(seen.task()) => {
            Some(format!("must {}\n", seen.run))
        }
        (false, true) => Some(format!("may {}\n", seen.run)),
        _ => None,
    };
    heard.iter().filter_map(line).collect()
}

/// Has the guest run its job and listens to it for as long as jobs are to run; nothing if it ended, which it must not.
/// Gives also how long the log was when the power could be cut for the first time.
fn hear(machine: &mut Machine, log: &Path) -> Result<Option<(Vec<Seen>, u64)>> {
    machine.go()?;
    let (mut heard, mut first_end, mut from) = (Vec::new(), None::<Instant>, None);
    while first_end.is_none_or(|first| first.elapsed() < JOBS_FOR) {
        match machine.listen()? {
            Some(Word::Seen(word)) => heard.push(Seen::parse(&word, log)?),
            Some(Word::Ended(_)) => return Ok(None),
            None => {}
        }
        if first_end.is_none() && heard.last().is_some_and(Seen::is_end) {
            first_end = Some(Instant::now());
        }
        if first_end.is_some_and(|first| first.elapsed() >= CUT_FROM) && from.is_none() {
            from = Some(fs::metadata(log)?.len());
        }
    }
    Ok(from.map(|from| (heard, from)))
}
