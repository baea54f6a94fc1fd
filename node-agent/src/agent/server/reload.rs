//! Reading the configuration again while tasks run: all of it that can change under way does, the rest is named and
//! waits for a restart. A configuration that is wrong changes nothing.

use super::{Agent, ReadConfig, licenses};
use crate::agent::terms;
use crate::config::Config;
use std::rc::Rc;
use std::sync::Arc;

impl Agent {
    /// Reads the configuration and has it hold from now on, aside from the loop: a server's name may have to be
    /// looked up.
    pub(super) fn reload(self: &Rc<Self>, read_config: &ReadConfig) {
        self.manager.reloading();
        let (agent, read) = (Rc::clone(self), Arc::clone(read_config));
        tokio::task::spawn_local(async move {
            let read = tokio::task::spawn_blocking(move || {
                let config = read()?;
                let pools = licenses::Pools::new(&config);
                Ok::<_, crate::config::ConfigError>((config, pools))
            });
            let why = match read.await {
                Ok(Ok((config, pools))) => {
                    agent.take_on(config, pools);
                    return agent.manager.reloaded(None);
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let trouble = format!("the configuration stays as it was: {why}");
            tracing::error!("{trouble}");
            agent.manager.reloaded(Some(trouble));
        });
    }

    fn take_on(&self, wanted: Config, pools: licenses::Pools) {
        let (config, waiting) = in_force(&self.config(), wanted);
        if waiting.is_empty() {
            tracing::info!("the configuration was read again");
        } else {
            let keys = waiting.join(", ");
            tracing::warn!("the configuration was read again; a restart is needed for {keys}");
        }
        self.queue.set_total(terms::total(&config, self.engine.borrow().capacity()));
        self.pools.replace(pools);
        self.config.replace(Rc::new(config));
        // More may fit now.
        self.let_in();
    }
}

/// What holds of a new configuration at once, and the keys whose change has to wait: what is set up once.
fn in_force(old: &Config, wanted: Config) -> (Config, Vec<&'static str>) {
    let (was, new) = (&old.agent, &wanted.agent);
    let set_up_once = [
        ("agent.database", was.database != new.database),
        ("agent.socket", was.socket != new.socket),
        ("agent.socket_group", was.socket_group != new.socket_group),
        ("agent.database_group", was.database_group != new.database_group),
        ("agent.cgroup_parent", was.cgroup_parent != new.cgroup_parent),
        ("agent.probes", was.probes != new.probes),
        ("agent.bpffs", was.bpffs != new.bpffs),
        ("agent.host_cgroups", was.host_cgroups != new.host_cgroups),
        ("agent.tasks_max", was.tasks_max != new.tasks_max),
        ("metrics", old.metrics != wanted.metrics),
        ("host.reserve_memory", old.host != wanted.host),
    ];
    let waiting = set_up_once.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
    let agent = crate::config::Agent {
        budget_percent: new.budget_percent,
        cost_interval_s: new.cost_interval_s,
        checkpoint_s: new.checkpoint_s,
        host_record_s: new.host_record_s,
        ..was.clone()
    };
    (Config { agent, host: old.host.clone(), metrics: old.metrics.clone(), ..wanted }, waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_up_once_waits_and_all_else_holds() {
        let old = Config::default();
        let mut wanted = Config::default();
        wanted.agent.checkpoint_s = 77;
        wanted.run.risk = 0.2;
        assert_eq!(in_force(&old, wanted.clone()), (wanted.clone(), vec![]));
        let holds = wanted.clone();
        wanted.agent.tasks_max = 5;
        wanted.agent.socket = "/elsewhere".into();
        assert_eq!(in_force(&old, wanted), (holds, vec!["agent.socket", "agent.tasks_max"]));
    }
}
