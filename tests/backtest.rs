//! A past replayed: standin beside the recipes in use, from a trace or from own history, and what bad traces get.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::process::Output;
use support::{Sandbox, stderr, stdout};

/// Tasks whose memory grows with their input, asked for with far too much: `align` linearly, `index` hardly.
fn trace(tasks: u64) -> String {
    let mut text =
        String::from("task_type,start_s,duration_s,memory_peak_bytes,memory_request_bytes,input_bytes\n");
    for n in 0..tasks {
        let input = (n * 7919 % 101 + 1) * 10_000_000;
        let (name, peak) = if n % 3 == 0 {
            ("index", 700_000_000 + n % 7 * 1_000_000)
        } else {
            ("align", 200_000_000 + input * 6)
        };
        _ = writeln!(text, "{name},{},600,{peak},16000000000,{input}", n * 300);
    }
    text
}

fn standin(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    sandbox.standin(arguments).output().unwrap()
}

fn replayed(sandbox: &Sandbox, options: &[&str]) -> Value {
    let mut arguments = vec!["backtest", "--json"];
    arguments.extend(options);
    let output = standin(sandbox, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn recipe<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["recipes"].as_array().unwrap().iter().find(|recipe| recipe["name"] == name).unwrap()
}

fn waste(report: &Value, name: &str) -> f64 {
    recipe(report, name)["waste_gbh"].as_f64().unwrap()
}

fn with_trace(text: &str) -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    let path = sandbox.path("trace.csv");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (sandbox, path)
}

#[test]
fn standin_wastes_less_than_every_recipe() {
    let (sandbox, path) = with_trace(&trace(600));
    let report = replayed(&sandbox, &["--csv", &path]);
    assert_eq!(report["version"], 1);
    let ours = waste(&report, "standin");
    for other in report["recipes"].as_array().unwrap().iter().filter(|other| other["name"] != "standin") {
        assert!(ours < other["waste_gbh"].as_f64().unwrap(), "{ours} against {other}");
    }
    let failed = recipe(&report, "standin")["failed_attempts"].as_u64().unwrap();
    assert!(failed <= 15, "{failed} of 600 failed");
    assert_eq!(recipe(&report, "user's preset")["failed_attempts"], 0);
    let elastic = replayed(&sandbox, &["--csv", &path, "--retry", "elastic"]);
    assert!(waste(&elastic, "standin, elastic") < ours);
    assert_eq!(recipe(&elastic, "standin, elastic")["failed_attempts"], 0);
}

#[test]
fn nothing_is_known_before_it_has_ended() {
    // All start at once: there is nothing to learn from, so every recipe is at the user's request.
    let mut text = String::from("task_type,start_s,duration_s,memory_peak_bytes,memory_request_bytes\n");
    (0..20).for_each(|_| text += "t,100,3600,1000000000,3000000000\n");
    let (sandbox, path) = with_trace(&text);
    let report = replayed(&sandbox, &["--csv", &path]);
    for recipe in report["recipes"].as_array().unwrap() {
        assert!((recipe["waste_gbh"].as_f64().unwrap() - 40.0).abs() < 1e-9, "{recipe}");
    }
}

#[test]
fn a_failed_attempt_costs_all_it_reserved() {
    let text = "task_type,start_s,duration_s,memory_peak_bytes,memory_request_bytes\nt,0,3600,3000000000,2000000000\n";
    let (sandbox, path) = with_trace(text);
    let report = replayed(&sandbox, &["--csv", &path]);
    // 2 GB·h lost, then 4 GB for 3.
    assert!((waste(&report, "user's preset") - 3.0).abs() < 1e-9, "{report:#}");
    let half = replayed(&sandbox, &["--csv", &path, "--fail-at", "0.5"]);
    assert!((waste(&half, "user's preset") - 2.0).abs() < 1e-9);
}

