//! What is watched in one turn. No IO and no clock: time is an argument.

use super::{Cause, Finding, bound};
use contract::{
    EventBody,
    event::{OutputSource, StatusKind, ToolResult},
    pod::Watchdog,
    runner::ToolTree,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// Runs a sub-agent, whose own calls are watched; it has no process.
const SUB_AGENT: &str = "task";
/// CPU time that counts as none: this much of the time that passed, and that much anyway.
const IDLE_SHARE: u32 = 1000;
const IDLE_CPU: Duration = Duration::from_millis(50);
/// Bytes read and written that count as none: what a sleeping interpreter's own timers move.
const IDLE_IO: u64 = 512;
/// Calls that run at once and are watched.
const CALLS_MAX: usize = 1000;
/// Agents whose repeated calls are counted.
const AGENTS_MAX: usize = 1000;
/// Bytes of a command by which its processes are found; shells show no less.
const COMMAND_MAX: usize = 1024;

/// What is known of a turn under way.
#[derive(Debug)]
pub(crate) struct TurnWatch {
    /// When OpenCode last said anything about it.
    heard: Instant,
    /// Since when OpenCode's error stands.
    failed: Option<Instant>,
    steps: u32,
    running: BTreeMap<String, Running>,
    /// The last call of each agent and how often it came in a row.
    repeats: HashMap<String, Repeat>,
}

/// A call that runs.
#[derive(Debug)]
struct Running {
    tool: String,
    agent: String,
    input: [u8; 32],
    /// Of a shell.
    command: Option<String>,
    /// When it last printed.
    spoke: Instant,
    /// Figures of its processes when they were last seen to do something.
    used: Option<(Instant, Used)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    cpu: Duration,
    io: u64,
    /// Sum over who they are: others are a sign of life.
    who: u64,
}

#[derive(Debug)]
struct Repeat {
    hash: [u8; 32],
    tool: String,
    times: u32,
}

impl TurnWatch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            failed: None,
            steps: 0,
            running: BTreeMap::new(),
            repeats: HashMap::new(),
        }
    }

    /// OpenCode said something about the turn; `failed`: its last error stands.
    pub(crate) fn heard(&mut self, failed: bool, now: Instant) {
        self.heard = now;
        self.failed = failed.then(|| self.failed.unwrap_or(now));
    }

    /// OpenCode is known to wait for good reason: for an answer to an ask, or to try a provider again.
    pub(crate) fn excused(&mut self, now: Instant) {
        self.heard = now;
        self.failed = None;
    }

    /// A call waits for consent, so it cannot be idle.
    pub(crate) fn asks(&mut self, call: &str, now: Instant) {
        if let Some(running) = self.running.get_mut(call) {
            running.spoke = now;
            running.used = None;
        }
    }

    /// Takes note of an event of the turn, also of those before a restart.
    pub(crate) fn note(&mut self, agent: &str, body: &EventBody, now: Instant) {
        match body {
            EventBody::ToolCall(call) if self.running.len() < CALLS_MAX => {
                let input = call.input.to_string();
                let command = call.input.get("command").and_then(|c| c.as_str());
                let running = Running {
                    tool: call.tool.clone(),
                    agent: agent.to_owned(),
                    input: Sha256::digest(input).into(),
                    command: command.map(|c| c[..c.floor_char_boundary(COMMAND_MAX)].to_owned()),
                    spoke: now,
                    used: None,
                };
                self.running.insert(call.call_id.clone(), running);
            }
            EventBody::Output(output) if output.source == OutputSource::Tool => {
                if let Some(running) = self.running.get_mut(&output.part_id) {
                    running.spoke = now;
                }
            }
            EventBody::ToolResult(result) => self.ended(result),
            EventBody::Status(status)
                if status.status == StatusKind::Step && status.usage.is_none() =>
            {
                self.steps = self.steps.saturating_add(1);
            }
            _ => {}
        }
    }

    fn ended(&mut self, result: &ToolResult) {
        let Some(running) = self.running.remove(&result.call_id) else {
            return;
        };
        let mut hash = Sha256::new();
        hash.update(&running.tool);
        hash.update([u8::from(result.ok)]);
        hash.update(running.input);
        hash.update(&result.output);
        let hash: [u8; 32] = hash.finalize().into();
        if self.repeats.len() >= AGENTS_MAX && !self.repeats.contains_key(&running.agent) {
            self.repeats.clear();
        }
        match self.repeats.get_mut(&running.agent) {
            Some(repeat) if repeat.hash == hash => repeat.times = repeat.times.saturating_add(1),
            _ => {
                let repeat = Repeat {
                    hash,
                    tool: running.tool,
                    times: 1,
                };
                self.repeats.insert(running.agent, repeat);
            }
        }
    }

    /// Loops, which are seen at once.
    pub(crate) fn loops(&self, bounds: &Watchdog) -> Option<Finding> {
        let most = bounds.max_steps;
        if most > 0 && self.steps > most {
            let text = format!(
                "the turn made more than {most} model calls (limits.watchdog.maxSteps): it is stopped"
            );
            return Some(Finding::new(Cause::Steps, text));
        }
        let same = bounds.same_call;
        let repeat = self.repeats.values().find(|repeat| repeat.times >= same);
        repeat.filter(|_| same > 0).map(|repeat| {
            let text = format!(
                "the agent called {} {} times in a row with the same arguments and the same result \
                 (limits.watchdog.sameCall): it is stopped",
                repeat.tool, repeat.times
            );
            Finding::new(Cause::SameCall, text)
        })
    }

    /// Whether the tools' processes are to be looked at: a call has been quiet for a while.
    pub(crate) fn wants_tools(&self, bounds: &Watchdog, now: Instant) -> bool {
        let Some(most) = bound(bounds.tool_idle_seconds) else {
            return false;
        };
        // Three looks at least before the bound is reached, however short it is.
        self.tools().any(|call| now - call.spoke >= most / 4)
    }

    /// Takes note of what tools' processes used so far. `None`: not to be had, so nothing is held
    /// against them.
    pub(crate) fn tools_used(&mut self, trees: Option<&[ToolTree]>, now: Instant) {
        for call in self.running.values_mut() {
            match trees {
                Some(trees) => call.look(trees, now),
                None => call.used = None,
            }
        }
    }

    /// What hangs.
    pub(crate) fn hangs(&self, bounds: &Watchdog, now: Instant) -> Option<Finding> {
        if let (Some(since), Some(most)) = (self.failed, bound(bounds.after_error_seconds))
            && now - since >= most
        {
            let text = format!(
                "OpenCode said {} s ago that it failed and did not end the turn \
                 (limits.watchdog.afterError): it is stopped",
                (now - since).as_secs()
            );
            return Some(Finding::new(Cause::NoEnd, text));
        }
        if let Some(most) = bound(bounds.tool_idle_seconds)
            && let Some(call) = self.tools().find(|call| call.idle(now) >= most)
        {
            let text = format!(
                "the tool {} has neither printed nor computed nor read or written anything for {} s \
                 (limits.watchdog.toolIdle): it is stopped. Run servers in the background, and commands that \
                 wait with a timeout",
                call.tool,
                call.idle(now).as_secs()
            );
            return Some(Finding::new(Cause::ToolStalled, text));
        }
        if let Some(most) = bound(bounds.silence_seconds)
            && self.tools().next().is_none()
            && now - self.heard >= most
        {
            let text = format!(
                "OpenCode works at the turn and has said nothing for {} s (limits.watchdog.silence): it is stopped",
                (now - self.heard).as_secs()
            );
            return Some(Finding::new(Cause::Silent, text));
        }
        None
    }

    /// How soon a look may find something new.
    pub(crate) fn next_look(&self, bounds: &Watchdog, most: Duration) -> Duration {
        let bounds = [
            bounds.silence_seconds,
            bounds.tool_idle_seconds,
            bounds.after_error_seconds,
        ];
        let least = bounds.into_iter().filter_map(bound).min();
        least.map_or(most, |least| (least / 4).min(most))
    }

    fn tools(&self) -> impl Iterator<Item = &Running> {
        self.running.values().filter(|call| call.tool != SUB_AGENT)
    }
}

