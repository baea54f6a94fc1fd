//! The power is cut while jobs are recorded. `cargo xtask vm-test` cuts it (`xtask/src/vm_test/power_cut.rs`): it hears
//! on the serial line what [`jobs_run_until_the_power_is_cut`] saw recorded, ends the machine, boots the disk as it may be
//! then, and gives what it heard to [`a_power_cut_takes_no_run_that_was_recorded_before_the_last_moments`].
use crate::host::*;
use std::collections::BTreeMap;
use std::fs;
use std::thread::{self, sleep};
use std::time::Duration;

/// Jobs that run at once, one after the other in each lane, with a pause: so that the log of the database is not full,
/// and by that written, every few seconds.
const LANES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(3);

/// Jobs that never end.
const UNDER_WAY: u32 = 2;

/// How many cuts there were before.
fn round() -> String {
    std::env::var("STANDIN_ROUND").expect("vm-test says how many cuts there were")
}

/// Seconds since the machine was booted.
fn up_s() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// What the database says of every run that is ours, oldest first: task, result.
fn runs() -> Vec<(String, String)> {
    let database = database().unwrap();
    let mut query = database
        .prepare("SELECT task_type, result FROM run_summary WHERE task_type LIKE 'cut-%' ORDER BY run_id")
        .unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// How a job of [`lane`] ends, which its name tells.
fn exit_code(number: u32) -> u32 {
    number % 100
}

fn lane(round: &str, lane: u32) {
    for number in 0.. {
        let name = format!("cut-job-{round}-{lane}-{number}");
        let script = format!("exit {}", exit_code(number));
        let run = output(&["standin", "run", "--require-agent", "--name", &name, "--", "sh", "-c", &script]);
        assert_eq!(run.status.code(), i32::try_from(exit_code(number)).ok(), "{run:?}");
        sleep(PAUSE);
    }
}

#[ignore = "for an installed package"]
#[test]
fn jobs_run_until_the_power_is_cut() {
    ensure_started();
    let round = round();
    let before = runs().len();
    let name = |number| format!("cut-under-way-{round}-{number}");
    let run = |name: &str| {
        Job::start(&["standin", "run", "--require-agent", "--quiet", "--name", name, "--", "sleep", "9999"])
    };
    let mut under_way: Vec<_> = (0..UNDER_WAY).map(|number| run(&name(number))).collect();
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let round = round.clone();
        lanes.push(thread::spawn(move || lane(&round, number)));
    }
    let mut seen = BTreeMap::new();
    loop {
        let all = runs();
        let up_s = up_s();
        for (task, result) in all.into_iter().skip(before) {
            if seen.insert(task.clone(), result.clone()).as_ref() != Some(&result) {
                println!("@@seen {up_s} {task} {result}");
            }
        }
        println!("@@seen {up_s}");
        assert!(under_way.iter_mut().all(Job::is_running) && !lanes.iter().any(|lane| lane.is_finished()));
        sleep(Duration::from_millis(100));
    }
}

#[ignore = "for an installed package"]
#[test]
fn a_power_cut_takes_no_run_that_was_recorded_before_the_last_moments() {
    wait_until("systemd has started the agent", || property("standin.service", "ActiveState") == "active");
    assert_sound();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let open = format!(
        "SELECT count(*) FROM run JOIN run_launch ON run_id = id WHERE state = 'running' AND owner_boot_id <> '{}'",
        boot.trim()
    );
    wait_until("runs that were under way are closed", || recorded(&open) == Some(0_i64));
    let runs = runs();
    let now: BTreeMap<_, _> = runs.iter().cloned().collect();
    assert_eq!(now.len(), runs.len(), "each run once");
    for (task, result) in &now {
        assert!(may_have_ended(task, result), "{task}: {result}");
    }
    let heard = fs::read_to_string(format!("{}/heard", std::env::var("STANDIN_PAYLOAD").unwrap())).unwrap();
    let (mut late, mut lost) = (0, 0);
    for line in heard.lines() {
        let words: Vec<_> = line.splitn(3, ' ').collect();
        let (task, result) = (words[1], words[2]);
        match (words[0], now.get(task)) {
            ("must", Some(_)) if result == "running" => {}
            ("must", after) => assert_eq!(after.map(String::as_str), Some(result), "{line}"),
            (_, Some(after)) if after == result => late += 1,
            _ => lost += 1,
        }
    }
    println!("of what was seen in the last moments {late} are there, {lost} are not");
    let next = format!("cut-next-{}", round());
    let run = output(&["standin", "run", "--require-agent", "--name", &next, "--", "sh", "-c", "exit 9"]);
    assert_eq!(run.status.code(), Some(9), "{run:?}");
    assert_eq!(result_of(&next), "exit 9");
}

fn assert_sound() {
    let database = database().unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let orphans: i64 =
        database.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
    assert_eq!(orphans, 0);
    let files = fs::read_dir("/var/lib/standin").unwrap().flatten();
    let aside = files.filter(|file| file.file_name().to_string_lossy().contains("corrupt"));
    assert_eq!(aside.count(), 0, "no damaged database was moved aside");
}

/// With its own exit code, or closed as lost.
fn may_have_ended(task: &str, result: &str) -> bool {
    let number = || task.rsplit('-').next()?.parse().ok();
    match task.split('-').nth(1) {
        Some("under") => result == "lost",
        Some("next") => result == "exit 9" || result == "lost",
        _ => {
            result == "lost" || number().is_some_and(|number| result == format!("exit {}", exit_code(number)))
        }
    }
}
