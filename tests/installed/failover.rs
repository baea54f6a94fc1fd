//! Services that an installed standin keeps up.
use crate::host::*;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Answers every connection with its process id.
fn server(port: u16) -> String {
    format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', \
         LocalPort => {port}, ReuseAddr => 1) or die; \
         while (my $c = $s->accept) {{ my $question = <$c>; print $c qq($$\\n); close $c }}"
    )
}

fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    stream.write_all(b"?\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then(|| answer.trim().to_owned())
}

/// What `standin ps` says of a service to its owner.
fn service(owner: &str, name: &str) -> serde_json::Value {
    let services = as_user(owner, &["standin", "ps", "--json"]);
    let services: serde_json::Value = serde_json::from_slice(&services.stdout).unwrap_or_default();
    let all = services["services"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|service| service["name"] == name).unwrap_or_default()
}

/// Whether it serves and a shadow stands by.
fn has_shadow(owner: &str, name: &str) -> bool {
    let instances = service(owner, name)["instances"].as_array().cloned().unwrap_or_default();
    instances.iter().any(|instance| instance["role"] == "shadow")
}

#[ignore = "for an installed package"]
#[test]
fn the_shadow_answers_when_the_primary_is_killed() {
    ensure_started();
    _ = output(&["ip", "link", "set", "lo", "up"]);
    let mut launcher =
        Job::start(&["standin", "run", "--name", "web", "--shadows", "1", "--", "perl", "-e", &server(8087)]);
    wait_until("it serves", || ask(8087).is_some());
    wait_until("a shadow stands by", || has_shadow("root", "web"));
    let primary = ask(8087).unwrap();
    printed(&["kill", "-KILL", &primary]);
    let next = ask(8087).expect("the next request is answered");
    assert_ne!(next, primary);
    let failovers = "SELECT count(*) FROM failover_log WHERE service = 'web'";
    wait_until("it is recorded", || recorded::<i64>(failovers).is_some_and(|count| count > 0));
    printed(&["standin", "stop", "web"]);
    wait_until("it has ended", || !launcher.is_running());
}

#[ignore = "for an installed package"]
#[test]
fn a_users_service_that_is_killed_whole_leaves_no_cgroup() {
    ensure_started();
    _ = output(&["ip", "link", "set", "lo", "up"]);
    user("alice", true);
    let run =
        ["standin", "run", "--require-agent", "--name", "her-server", "--shadows", "1", "--", "perl", "-e"];
    let server = server(8088);
    let _launcher = Job::start(&[&["runuser", "-u", "alice", "--"], &run[..], &[&server]].concat());
    wait_until("it serves", || ask(8088).is_some());
    wait_until("a shadow stands by", || has_shadow("alice", "her-server"));
    let cgroup = cgroup_of_run(&ask(8088).unwrap());
    assert!(cgroup.is_dir(), "{}", cgroup.display());
    let supervisor = service("alice", "her-server")["pid"].to_string();
    printed(&["kill", "-KILL", &supervisor]);
    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    wait_until("the agent has cleared up", || !cgroup.exists());
}

/// The v2 cgroup of the run that an instance belongs to.
fn cgroup_of_run(instance: &str) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{instance}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find(|root| Path::new(root).is_dir());
    let instance = Path::new(root.unwrap()).join(path);
    instance.parent().unwrap().to_owned()
}
