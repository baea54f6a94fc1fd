//! Whatever is asked for, the answer to nonsense is one line that says what is wrong and what is allowed, and
//! the documented exit code. What is wrong with standin's surroundings never stops a job.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};
use support::{Sandbox, as_nobody, is_root, stderr, stdout};

/// One line of ours, with these words in it.
fn assert_one_line(output: &Output, code: i32, words: &[&str]) {
    let line = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(line.starts_with("standin: ") && line.ends_with('\n'), "{line:?}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(!line.trim_end().chars().any(char::is_control), "{line:?}");
    for word in words {
        assert!(line.contains(word), "{word:?} is missing: {line}");
    }
    assert_eq!(stdout(output), "");
}

/// A job that ran in spite of everything: its own exit code and output, and these words in one line of ours.
fn assert_ran(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!((output.status.code(), stdout(output).as_str()), (Some(3), "done\n"), "{text}");
    assert!(text.lines().all(|line| line.starts_with("standin: ")), "{text}");
    let told = |line: &str| words.iter().all(|word| line.contains(word));
    assert_eq!(text.lines().filter(|line| told(line)).count(), 1, "{words:?} in {text}");
}

const JOB: [&str; 4] = ["--", "sh", "-c", "echo done; exit 3"];

fn run_job(command: &mut Command) -> Output {
    command.args(JOB).output().unwrap()
}

#[test]
fn options_that_make_no_sense() {
    let sandbox = Sandbox::new();
    let cases: [(&[&str], &[&str]); 22] = [
        (&[], &["nothing asked", "standin run -- CMD"]),
        (&["make"], &["make", "standin run -- CMD"]),
        (&["bo\u{1b}[31mgus\n"], &["gus"]),
        (&["run"], &["<CMD>", "standin run --help"]),
        (&["run", "--"], &["<CMD>"]),
        (&["run", "--bogus", "--", "true"], &["--bogus", "standin run --help"]),
        (&["run", "--quite", "--", "true"], &["--quite", "--quiet"]),
        (&["run", "--limit-memory", "much", "--", "true"], &["--limit-memory", "much", "K, M, G"]),
        (&["run", "--limit-memory", "0", "--", "true"], &["--limit-memory", "at least 1 byte"]),
        (&["run", "--limit-memory"], &["--limit-memory"]),
        (&["run", "--limit-cpu=-1", "--", "true"], &["--limit-cpu", "0.01"]),
        (&["run", "--limit-cpu", "nan", "--", "true"], &["--limit-cpu", "0.01"]),
        (&["run", "--feature", "rows", "--", "true"], &["--feature", "NAME=VALUE"]),
        (&["run", "--policy", "hard", "--", "true"], &["hard", "elastic, strict, observe"]),
        (&["run", "--name=", "--", "true"], &["--name"]),
        (&["run", "--require-agent", "--no-agent", "--", "true"], &["--require-agent", "--no-agent"]),
        (&["run", "--json", "/no/such/file", "--", "true"], &["/no/such/file", "No such file"]),
        (&["run", "--json", "/", "--", "true"], &["directory"]),
        (&["show"], &["<TASK>", "standin show --help"]),
        (&["show", "--run", "x"], &["--run", "number of a run"]),
        (&["runs", "-n", "-1"], &["1 or more"]),
        (&["predict", "--user", "no-such-user", "x"], &["no-such-user", "name or number"]),
    ];
    for (arguments, words) in cases {
        assert_one_line(&sandbox.standin(arguments).output().unwrap(), 125, words);
    }
    let mut command = sandbox.standin(["run"]);
    for number in 0..200 {
        command.arg(format!("--feature=f{number}=1"));
    }
    assert_one_line(&run_job(&mut command), 125, &["--feature", "200", "allowed"]);
}

#[test]
fn help_and_version_are_no_errors() {
    let sandbox = Sandbox::new();
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"], &["help", "show"]] {
        let output = sandbox.standin(arguments).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert!(stdout(&output).contains("standin"));
    }
}

#[test]
fn the_commands_options_are_not_ours() {
    let sandbox = Sandbox::new();
    for arguments in [["run", "-q", "echo", "--quiet"], ["run", "-q", "--", "echo"]] {
        let output = sandbox.standin(arguments).arg("--name").output().unwrap();
        assert!(stdout(&output).ends_with("--name\n"), "{}", stderr(&output));
    }
}

