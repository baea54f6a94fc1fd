//! A guest: the Debian with a kernel's modules, made fit for an emulated processor, on a disk; booted and frozen.
//!
//! Under emulation it is the number of programs that are started that costs. So everything that a machine with one
//! purpose does without is masked: devices are not probed, nobody logs in, generators have nothing to generate.
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    kernel::Kernel,
    machine::{self, Machine},
};
use crate::{guest::cache, process::done};

const RUN: &str = include_str!("guest-run.sh");

/// The unit of [`RUN`].
const UNIT: &str = "\
[Unit]
Description=control line
After=multi-user.target
[Service]
Type=exec
ExecStart=/usr/local/sbin/guest-run
";

/// What the guest boots into.
const TARGET: &str = "\
[Unit]
Description=the guest is up
Requires=multi-user.target
Wants=guest-run.service
After=multi-user.target
AllowIsolate=yes
";

/// The clock jumps when a guest is thawed, and everything takes long.
const MANAGER: &str = "\
[Manager]
DefaultTimeoutStartSec=300s
DefaultTimeoutStopSec=120s
DefaultDeviceTimeoutSec=300s
";

/// Units that are masked.
const MASKED: &str = "\
    systemd-timesyncd.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer \
    getty@tty1.service getty-static.service serial-getty@ttyS0.service serial-getty@hvc0.service console-getty.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-pstore.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount systemd-machine-id-commit.service systemd-firstboot.service \
    systemd-hwdb-update.service ldconfig.service systemd-sysusers.service systemd-journal-flush.service \
    systemd-random-seed.service systemd-rfkill.service systemd-rfkill.socket dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@.service kmod-static-nodes.service \
    systemd-remount-fs.service systemd-fsck-root.service systemd-user-sessions.service systemd-logind.service \
    remote-fs.target remote-cryptsetup.target cryptsetup.target systemd-initctl.socket systemd-udevd.service \
    systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-modules-load.service \
    systemd-tmpfiles-setup-dev.service systemd-ask-password-console.path systemd-ask-password-wall.path";

/// Disk of the guest; sparse.
const DISK: &str = "1500M";

/// A frozen guest of a kernel: see [`Machine::freeze`] for what is in the directory.
pub(super) fn guest(kernel: &'static Kernel, root: &Path) -> Result<PathBuf> {
    let unpacked = kernel.unpacked()?;
    let (root_name, kernel_name) = (root.display().to_string(), unpacked.display().to_string());
    let qemu = machine::version()?;
    let depends_on =
        [&root_name, &kernel_name, RUN, UNIT, TARGET, MANAGER, MASKED, DISK, &qemu, &machine::shape()];
    cache::entry(&format!("guest-{}", kernel.name), &depends_on, |draft| {
        fs::create_dir_all(draft)?;
        // A guest is thawed with the kernel that it was frozen with.
        symlink(&unpacked, draft.join("kernel"))?;
        let make = || {
            make_disk(root, &unpacked, draft)?;
            Machine::freeze(kernel, draft)
        };
        // QEMU has died of unknown causes once while a guest was frozen. There is nothing of standin in it yet.
        make().or_else(|error| {
            println!("once more: {error:#}");
            make()
        })
    })
}

fn make_disk(root: &Path, unpacked: &Path, draft: &Path) -> Result<()> {
    let stage = draft.join("stage");
    done(Command::new("cp").args(["-a", "--reflink=auto"]).args([root, &stage]))?;
    for (directory, keep) in [("var/cache/apt", false), ("dev", true)] {
        let directory = stage.join(directory);
        _ = fs::remove_dir_all(&directory);
        if keep {
            fs::create_dir(&directory)?;
        }
    }
    add_modules(&stage, unpacked)?;
    customise(&stage)?;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum,^resize_inode", "-m", "0"]);
    make.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", "-d"]);
    done(make.arg(&stage).arg(draft.join("disk")).arg(DISK))?;
    Ok(fs::remove_dir_all(stage)?)
}

fn add_modules(stage: &Path, unpacked: &Path) -> Result<()> {
    let place = stage.join("usr/lib/modules");
    fs::create_dir_all(&place)?;
    let source = unpacked.join("tree/lib/modules");
    let version = fs::read_dir(&source)?.flatten().next().context("the kernel has no modules")?.file_name();
    done(Command::new("cp").arg("-a").args([&source.join(&version), &place]))?;
    // Unpacking them takes an emulated processor long.
    let unpack = "find . -name '*.ko.xz' -exec xz -dq {} +";
    done(Command::new("sh").args(["-c", unpack]).current_dir(place.join(&version)))?;
    done(Command::new("chroot").arg(stage).arg("/sbin/depmod").arg(version))
}

fn customise(stage: &Path) -> Result<()> {
    let etc = stage.join("etc");
    let units = etc.join("systemd/system");
    fs::write(etc.join("hostname"), "standin-test\n")?;
    fs::write(etc.join("hosts"), "127.0.0.1 localhost standin-test\n")?;
    // Stable, so that this is no first boot.
    fs::write(etc.join("machine-id"), "b0a7c0de00000000000000000000c0de\n")?;
    fs::write(etc.join("fstab"), "")?;
    let run = stage.join("usr/local/sbin/guest-run");
    fs::write(&run, RUN)?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
    fs::write(units.join("guest-run.service"), UNIT)?;
    fs::write(units.join("guest.target"), TARGET)?;
    link("guest.target", &units.join("default.target"))?;
    for unit in MASKED.split_whitespace() {
        link("/dev/null", &units.join(unit))?;
    }
    for kind in ["system-generators", "system-environment-generators"] {
        let own = etc.join("systemd").join(kind);
        fs::create_dir_all(&own)?;
        for generator in
            fs::read_dir(stage.join("usr/lib/systemd").join(kind)).into_iter().flatten().flatten()
        {
            link("/dev/null", &own.join(generator.file_name()))?;
        }
    }
    for (directory, text) in
        [("journald.conf.d", "[Journal]\nStorage=volatile\n"), ("system.conf.d", MANAGER)]
    {
        let directory = etc.join("systemd").join(directory);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("guest.conf"), text)?;
    }
    Ok(())
}

fn link(target: &str, place: &Path) -> Result<()> {
    _ = fs::remove_file(place);
    symlink(target, place).with_context(|| format!("failed to link {}", place.display()))
}
