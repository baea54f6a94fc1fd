//! `standin report`: one file that shows what the database says, in light and dark, and loads and runs nothing.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Sandbox, has, is_root, stderr, stdout};

/// A name that would like to be more than a name.
const HOSTILE: &str =
    "<script>alert('x')</script>\"'><img src=//127.0.0.1:9/x onerror=alert(1)>&amp;\u{202e}";

/// A sandbox whose database has good and failed runs, predictions, and two failovers.
fn with_history() -> Sandbox {
    let sandbox = Sandbox::new();
    for (name, script) in
        [("sample", "exit 0"), ("sample", "sleep 0.2"), ("sample", "exit 9"), ("other", "exit 0")]
    {
        sandbox.run(&["--name", name], &["sh", "-c", script]);
    }
    sandbox.run(&["--name", HOSTILE], &["sh", "-c", "exit 0", HOSTILE]);
    let database = rusqlite::Connection::open(sandbox.database()).unwrap();
    for (at_ms, cause) in [(1_790_000_000_000_i64, "died"), (1_790_000_100_000, "hang")] {
        database
            .execute(
                "INSERT INTO failover (service, uid, at_ms, cause, evidence, from_instance, to_instance, to_pid, steps,
                     queued, migrated, open) VALUES ('sample', 0, ?1, ?2, 'killed by SIGKILL', 1, 2, 20,
                     '{\"thawed\": 238}', 7, 9, 1)",
                rusqlite::params![at_ms, cause],
            )
            .unwrap();
    }
    sandbox
}

fn report(sandbox: &Sandbox, arguments: &[&str]) -> PathBuf {
    let file = sandbox.path("report.html");
    let mut all = vec!["report", "--html", file.to_str().unwrap()];
    all.extend(arguments);
    let output = sandbox.standin(&all).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        (stdout(&output), stderr(&output)),
        (String::new(), String::new()),
        "a pipe hears no progress"
    );
    file
}

/// What a headless Chromium made of a file.
struct Shown {
    dom: String,
    /// What it wrote to its console.
    console: String,
    /// URLs that it asked the network for.
    requests: Vec<String>,
}