#[test]
fn commands_that_cannot_run() {
    let sandbox = Sandbox::new();
    let cases: [(&str, i32, &str); 7] = [
        ("", 127, "not found"),
        ("no-such-program", 127, "no-such-program: command not found"),
        ("/no/such/program", 127, "not found"),
        ("no\u{1b}[2Jsuch", 127, "no?[2Jsuch"),
        ("/etc/passwd", 126, "/etc/passwd: permission denied"),
        ("/", 126, "/: is a directory"),
        ("/etc/passwd/x", 127, "not found"),
    ];
    for (command, code, words) in cases {
        assert_one_line(&sandbox.standin(["run", "-q", "--", command]).output().unwrap(), code, &[words]);
    }
    assert!(!sandbox.database().exists(), "nothing was run, nothing is recorded");
}

#[test]
fn configurations_that_cannot_be_used() {
    let sandbox = Sandbox::new();
    let cases: [(&[u8], &[&str]); 9] = [
        (b"[run]\npolicies = 3\n", &["config.toml:2", "policies", "policy"]),
        (b"speed = 3\n", &["config.toml:1", "speed", "agent", "retention"]),
        (b"[agent]\ntasks_max = \"x\"\n", &["config.toml:2", "tasks_max", "whole number"]),
        (b"[agent]\n\ntasks_max = 0\n", &["config.toml:3", "agent.tasks_max is 0", "1 to 65536"]),
        (b"[run]\nrisk = 3.0\n", &["config.toml:2", "run.risk", "between 0 and 1"]),
        (b"[run]\npolicy = \"hard\"\n", &["config.toml:2", "policy", "elastic"]),
        (b"[run\n", &["config.toml:1"]),
        (b"agent = 3\n", &["config.toml:1", "agent", "table"]),
        (b"\xff\xfe", &["config.toml", "UTF-8"]),
    ];
    for (text, words) in cases {
        fs::write(sandbox.path("config.toml"), text).unwrap();
        assert_one_line(&run_job(&mut sandbox.standin(["run"])), 125, words);
        assert_one_line(&sandbox.standin(["agent", "--check"]).output().unwrap(), 125, words);
    }
    let missing = run_job(&mut sandbox.standin(["run", "--config", "/no/such.toml"]));
    assert_one_line(&missing, 125, &["/no/such.toml", "No such file"]);
    assert_one_line(&run_job(&mut sandbox.standin(["run", "--config", "/"])), 125, &["directory"]);
}

#[test]
fn an_empty_variable_is_none() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--quiet", "--no-agent", "--db"]);
    command.arg(sandbox.database()).env("STANDIN_DB", "").env("STANDIN_SOCKET", "");
    assert_eq!(run_job(&mut command).status.code(), Some(3));
}

#[test]
fn databases_that_cannot_be_written() {
    let sandbox = Sandbox::new();
    let sqlite = |name: &str, sql: &str| {
        let path = sandbox.path(name);
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path
    };
    assert!(sandbox.run(&[], &["true"]).status.success());
    let newer = sandbox.path("newer.db");
    fs::copy(sandbox.database(), &newer).unwrap();
    sqlite("newer.db", "PRAGMA user_version = 99");
    let foreign = sqlite("foreign.db", "CREATE TABLE a (b); PRAGMA application_id = 77");
    let cases: [(&std::path::Path, &[&str]); 6] = [
        (sandbox.dir.path(), &["not recorded", "no file"]),
        ("/dev/null".as_ref(), &["not recorded", "/dev/null is no file"]),
        ("/dev/null/x.db".as_ref(), &["not recorded", "/dev/null", "File exists"]),
        ("/proc/no/x.db".as_ref(), &["not recorded", "/proc/no", "No such file"]),
        (&newer, &["not recorded", "schema 99", "update standin"]),
        (&foreign, &["not recorded", "another program", "choose another"]),
    ];
    for (path, words) in cases {
        let mut command = sandbox.standin(["run", "--no-agent", "--db"]);
        assert_ran(&run_job(command.arg(path)), words);
    }
    for path in [&newer, &foreign] {
        assert_one_line(&sandbox.standin(["ls", "--db"]).arg(path).output().unwrap(), 125, &[]);
    }
    assert_one_line(&sandbox.standin(["ls", "--db", "/"]).output().unwrap(), 125, &["no file"]);
}