#[test]
fn what_is_imported_is_own_history() {
    let (sandbox, path) = with_trace(&trace(120));
    let imported = standin(&sandbox, &["import", "--csv", &path]);
    assert!(imported.status.success(), "{}", stderr(&imported));
    let runs: i64 = sandbox.sql("SELECT count(*) FROM run WHERE state = 'finished'");
    assert_eq!(runs, 120);
    let (own, file) = (replayed(&sandbox, &[]), replayed(&sandbox, &["--csv", &path]));
    assert!((waste(&own, "max so far × 1.1") - waste(&file, "max so far × 1.1")).abs() < 1e-6);
    let predicted = standin(&sandbox, &["predict", "align", "--json", "--feature", "input_bytes=500000000"]);
    let predicted: Value = serde_json::from_slice(&predicted.stdout).unwrap();
    let memory = &predicted["estimates"][0];
    let expected = memory["expected"].as_f64().unwrap();
    assert!((expected - 3.2e9).abs() < 0.1e9, "{memory}");
}

#[test]
fn a_plot_and_a_table_come_out() {
    let (sandbox, path) = with_trace(&trace(60));
    let svg = sandbox.path("waste.svg");
    let output = standin(&sandbox, &["backtest", "--csv", &path, "--svg", svg.to_str().unwrap()]);
    assert!(
        stdout(&output).contains("Tovar") && stdout(&output).contains("PER 1,000"),
        "{}",
        stdout(&output)
    );
    assert_eq!(fs::read_to_string(svg).unwrap().matches("<polyline").count(), 7);
}

#[test]
fn bad_traces_are_told_in_one_line_with_line_and_column() {
    let header = "task_type,start_s,duration_s,memory_peak_bytes\n";
    for (text, parts) in [
        (String::new(), vec!["empty"]),
        (header.to_owned(), vec!["no rows"]),
        ("task_type,duration_s\na,1\n".to_owned(), vec!["line 1", "memory_peak_bytes", "--map"]),
        (format!("{header}a,1,1,5\nb,2,1,-7\n"), vec!["line 3", "memory_peak_bytes", "-7"]),
        (format!("{header}a,1,NaN,5\n"), vec!["line 2", "duration_s"]),
        (format!("{header}a,1,1,1000000000000000000\n"), vec!["line 2", "memory_peak_bytes", "unit"]),
        (format!("{header}a,1,1\n"), vec!["line 2", "3 fields"]),
        (format!("{header}\"a,1,1,5\n"), vec!["line 2", "quote"]),
    ] {
        let (sandbox, path) = with_trace(&text);
        let output = standin(&sandbox, &["backtest", "--csv", &path]);
        assert_eq!(output.status.code(), Some(125), "{text}");
        let message = stderr(&output);
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message} lacks one of {parts:?}");
    }
    let (sandbox, _) = with_trace("");
    let missing = standin(&sandbox, &["backtest", "--csv", "/nowhere/trace.csv.xz"]);
    assert_eq!((missing.status.code(), stderr(&missing).lines().count()), (Some(125), 1));
}

#[test]
fn bad_rows_are_skipped_and_counted_when_asked() {
    let text = format!("{}a,1,1,-5,1,1\na,1,1,nope,1,1\n", trace(30));
    let (sandbox, path) = with_trace(&text);
    let output = standin(&sandbox, &["backtest", "--csv", &path, "--skip-bad", "--json"]);
    assert!(stderr(&output).contains("2 bad rows"), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["tasks"].as_u64(), report["bad_rows_skipped"].as_u64()), (Some(30), Some(2)));
}

#[test]
fn columns_can_be_named() {
    let text = "Job,Begin,Elapsed,Mem_MiB\nx,10,60,100\nx,100,60,100\n";
    let (sandbox, path) = with_trace(text);
    let report = replayed(
        &sandbox,
        &[
            "--csv",
            &path,
            "--map",
            "Job=task_type",
            "--map",
            "Begin=start_s",
            "--map",
            "Elapsed=duration_s",
            "--map",
            "Mem_MiB=memory_peak_mib",
        ],
    );
    let used = 2.0 * 104_857_600.0 * 60.0 / 3.6e12;
    assert!((report["used_gbh"].as_f64().unwrap() - used).abs() < 1e-9);
}
