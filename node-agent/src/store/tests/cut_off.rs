//! A power cut while the database is written: what was not synced yet may be missing or torn on the disk.
//!
//! With `synchronous=NORMAL` the log is synced only before it is copied into the database
//! (<https://sqlite.org/pragma.html#pragma_synchronous>). So while the database file has not changed, whatever was added
//! to the log may be there in part. The writer is stopped, both files are copied, and the copy of the log is cut or torn
//! within what was added since the last look.

use super::hostile::writing_child;
use super::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Cuts, and looks at most: each look needs a log that has grown beside a database that has not.
const CUTS: usize = 20;
const LOOKS: usize = 400;
/// How long the log may take to grow at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// The database and its log at one moment.
struct Look {
    database: Vec<u8>,
    log: Vec<u8>,
}

fn look(path: &Path, writer: Pid) -> Look {
    kill(writer, Signal::SIGSTOP).unwrap();
    let stopped = || {
        std::fs::read_dir(format!("/proc/{writer}/task")).unwrap().flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            matches!(crate::host::task_state(&stat), Some('T') | None)
        })
    };
    while !stopped() {
        std::thread::sleep(Duration::from_micros(100));
    }
    let read = |suffix: &str| std::fs::read(format!("{}{suffix}", path.display())).unwrap_or_default();
    let look = Look { database: read(""), log: read("-wal") };
    kill(writer, Signal::SIGCONT).unwrap();
    look
}

fn finished(path: &Path) -> i64 {
    let opened = Store::open(path).unwrap();
    assert_eq!(opened.moved_aside, None);
    let check: String =
        opened.store.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let torn = "SELECT count(*) FROM run r WHERE (SELECT count(*) FROM prediction WHERE run_id = r.id) <> 2
        OR (r.state = 'finished' AND (SELECT count(*) FROM run_series WHERE run_id = r.id) <> 5)";
    assert_eq!(number(&opened.store, torn), 0, "no half run");
    number(&opened.store, "SELECT count(*) FROM run WHERE state = 'finished'")
}

#[test]
fn cut_off_at_any_moment_the_database_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standin.db");
    drop(Store::open(&path).unwrap());
    let mut child = writing_child(&path);
    let writer = Pid::from_raw(child.id().cast_signed());
    let place = directory.path().join("after");
    std::fs::create_dir(&place).unwrap();
    let copy = place.join("standin.db");
    let restore = |database: &[u8], log: &[u8]| {
        for suffix in ["", "-wal", "-shm"] {
            _ = std::fs::remove_file(format!("{}{suffix}", copy.display()));
        }
        std::fs::write(&copy, database).unwrap();
        std::fs::write(format!("{}-wal", copy.display()), log).unwrap();
    };
    let (mut before, mut cuts, mut seed) = (look(&path, writer), 0, 88_172_645_463_325_252_u64);
    let start = Instant::now();
    for round in 0_usize.. {
        std::thread::sleep(Duration::from_millis(2 + round as u64 % 7));
        let now = look(&path, writer);
        let has_grown = now.database == before.database && now.log.len() > before.log.len();
        if has_grown && now.log.starts_with(&before.log) {
            restore(&before.database, &before.log);
            let least = finished(&copy);
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let added = now.log.len() - before.log.len();
            let cut = before.log.len() + (seed >> 33) as usize % (added + 1);
            let mut log = now.log[..cut].to_vec();
            // The sector that was being written holds anything.
            if round % 2 == 0 {
                log.extend((0..512).map(|byte| (byte * 31) as u8));
            }
            restore(&now.database, &log);
            let found = finished(&copy);
            assert!(found >= least, "{found} runs after a cut, {least} were there before");
            cuts += 1;
        }
        before = now;
        // A busy machine may take its time before anything is written.
        let is_enough = round >= LOOKS && (cuts > 0 || start.elapsed() > PATIENCE);
        if cuts == CUTS || is_enough {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(cuts > 0, "the log was never seen growing");
}
