//! The root file system of guests: Debian's smallest, with systemd and what the tests call.
use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use super::cache;
use crate::{debian, process::done};

const SUITE: &str = "bookworm";

/// Beyond what every Debian has. `perl` is among those: the tests' servers and eaters of memory are written in it. Containers
/// are made of busybox.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,procps,iproute2,crun,busybox-static";

/// Nobody reads these in a guest.
const LEFT_OUT: [&str; 5] = [
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/zoneinfo/*",
    "path-include=/usr/share/doc/standin/*",
];

/// The tree, from the cache or made now, with packages beyond those that it always has.
pub(crate) fn tree(with: &[String]) -> Result<PathBuf> {
    let kind = if with.is_empty() { "root" } else { "root-with-more" };
    let packages = [&[PACKAGES.to_owned()], with].concat().join(",");
    cache::entry(kind, &[SUITE, &packages, &LEFT_OUT.join(" ")], |draft| {
        let missing = debian::provide(&[("mmdebstrap", "mmdebstrap")]);
        ensure!(missing.is_empty(), "to make a Debian there must be mmdebstrap, and this user root");
        let mut make = Command::new("mmdebstrap");
        make.args(["--quiet", "--mode=root", "--variant=minbase", "--format=dir"]);
        make.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
        make.arg("--dpkgopt=force-unsafe-io");
        make.args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
        done(make.arg(format!("--include={packages}")).arg(SUITE).arg(draft))
    })
}
