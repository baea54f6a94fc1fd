//! What a shadow costs while nothing happens: no CPU, and its memory.

use crate::Settings;
use crate::contestant::OFTEN;
use crate::server::Shape;
use crate::service::{Service, free_port};
use crate::support::Sandbox;
use anyhow::Result;
use std::fs;
use std::time::Duration;

const WATCHED: Duration = Duration::from_secs(3);

pub(crate) fn run(_: &Settings) -> Result<()> {
    println!("\na service with a shadow, one thread, {} s of peace", WATCHED.as_secs());
    println!(
        "{:<12}{:<10}{:<12}{:>14}{:>14}{:>14}",
        "MiB filled", "shadow", "role", "CPU used, ms", "private, MiB", "shared, MiB"
    );
    for (mebibytes, kind) in [(0, "spawned"), (300, "spawned"), (300, "cow")] {
        row(mebibytes, kind);
    }
    Ok(())
}

fn row(mebibytes: usize, kind: &str) {
    let sandbox = Sandbox::with_config("probes = false");
    let shape = Shape { mebibytes, threads: 1, work: Duration::ZERO, ..Shape::light(sandbox.path("marks")) };
    let port = free_port();
    let mut options = vec!["--shadows", "1", "--shadow", kind];
    options.extend(OFTEN);
    let command = shape.command(port);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let service = Service::start(&sandbox, "shadow", port, &options, &command);
    service.wait_for_shadows(1);
    for role in ["primary", "shadow"] {
        let pid = service.pids(role)[0];
        let before = cpu_ns(pid);
        std::thread::sleep(WATCHED);
        let used = (cpu_ns(pid) - before) as f64 / 1e6;
        let (private, shared) = memory(&service, role);
        println!("{mebibytes:<12}{kind:<10}{role:<12}{used:>14.3}{private:>14.1}{shared:>14.1}");
    }
}

/// CPU time of all threads (`/proc/PID/task/TID/schedstat`, first field).
fn cpu_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let used = |path: std::path::PathBuf| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    threads.filter_map(|thread| used(thread.path())).sum()
}

fn memory(service: &Service<'_>, role: &str) -> (f64, f64) {
    let status = service.status().unwrap_or_default();
    let instances = status["instances"].as_array().cloned().unwrap_or_default();
    let instance = instances.into_iter().find(|instance| instance["role"] == role).unwrap_or_default();
    let mebibytes = |key: &str| instance[key].as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    (mebibytes("private_bytes"), mebibytes("shared_bytes"))
}
