//! What a cgroup that others made is for, by its path: systemd units, containers, pods, batch jobs. The runtime's own
//! files tell a container's name, where they may be read.

use std::fs;
use std::path::Path;

/// Where Docker keeps a directory per container.
const DOCKER_CONTAINERS: &str = "/var/lib/docker/containers";

/// Where podman keeps the list of root's containers.
const PODMAN_CONTAINERS: &str = "/var/lib/containers/storage/overlay-containers/containers.json";

/// How much of a container's id is shown where it has no name: as its tools do.
const SHORT_ID: usize = 12;

/// What a cgroup at this path below the root is called: `docker web`, `unit ssh.service`, `slurm job 7 step 0`; the
/// path itself where nothing is known.
pub fn name_of(path: &Path) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let last = parts.last().copied().unwrap_or("/");
    container(&parts, last)
        .or_else(|| batch_job(&parts))
        .or_else(|| last.strip_prefix("lxc.payload.").map(|name| format!("lxc {name}")))
        .or_else(|| is_unit(last).then(|| format!("unit {last}")))
        .unwrap_or_else(|| path.display().to_string())
}

fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".slice", ".socket", ".mount", ".swap"].iter().any(|kind| name.ends_with(kind))
}

/// `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, or `docker/ID`.
fn container(parts: &[&str], last: &str) -> Option<String> {
    let bare = last.strip_suffix(".scope").unwrap_or(last);
    let (runtime, id) = match bare.rsplit_once('-') {
        Some((runtime, id)) => (runtime, id),
        None => (*parts.get(parts.len().checked_sub(2)?)?, bare),
    };
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return None;
    }
    let pod = parts.iter().rev().find_map(|part| pod_of(part));
    let short = &id[..SHORT_ID];
    Some(match (runtime, pod) {
        (_, Some(pod)) => format!("pod {pod} container {short}"),
        ("docker", None) => format!("docker {}", docker_name(id).unwrap_or_else(|| short.to_owned())),
        ("libpod" | "libpod_parent", None) => {
            format!("podman {}", podman_name(id).unwrap_or_else(|| short.to_owned()))
        }
        ("cri-containerd" | "crio" | "nerdctl" | "default" | "moby", None) => format!("container {short}"),
        _ => return None,
    })
}

/// The id of a Kubernetes pod: `kubepods-burstable-podUID.slice` (dashes written `_`) or `podUID`.
fn pod_of(part: &str) -> Option<String> {
    let bare = part.strip_suffix(".slice").unwrap_or(part);
    let uid =
        if bare.starts_with("kubepods") { bare.rsplit_once("-pod")?.1 } else { bare.strip_prefix("pod")? };
    (uid.len() >= 32).then(|| uid.replace('_', "-"))
}

/// `…/job_7/step_0/…`, as Slurm names them.
fn batch_job(parts: &[&str]) -> Option<String> {
    let job = parts.iter().find_map(|part| part.strip_prefix("job_"))?;
    job.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    match parts.iter().find_map(|part| part.strip_prefix("step_")) {
        Some(step) => Some(format!("slurm job {job} step {step}")),
        None => Some(format!("slurm job {job}")),
    }
}

fn docker_name(id: &str) -> Option<String> {
    let config = fs::read_to_string(Path::new(DOCKER_CONTAINERS).join(id).join("config.v2.json")).ok()?;
    let config: serde_json::Value = serde_json::from_str(&config).ok()?;
    Some(config["Name"].as_str()?.trim_start_matches('/').to_owned())
}

fn podman_name(id: &str) -> Option<String> {
    let all: serde_json::Value = serde_json::from_str(&fs::read_to_string(PODMAN_CONTAINERS).ok()?).ok()?;
    let own = all.as_array()?.iter().find(|container| container["id"] == id)?;
    Some(own["names"][0].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str) -> String {
        name_of(Path::new(path))
    }

    #[test]
    fn known_kinds_have_names() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(named("system.slice/ssh.service"), "unit ssh.service");
        assert_eq!(named(&format!("system.slice/docker-{id}.scope")), "docker 0123456789ab");
        assert_eq!(named(&format!("docker/{id}")), "docker 0123456789ab");
        assert_eq!(named(&format!("machine.slice/libpod-{id}.scope")), "podman 0123456789ab");
        let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b2c_3.slice";
        assert_eq!(named(&format!("{pod}/cri-containerd-{id}.scope")), "container 0123456789ab");
        let uid = "11111111-2222-3333-4444-555555555555";
        let pod = format!("kubepods.slice/kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        assert_eq!(
            named(&format!("{pod}/cri-containerd-{id}.scope")),
            format!("pod {uid} container 0123456789ab")
        );
        assert_eq!(named("system.slice/slurmstepd.scope/job_7/step_0/user"), "slurm job 7 step 0");
        assert_eq!(named("lxc.payload.web"), "lxc web");
    }

    #[test]
    fn others_are_called_by_their_path() {
        assert_eq!(named("a/b"), "a/b");
        assert_eq!(named("job_x"), "job_x");
        assert_eq!(named("docker-short.scope"), "unit docker-short.scope");
    }
}
