//! The schema's public face: every table, view and column is explained, and every view reads well.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const README: &str = include_str!("../../../../schema/README.md");

/// Tables and views with their columns, as the database has them.
fn schema(store: &Store) -> BTreeMap<String, BTreeSet<String>> {
    let sql = "SELECT s.name, c.name FROM sqlite_schema s JOIN pragma_table_info(s.name) c
               WHERE s.type IN ('table', 'view') AND s.name NOT LIKE 'sqlite_%'";
    let mut statement = store.connection.prepare(sql).unwrap();
    let mut schema: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap() {
        let (table, column) = row.unwrap();
        schema.entry(table).or_default().insert(column);
    }
    schema
}

/// The same as the README has it: headings "### `name`", then rows "| `column` | … |".
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut current = None;
    for line in README.lines() {
        if let Some(name) = line.strip_prefix("### `") {
            let name = name.trim_end_matches('`').to_owned();
            tables.entry(name.clone()).or_default();
            current = Some(name);
        } else if line.starts_with('#') {
            current = None;
        } else if let (Some(table), Some(cell)) = (&current, line.strip_prefix("| `")) {
            let cell = cell.split(" | ").next().unwrap_or_default();
            let columns = cell.split('`').filter(|part| !part.trim_matches([',', ' ']).is_empty());
            tables.get_mut(table).unwrap().extend(columns.map(ToOwned::to_owned));
        }
    }
    tables
}

#[test]
fn every_table_view_and_column_is_explained() {
    let (_directory, store) = temporary();
    assert_eq!(schema(&store), documented());
}

#[test]
fn every_view_has_rows_for_a_run_and_a_failover() {
    let (_directory, mut store) = temporary();
    let run = ran(&mut store, &new_run("sort", 1), well(), 100);
    store.add_failover(&crate::store::failover::sample()).unwrap();
    store.add_service_hour("web", 0, 9, 100.0).unwrap();
    store.log(&Event::new("limit_raised", "memory.high raised").run(run)).unwrap();
    for (name, columns) in schema(&store) {
        assert!(number(&store, &format!("SELECT count(*) FROM {name}")) > 0, "{name} is empty");
        assert!(!columns.is_empty());
    }
}

#[test]
fn the_table_of_resources_is_that_of_predictions() {
    let (_directory, store) = temporary();
    for (place, resource) in Resource::ALL.into_iter().enumerate() {
        let name = crate::store::write::resource_name(resource);
        assert_eq!(serde_json::to_value(resource).unwrap(), name);
        let sql = format!("SELECT place FROM resource WHERE name = '{name}'");
        assert_eq!(number(&store, &sql), place as i64);
    }
}

/// The example queries of the README, with the `sqlite3` of this machine.
#[test]
fn the_examples_work_in_the_sqlite_shell() {
    let (_directory, mut store) = temporary();
    for mib in [100, 120] {
        let run = ran(&mut store, &new_run("sort", 1), well(), mib);
        store.log(&Event::new("limit_raised", "memory.high raised").run(run)).unwrap();
    }
    for example in README.split("```sql").skip(1) {
        let sql = example.split("```").next().unwrap_or_default();
        let output = std::process::Command::new("sqlite3")
            .args(["-readonly", "-box"])
            .arg(store.path())
            .arg(sql)
            .output();
        let Ok(output) = output else {
            return crate::skip::skip("sqlite3 is not installed");
        };
        let text = String::from_utf8_lossy(&output.stdout);
        eprintln!("{sql}{text}");
        assert!(
            output.status.success() && !text.is_empty(),
            "{sql}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
