//! What may be found in place of a sound database, and what may happen while it is written.

use super::*;
use crate::skip::skip;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

fn error(path: &Path) -> StoreError {
    Store::open(path).map(|_| ()).unwrap_err()
}

#[test]
fn a_fresh_database_is_ours_private_and_current() {
    let (_directory, store) = temporary();
    assert_eq!(number(&store, "PRAGMA application_id"), APPLICATION_ID);
    assert_eq!(number(&store, "PRAGMA user_version"), SCHEMA_VERSION);
    assert_eq!(number(&store, "PRAGMA foreign_keys"), 1);
    assert_eq!(number(&store, "PRAGMA synchronous"), 1);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(store.path()), 0o640);
    assert_eq!(mode(store.path().parent().unwrap()), 0o750);
    assert!(store.is_sound().unwrap());
}

#[test]
fn opening_again_finds_what_was_written() {
    let (_directory, mut store) = temporary();
    let path = store.path().to_owned();
    ran(&mut store, &new_run("sort", 1), well(), 1);
    drop(store);
    let opened = Store::open(&path).unwrap();
    assert_eq!(opened.moved_aside, None);
    assert_eq!(opened.store.history(&key("sort", 1)).unwrap().task_and_user.len(), 1);
}

#[test]
fn many_may_open_and_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standin.db");
    std::thread::scope(|scope| {
        for uid in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut store = Store::open(path).unwrap().store;
                for _ in 0..20 {
                    ran(&mut store, &new_run("sort", uid), well(), 1);
                }
            });
        }
    });
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.runs(None, 1000).unwrap().len(), 80);
}

/// Damages a database with a run in it and returns what opening it again says.
fn damaged(damage: impl FnOnce(&Path)) -> (tempfile::TempDir, Opened) {
    let (directory, mut store) = temporary();
    let path = store.path().to_owned();
    for _ in 0..50 {
        ran(&mut store, &new_run("sort", 1), well(), 1);
    }
    drop(store);
    damage(&path);
    let mut opened = Store::open(&path).unwrap();
    ran(&mut opened.store, &new_run("sort", 1), well(), 1);
    assert!(opened.store.is_sound().unwrap());
    (directory, opened)
}

fn cut(path: &Path, bytes: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
}

#[test]
fn random_bytes_and_cut_files_are_moved_aside() {
    for damage in [
        (|path| std::fs::write(path, [0x5a; 10_000]).unwrap()) as fn(&Path),
        |path| std::fs::write(path, "no database").unwrap(),
        |path| cut(path, 9000),
        |path| cut(path, 50),
        |path| {
            // The header stays, the schema does not.
            let mut bytes = std::fs::read(path).unwrap();
            bytes[100..4096].fill(0xff);
            std::fs::write(path, bytes).unwrap();
        },
    ] {
        let (_directory, opened) = damaged(damage);
        let aside = opened.moved_aside.expect("moved aside");
        assert!(aside.exists() && aside.to_string_lossy().contains("standin.db.corrupt-"));
        assert_eq!(opened.store.history(&key("sort", 1)).unwrap().task_and_user.len(), 1);
    }
}

#[test]
fn an_emptied_file_is_begun_again() {
    let (_directory, opened) = damaged(|path| std::fs::write(path, "").unwrap());
    assert_eq!(opened.moved_aside, None);
}

