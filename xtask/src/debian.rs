//! Debian's packages, for those who may install them.
use std::{path::Path, process::Command};

use anyhow::Result;

use crate::process::{done, has, output, status};

const APT: &str = "apt-get";

/// Programs, and the packages that have them.
pub(crate) type Programs = [(&'static str, &'static str)];

/// Installs what is missing of `programs`, where that is allowed; gives what is missing still, which is no error.
pub(crate) fn provide(programs: &Programs) -> Vec<&'static str> {
    let missing = || programs.iter().filter(|(program, _)| !has(program));
    let mut packages: Vec<&str> = missing().flat_map(|(_, packages)| packages.split(' ')).collect();
    packages.dedup();
    if !packages.is_empty()
        && may_install()
        && let Err(error) = install(&packages)
    {
        println!("warning: {error:#}");
    }
    missing().map(|(program, _)| *program).collect()
}

/// Whether this user may install packages here.
pub(crate) fn may_install() -> bool {
    is_debian() && output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

/// Installs packages. The lists of a new or long unused machine know nothing, or versions that are gone: then
/// they are fetched first.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    println!("installing {}", packages.join(" "));
    if status(&mut install_command(packages))?.success() {
        return Ok(());
    }
    update()?;
    done(&mut install_command(packages))
}

/// Fetches the lists of packages.
pub(crate) fn update() -> Result<()> {
    done(Command::new(APT).args(["update", "-q"]))
}

fn install_command(packages: &[&str]) -> Command {
    let mut apt = Command::new(APT);
    apt.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}
