//! Metrics as a monitoring system sees them: served without delaying anybody, clean by promtool, scraped by a real
//! Prometheus, and known to every dashboard and alert.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/service.rs"]
mod service;
mod support;

use serde_json::Value;
use standin::metrics::names;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Agent, Job, Sandbox, has, is_root, wait_until};

fn sandbox(port: u16, more: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let socket = sandbox.path("metrics.sock");
    sandbox.configure(&format!(
        "cost_interval_s = 2\n[metrics]\nlisten = \"127.0.0.1:{port}\"\nsocket = {socket:?}\n{more}"
    ));
    sandbox
}

fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn scrape(port: u16) -> String {
    let answer = exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), SCRAPE);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// A value of the text.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn start(agent: &Agent<'_>, name: &str, script: &str) -> Job {
    Job::start(
        agent
            .standin(["run", "--quiet", "--require-agent", "--name", name, "--", "sh", "-c", script])
            .stdout(Stdio::null()),
    )
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("observability").join(name)
}

/// What promtool says, which is nothing where all is well.
fn promtool(arguments: &[&str], input: &str, directory: &Path) -> Result<String, String> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(directory).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", support::stdout(&output), support::stderr(&output));
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[test]
fn counters_of_tasks_only_grow_whatever_ends() {
    require!(is_root(), "needs root");
    let port = service::free_port();
    let sandbox = sandbox(port, "");
    let agent = sandbox.agent();
    let cpu = "standin_task_cpu_seconds_total{task=\"busy\",user=\"root\"}";
    let mut highest = 0.0;
    for round in 1..=3 {
        let mut job = start(&agent, "busy", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done");
        while job.is_running() {
            let now = value(&scrape(port), cpu).unwrap_or(0.0);
            assert!(now >= highest, "from {highest} back to {now} in round {round}");
            highest = now;
        }
    }
    sandbox.wait_for_runs(3, "state = 'finished'");
    let finished = "standin_task_runs_total{task=\"busy\",user=\"root\",result=\"finished\"}";
    wait_until("all have been counted", || value(&scrape(port), finished) == Some(3.0));
    let text = scrape(port);
    let total: f64 = sandbox.sql("SELECT sum(cpu_ns) / 1e9 FROM run");
    let seen = value(&text, cpu).unwrap();
    assert!((seen - total).abs() < 0.05 * total + 0.02, "{seen} s are counted, {total} s recorded");
    let runs = |result: &str| {
        value(&text, &format!("standin_task_runs_total{{task=\"busy\",user=\"root\",result=\"{result}\"}}"))
    };
    assert_eq!((runs("finished"), runs("failed")), (Some(3.0), Some(0.0)));
    assert_eq!(value(&text, "standin_task_running{task=\"busy\",user=\"root\"}"), Some(0.0));
    assert_eq!(
        value(&text, "standin_predictions_total{resource=\"memory\"}"),
        Some(2.0),
        "the first had no history"
    );
    wait_until("the last one is recorded", || {
        value(&scrape(port), "standin_agent_recorded_runs_total") == Some(3.0)
    });
    assert!(
        !text.contains(&format!("\"{}\"", agent.pid())) && !text.contains("while ["),
        "no pid, no command line"
    );
}

#[test]
fn both_doors_tell_the_same_and_strangers_nothing() {
    require!(is_root(), "needs root");
    let port = service::free_port();
    let sandbox = sandbox(port, "");
    let agent = sandbox.agent();
    let unix = || UnixStream::connect(sandbox.path("metrics.sock")).unwrap();
    let names = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
            .collect()
    };
    let by_unix = exchange(unix(), SCRAPE);
    assert_eq!(names(&by_unix), names(&scrape(port)));
    assert!(names(&by_unix).contains("standin_host_cpus"));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(sandbox.path("metrics.sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "200"),
        ("GET /secrets HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        assert_eq!(exchange(unix(), request).split(' ').nth(1), Some(status), "{request}");
    }
    assert!(exchange(unix(), "HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    drop(agent);
}

#[test]
fn scrapers_that_hang_delay_neither_the_agent_nor_its_end() {
    require!(is_root(), "needs root");
    let port = service::free_port();
    let sandbox = sandbox(port, "");
    let agent = sandbox.agent();
    // More than are served at once, and each says half of what it wants.
    let hanging: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /metrics HT").unwrap();
            stream
        })
        .collect();
    let run = |count: u32| {
        let begun = Instant::now();
        (0..count).for_each(|_| assert!(agent.run(&["--quiet"], &["true"]).status.success()));
        begun.elapsed()
    };
    run(5);
    assert!(agent.terminate().success());
    drop(hanging);
    assert!(!sandbox.path("metrics.sock").exists());
}

#[test]
fn a_port_that_is_taken_costs_the_metrics_and_nothing_else() {
    require!(is_root(), "needs root");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sandbox = sandbox(taken.local_addr().unwrap().port(), "");
    let agent = sandbox.agent();
    assert!(agent.run(&["--quiet"], &["true"]).status.success());
    assert!(sandbox.agent_log().contains("no metrics on metrics.listen"), "{}", sandbox.agent_log());
    let elsewhere = exchange(UnixStream::connect(sandbox.path("metrics.sock")).unwrap(), SCRAPE);
    assert!(elsewhere.contains("standin_host_cpus"));
}

#[test]
fn tasks_beyond_the_bound_share_a_series_or_have_none() {
    require!(is_root(), "needs root");
    let port = service::free_port();
    let sandbox = sandbox(port, "tasks_max = 2\n");
    let agent = sandbox.agent();
    for (before, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        assert!(agent.run(&["--quiet", "--name", name], &["true"]).status.success());
        // The first ones have a series of their own.
        sandbox.wait_for_runs(before + 1, "state = 'finished'");
    }
    let overflowed = "standin_metrics_overflowed_runs_total";
    wait_until("all have been counted", || value(&scrape(port), overflowed) == Some(2.0));
    let text = scrape(port);
    let runs = |task: &str, user: &str| {
        value(
            &text,
            &format!("standin_task_runs_total{{task=\"{task}\",user=\"{user}\",result=\"finished\"}}"),
        )
    };
    assert_eq!(
        (runs("a", "root"), runs("c", "root"), runs("(other)", "(other)")),
        (Some(1.0), None, Some(2.0))
    );
}

#[test]
fn promtool_finds_nothing_to_mend() {
    require!(is_root(), "needs root");
    require!(has("promtool"), "promtool is not installed");
    let port = service::free_port();
    let sandbox = sandbox(port, "");
    let agent = sandbox.agent();
    let _busy = start(&agent, "busy", "while :; do :; done");
    wait_until("costs are counted", || scrape(port).contains("standin_probe_cpu_ratio{"));
    wait_until("the task is there", || scrape(port).contains("standin_task_cpu_seconds_total{"));
    let here = Path::new("/");
    assert_eq!(promtool(&["check", "metrics"], &scrape(port), here), Ok(String::new()));
    let rules = file("");
    promtool(&["check", "rules", "alerts.yml"], "", &rules).unwrap();
    promtool(&["check", "config", "prometheus.yml"], "", &rules).unwrap();
    promtool(&["test", "rules", "alerts_test.yml"], "", &rules).unwrap();
}

/// Every alert has a test that has it fire and one that does not.
#[test]
fn every_alert_is_tested_and_explained() {
    let read = |name: &str| fs::read_to_string(file(name)).unwrap();
    let (rules, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let reference = fs::read_to_string(file("../docs/metrics.md")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        for how in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("- name: {alert} {how}\n")), "{alert} {how}");
        }
        assert!(reference.contains(&format!("| `{alert}` |")), "docs/metrics.md lacks {alert}");
    }
}