#[test]
fn damage_inside_is_found_by_the_full_check() {
    let (_directory, mut store) = temporary();
    let path = store.path().to_owned();
    for _ in 0..200 {
        ran(&mut store, &new_run("sort", 1), well(), 1);
    }
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let from = bytes.len() / 2;
    bytes[from..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let opened = Store::open(&path).unwrap();
    assert!(opened.moved_aside.is_some() || !opened.store.is_sound().unwrap_or(false));
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(error(&path), StoreError::Foreign { application_id: 0, .. }));
    assert!(matches!(Reader::open(&path), Err(StoreError::Foreign { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_schema_is_refused() {
    let (_directory, store) = temporary();
    store.execute("PRAGMA user_version = 99").unwrap();
    let error = error(store.path());
    assert!(matches!(error, StoreError::NewerSchema { found: 99, known: SCHEMA_VERSION, .. }));
    assert!(error.to_string().contains("update standin"), "{error}");
}

#[test]
fn a_lock_held_too_long_is_named() {
    let (_directory, store) = temporary();
    let mut second = Store::open(store.path()).unwrap().store;
    second.connection.busy_timeout(Duration::from_millis(50)).unwrap();
    store.execute("BEGIN IMMEDIATE").unwrap();
    let result = second.begin_run(&new_run("sort", 1));
    assert!(matches!(result, Err(StoreError::Locked { .. })), "{result:?}");
    store.execute("ROLLBACK").unwrap();
    second.begin_run(&new_run("sort", 1)).unwrap();
}

#[test]
fn places_that_cannot_be_are_named() {
    assert!(matches!(Reader::open(Path::new("/nonexistent/x.db")), Err(StoreError::Missing { .. })));
    assert!(matches!(
        error(Path::new("/proc/standin.db")),
        StoreError::File { .. } | StoreError::Permission { .. }
    ));
    assert!(matches!(error(Path::new("/dev/null/x.db")), StoreError::File { .. }));
}

/// A file system of its own, unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("{options},mode=0755"), "tmpfs"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            _ => {
                skip("mounting a tmpfs needs root");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_the_write_and_no_more() {
    let Some(mount) = Mount::new("size=1m") else {
        return;
    };
    let path = mount.0.path().join("standin.db");
    let filler = mount.0.path().join("filler");
    let mut store = Store::open(&path).unwrap().store;
    ran(&mut store, &new_run("sort", 1), well(), 1);
    // Takes all that is left; the write fails when there is no more.
    let _ = std::fs::write(&filler, vec![1; 2 << 20]);
    let failed = (0..1000).find_map(|_| store.begin_run(&new_run("sort", 1)).err());
    assert!(matches!(failed, Some(StoreError::NoSpace { .. })), "{failed:?}");
    assert!(failed.unwrap().to_string().contains("free some space"));
    std::fs::remove_file(&filler).unwrap();
    ran(&mut store, &new_run("sort", 1), well(), 1);
    assert!(store.is_sound().unwrap());
    drop(store);

    // A fresh database on a full disk.
    std::fs::remove_file(&path).unwrap();
    let _ = std::fs::write(&filler, vec![1; 2 << 20]);
    assert!(matches!(error(&path), StoreError::NoSpace { .. }));
}

#[test]
fn a_full_disk_does_not_end_the_writer() {
    let Some(mount) = Mount::new("size=1m") else {
        return;
    };
    let filler = mount.0.path().join("filler");
    let store = Store::open(&mount.0.path().join("standin.db")).unwrap().store;
    let writer = Writer::start(store).unwrap();
    let _ = std::fs::write(&filler, vec![1; 2 << 20]);
    let failed = (0..1000).find_map(|_| writer.begin_blocking(new_run("sort", 1)).err());
    assert!(matches!(failed, Some(StoreError::NoSpace { .. })), "{failed:?}");
    std::fs::remove_file(&filler).unwrap();
    writer.begin_blocking(new_run("sort", 1)).unwrap();
    assert_eq!(writer.failures(), 1);
}

#[test]
fn retention_on_a_full_disk_takes_nothing_else_along() {
    let Some(mount) = Mount::new("size=12m") else {
        return;
    };
    let path = mount.0.path().join("standin.db");
    let filler = mount.0.path().join("filler");
    let mut store = Store::open(&path).unwrap().store;
    (0..100).for_each(|_| _ = ran(&mut store, &new_run("sort", 1), well(), 1));
    // The room that the log has already must not be enough.
    store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let _ = std::fs::write(&filler, vec![1; 16 << 20]);
    let pruned = store.prune(&Retention { runs_per_task: 10, ..Retention::UNBOUNDED });
    assert!(matches!(pruned, Err(StoreError::NoSpace { .. })), "{pruned:?}");
    let kept = number(&store, "SELECT count(*) FROM run");
    assert!(kept >= 10, "{kept}");
    assert!(store.is_sound().unwrap());
    std::fs::remove_file(&filler).unwrap();
    store.prune(&Retention { runs_per_task: 10, ..Retention::UNBOUNDED }).unwrap();
    assert_eq!(number(&store, "SELECT count(*) FROM run"), 10);
    assert_eq!(number(&store, "SELECT runs FROM task"), 100, "what they add up to stays");
}

#[test]
fn runs_of_all_tasks_together_are_bounded_and_so_are_tasks() {
    let (_directory, mut store) = temporary();
    for number in 0..30 {
        ran(&mut store, &new_run(&format!("once-{number}"), 1), well(), 1);
    }
    let running = store.begin_run(&new_run("old", 1)).unwrap();
    (0..5).for_each(|_| _ = ran(&mut store, &new_run("sort", 1), well(), 1));
    assert_eq!(
        store.prune(&Retention { runs_per_task: 10, ..Retention::UNBOUNDED }).unwrap(),
        0,
        "no task has many"
    );
    assert_eq!(store.prune(&Retention { runs: 4, ..Retention::UNBOUNDED }).unwrap(), 31);
    assert_eq!(number(&store, "SELECT count(*) FROM run"), 5, "and one that is running");
    assert_eq!(store.open_runs().unwrap()[0].id, running);
    assert_eq!(number(&store, "SELECT count(*) FROM task"), 4, "those of which nothing is left are too many");
    assert_eq!(
        number(&store, "SELECT runs FROM task WHERE task_type = 'sort'"),
        5,
        "what they add up to stays"
    );
    let newest = "SELECT count(*) FROM task WHERE task_type IN ('old', 'once-29', 'once-28')";
    assert_eq!(number(&store, newest), 3, "the longest unused go first");
    ran(&mut store, &new_run("once-1", 1), well(), 1);
    assert_eq!(
        number(&store, "SELECT runs FROM task WHERE task_type = 'once-1'"),
        1,
        "one that is back begins anew"
    );
}

#[test]
fn a_read_only_file_system_is_named_and_can_be_read() {
    let Some(mount) = Mount::new("size=4m") else {
        return;
    };
    let path = mount.0.path().join("standin.db");
    let mut store = Store::open(&path).unwrap().store;
    ran(&mut store, &new_run("sort", 1), well(), 1);
    drop(store);
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(mount.0.path()).status();
    assert!(remounted.unwrap().success());
    assert!(matches!(error(&path), StoreError::ReadOnly { .. }));
    assert!(matches!(error(&mount.0.path().join("new.db")), StoreError::ReadOnly { .. }));
    assert_eq!(Reader::open(&path).unwrap().runs(None, 9).unwrap().len(), 1);
}

/// Runs `work` in a thread with the file permissions of `nobody`.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare system call changes the credentials of this thread only, and it ends here.
            let (group, user) = unsafe {
                (
                    libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534),
                    libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534),
                )
            };
            (group == 0 && user == 0).then(work)
        });
        thread.join().unwrap()
    })
}

