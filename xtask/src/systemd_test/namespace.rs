//! Process 1 of the namespaces before it becomes systemd: lays out what a machine has (root, /proc, /sys, cgroups, /dev)
//! and gives the way to the host up. Everything is mounted in a namespace of its own and gone with it.
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root, sethostname},
};

/// Device nodes that are the host's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Controllers of cgroup v1 that get their mounts, where this host has them.
const V1: [&str; 7] = ["memory", "cpu", "cpuacct", "blkio", "pids", "freezer", "devices"];

/// Options of the hidden verb.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A Debian.
    root: PathBuf,
    /// Directory with `payload/`, for everything that is written.
    scratch: PathBuf,
}

/// Ends only if it fails.
pub(crate) fn init(options: &Options) -> Result<()> {
    let root = lay_out_root(options)?;
    lay_out_kernel(&root)?;
    lay_out_devices(&root)?;
    for place in ["run", "tmp"] {
        let mode = if place == "run" { "mode=755" } else { "mode=1777" };
        mount_at("tmpfs", "tmpfs", &root.join(place), mode)?;
    }
    sethostname("standin-test")?;
    enter(&root)?;
    let error = Command::new("/sbin/init")
        .args(["--log-target=console", "--log-level=notice", "--show-status=0"])
        .env_clear()
        .env("container", "lxc")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .exec();
    bail!("systemd can't be executed: {error}")
}

fn mount_at(kind: &str, source: &str, place: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(place)?;
    mount(Some(source), place, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("failed to mount {kind} ({options}) on {}", place.display()))
}

/// The Debian, with everything that is written to it in memory.
fn lay_out_root(options: &Options) -> Result<PathBuf> {
    let memory = options.scratch.join("memory");
    mount_at("tmpfs", "tmpfs", &memory, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| memory.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        options.root.display(),
        upper.display(),
        work.display()
    );
    mount_at("overlay", "overlay", &root, &layers)?;
    let payload = root.join("standin-test");
    fs::create_dir(&payload)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&options.scratch.join("payload")), &payload, None::<&str>, flags, None::<&str>)?;
    // Stable, so that this is no first boot, which would ask for presets.
    fs::write(root.join("etc/machine-id"), "b0a7c0de00000000000000000000c0de\n")?;
    Ok(root)
}

fn lay_out_kernel(root: &Path) -> Result<()> {
    mount_at("proc", "proc", &root.join("proc"), "")?;
    mount_at("sysfs", "sysfs", &root.join("sys"), "")?;
    // Each of these, but for cgroups, may be missing: then what needs it says so.
    _ = mount_at("bpf", "bpf", &root.join("sys/fs/bpf"), "mode=700");
    _ = mount_at("tracefs", "tracefs", &root.join("sys/kernel/tracing"), "");
    lay_out_cgroups(&root.join("sys/fs/cgroup"))
}

/// As systemd finds them: v2 alone, or v2 beside v1 where this host's controllers are there ("hybrid").
fn lay_out_cgroups(place: &Path) -> Result<()> {
    let known = fs::read_to_string("/proc/cgroups")?;
    let on_v1 = |controller: &&str| {
        known.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(*controller) && words.next().is_some_and(|hierarchy| hierarchy != "0")
        })
    };
    let v1: Vec<_> = V1.into_iter().filter(on_v1).collect();
    if v1.is_empty() {
        return mount_at("cgroup2", "cgroup2", place, "");
    }
    mount_at("tmpfs", "tmpfs", place, "mode=755")?;
    for controller in v1 {
        mount_at("cgroup", "cgroup", &place.join(controller), controller)?;
    }
    mount_at("cgroup", "cgroup", &place.join("systemd"), "none,name=systemd")?;
    mount_at("cgroup2", "cgroup2", &place.join("unified"), "")
}

fn lay_out_devices(root: &Path) -> Result<()> {
    let devices = root.join("dev");
    mount_at("tmpfs", "tmpfs", &devices, "mode=755")?;
    for name in DEVICES {
        fs::write(devices.join(name), "")?;
        let node = Path::new("/dev").join(name);
        mount(Some(&node), &devices.join(name), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    mount_at("devpts", "devpts", &devices.join("pts"), "newinstance,ptmxmode=0666")?;
    mount_at("tmpfs", "tmpfs", &devices.join("shm"), "mode=1777")?;
    symlink("pts/ptmx", devices.join("ptmx"))?;
    Ok(symlink("/proc/self/fd", devices.join("fd"))?)
}

fn enter(root: &Path) -> Result<()> {
    let old = root.join("old-root");
    fs::create_dir(&old)?;
    chdir(root)?;
    pivot_root(".", "old-root")?;
    chdir("/")?;
    umount2("/old-root", MntFlags::MNT_DETACH)?;
    Ok(fs::remove_dir("/old-root")?)
}
