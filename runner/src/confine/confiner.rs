//! The domains of launches, and what was found to be refused in them.

use super::{Plan, Scope, install_tools, rehearse, tools};
use crate::config::Config;
use crate::log;
use crate::offline::Offline;
use crate::reaper::Reaper;
use contract::runner::{Isolation, Launch};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes domains; remembers what the last trial found.
#[derive(Debug, Default)]
pub struct Confiner {
    /// For which scope, and what.
    tried: Mutex<Option<(Scope, Isolation)>>,
}

/// The domains of one launch.
#[derive(Debug)]
pub struct Confined {
    scope: Scope,
    /// That of the process.
    pub plan: Plan,
    /// What leads its tools to theirs.
    pub variables: Vec<(String, OsString)>,
    /// What runs beside it on its behalf; absent: nothing does.
    pub offline: Option<Arc<Offline>>,
    /// What is refused in them; absent: nobody tried yet, see [`Confiner::rehearse`].
    pub isolation: Option<Isolation>,
}

impl Confiner {
    /// Makes the domains of a launch.
    ///
    /// # Errors
    /// For people: the kernel knows domains and refuses.
    pub async fn confine(&self, config: &Config, launch: &Launch) -> Result<Confined, String> {
        let scope = Scope::of(config, launch);
        if !config.isolate {
            return Ok(Confined {
                scope,
                plan: Plan::none(),
                variables: Vec::new(),
                offline: None,
                isolation: Some(rehearse::nothing("switched off by RUNNER_ISOLATION")),
            });
        }
        let installed = install_tools(config, launch);
        let making = scope.clone();
        // 65,536 ports take a while.
        let plans =
            tokio::task::spawn_blocking(move || Ok((Plan::new(&making)?, Plan::offline(&making)?)));
        let (plan, offline) = plans
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error: super::Error| error.to_string())?;
        let offline = Offline {
            plan: offline,
            programs: installed.offline,
            ports: launch.confinement.clone(),
            folder: tools::folder(config),
        };
        let known = self.tried().clone();
        Ok(Confined {
            isolation: known.filter(|(of, _)| *of == scope).map(|(_, found)| found),
            scope,
            plan,
            variables: installed.variables,
            // Weakened sweeps would not end it.
            offline: (!cfg!(feature = "weakened")).then(|| Arc::new(offline)),
        })
    }

    /// Finds out what the domains refuse. Cancel safe: then nothing is known, and its process is killed.
    pub async fn rehearse(
        &self,
        config: &Config,
        confined: Confined,
        reaper: &Reaper,
    ) -> Isolation {
        let Confined {
            scope,
            plan,
            variables,
            ..
        } = confined;
        match rehearse::rehearse(config, &scope.ports, &plan, &variables, reaper).await {
            Ok(found) => {
                *self.tried() = Some((scope, found.clone()));
                found
            }
            // The next start tries again.
            Err(error) => {
                let error = error.to_string();
                log::error(
                    "isolation was not tried",
                    &[("error", error.as_str().into())],
                );
                rehearse::nothing(&format!("it could not be tried: {error}"))
            }
        }
    }

    fn tried(&self) -> MutexGuard<'_, Option<(Scope, Isolation)>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