#[test]
fn users_with_read_permission_read_with_and_without_an_agent() {
    let (directory, mut store) = temporary();
    let path = store.path().to_owned();
    ran(&mut store, &new_run("sort", 1), well(), 1);
    let open_to =
        |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open_to(directory.path(), 0o755);
    open_to(path.parent().unwrap(), 0o755);
    for suffix in ["", "-wal", "-shm"] {
        open_to(Path::new(&format!("{}{suffix}", path.display())), 0o644);
    }
    let runs = || Reader::open(&path).and_then(|reader| reader.runs(None, 9)).map(|runs| runs.len());
    let Some(with_agent) = as_nobody(runs) else {
        skip("changing the user needs root");
        return;
    };
    assert_eq!(with_agent.unwrap(), 1);
    assert!(matches!(
        as_nobody(|| Store::open(&path).map(|_| ())),
        Some(Err(StoreError::ReadOnly { .. } | StoreError::Permission { .. }))
    ));
    drop(store);
    assert_eq!(as_nobody(runs).unwrap().unwrap(), 1);
    open_to(&path, 0o640);
    assert!(matches!(as_nobody(runs), Some(Err(StoreError::Permission { .. }))));
}

/// Not a test by itself: the child that the tests below kill.
#[test]
fn child_that_writes_until_killed() {
    let Some(path) = std::env::var_os("STANDIN_TEST_WRITE_UNTIL_KILLED") else {
        return;
    };
    let writer = Writer::start(Store::open(Path::new(&path)).unwrap().store).unwrap();
    loop {
        let id = writer.begin_blocking(new_run("sort", 1)).unwrap();
        writer.checkpoint(id, measured(1));
        writer.finish_blocking(id, 1, well(), measured(2)).unwrap();
    }
}

pub(super) fn writing_child(path: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::hostile::child_that_writes_until_killed"])
        .env("STANDIN_TEST_WRITE_UNTIL_KILLED", path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Nobody has emptied the log, and who may only read cannot: what is in it must be seen all the same.
#[test]
fn after_a_kill_those_who_may_only_read_see_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standin.db");
    let mut child = writing_child(&path);
    let has_begun =
        || Reader::open(&path).and_then(|reader| reader.runs(None, 1)).is_ok_and(|runs| !runs.is_empty());
    (0..1500).take_while(|_| !has_begun()).for_each(|_| std::thread::sleep(Duration::from_millis(20)));
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", path.display());
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
    }
    let Some(runs) = as_nobody(|| Reader::open(&path)?.runs(None, usize::MAX).map(|runs| runs.len())) else {
        skip("changing the user needs root");
        return;
    };
    let runs = runs.unwrap();
    assert!(runs > 0);
    let store = Store::open(&path).unwrap().store;
    assert_eq!(number(&store, "SELECT count(*) FROM run"), runs as i64);
}

#[test]
fn killed_at_any_moment_the_database_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standin.db");
    for round in 0.. {
        let mut child = writing_child(&path);
        std::thread::sleep(Duration::from_millis(20 + round * 37));
        child.kill().unwrap();
        child.wait().unwrap();
        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.moved_aside, None);
        let check: String =
            opened.store.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        assert_eq!(number(&opened.store, "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        // Begun means all of its beginning, ended means all of its end.
        let torn = "SELECT count(*) FROM run r WHERE
            (SELECT count(*) FROM prediction WHERE run_id = r.id) <> 2
            OR (SELECT count(*) FROM run_feature WHERE run_id = r.id) <> 2
            OR (SELECT count(*) FROM limit_applied WHERE run_id = r.id) <> 7
            OR (r.state = 'finished' AND (SELECT count(*) FROM run_series WHERE run_id = r.id) <> 5)
            OR (r.state = 'finished' AND r.memory_peak_bytes <> 2 << 20)";
        assert_eq!(number(&opened.store, torn), 0);
        assert!(opened.store.open_runs().unwrap().len() as u64 <= round + 1);
        // On a busy machine the later ones, which get more time, are the first that write anything.
        let finished = number(&opened.store, "SELECT count(*) FROM run WHERE state = 'finished'");
        if round >= 7 && finished > 0 {
            break;
        }
        assert!(round < 80, "nothing is ever written");
    }
}
