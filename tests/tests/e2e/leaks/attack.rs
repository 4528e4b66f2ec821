//! What an attack is.

/// What an attack is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The key.
    Key,
    /// To answer its own asks, or to have none.
    Asks,
    /// To send data out.
    Out,
    /// To pose as the sidecar, or as somebody else the pod relies on.
    Pose,
    /// To leave its place: more rights, another process, a later time.
    Escape,
}

/// How an attack begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// The agent's own bash tool runs this. `lib.sh` is there, and `$NAME`, `$NONCE` and what [`super::side`] sets.
    Shell(&'static str),
    /// The agent uses another tool: its name, and its arguments as JSON with `$NONCE` and `$OUT` put in.
    Tool(&'static str, &'static str),
}

/// What happens between an attack and its fruit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// OpenCode dies and comes back, and a turn uses its tools.
    Restart,
    /// The sidecar dies while the attack waits for that.
    Sidecar,
    /// The turn that began it is cancelled.
    Cancel,
}

/// How success is recognised.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sign {
    /// The key is in what the attack printed.
    Key,
    /// The attack printed this; it does so on success only.
    Says(&'static str),
    /// Its nonce arrived at the attacker's host.
    Sends,
    /// Its nonce and the key arrived there.
    SendsKey,
    /// The ask that was put in front of it is answered.
    Answers,
    /// A client of the sidecar was answered with its nonce.
    Poses,
}

/// What happens to it in the real pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Real {
    /// It fails from anywhere in the agent's container, isolated or not.
    Refused,
    /// It fails for the agent's tools where the kernel isolates them: where condition `Isolated` is True.
    Isolated,
    /// It succeeds there too: what cannot be kept apart inside one trust domain. docs/security.md names it; it does not count.
    Open,
}

/// One way to get what the agent must not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) class: Class,
    pub(super) tries: &'static str,
    pub(super) how: How,
    /// What shows the fruit, and when.
    pub(super) later: Option<(When, &'static str)>,
    pub(super) sign: Sign,
    pub(super) real: Real,
}

impl Attack {
    /// By the bash tool, at once, refused by the real pod.
    pub(super) const fn shell(
        class: Class,
        name: &'static str,
        tries: &'static str,
        sign: Sign,
        script: &'static str,
    ) -> Self {
        Self {
            name,
            class,
            tries,
            how: How::Shell(script),
            later: None,
            sign,
            real: Real::Refused,
        }
    }

    /// Its fruit comes later.
    pub(super) const fn later(self, when: When, script: &'static str) -> Self {
        Self {
            later: Some((when, script)),
            ..self
        }
    }

    /// Fails in the real pod where that is isolated.
    pub(super) const fn isolated(self) -> Self {
        Self {
            real: Real::Isolated,
            ..self
        }
    }

    /// Succeeds in the real pod too.
    pub(super) const fn open(self) -> Self {
        Self {
            real: Real::Open,
            ..self
        }
    }

    /// Whether it is one of those that the real pod refuses.
    pub(super) fn counts(&self) -> bool {
        self.real != Real::Open
    }
}
