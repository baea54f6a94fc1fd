//! What people and programs read: tables, JSON, and the views of the database.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::process::Command;
use support::{Agent, Sandbox, has, is_root, stderr, stdout};

/// A sandbox with two good runs and a failed one of `sample`, and one of `other`.
fn with_history() -> Sandbox {
    let sandbox = Sandbox::new();
    for script in ["exit 0", "exit 0", "exit 9"] {
        sandbox.run(&["--name", "sample", "--feature", "rows=12"], &["sh", "-c", script]);
    }
    sandbox.run(&["--name", "other"], &["true"]);
    sandbox
}

fn text(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let output = sandbox.standin(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "");
    stdout(&output)
}

fn json(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let value: Value = serde_json::from_str(&text(sandbox, arguments)).unwrap();
    assert_eq!(value["version"], 1, "{arguments:?}");
    value
}

/// The columns of a line, which are two spaces or more apart.
fn columns(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn ls_has_a_line_per_task() {
    let sandbox = with_history();
    let listed = text(&sandbox, &["ls"]);
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(columns(lines[0])[..4], ["TASK", "USER", "RUNS", "FAILED"]);
    assert_eq!(lines.len(), 3, "{listed}");
    let sample = lines.iter().find(|line| line.starts_with("sample ")).unwrap();
    assert_eq!(columns(sample)[2..4], ["3", "1"]);
    let tasks = json(&sandbox, &["ls", "--json"]);
    let sample =
        tasks["tasks"].as_array().unwrap().iter().find(|task| task["task_type"] == "sample").unwrap();
    assert_eq!((&sample["runs"], &sample["failed"]), (&3.into(), &1.into()));
    assert!(sample["duration_s_mean"].as_f64().unwrap() > 0.0);
}

#[test]
fn runs_are_listed_newest_first() {
    let sandbox = with_history();
    let listed = text(&sandbox, &["runs"]);
    let first = |line: &str| columns(line)[0].to_owned();
    assert_eq!(listed.lines().skip(1).map(first).collect::<Vec<_>>(), ["4", "3", "2", "1"]);
    assert!(listed.contains("exit 9") && listed.contains(" ago") || listed.contains("just now"), "{listed}");
    assert_eq!(text(&sandbox, &["runs", "sample", "-n", "2"]).lines().count(), 3);
    let runs = json(&sandbox, &["runs", "sample", "--json"]);
    let runs = runs["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    assert_eq!(
        (&runs[0]["run_id"], &runs[0]["state"], &runs[0]["exit_code"]),
        (&3.into(), &"failed".into(), &9.into())
    );
}

#[test]
fn show_begins_with_what_matters() {
    let sandbox = with_history();
    let shown = text(&sandbox, &["show", "sample"]);
    let place = |text: &str| shown.find(text).unwrap_or_else(|| panic!("no {text:?} in {shown}"));
    let order = [
        "sample: 3 runs by",
        "Run 2 by",
        "How it was started",
        "command   sh -c 'exit 0'",
        "rows 12",
        "RESOURCE",
        "Next run",
        "Last runs",
    ];
    assert!(order.map(place).is_sorted(), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    assert!(!shown.contains('\u{1b}') && !shown.contains("Measured"), "{shown}");
    let sentence = json(&sandbox, &["show", "sample", "--json"])["summary"].as_str().unwrap().to_owned();
    let begins: String = sentence.split_inclusive(' ').take(3).collect();
    assert!(place(&begins) < place("How it was started"), "the sentence comes first: {shown}");
    let full = text(&sandbox, &["show", "sample", "--full"]);
    assert!(full.contains("Measured\n") && full.contains("Where the numbers come from"), "{full}");
    let memory = shown.lines().find(|line| line.starts_with("memory ")).unwrap();
    assert!(
        columns(memory).len() >= 4 && !columns(memory)[1..4].contains(&"-"),
        "needed and expected: {memory}"
    );
    assert!(text(&sandbox, &["show", "--run", "3"]).contains("exit 9"));
    let shown = json(&sandbox, &["show", "sample", "--json"]);
    assert_eq!(shown["run"]["run_id"], 2);
    assert_eq!(shown["task"]["users"][0]["runs"], 3);
    assert!(shown["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{}", shown["summary"]);
    assert!(
        shown["traits"].is_array()
            && shown["next"]["estimates"].as_array().is_some_and(|all| !all.is_empty())
    );
    assert!(shown["run"]["fingerprint"]["duration_ns"].as_u64().unwrap() > 0);
    assert!(shown["run"]["coverage"].as_array().is_some_and(|sources| !sources.is_empty()));
}

#[test]
fn predict_says_how_much_and_why() {
    let sandbox = with_history();
    let predicted = text(&sandbox, &["predict", "sample"]);
    let duration = predicted.lines().find(|line| line.starts_with("duration ")).unwrap();
    assert!(columns(duration).len() == 5 && duration.contains("2 runs"), "{duration}");
    let predicted = json(&sandbox, &["predict", "sample", "--json"]);
    assert_eq!(predicted["task_type"], "sample");
    for estimate in predicted["estimates"].as_array().unwrap() {
        assert!(estimate["upper"].as_f64() >= estimate["expected"].as_f64(), "{estimate}");
        assert_eq!(estimate["level"], "task_and_user");
        assert!(!estimate["reason"].as_str().unwrap().is_empty());
    }
}

#[test]
fn doctor_has_a_line_for_everything() {
    let sandbox = with_history();
    let told = text(&sandbox, &["doctor"]);
    for word in ["kernel", "permissions", "agent", "database", "mode", "memory", "cpu", "pids", "\nprobes\n"]
    {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
    let findings = json(&sandbox, &["doctor", "--json"]);
    for finding in findings["findings"].as_array().unwrap() {
        let state = finding["state"].as_str().unwrap();
        assert!(["ok", "absent", "fails"].contains(&state), "{finding}");
        assert!(!finding["detail"].as_str().unwrap().is_empty(), "{finding}");
    }
}

#[test]
fn doctor_asks_the_agent() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let told = stdout(&agent.standin(["doctor"]).output().unwrap());
    assert!(told.contains(&format!("process {}", agent.pid())) && told.contains("the agent's"), "{told}");
}

#[test]
fn the_path_of_the_database_is_printed_and_nothing_else() {
    let sandbox = Sandbox::new();
    assert_eq!(text(&sandbox, &["db", "path"]), format!("{}\n", sandbox.database().display()));
    require!(is_root(), "needs root, to become an ordinary user");
    let mut command = sandbox.standin(["db", "path"]);
    command.env_remove("STANDIN_DB").env("XDG_DATA_HOME", "/data");
    let path = stdout(&support::as_nobody(&mut command).output().unwrap());
    assert_eq!(path, "/data/standin/standin.db\n");
}

#[test]
fn the_sqlite3_command_reads_the_views() {
    require!(has("sqlite3"), "sqlite3 is not installed");
    let sandbox = with_history();
    let query = |sql: &str| {
        let output =
            Command::new("sqlite3").arg("-header").arg(sandbox.database()).arg(sql).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{sql}: {}", stderr(&output));
        stdout(&output)
    };
    let tasks = query("select * from task_summary");
    assert!(tasks.starts_with("task_type|user|runs|") && tasks.contains("\nsample|"), "{tasks}");
    assert_eq!(
        query("select run_id, result from run_summary where task_type = 'sample' order by run_id"),
        "run_id|result\n1|exit 0\n2|exit 0\n3|exit 9\n"
    );
    assert!(query("select * from prediction_accuracy").contains("sample|"));
    let views = query("select name from sqlite_schema where type = 'view'");
    for view in views.lines().skip(1) {
        query(&format!("select * from {view}"));
    }
}

/// What `run` is told is kept, by an agent and without.
#[test]
fn options_of_a_run_are_recorded() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let input = sandbox.path("input");
    std::fs::write(&input, [0; 1000]).unwrap();
    let options = [
        "--input",
        input.to_str().unwrap(),
        "--feature",
        "rows=12",
        "--feature",
        "kind=big",
        "--policy",
        "strict",
        "--limit-memory",
        "256M",
        "--limit-cpu",
        "1.5",
        "--name",
    ];
    let by_agent = |agent: &Agent<'_>| agent.run(&[&options[..], &["a"]].concat(), &["sh", "-c", "exit 3"]);
    let embedded = || sandbox.run(&[&options[..], &["e"]].concat(), &["sh", "-c", "exit 3"]);
    for output in [by_agent(&agent), embedded()] {
        assert_eq!(output.status.code(), Some(3));
        let said = stderr(&output);
        assert!(
            said.contains("memory.max 256.0 MiB (by hand)") && said.contains("cpu.max 1.50 cores"),
            "{said}"
        );
    }
    sandbox.wait_for_runs(2, "exit_code = 3 AND policy = 'strict'");
    for (name, engine) in [("a", "agent"), ("e", "embedded")] {
        let shown = json(&sandbox, &["show", name, "--json"]);
        let run = &shown["run"];
        assert_eq!((&run["engine"], &run["policy"]), (&engine.into(), &"strict".into()));
        let features = run["features"].to_string();
        for feature in ["\"rows\"", "12", "\"kind\"", "\"big\"", "\"input_bytes\"", "1000"] {
            assert!(features.contains(feature), "{name}: no {feature} in {features}");
        }
        let limits = run["limits"].to_string();
        assert!(limits.contains("268435456") && limits.contains("1.5"), "{name}: {limits}");
    }
}

#[test]
fn an_ordinary_user_has_an_own_database() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    let home = sandbox.path("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(support::NOBODY), Some(support::NOBODY)).unwrap();
    let standin = |arguments: &[&str]| {
        let mut command = sandbox.standin(arguments);
        command.env_remove("STANDIN_DB").env("XDG_DATA_HOME", &home);
        support::as_nobody(&mut command).output().unwrap()
    };
    let output = standin(&["run", "--no-agent", "--name", "mine", "--", "sh", "-c", "exit 3"]);
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert_eq!(
        said.lines().filter(|line| line.contains("not root: no probes and no limits")).count(),
        1,
        "{said}"
    );
    assert!(stdout(&standin(&["ls"])).contains("mine"));
    assert!(home.join("standin/standin.db").exists());
    let told = stdout(&standin(&["doctor"]));
    assert!(told.contains("not root"), "{told}");
}

/// Every key of every JSON form is explained in `docs/json.md`, or is a column of `schema/README.md`.
#[test]
fn every_key_of_json_is_documented() {
    fn keys(value: &Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                found.insert(key.clone());
                keys(value, found);
            }),
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let sandbox = with_history();
    let mut found = std::collections::BTreeSet::new();
    for verb in [
        &["ls"][..],
        &["runs"],
        &["show", "sample"],
        &["show", "--run", "3"],
        &["predict", "sample"],
        &["explain", "sample"],
        &["backtest"],
        &["events"],
        &["ps"],
        &["doctor"],
    ] {
        keys(&json(&sandbox, &[verb, &["--json"]].concat()), &mut found);
    }
    keys(&sandbox.run_json(&["--name", "sample"], &["true"]), &mut found);
    let pages = [include_str!("../node-agent/docs/json.md"), include_str!("../schema/README.md")].concat();
    let missing: Vec<_> = found.iter().filter(|key| !pages.contains(&format!("`{key}`"))).collect();
    assert!(found.len() > 100, "{found:?}");
    assert_eq!(missing, [""; 0], "keys that no page explains");
}

/// A reader that goes early is no failure, whether its end kills us or we are told.
#[test]
fn a_reader_may_leave() {
    use std::os::unix::process::CommandExt;
    let sandbox = with_history();
    for (ignores, verb) in [
        (false, &["runs"][..]),
        (true, &["runs"]),
        (true, &["ls", "--json"]),
        (true, &["events", "--follow"]),
    ] {
        let (read_end, write_end) = std::io::pipe().unwrap();
        drop(read_end);
        let mut command = sandbox.standin(verb);
        command.stdout(write_end).stderr(std::process::Stdio::piped());
        if ignores {
            // SAFETY: a plain system call between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                    Ok(())
                });
            }
        }
        let mut job = support::Job(command.spawn().unwrap());
        drop(command);
        support::wait_until("it ends", || !job.is_running());
        let status = job.0.wait().unwrap();
        let quietly = if ignores {
            status.success()
        } else {
            std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGPIPE)
        };
        assert!(quietly, "{verb:?}: {status}");
        let mut said = String::new();
        std::io::Read::read_to_string(&mut job.0.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(said, "", "{verb:?}");
    }
}
