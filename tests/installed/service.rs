//! The service: its socket, its words to systemd, its configuration, its watchdog.
use crate::host::*;
use std::fs;
use std::os::unix::fs::MetadataExt;

const CONFIGURATION: &str = "/etc/standin/config.toml";

/// For launchers that are to ask the agent whatever that file says.
const EMPTY: &str = "/run/standin-test.toml";

#[ignore = "for an installed package"]
#[test]
fn it_runs_and_says_how_things_are() {
    ensure_started();
    assert_eq!(property("standin.service", "ActiveState"), "active");
    wait_until("it says how things are", || {
        property("standin.service", "StatusText").contains("tasks running")
    });
    let check = output(&["standin", "agent", "--check"]);
    // 1: a kernel on which some probe can't be attached. Which, the table of kernels says.
    assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
    for line in ["config.toml: valid", "standin.db", "agent.sock: version", "standin-jobs.service", "pins"] {
        assert!(stdout(&check).contains(line), "{line} in {}", stdout(&check));
    }
    if let Ok(directory) = std::env::var("STANDIN_REPORT") {
        // By itself and not the agent, so that it says what each probe measures.
        let doctor = printed(&["standin", "--socket", "/run/no-agent.sock", "doctor", "--json"]);
        fs::write(format!("{directory}/doctor.json"), doctor).unwrap();
    }
}

#[ignore = "for an installed package"]
#[test]
fn its_socket_is_for_the_group() {
    ensure_started();
    let socket = fs::metadata("/run/standin/agent.sock").unwrap();
    let group = printed(&["getent", "group", "standin"]);
    assert_eq!(group.split(':').nth(2), Some(socket.gid().to_string().as_str()));
    assert_eq!(socket.mode() & 0o777, 0o660);
    // What others ran is nobody's business but root's; members ask the agent, which shows them their own.
    let database = fs::metadata(DATABASE).unwrap();
    assert_eq!((database.uid(), database.gid(), database.mode() & 0o777), (0, 0, 0o640));
}

#[ignore = "for an installed package"]
#[test]
fn who_comes_while_it_is_stopped_starts_it() {
    printed(&["systemctl", "stop", "standin.service"]);
    assert_eq!(property("standin.socket", "ActiveState"), "active");
    let waker = ["standin", "run", "--require-agent", "--name", "waker", "--", "sh", "-c", "exit 4"];
    // The first one starts it; where that takes long, a later one is answered.
    wait_until("a job is taken in", || output(&waker).status.code() == Some(4));
    assert_eq!(property("standin.service", "ActiveState"), "active");
    assert_eq!(result_of("waker"), "exit 4");
}

#[ignore = "for an installed package"]
#[test]
fn a_loop_that_hangs_is_started_again() {
    let _settings = Override::new("WatchdogSec=6\nTimeoutAbortSec=2");
    let (hung, restarts) = (main_pid(), property("standin.service", "NRestarts"));
    // Twice as long as it may be silent: it must not be taken for hung while it is well.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(main_pid(), hung);
    printed(&["kill", "-STOP", &hung]);
    wait_until("systemd starts it again", || {
        let pid = main_pid();
        pid != hung && pid != "0" && property("standin.service", "ActiveState") == "active"
    });
    assert_ne!(property("standin.service", "NRestarts"), restarts);
    ensure_started();
    let run = output(&["standin", "run", "--require-agent", "--name", "after", "--", "true"]);
    assert!(run.status.success(), "{run:?}");
}

/// The configuration, with something added; as it was when this goes out of scope.
struct Configuration(String);

impl Configuration {
    fn with(addition: &str) -> Self {
        let before = fs::read_to_string(CONFIGURATION).unwrap();
        fs::write(CONFIGURATION, format!("{before}\n{addition}")).unwrap();
        Self(before)
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        fs::write(CONFIGURATION, &self.0).unwrap();
        output(&["systemctl", "reload", "standin.service"]);
    }
}

/// The limit on tasks of the newest run of `reloaded`.
fn tasks_limit() -> Option<i64> {
    fs::write(EMPTY, "").unwrap();
    let run =
        output(&["standin", "run", "--config", EMPTY, "--require-agent", "--name", "reloaded", "--", "true"]);
    assert!(run.status.success(), "{run:?}");
    result_of("reloaded");
    recorded(
        "SELECT CAST(value AS INTEGER) FROM limit_applied WHERE name LIKE 'pids%' AND run_id =
             (SELECT max(run_id) FROM run_summary WHERE task_type = 'reloaded')",
    )
}

#[ignore = "for an installed package"]
#[test]
fn a_reload_has_a_new_rule_hold_and_a_bad_one_changes_nothing() {
    ensure_started();
    let pid = main_pid();
    assert_eq!(tasks_limit(), None);
    {
        let _good = Configuration::with("[task.reloaded]\nlimit_tasks = 77\n");
        printed(&["systemctl", "reload", "standin.service"]);
        wait_until("the rule holds", || tasks_limit() == Some(77));
        {
            let _bad = Configuration::with("[task.reloaded]\nlimit_tasks = 99\nlimit_speed = 1\n");
            assert!(!output(&["systemctl", "reload", "standin.service"]).status.success());
            printed(&["kill", "-HUP", &pid]);
            wait_until("it says that it keeps the old one", || {
                property("standin.service", "StatusText").contains("the configuration stays as it was")
            });
            assert_eq!(tasks_limit(), Some(77));
        }
        wait_until("a good one is taken again", || {
            !property("standin.service", "StatusText").contains("stays as it was")
        });
    }
    wait_until("the rule is gone", || tasks_limit().is_none());
    assert_eq!(main_pid(), pid, "a reload is no restart");
}

#[ignore = "for an installed package"]
#[test]
fn completions_are_where_shells_look() {
    let script = "source /usr/share/bash-completion/completions/standin && complete -p standin";
    assert!(printed(&["bash", "-c", script]).contains("standin"));
    for place in
        ["/usr/share/zsh/vendor-completions/_standin", "/usr/share/fish/vendor_completions.d/standin.fish"]
    {
        assert!(fs::read_to_string(place).unwrap().contains("STANDIN_COMPLETE"), "{place}");
    }
}
