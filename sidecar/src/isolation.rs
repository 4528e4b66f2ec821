//! What the runner found to be refused to the agent, in words.

use contract::{
    pod::EgressMode,
    runner::{Isolation as Found, Measure, Probe},
    summary::{Isolation, IsolationReason},
};

/// What the operator and people are told. Nothing else depends on it: the runner, which tells it, runs
/// beside the agent.
pub(crate) fn told(found: Option<&Found>, probe: Option<&Probe>, egress: EgressMode) -> Isolation {
    let (Some(found), Some(probe)) = (found, probe) else {
        return Isolation {
            enforced: false,
            reason: IsolationReason::NotReported,
            message: "The runner did not tell yet what is refused to the agent.".to_owned(),
        };
    };
    let shared = probe.uid == rustix::process::getuid().as_raw();
    let reason = if shared {
        IsolationReason::SharedUser
    } else if found.missing.is_empty() && !found.enforced.is_empty() {
        IsolationReason::Enforced
    } else if probe.landlock_abi == 0 {
        IsolationReason::LandlockUnavailable
    } else {
        IsolationReason::Partial
    };
    let mut lines = Vec::new();
    if shared {
        lines.push(
            "Sidecar and agent run as one user, as without Kubernetes: the agent can read the sidecar's files, keys included."
                .to_owned(),
        );
    }
    let missing: Vec<String> = found
        .missing
        .iter()
        .map(|m| format!("{} ({})", words(m.measure), m.reason))
        .collect();
    if !missing.is_empty() {
        lines.push(format!("NOT refused: {}.", missing.join("; ")));
    }
    let enforced: Vec<&str> = found.enforced.iter().map(|m| words(*m)).collect();
    if !enforced.is_empty() {
        lines.push(format!("Refused: {}.", enforced.join("; ")));
    }
    if egress == EgressMode::Open {
        lines.push("Open by choice: the network (spec.network.egress.mode).".to_owned());
    }
    Isolation {
        enforced: reason == IsolationReason::Enforced,
        reason,
        message: lines.join(" "),
    }
}

fn words(measure: Measure) -> &'static str {
    match measure {
        Measure::Files => "writing outside of workspace, HOME and TMPDIR",
        Measure::SidecarPorts => "taking the sidecar's ports, calling its API",
        Measure::Egress => "connecting past the proxies",
        Measure::Signals => "signals to the runner",
        Measure::AbstractSockets => "the sidecar's abstract sockets",
        Measure::SystemCalls => "system calls and sockets that lead around this",
        Measure::ToolPorts => "to tools: OpenCode's port and the credential proxy",
        Measure::ToolProcesses => "to tools: OpenCode's memory and environment",
        Measure::ToolEnvironment => "to tools: OpenCode's password",
        Measure::Unknown => "what a newer runner refuses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::runner::Missing;

    fn probe(landlock_abi: u32) -> Probe {
        Probe {
            landlock_abi,
            uid: rustix::process::getuid().as_raw().wrapping_add(1),
            ..Probe::default()
        }
    }

    fn found(missing: &[Measure]) -> Found {
        let missing = missing.iter().map(|measure| Missing {
            measure: *measure,
            reason: "because".to_owned(),
        });
        Found {
            enforced: vec![Measure::Files],
            missing: missing.collect(),
        }
    }

    #[test]
    fn the_reason_says_what_is_wrong() {
        use IsolationReason as R;
        let reason = |found: Option<&Found>, probe: &Probe| {
            let told = told(found, Some(probe), EgressMode::Open);
            assert_eq!(told.enforced, told.reason == R::Enforced);
            told.reason
        };
        assert_eq!(reason(None, &probe(7)), R::NotReported);
        assert_eq!(reason(Some(&found(&[])), &probe(7)), R::Enforced);
        let partial = found(&[Measure::Signals]);
        assert_eq!(reason(Some(&partial), &probe(5)), R::Partial);
        assert_eq!(reason(Some(&partial), &probe(0)), R::LandlockUnavailable);
        // One that tells nothing at all is not believed.
        assert_eq!(reason(Some(&Found::default()), &probe(7)), R::Partial);
        let own = Probe {
            uid: rustix::process::getuid().as_raw(),
            ..probe(7)
        };
        assert_eq!(reason(Some(&found(&[])), &own), R::SharedUser);
    }

    #[test]
    fn the_message_lists_both_sides() {
        let found = found(&[Measure::ToolPorts]);
        let told = told(Some(&found), Some(&probe(3)), EgressMode::Open);
        assert_eq!(
            told.message,
            "NOT refused: to tools: OpenCode's port and the credential proxy (because). \
             Refused: writing outside of workspace, HOME and TMPDIR. \
             Open by choice: the network (spec.network.egress.mode)."
        );
    }
}