/// Names in an expression that are ours, without what makes series of a histogram.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("standin_"));
    ours.map(|word| {
        ["_bucket", "_count", "_sum"].iter().fold(word, |word, end| word.strip_suffix(end).unwrap_or(word))
    })
}

fn is_known(metric: &str) -> bool {
    names::ALL.iter().any(|known| known.name == metric)
}

/// All expressions of a dashboard with the title of their panel, and the queries of its variables.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            all.push((
                panel["title"].as_str().unwrap().to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        all.extend(annotation["expr"].as_str().map(|expr| ("annotation".to_owned(), expr.to_owned())));
    }
    all
}

fn dashboards() -> Vec<(PathBuf, Value)> {
    let files: Vec<_> =
        fs::read_dir(file("dashboards")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 2, "{files:?}");
    files.into_iter().map(|path| (path.clone(), support::read_json(&path))).collect()
}

#[test]
fn dashboards_and_alerts_name_what_there_is() {
    for (path, dashboard) in dashboards() {
        let text = fs::read_to_string(&path).unwrap();
        let strangers: Vec<_> = metrics_in(&text).filter(|metric| !is_known(metric)).collect();
        assert!(strangers.is_empty(), "{}: {strangers:?}", path.display());
        for panel in dashboard["panels"].as_array().unwrap() {
            let is_row = panel["type"] == "row";
            assert!(is_row || panel["datasource"]["uid"] == "${datasource}", "{}", panel["title"]);
            assert!(is_row || !panel["description"].as_str().unwrap().is_empty());
        }
        let ids: BTreeSet<i64> = dashboard["panels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|panel| panel["id"].as_i64().unwrap())
            .collect();
        assert_eq!(ids.len(), dashboard["panels"].as_array().unwrap().len());
    }
    let rules = fs::read_to_string(file("alerts.yml")).unwrap();
    let expressions = rules.lines().filter(|line| !line.trim_start().starts_with('#'));
    assert!(expressions.flat_map(metrics_in).all(is_known));
    let shown: String = dashboards().iter().map(|(path, _)| fs::read_to_string(path).unwrap()).collect();
    let unseen: Vec<_> =
        names::ALL.iter().filter(|metric| !shown.contains(metric.name)).map(|metric| metric.name).collect();
    assert!(unseen.is_empty(), "on no dashboard: {unseen:?}");
}

/// A Prometheus of its own, with its data in a directory that goes with it.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    fn scraping(port: u16, directory: &Path) -> Self {
        let config = format!(
            "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\nrule_files: [{:?}]\nscrape_configs:\n  - job_name: standin\n    static_configs: [{{ targets: [\"127.0.0.1:{port}\"] }}]\n",
            file("alerts.yml")
        );
        fs::write(directory.join("prometheus.yml"), config).unwrap();
        let own = service::free_port();
        let log = fs::File::create(directory.join("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address=127.0.0.1:{own}"))
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, port: own }
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, expression: &str) -> Value {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.get(&format!("/api/v1/query?query={escaped}")).unwrap_or_default()
    }

    fn count(&self, expression: &str) -> usize {
        self.query(expression)["data"]["result"].as_array().map_or(0, Vec::len)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_answers_what_the_dashboards_ask() {
    require!(is_root(), "needs root");
    require!(has("prometheus"), "prometheus is not installed");
    let port = service::free_port();
    let sandbox = sandbox(port, "");
    let agent = sandbox.agent();
    let _busy =
        start(&agent, "busy", "while :; do dd if=/dev/zero of=/dev/null bs=64k count=2000 2>/dev/null; done");
    for _ in 0..2 {
        assert!(agent.run(&["--quiet", "--name", "short"], &["true"]).status.success());
    }
    let prometheus = Prometheus::scraping(port, sandbox.dir.path());
    wait_until("it has scraped twice", || {
        prometheus.count("standin_metrics_scrapes_total > 2") == 1
            && prometheus.count("rate(standin_task_cpu_seconds_total{task=\"busy\"}[1m]) > 0") == 1
    });
    let mut answered = BTreeSet::new();
    for (path, dashboard) in dashboards() {
        for (panel, expression) in expressions(&dashboard) {
            let asked = ["$instance", "$task", "$user"]
                .iter()
                .fold(expression.clone(), |text, name| text.replace(name, ".*"));
            let asked = asked.replace("$__rate_interval", "1m");
            assert!(!asked.contains('$'), "{asked}");
            let answer = prometheus.query(&asked);
            assert_eq!(answer["status"], "success", "{}: {panel}: {asked}: {answer}", path.display());
            if !answer["data"]["result"].as_array().unwrap().is_empty() {
                answered.insert(panel);
            }
        }
    }
    // What this load does not have (services, failovers, licences) is empty.
    for panel in
        ["CPU", "Memory", "Runs that ended", "CPUs", "CPU of the agent", "Version", "Tasks under way", "Size"]
    {
        assert!(answered.contains(panel), "{panel} shows nothing: {answered:?}");
    }
    let rules = prometheus.get("/api/v1/rules").unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    wait_until("all rules are evaluated", || {
        let now = prometheus.get("/api/v1/rules").unwrap_or_default();
        let rules = now["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    });
    assert!(rules.len() > 10);
}
