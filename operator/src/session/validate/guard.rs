//! What bounds and watches a pod, who decides in it and what is kept of it.

use super::{Invalid, spend};
use contract::pod::{self, Limits, PolicyRule, ToolAction};
use crds::{
    quantity::Bytes,
    session::{
        self, agent,
        approvals::{ApprovalRule, Approvals, OnTimeout},
        checkpoints::{CheckpointMode, Checkpoints},
        watchdog::Watchdog,
    },
};
use std::ops::RangeInclusive;

const WEEK: u64 = 168 * 3600;
const YEAR: u64 = 8760 * 3600;

pub(super) fn limits(limits: &session::Limits) -> Result<Limits, Invalid> {
    let session::Limits {
        max_concurrent_sessions,
        turn_timeout,
        budget,
        loops,
        watchdog,
    } = limits;
    Ok(Limits {
        max_concurrent_sessions: number(
            "limits.maxConcurrentSessions",
            *max_concurrent_sessions,
            1..=100,
            "it must lie between 1 and 100",
        )?,
        turn_timeout_seconds: seconds(
            "limits.turnTimeout",
            turn_timeout,
            1..=WEEK,
            "it must lie between 1s and 168h; write it as in 1h30m",
        )?,
        budget: spend::budget(budget.as_ref())?,
        loops: spend::loops(loops)?,
        watchdog: bounds(watchdog)?,
    })
}

fn bounds(watchdog: &Watchdog) -> Result<pod::Watchdog, Invalid> {
    let Watchdog {
        silence,
        tool_idle,
        after_error,
        unresponsive,
        max_steps,
        same_call,
        memory_percent,
        recycle_after,
    } = watchdog;
    let rule = "it must be 0s or lie between 1s and 168h; write it as in 10m";
    Ok(pod::Watchdog {
        silence_seconds: seconds("limits.watchdog.silence", silence, 0..=WEEK, rule)?,
        tool_idle_seconds: seconds("limits.watchdog.toolIdle", tool_idle, 0..=WEEK, rule)?,
        after_error_seconds: seconds("limits.watchdog.afterError", after_error, 0..=WEEK, rule)?,
        unresponsive_seconds: seconds(
            "limits.watchdog.unresponsive",
            unresponsive,
            0..=WEEK,
            rule,
        )?,
        max_steps: number(
            "limits.watchdog.maxSteps",
            *max_steps,
            0..=1_000_000,
            "it must lie between 0 and 1000000",
        )?,
        same_call: number(
            "limits.watchdog.sameCall",
            *same_call,
            0..=10_000,
            "it must lie between 0 and 10000",
        )?,
        memory_percent: number(
            "limits.watchdog.memoryPercent",
            *memory_percent,
            0..=100,
            "it must lie between 0 and 100",
        )?,
        recycle_after_seconds: seconds(
            "limits.watchdog.recycleAfter",
            recycle_after,
            0..=YEAR,
            "it must be 0s or lie between 1m and 8760h; write it as in 24h",
        )?,
    })
}

pub(super) fn approvals(approvals: &Approvals) -> Result<pod::Approvals, Invalid> {
    let Approvals {
        policy,
        timeout,
        on_timeout,
    } = approvals;
    let rules = policy.iter().map(|rule| {
        let ApprovalRule {
            tool,
            pattern,
            action: what,
        } = rule;
        PolicyRule {
            tool: tool.clone(),
            pattern: pattern.clone(),
            action: action(*what),
        }
    });
    Ok(pod::Approvals {
        policy: rules.collect(),
        timeout_seconds: seconds(
            "approvals.timeout",
            timeout,
            1..=WEEK,
            "it must lie between 1s and 168h; write it as in 1h30m",
        )?,
        on_timeout: match on_timeout {
            OnTimeout::Deny => pod::OnTimeout::Deny,
            OnTimeout::Allow => pod::OnTimeout::Allow,
        },
    })
}

pub(super) fn checkpoints(checkpoints: &Checkpoints) -> Result<pod::Checkpoints, Invalid> {
    let Checkpoints {
        mode,
        keep,
        max_size,
        include_ignored,
    } = checkpoints;
    let max_bytes = max_size
        .parse::<Bytes>()
        .ok()
        .and_then(|bytes| u64::try_from(bytes.0).ok())
        .filter(|bytes| (1 << 20..=64 << 40).contains(bytes))
        .ok_or(Invalid::OutOfRange {
            field: "checkpoints.maxSize",
            rule: "it must lie between 1Mi and 64Ti; write it as in 2Gi",
        })?;
    Ok(pod::Checkpoints {
        mode: match mode {
            CheckpointMode::AfterTurn => pod::CheckpointMode::AfterTurn,
            CheckpointMode::OnDemand => pod::CheckpointMode::OnDemand,
            CheckpointMode::Off => pod::CheckpointMode::Off,
        },
        keep: number(
            "checkpoints.keep",
            *keep,
            1..=1000,
            "it must lie between 1 and 1000",
        )?,
        max_bytes,
        include_ignored: *include_ignored,
    })
}

pub(super) fn action(action: agent::ToolAction) -> ToolAction {
    match action {
        agent::ToolAction::Allow => ToolAction::Allow,
        agent::ToolAction::Ask => ToolAction::Ask,
        agent::ToolAction::Deny => ToolAction::Deny,
    }
}

fn number(
    field: &'static str,
    value: i32,
    range: RangeInclusive<u32>,
    rule: &'static str,
) -> Result<u32, Invalid> {
    u32::try_from(value)
        .ok()
        .filter(|n| range.contains(n))
        .ok_or(Invalid::OutOfRange { field, rule })
}

fn seconds(
    field: &'static str,
    text: &str,
    range: RangeInclusive<u64>,
    rule: &'static str,
) -> Result<u64, Invalid> {
    text.parse::<kube::core::Duration>()
        .ok()
        .filter(|d| !d.is_negative())
        .map(|d| std::time::Duration::from(d).as_secs())
        .filter(|s| range.contains(s))
        .ok_or(Invalid::OutOfRange { field, rule })
}
