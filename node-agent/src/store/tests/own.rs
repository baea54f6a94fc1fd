//! One user's part of the database holds that user's rows, all of them, and nobody else's.

use super::*;
use crate::store::failover;
use rusqlite::Connection;

/// Tables from which nothing goes over, because they are the same for everybody.
const FIXED: [&str; 3] = ["bucket", "demand_bucket", "resource"];

/// Two users with a run, an event and a failover each; the copies of both.
fn two_users() -> (tempfile::TempDir, [Connection; 2]) {
    let (directory, mut store) = temporary();
    for uid in [1, 2] {
        let run = ran(&mut store, &new_run(&format!("task-of-{uid}"), uid), well(), 100);
        store.log(&Event::new("limit_raised", format!("event-of-{uid}")).run(run)).unwrap();
        store
            .licenses_used(
                run,
                &LicensesUsed::from([("cad".into(), LicenseUse { peak: uid, ..LicenseUse::default() })]),
            )
            .unwrap();
        let service = format!("service-of-{uid}");
        store.add_failover(&NewFailover { uid, service: service.clone(), ..failover::sample() }).unwrap();
        store.add_service_hour(&service, uid, 9, 100.0).unwrap();
    }
    store.log(&Event::new("queued", "of nobody in particular")).unwrap();
    let copies = [1, 2].map(|uid| {
        let path = directory.path().join(format!("copy-{uid}.db"));
        std::fs::write(&path, Store::own_part(store.path(), uid).unwrap()).unwrap();
        Connection::open(path).unwrap()
    });
    (directory, copies)
}

fn count(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn each_user_has_own_rows_in_every_table_and_no_others() {
    let (directory, [first, second]) = two_users();
    let whole = Connection::open(directory.path().join("state/standin.db")).unwrap();
    let tables: Vec<String> = whole
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_sequence'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for table in tables.iter().filter(|table| !FIXED.contains(&table.as_str())) {
        let of = |db: &Connection| count(db, &format!("SELECT count(*) FROM \"{table}\""));
        if of(&whole) == 0 {
            continue;
        }
        assert!(of(&first) > 0, "{table}: decide in store/own.rs what of it is whose");
        assert_eq!(of(&first), of(&second), "{table}");
        // Coverage is kept once for all runs that have the same; one event is nobody's.
        let expected = match table.as_str() {
            "coverage" => of(&whole),
            "event" => (of(&whole) - 1) / 2,
            _ => of(&whole) / 2,
        };
        assert_eq!(of(&first), expected, "{table}");
    }
}

#[test]
fn no_word_of_another_user_is_in_the_file() {
    let (directory, _) = two_users();
    let bytes = std::fs::read(directory.path().join("copy-1.db")).unwrap();
    let holds = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    for of in ["task", "event", "service"] {
        assert!(holds(&format!("{of}-of-1")) && !holds(&format!("{of}-of-2")), "{of}");
    }
}

#[test]
fn it_reads_like_any_other_database() {
    let (directory, _) = two_users();
    let reader = Reader::open(&directory.path().join("copy-2.db")).unwrap();
    let tasks = reader.tasks().unwrap();
    assert_eq!((tasks.len(), tasks[0].uid, tasks[0].runs), (1, 2, 1));
    assert_eq!(reader.runs(None, 10).unwrap().len(), 1);
    assert_eq!(reader.history(&key("task-of-2", 2)).unwrap().task_and_user.len(), 1);
    assert!(reader.history(&key("task-of-1", 1)).unwrap().task.is_empty());
    let mut store = Store::open(&directory.path().join("copy-2.db")).unwrap().store;
    assert!(store.is_sound().unwrap());
    assert_eq!(number(&store, "PRAGMA application_id"), APPLICATION_ID);
    ran(&mut store, &new_run("task-of-2", 2), well(), 1);
}

#[test]
fn a_user_without_runs_has_an_empty_one() {
    let (_directory, store) = temporary();
    let bytes = Store::own_part(store.path(), 7).unwrap();
    assert!(bytes.starts_with(b"SQLite format 3\0"));
}
