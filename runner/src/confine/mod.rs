//! What the kernel refuses to OpenCode and to everything below it: no privilege is needed, nothing below
//! can take it back.
//!
//! There are two domains. The outer one holds for all that the runner starts as OpenCode: [`Plan`] makes
//! it before the fork, the child enters it before exec. The inner one holds for what OpenCode starts as
//! tools: [`tools`] enters it in the place of the shell. [`rehearse`] tries both and tells what was
//! refused, so that what is reported was seen; [`Confiner`] joins them.
//!
//! Landlock's rules only ever add: what is granted for a folder holds for all below it.

mod confiner;
pub mod landlock;
pub mod rehearse;
pub mod seccomp;
pub mod tools;

pub use confiner::{Confined, Confiner};

use crate::config::Config;
use crate::{log, spawn};
use contract::runner::{Confinement, Launch};
use seccompiler::BpfProgram;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// A domain that could not be made; nothing is started then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Of Landlock.
    #[error("Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
    /// Of seccomp.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// Of the files that tools need.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a launch may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Folders to write in.
    pub writable: Vec<PathBuf>,
    /// Ports.
    pub ports: Confinement,
}

impl Scope {
    /// That of a launch.
    #[must_use]
    pub fn of(config: &Config, launch: &Launch) -> Self {
        let folder = |name| PathBuf::from(spawn::variable(config, launch, name));
        Self {
            writable: vec![config.workspace.clone(), folder("HOME"), folder("TMPDIR")],
            ports: launch.confinement.clone(),
        }
    }
}

/// The outer domain, made and not entered.
#[derive(Debug)]
pub struct Plan {
    ruleset: Option<::landlock::RulesetCreated>,
    filters: Arc<Vec<BpfProgram>>,
}

impl Plan {
    /// Makes the domain: takes some ten milliseconds, for 65,536 ports.
    ///
    /// # Errors
    /// The kernel has Landlock or seccomp and refuses.
    pub fn new(scope: &Scope) -> Result<Self, Error> {
        Ok(Self {
            ruleset: Some(landlock::outer(scope)?),
            filters: Arc::new(seccomp::filters(scope.ports.egress)?),
        })
    }

    /// The domain of what runs on behalf of OpenCode and needs no network.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn offline(scope: &Scope) -> Result<Self, Error> {
        Ok(Self {
            ruleset: Some(landlock::alone(scope)?),
            filters: Arc::new(seccomp::filters(scope.ports.egress)?),
        })
    }

    /// A domain within that of this process, of no rules but that nothing in it signals what is outside of it,
    /// or looks into that.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn apart() -> Result<Self, Error> {
        Ok(Self {
            ruleset: Some(landlock::apart()?),
            filters: Arc::default(),
        })
    }

    /// A plan without any restriction.
    #[must_use]
    pub fn none() -> Self {
        Self {
            ruleset: None,
            filters: Arc::default(),
        }
    }

    /// Lets the command's process enter the domain before it executes its program; a spawn fails if it
    /// cannot.
    ///
    /// # Errors
    /// Too many open files.
    pub fn apply(&self, command: &mut Command) -> io::Result<()> {
        let mut ruleset = self
            .ruleset
            .as_ref()
            .map(::landlock::RulesetCreated::try_clone)
            .transpose()?;
        let filters = Arc::clone(&self.filters);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. Entering is prctl,
        // landlock_restrict_self, close and seccomp, on a ruleset and programs made before the fork: plain
        // system calls, nothing is allocated or locked, and the errors made here hold no allocation.
        #[expect(unsafe_code, reason = "a domain is entered by the child; proof above")]
        unsafe {
            command.pre_exec(move || {
                if let Some(ruleset) = ruleset.take() {
                    ruleset
                        .restrict_self()
                        .map_err(|_| io::ErrorKind::PermissionDenied)?;
                }
                for filter in filters.iter() {
                    seccompiler::apply_filter(filter)
                        .map_err(|_| io::ErrorKind::PermissionDenied)?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}

/// Files and variables that make OpenCode start its tools in the inner domain. Empty where there is no
/// shell in the image, or they cannot be written.
#[must_use]
pub fn install_tools(config: &Config, launch: &Launch) -> tools::Installed {
    match tools::install(config, launch) {
        Ok(installed) => installed,
        Err(error) => {
            log::error(
                "tools run without a domain of their own",
                &[("error", error.to_string().into())],
            );
            tools::Installed::default()
        }
    }
}
