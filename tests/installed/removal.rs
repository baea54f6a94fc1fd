//! The way out. Nothing comes after this: the package is gone.
use crate::host::*;
use std::fs;
use std::path::Path;

#[ignore = "for an installed package"]
#[test]
fn a_purge_leaves_a_job_alone_and_nothing_else_behind() {
    ensure_started();
    let go = "/tmp/go-last";
    _ = fs::remove_file(go);
    let script = format!("while [ ! -e {go} ]; do sleep 0.3; done; exit 3");
    let mut job =
        Job::start(&["standin", "run", "--require-agent", "--name", "last", "--", "sh", "-c", &script]);
    let running = "SELECT count(*) FROM run_summary WHERE task_type = 'last' AND result = 'running'";
    wait_until("it runs", || recorded::<i64>(running) == Some(1));
    printed(&["apt-get", "remove", "-y", "-q", "standin"]);
    assert!(job.is_running(), "removal ends no job");
    assert!(Path::new(DATABASE).exists(), "removal keeps what was recorded");
    assert!(Path::new("/etc/standin/config.toml").exists());
    assert_eq!(pins(), Vec::<String>::new(), "nothing counts any more");
    fs::write(go, "").unwrap();
    assert_eq!(job.exit_code(), Some(3));

    printed(&["apt-get", "purge", "-y", "-q", "standin"]);
    let left = [
        "/usr/bin/standin",
        "/etc/standin",
        "/var/lib/standin",
        "/run/standin",
        "/sys/fs/bpf/standin",
        "/usr/lib/systemd/system/standin.service",
        "/etc/systemd/system/multi-user.target.wants/standin.service",
        "/etc/systemd/system/sockets.target.wants/standin.socket",
        "/sys/fs/cgroup/standin.slice",
        "/sys/fs/cgroup/unified/standin.slice",
        "/sys/fs/cgroup/memory/standin.slice",
    ];
    let left: Vec<_> = left.into_iter().filter(|path| Path::new(path).symlink_metadata().is_ok()).collect();
    assert_eq!(left, Vec::<&str>::new());
    assert_eq!(property("standin.service", "LoadState"), "not-found");
}

/// What is pinned of the probes.
fn pins() -> Vec<String> {
    let entries = fs::read_dir("/sys/fs/bpf/standin").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("standin-jobs")).collect()
}
