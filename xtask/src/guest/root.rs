//! The root file system of guests: Debian's smallest, with systemd and what the tests call.
use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use super::cache;
use crate::{debian, process::done};

const SUITE: &str = "bookworm";

/// Beyond what every Debian has. `perl` is among those: the tests' servers and eaters of memory are written in it.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,procps,iproute2";

/// Nobody reads these in a guest.
const LEFT_OUT: [&str; 5] = [
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/zoneinfo/*",
    "path-include=/usr/share/doc/standin/*",
];

/// The tree, from the cache or made now.
pub(crate) fn tree() -> Result<PathBuf> {
    cache::entry("root", &[SUITE, PACKAGES, &LEFT_OUT.join(" ")], |draft| {
        let missing = debian::provide(&[("mmdebstrap", "mmdebstrap")]);
        ensure!(missing.is_empty(), "to make a Debian there must be mmdebstrap, and this user root");
        let mut make = Command::new("mmdebstrap");
        make.args(["--quiet", "--mode=root", "--variant=minbase", "--format=dir"]);
        make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
        make.arg("--dpkgopt=force-unsafe-io");
        make.args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
        done(make.arg(format!("--include={PACKAGES}")).arg(SUITE).arg(draft))
    })
}