impl Running {
    /// For how long it is known to do nothing.
    fn idle(&self, now: Instant) -> Duration {
        match self.used {
            Some((since, _)) => now - since.max(self.spoke),
            None => Duration::ZERO,
        }
    }

    fn look(&mut self, trees: &[ToolTree], now: Instant) {
        let command = self
            .command
            .as_deref()
            .filter(|command| !command.is_empty());
        let own = |tree: &&ToolTree| command.is_some_and(|command| tree.command.contains(command));
        let mut found: Vec<&ToolTree> = trees.iter().filter(own).collect();
        if found.is_empty() {
            // Whose they are is not known: all of them must be idle.
            found = trees.iter().collect();
        }
        let used = found.iter().fold(Used::default(), |sum, tree| Used {
            cpu: sum.cpu + Duration::from_millis(tree.cpu_ms),
            io: sum.io.wrapping_add(tree.io_bytes),
            who: sum.who.wrapping_add(
                u64::from(tree.pid)
                    .wrapping_mul(31)
                    .wrapping_add(tree.start),
            ),
        });
        let idle = self.used.is_some_and(|(since, before)| {
            let nothing = IDLE_CPU.max((now - since) / IDLE_SHARE);
            before.who == used.who
                && used.cpu.saturating_sub(before.cpu) <= nothing
                && used.io.wrapping_sub(before.io) <= IDLE_IO
        });
        if !idle {
            self.used = Some((now, used));
        }
    }
}

#[cfg(test)]
mod tests;