#[test]
fn the_directory_of_a_database_is_made() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("new/directory/x.db");
    let output = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(&path));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(path.exists());
}

#[test]
fn a_damaged_database_is_moved_aside_and_named() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.database(), [0x5a; 8192]).unwrap();
    let listed = sandbox.standin(["ls"]).output().unwrap();
    assert_one_line(&listed, 125, &["damaged", "moved aside"]);
    assert_eq!(stderr(&listed).matches("file is not a database").count(), 1, "a cause is told once");
    assert_ran(&run_job(&mut sandbox.standin(["run", "--no-agent"])), &["corrupt", ".corrupt-", "new one"]);
    assert_eq!(sandbox.sql::<i64>("SELECT count(*) FROM run WHERE exit_code = 3"), 1);
}

#[test]
fn a_database_for_somebody_else() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[], &["true"]).status.success());
    let mut command = sandbox.standin(["run", "--no-agent"]);
    assert_ran(&run_job(as_nobody(&mut command)), &["not root", "not recorded", "no permission"]);
    let mut command = sandbox.standin(["ls"]);
    assert_one_line(&as_nobody(&mut command).output().unwrap(), 125, &["no permission"]);
}

#[test]
fn a_full_disk_stops_no_job() {
    require!(is_root(), "needs root, to mount a small file system");
    let sandbox = Sandbox::new();
    let place = sandbox.path("small");
    fs::create_dir(&place).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=0755", "none"]).arg(&place).status();
    require!(mounted.is_ok_and(|status| status.success()), "no file system can be mounted here");
    let database = place.join("x.db");
    let before = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(&database));
    _ = fs::write(place.join("filler"), vec![0; 4 << 20]);
    let full = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(&database));
    let begun = run_job(sandbox.standin(["run", "--no-agent", "--db"]).arg(place.join("y.db")));
    let listed = sandbox.standin(["ls", "--db"]).arg(&database).output().unwrap();
    assert!(Command::new("umount").arg(&place).status().unwrap().success());
    assert_eq!(before.status.code(), Some(3));
    assert_ran(&full, &["not recorded", "no space"]);
    assert_ran(&begun, &["not recorded", "no space"]);
    assert!(stdout(&listed).contains("sh"), "what was recorded can be read: {}", stderr(&listed));
}

#[test]
fn sockets_that_are_none() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("file");
    fs::write(&file, "precious").unwrap();
    let stale = sandbox.socket();
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let long = "/tmp/".to_owned() + &"x".repeat(200);
    let cases: [(&OsStr, &str); 4] = [
        (file.as_os_str(), "no socket"),
        (stale.as_os_str(), "nobody listens"),
        (long.as_ref(), "107 bytes"),
        ("/no/such/socket".as_ref(), "no such socket"),
    ];
    for (socket, words) in cases {
        assert_ran(&run_job(sandbox.standin(["run", "--socket"]).arg(socket)), &["no agent at", words]);
        let mut command = sandbox.standin(["run", "--require-agent", "--socket"]);
        assert_one_line(&run_job(command.arg(socket)), 125, &["--require-agent", words]);
    }
    let agent = sandbox.standin(["agent", "--socket"]).arg(&file).output().unwrap();
    assert_one_line(&agent, 125, &["is no socket"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious", "not ours to remove");
}

#[test]
fn a_socket_for_somebody_else() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    let agent = sandbox.agent();
    let mut command = agent.standin(["run", "--db", "/dev/null"]);
    assert_ran(&run_job(as_nobody(&mut command)), &["no agent at", "no permission", "agent.socket_group"]);
}

#[test]
fn an_agent_that_cannot_start_leaves_no_socket() {
    require!(is_root(), "needs root");
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["agent", "--db", "/"]);
    let output = command.env("STANDIN_SOCKET", sandbox.socket()).output().unwrap();
    assert_one_line(&output, 125, &["no file"]);
    assert!(!sandbox.socket().exists());
}

#[test]
fn limits_that_cannot_be_set_are_told() {
    require!(is_root(), "needs root, to become an ordinary user");
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--no-agent", "--limit-memory", "1G"]);
    assert_ran(&run_job(as_nobody(&mut command)), &["limits asked for are not set"]);
}

