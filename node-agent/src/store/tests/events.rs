//! The event log: what is logged is found again, by every filter, and stays bounded.

use super::*;
use serde_json::json;

fn kinds(store: &Store, filter: &Filter) -> Vec<String> {
    let reader = Reader::open(store.path()).unwrap();
    reader.events(filter, 100).unwrap().into_iter().map(|event| event.kind).collect()
}

#[test]
fn an_event_is_read_as_it_was_logged() {
    let (_directory, mut store) = temporary();
    let run = ran(&mut store, &new_run("sort", 1), well(), 100);
    let event = Event::new("limit_raised", "memory.high raised to 1 GiB").run(run);
    store.log(&event.details(&json!({ "memory_high_bytes": 1 << 30 }))).unwrap();
    let row = Reader::open(store.path()).unwrap().events(&Filter::default(), 1).unwrap().remove(0);
    assert_eq!((row.kind.as_str(), row.severity, row.run_id), ("limit_raised", Severity::Info, Some(run)));
    assert_eq!(row.task_type.as_deref(), Some("sort"), "the task is that of the run");
    assert_eq!(row.details["memory_high_bytes"], 1 << 30);
    assert!((crate::host::now_ms() - row.at_ms).abs() < 60_000);
}

#[test]
fn each_filter_leaves_out_what_it_says() {
    let (_directory, mut store) = temporary();
    let run = ran(&mut store, &new_run("sort", 1), well(), 100);
    store.log(&Event::new("a", "").run(run)).unwrap();
    store.log(&Event::new("b", "").task("xz").severity(Severity::Warning)).unwrap();
    store.log(&Event::new("c", "").service("web").severity(Severity::Error)).unwrap();
    let all = Filter::default;
    assert_eq!(kinds(&store, &all()), ["c", "b", "a"]);
    assert_eq!(kinds(&store, &Filter { kind: Some("b".into()), ..all() }), ["b"]);
    assert_eq!(kinds(&store, &Filter { task_type: Some("sort".into()), ..all() }), ["a"]);
    assert_eq!(kinds(&store, &Filter { run: Some(run.0), ..all() }), ["a"]);
    assert_eq!(kinds(&store, &Filter { service: Some("web".into()), ..all() }), ["c"]);
    assert_eq!(kinds(&store, &Filter { severity: Severity::Warning, ..all() }), ["c", "b"]);
    assert_eq!(kinds(&store, &Filter { after: 2, ..all() }), ["c"]);
    assert!(kinds(&store, &Filter { since_ms: i64::MAX, ..all() }).is_empty());
}

#[test]
fn an_event_outlives_its_run_and_one_without_a_run_is_no_error() {
    let (_directory, mut store) = temporary();
    let run = ran(&mut store, &new_run("sort", 1), well(), 100);
    ran(&mut store, &new_run("sort", 1), well(), 100);
    store.log(&Event::new("a", "").run(run)).unwrap();
    store.log(&Event::new("b", "").run(RunId(999))).unwrap();
    store.prune(&Retention { runs_per_task: 1, ..Retention::UNBOUNDED }).unwrap();
    let rows = Reader::open(store.path()).unwrap().events(&Filter::default(), 9).unwrap();
    assert_eq!(rows.iter().map(|row| row.run_id).collect::<Vec<_>>(), [None, None]);
}

#[test]
fn old_events_and_too_many_go() {
    let (_directory, mut store) = temporary();
    for kind in ["a", "b", "c", "d"] {
        store.log(&Event::new(kind, "")).unwrap();
    }
    store.execute("UPDATE event SET at_ms = 5 WHERE kind IN ('a', 'c')").unwrap();
    let connection = &store.connection;
    assert_eq!(crate::store::event::prune(connection, 5, 9).unwrap(), 0);
    assert_eq!(crate::store::event::prune(connection, i64::MIN, 3).unwrap(), 1);
    assert_eq!(kinds(&store, &Filter::default()), ["d", "c", "b"]);
    store.prune(&Retention { days: 1, ..Retention::UNBOUNDED }).unwrap();
    assert_eq!(kinds(&store, &Filter::default()), ["d", "b"]);
}

#[test]
fn the_writer_logs_after_the_run_that_it_was_given_first() {
    let (_directory, store) = temporary();
    let path = store.path().to_owned();
    let writer = Writer::start(store).unwrap();
    let run = writer.begin_blocking(new_run("sort", 1)).unwrap();
    writer.log(Event::new("a", "x".repeat(10_000)).run(run));
    writer.flush().unwrap();
    let rows = Reader::open(&path).unwrap().events(&Filter::default(), 9).unwrap();
    assert_eq!((rows.len(), rows[0].run_id, rows[0].message.len()), (1, Some(run), 4096));
}
