//! What a cgroup that others made is for, by its path: systemd units, containers, pods, batch jobs. The runtime's own
//! files tell a container's name, where they may be read.

use std::fs;
use std::path::Path;

/// Where runtimes keep what they know of their containers.
struct Runtimes<'a> {
    /// Docker's directory with one per container.
    docker: &'a Path,
    /// podman's list of root's containers.
    podman: &'a Path,
}

impl Runtimes<'static> {
    fn of_this_host() -> Self {
        Self {
            docker: Path::new("/var/lib/docker/containers"),
            podman: Path::new("/var/lib/containers/storage/overlay-containers/containers.json"),
        }
    }
}

/// How much of a container's id is shown where it has no name: as its tools do.
const SHORT_ID: usize = 12;

/// What a cgroup at this path below the root is called: `docker web`, `unit ssh.service`, `slurm job 7 step 0`; the
/// path itself where nothing is known.
pub fn name_of(path: &Path) -> String {
    name_with(path, &Runtimes::of_this_host())
}

fn name_with(path: &Path, runtimes: &Runtimes<'_>) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let last = parts.last().copied().unwrap_or("/");
    container(&parts, runtimes)
        .or_else(|| batch_job(&parts))
        .or_else(|| last.strip_prefix("lxc.payload.").map(|name| format!("lxc {name}")))
        .or_else(|| is_unit(last).then(|| format!("unit {last}")))
        .unwrap_or_else(|| path.display().to_string())
}

/// The container that a cgroup is of; one inside of it is called by its path from there.
fn container(parts: &[&str], runtimes: &Runtimes<'_>) -> Option<String> {
    (1..=parts.len()).rev().find_map(|end| {
        let (outer, inner) = parts.split_at(end);
        let container = container_at(outer, runtimes)?;
        Some([&[container.as_str()], inner].concat().join("/"))
    })
}

fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".slice", ".socket", ".mount", ".swap"].iter().any(|kind| name.ends_with(kind))
}

/// `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`, or `docker/ID`.
fn container_at(parts: &[&str], runtimes: &Runtimes<'_>) -> Option<String> {
    let last = parts.last()?;
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
        ("docker", None) => {
            format!("docker {}", runtimes.docker_name(id).unwrap_or_else(|| short.to_owned()))
        }
        ("libpod" | "libpod_parent", None) => {
            format!("podman {}", runtimes.podman_name(id).unwrap_or_else(|| short.to_owned()))
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

impl Runtimes<'_> {
    fn docker_name(&self, id: &str) -> Option<String> {
        let config = read_json(&self.docker.join(id).join("config.v2.json"))?;
        Some(config["Name"].as_str()?.trim_start_matches('/').to_owned())
    }

    fn podman_name(&self, id: &str) -> Option<String> {
        let all = read_json(self.podman)?;
        let own = all.as_array()?.iter().find(|container| container["id"] == id)?;
        Some(own["names"][0].as_str()?.to_owned())
    }
}

fn read_json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
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
    fn runtimes_tell_the_names_of_their_containers() {
        let state = tempfile::tempdir().unwrap();
        let (web, job) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
        let podman = state.path().join("containers.json");
        let runtimes = Runtimes { docker: state.path(), podman: &podman };
        let named = |path: String| name_with(Path::new(&path), &runtimes);
        fs::create_dir(state.path().join(&web)).unwrap();
        // As Docker 28 and podman 4.3 write them, but for what is not looked at.
        fs::write(state.path().join(&web).join("config.v2.json"), r#"{"ID":"0123","Name":"/web-1"}"#)
            .unwrap();
        fs::write(
            &podman,
            format!(r#"[{{"id":"{web}","names":["x"]}},{{"id":"{job}","names":["job","j2"]}}]"#),
        )
        .unwrap();
        assert_eq!(named(format!("system.slice/docker-{web}.scope")), "docker web-1");
        assert_eq!(named(format!("machine.slice/libpod-{job}.scope/container")), "podman job/container");
        assert_eq!(named(format!("machine.slice/libpod-{job}.scope")), "podman job");
        // Without a name, or with a file that is something else, the id has to do.
        assert_eq!(named(format!("docker/{job}")), "docker fedcba987654");
        fs::write(&podman, "{").unwrap();
        assert_eq!(named(format!("machine.slice/libpod-{job}.scope")), "podman fedcba987654");
    }

    #[test]
    fn others_are_called_by_their_path() {
        assert_eq!(named("a/b"), "a/b");
        assert_eq!(named("job_x"), "job_x");
        assert_eq!(named("docker-short.scope"), "unit docker-short.scope");
    }
}