fn chromium(sandbox: &Sandbox, page: &Path, options: &[&str]) -> Shown {
    let (profile, log) = (tempfile::tempdir_in(sandbox.dir.path()).unwrap(), sandbox.path("net.json"));
    // The browser itself would ask its maker for updates, whatever one tells it: here it reaches nobody.
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.args(["--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--window-size=1000,1400"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--log-net-log={}", log.display())).args(options);
    if !options.iter().any(|option| option.starts_with("--screenshot")) {
        command.arg("--dump-dom");
    }
    let output =
        command.arg(format!("file://{}", page.display())).env("HOME", profile.path()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let console: String =
        stderr(&output).lines().filter(|line| line.contains("CONSOLE")).map(|l| format!("{l}\n")).collect();
    Shown { dom: stdout(&output), console, requests: requested(&fs::read_to_string(&log).unwrap()) }
}

/// URLs that a page asked for, by a log of Chromium's; what the browser asks for itself has no origin.
fn requested(log: &str) -> Vec<String> {
    // A log of a browser that ended early lacks its closing brackets.
    let log: Value = serde_json::from_str(log)
        .or_else(|_| serde_json::from_str(&format!("{}]}}", log.trim_end().trim_end_matches(','))))
        .unwrap();
    let events = log["events"].as_array().unwrap();
    let by_page =
        |event: &&Value| event["params"]["initiator"].as_str().is_some_and(|it| it != "not an origin");
    let urls = events.iter().filter(by_page).filter_map(|event| event["params"]["url"].as_str());
    let mut urls: Vec<_> = urls.filter(|url| !url.starts_with("file:")).map(str::to_owned).collect();
    urls.sort();
    urls.dedup();
    urls
}

/// Mean brightness of a picture, 0 to 255.
fn brightness(picture: &Path) -> f64 {
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(fs::File::open(picture).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let channels = info.color_type.samples();
    let colours: Vec<f64> = pixels[..info.buffer_size()]
        .chunks(channels)
        .flat_map(|pixel| &pixel[..3])
        .map(|value| f64::from(*value))
        .collect();
    colours.iter().sum::<f64>() / colours.len() as f64
}

#[test]
fn a_browser_shows_what_the_database_says_and_asks_nobody() {
    require!(has("chromium") && is_root(), "needs chromium, and root to keep it from the network");
    let sandbox = with_history();
    let page = report(&sandbox, &[]);
    let shown = chromium(&sandbox, &page, &[]);
    assert_eq!(shown.console, "", "nothing to complain about");
    assert_eq!(shown.requests, [""; 0]);
    let runs: i64 = sandbox.sql("SELECT count(*) FROM run");
    assert!(shown.dom.contains(&format!("from {runs} runs.")), "{}", shown.dom);
    // A row per run, with how it ended, and one per failover.
    let rows = |text: &str| shown.dom.matches(text).count();
    let timeline = shown.dom.split("<caption>The newest").nth(1).unwrap().split("</table>").next().unwrap();
    assert_eq!(timeline.matches("<tr>").count() as i64, runs + 1, "{timeline}");
    assert!(timeline.contains("exit 9") && timeline.contains("sample") && timeline.contains(">other<"));
    assert!(rows("killed by SIGKILL") >= 2 && rows("238 µs") == 2, "{}", shown.dom);
    let memory: i64 = sandbox.sql("SELECT memory_peak_bytes_max FROM task WHERE task_type = 'sample'");
    let memory = standin::units::format_bytes(memory as f64);
    assert!(shown.dom.contains(&format!("<td class=\"n\">{memory}</td>")), "{memory}");
}

/// Without this the test above would prove little.
#[test]
fn a_page_that_asks_and_complains_is_found_out() {
    require!(has("chromium") && is_root(), "needs chromium, and root to keep it from the network");
    let sandbox = Sandbox::new();
    let page = sandbox.path("bad.html");
    fs::write(&page, "<img src=http://127.0.0.1:9/x><script>console.error('told')</script>").unwrap();
    let shown = chromium(&sandbox, &page, &[]);
    assert!(shown.console.contains("told"), "{}", shown.console);
    assert_eq!(shown.requests, ["http://127.0.0.1:9/x"]);
}

#[test]
fn a_task_has_a_page_of_its_own() {
    require!(has("chromium") && is_root(), "needs chromium, and root to keep it from the network");
    let sandbox = with_history();
    let shown = chromium(&sandbox, &report(&sandbox, &["sample"]), &[]);
    assert_eq!((shown.console.as_str(), shown.requests.len()), ("", 0));
    for id in ["is", "runs", "next", "accuracy", "saved", "failovers"] {
        assert!(shown.dom.contains(&format!("<section id=\"{id}\"")), "no {id} in {}", shown.dom);
    }
    assert!(!shown.dom.contains(">other<"), "another task is no matter of this page");
    // Every picture is told in words too.
    let pictures = shown.dom.matches("<svg role=\"img\"").count();
    assert!(pictures >= 5, "{pictures}");
    assert_eq!(shown.dom.matches("<desc id=").count(), pictures);
    assert_eq!(shown.dom.matches("<figcaption>").count(), shown.dom.matches("<figure>").count());
    let predicted: f64 = sandbox
        .sql("SELECT upper FROM prediction WHERE resource = 'memory_peak_bytes' ORDER BY run_id LIMIT 1");
    assert!(
        shown.dom.contains(&standin::units::format_bytes(predicted)),
        "the bound of a run is in its table"
    );
}

#[test]
fn names_and_arguments_stay_text() {
    require!(has("chromium") && is_root(), "needs chromium, and root to keep it from the network");
    let sandbox = with_history();
    for arguments in [&[][..], &[HOSTILE]] {
        let page = report(&sandbox, arguments);
        let source = fs::read_to_string(&page).unwrap();
        assert!(!source.contains("<script") && !source.contains("<img") && !source.contains('\u{202e}'));
        let shown = chromium(&sandbox, &page, &[]);
        assert_eq!((shown.console.as_str(), shown.requests.len()), ("", 0));
        assert!(shown.dom.contains("&lt;script&gt;alert('x')&lt;/script&gt;"), "{}", shown.dom);
    }
}

#[test]
fn it_is_light_or_dark_as_the_system_or_its_reader_wants() {
    require!(has("chromium") && is_root(), "needs chromium, and root to keep it from the network");
    let sandbox = with_history();
    let page = report(&sandbox, &[]);
    let source = fs::read_to_string(&page).unwrap();
    let chosen = source.replace(" checked>", ">").replace("id=\"theme-dark\">", "id=\"theme-dark\" checked>");
    assert_ne!(source, chosen);
    let dark_page = sandbox.path("dark.html");
    fs::write(&dark_page, chosen).unwrap();
    let picture = sandbox.path("picture.png");
    let option = format!("--screenshot={}", picture.display());
    let seen = |page: &Path, scheme: &str| {
        chromium(&sandbox, page, &[&option, &format!("--blink-settings=preferredColorScheme={scheme}")]);
        brightness(&picture)
    };
    let (light, dark) = ("1", "0");
    let found = [seen(&page, light), seen(&page, dark), seen(&dark_page, light)];
    assert!(found[0] > 200.0 && found[1] < 60.0 && found[2] < 60.0, "{found:?}");
}

#[test]
fn only_a_report_is_replaced_unasked() {
    let sandbox = with_history();
    let page = report(&sandbox, &[]);
    let first = fs::read_to_string(&page).unwrap();
    report(&sandbox, &["sample"]);
    assert_ne!(fs::read_to_string(&page).unwrap(), first, "an older report gives way");
    fs::write(&page, "somebody's thesis").unwrap();
    let run = |options: &[&str]| {
        let mut all = vec!["report", "--html", page.to_str().unwrap()];
        all.extend(options);
        sandbox.standin(&all).output().unwrap()
    };
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        stderr(&refused).contains("--force") && stderr(&refused).lines().count() == 1,
        "{}",
        stderr(&refused)
    );
    assert_eq!(fs::read_to_string(&page).unwrap(), "somebody's thesis");
    assert!(run(&["--force"]).status.success());
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    let beside = fs::read_dir(sandbox.dir.path()).unwrap().flatten();
    assert!(beside.into_iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".tmp")));
    let to_stdout = sandbox.standin(["report", "--html", "-"]).output().unwrap();
    assert!(stdout(&to_stdout).starts_with("<!doctype html>"));
}

#[test]
fn what_can_not_be_is_told_in_a_line() {
    let sandbox = Sandbox::new();
    let told = |sandbox: &Sandbox, arguments: &[&str], code: i32, words: &[&str]| {
        let output = sandbox.standin([&["report"], arguments].concat()).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
    };
    told(&sandbox, &["--html", "/tmp/x.html"], 125, &["standin.db"]);
    sandbox.run(&["--name", "sample"], &["true"]);
    told(&sandbox, &["nosuch", "--html", sandbox.path("x").to_str().unwrap()], 1, &["nosuch", "standin ls"]);
    told(&sandbox, &["--html", "/nosuch/directory/x.html"], 125, &["/nosuch/directory/x.html"]);
    told(&sandbox, &["--html", sandbox.dir.path().to_str().unwrap()], 125, &["directory"]);
    told(&sandbox, &[], 125, &["--html"]);
    let database = rusqlite::Connection::open(sandbox.database()).unwrap();
    database.execute_batch("DELETE FROM run; DELETE FROM task").unwrap();
    told(&sandbox, &["--html", sandbox.path("x").to_str().unwrap()], 1, &["no run is known yet"]);
    require!(is_root(), "needs root, to become an ordinary user");
    let mut command = sandbox.standin(["report", "--html", "/root/x.html"]);
    sandbox.run(&["--name", "sample"], &["true"]);
    let output = support::as_nobody(&mut command).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
}
