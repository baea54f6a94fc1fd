//! `standin explain` says which feature was found to matter, what each way would cost, and from which runs; and how
//! good predictions were is kept by week.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fs;
use support::{Sandbox, has, stderr, stdout};

/// Holds three bytes for each of its input.
const JOB: &str = "import sys\nd = open(sys.argv[1], 'rb').read()\nb = bytearray(3 * len(d))\n";

fn explained(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let output = sandbox.standin(["explain"]).args(arguments).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)))
}

#[test]
fn the_size_of_the_input_is_found_to_matter() {
    require!(has("python3"), "python3 is not installed");
    let sandbox = Sandbox::new();
    let job = sandbox.path("grow.py");
    fs::write(&job, JOB).unwrap();
    let job = job.to_str().unwrap();
    for mib in [10, 40, 20, 60, 30, 50, 25, 45] {
        let input = sandbox.path(&format!("{mib}.bin"));
        fs::write(&input, vec![7_u8; mib << 20]).unwrap();
        let output = sandbox.run(&["--policy", "observe"], &["python3", job, input.to_str().unwrap()]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let small = sandbox.path("10.bin");
    let large = sandbox.path("60.bin");
    let expected = |input: &str| {
        let explained = explained(&sandbox, &["grow.py", "--input", input]);
        let memory = &explained["memory"];
        let matters = memory["features"].as_array().unwrap().iter().find(|feature| feature["used"] == true);
        let name = matters.unwrap_or_else(|| panic!("{memory:#}"))["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("input_bytes"), "{name}");
        assert_eq!(memory["samples"], 8);
        assert_eq!(explained["history"].as_array().unwrap().len(), 8);
        let candidates = memory["candidates"].as_array().unwrap();
        assert!(candidates.len() > 3 && candidates[0]["chosen"] == true, "{candidates:?}");
        explained["estimates"][0]["expected"].as_f64().unwrap()
    };
    let (small, large) = (expected(small.to_str().unwrap()), expected(large.to_str().unwrap()));
    assert!(large - small > 150.0 * 1_048_576.0, "{small} and {large}");
    let words =
        sandbox.standin(["explain", "grow.py", "--input"]).arg(sandbox.path("30.bin")).output().unwrap();
    assert!(stdout(&words).contains("was found to matter"), "{}", stdout(&words));
    let words = sandbox.standin(["explain", "grow.py"]).output().unwrap();
    assert!(stdout(&words).contains("of this run none is known"), "{}", stdout(&words));
}

#[test]
fn an_unknown_task_is_told_as_such() {
    require!(has("true"), "true is not installed");
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[], &["true"]).status.success());
    let output = sandbox.standin(["explain", "nothing"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("nothing"), "{}", stderr(&output));
}

#[test]
fn how_good_predictions_were_is_kept_by_week_and_shown() {
    require!(has("sleep"), "sleep is not installed");
    let sandbox = Sandbox::new();
    for _ in 0..4 {
        assert!(sandbox.run(&["--policy", "observe"], &["sleep", "0.1"]).status.success());
    }
    let weeks: i64 = sandbox.sql(
        "SELECT sum(runs) FROM prediction_accuracy_weekly WHERE task_type = 'sleep' AND resource = 'duration_s'",
    );
    assert_eq!(weeks, 3, "the first run had nothing to be predicted from");
    let shown = sandbox.standin(["show", "sleep"]).output().unwrap();
    assert!(stdout(&shown).contains("WITHIN"), "{}", stdout(&shown));
}