#[test]
fn an_input_that_is_not_there_is_told() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--no-agent", "--input", "/no/such/input"]);
    assert_ran(&run_job(&mut command), &["--input /no/such/input", "not counted"]);
}

#[test]
fn nothing_is_known_yet() {
    let sandbox = Sandbox::new();
    for arguments in [&["ls"][..], &["runs"], &["show", "x"], &["predict", "x"], &["show", "--run", "1"]] {
        let output = sandbox.standin(arguments).output().unwrap();
        assert_one_line(&output, 125, &["no database at", "standin run"]);
    }
    assert!(!sandbox.database().exists(), "readers make none");
    assert!(sandbox.run(&["--name", "known"], &["true"]).status.success());
    for arguments in [&["runs", "x"][..], &["show", "x"], &["predict", "x"], &["show", "--run", "77"]] {
        assert_one_line(&sandbox.standin(arguments).output().unwrap(), 1, &["standin "]);
    }
}

#[test]
fn a_stdout_that_takes_nothing() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[], &["true"]).status.success());
    for arguments in
        [&["ls"][..], &["runs"], &["runs", "--json"], &["show", "true"], &["doctor"], &["db", "path"]]
    {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = sandbox.standin(arguments).stdout(full).output().unwrap();
        assert_one_line(&output, 125, &["stdout", "No space left"]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sandbox.standin(arguments).stdout(writer).output().unwrap();
        assert_eq!(stderr(&output), "", "a reader who has gone is no failure");
    }
}

#[test]
fn a_result_that_cannot_be_written_fails_no_job() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--no-agent", "--json", "/dev/full"]);
    assert_ran(&run_job(&mut command), &["failed to write the result", "No space left"]);
}

#[test]
fn odd_surroundings() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--no-agent"]);
    assert_eq!(run_job(command.env_remove("HOME").env_remove("PATH")).status.code(), Some(3));
    let gone = sandbox.path("gone");
    fs::create_dir(&gone).unwrap();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "rmdir ../gone; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_standin"),
        "run",
        "--no-agent",
    ]);
    let output =
        run_job(command.current_dir(&gone).env("STANDIN_DB", sandbox.database()).stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn arguments_of_any_bytes_and_size_arrive() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.standin(["run", "--quiet", "--no-agent", "--", "printf", "%s|"]);
    let output = command.arg(OsStr::from_bytes(b"\xff\xfe\x1b[2J")).output().unwrap();
    assert_eq!(output.stdout, b"\xff\xfe\x1b[2J|");
    let mut command = sandbox.standin(["run", "--quiet", "--no-agent", "--", "sh", "-c", "echo $#", "sh"]);
    let output = command.args(std::iter::repeat_n("x".repeat(100), 10_000)).output().unwrap();
    assert_eq!(stdout(&output), "10000\n");
    for arguments in [&["runs"][..], &["show", "printf"], &["ls"]] {
        let output = sandbox.standin(arguments).output().unwrap();
        assert!(!stdout(&output).chars().any(|c| c.is_control() && c != '\n'), "{arguments:?}");
    }
}

#[test]
fn names_cannot_move_the_cursor() {
    let sandbox = Sandbox::new();
    let name = "a\u{1b}[2J\u{7}\nb";
    let output = sandbox.run(&["--name", name, "--feature", "k\u{1b}=v\u{1b}[1m"], &["true"]);
    assert!(output.status.success());
    let listed = sandbox.standin(["ls"]).output().unwrap();
    let shown = sandbox.standin(["show", "--run", "1"]).output().unwrap();
    for text in [stderr(&output), stdout(&listed), stdout(&shown)] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

#[test]
fn ten_thousand_inputs() {
    let sandbox = Sandbox::new();
    let directory = sandbox.path("inputs");
    fs::create_dir(&directory).unwrap();
    let names: Vec<_> = (0..10_000).map(|number| directory.join(number.to_string())).collect();
    names.iter().for_each(|name| fs::write(name, "x").unwrap());
    let mut command = sandbox.standin(["run", "--quiet", "--no-agent", "--name", "many", "--", "true"]);
    assert!(command.args(&names).status().unwrap().success());
    let counted: f64 = sandbox.sql("SELECT number FROM run_feature WHERE name = 'input_files'");
    assert!(counted >= 4000.0, "{counted}");
}
