//! What tools may do: what OpenCode is told, and what is decided here when it asks. Pure.
//!
//! All rules form one list, and the last one that matches decides, as OpenCode's own do: first the pod's
//! rules for whole tools (`agent.tools`), then its policy (`approvals.policy`). OpenCode is told of whole
//! tools; where a rule depends on what a tool is used for, OpenCode is told to ask, and the answer is
//! found here. So a changed policy counts at once for everything that OpenCode asks about.

use super::{opencode::PermissionRule, wildcard::matches};
use contract::pod::{PodConfig, ToolAction};
use std::collections::BTreeMap;

/// What OpenCode is asked by its tools and is no tool itself.
const NO_TOOLS: [&str; 2] = ["doom_loop", "external_directory"];
/// Asks a person a question and waits for ever. Always denied: nobody is there.
const QUESTION: &str = "question";
const ALL: &str = "*";
/// OpenCode's own permissions. One that is missing here is decided by the patterns that match it.
const TOOLS: [&str; 14] = [
    "bash",
    "codesearch",
    "edit",
    "glob",
    "grep",
    "list",
    "lsp",
    "read",
    "skill",
    "task",
    "todoread",
    "todowrite",
    "webfetch",
    "websearch",
];

/// The rules of a session.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    all: Vec<Rule<'a>>,
    /// Tools that the session named, if it did: the others are not for it.
    enabled: Option<Vec<&'a str>>,
}

#[derive(Debug)]
struct Rule<'a> {
    permission: &'a str,
    /// Absent: whatever it is used for.
    pattern: Option<&'a str>,
    action: ToolAction,
    /// Number in the policy, from 1; absent for `agent.tools`.
    number: Option<usize>,
}

/// What the rules say about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// It runs; by which rule.
    Allow(String),
    /// It does not run; by which rule.
    Deny(String),
    /// Somebody decides.
    Ask,
}

impl<'a> Rules<'a> {
    /// The rules in force for a session that named these tools, if it did.
    pub(crate) fn of(pod: &'a PodConfig, enabled: Option<&'a [String]>) -> Self {
        let tools = pod.tools.iter().map(|tool| Rule {
            permission: permission_of(&tool.name),
            pattern: None,
            action: tool.action,
            number: None,
        });
        let policy = (1..).zip(&pod.approvals.policy).map(|(number, rule)| Rule {
            permission: permission_of(&rule.tool),
            pattern: rule.pattern.as_deref().filter(|pattern| *pattern != ALL),
            action: rule.action,
            number: Some(number),
        });
        let named = enabled.filter(|names| !names.iter().any(|name| name == ALL));
        Self {
            all: tools.chain(policy).collect(),
            enabled: named.map(|names| names.iter().map(|name| permission_of(name)).collect()),
        }
    }

    /// What OpenCode is told of a session. It applies them after its configuration, and the last match
    /// wins. Sub-agents inherit only what denies and `external_directory`, which is why
    /// [`Self::for_configuration`] says the rest.
    pub(crate) fn for_opencode(&self) -> Vec<PermissionRule> {
        let mut rules = Vec::new();
        match &self.enabled {
            None => {
                rules.push(told(ALL, ToolAction::Allow));
                let all = self.all.iter();
                rules.extend(all.map(|rule| told(rule.permission, rule.told())));
            }
            Some(enabled) => {
                rules.push(told(ALL, ToolAction::Deny));
                for permission in enabled.iter().copied().chain(NO_TOOLS) {
                    rules.push(told(permission, self.told_of(permission)));
                }
            }
        }
        rules.push(told(QUESTION, ToolAction::Deny));
        rules
    }

    /// What OpenCode is told of all sessions. It takes the entries in the order of their names, in
    /// which `*` comes first and a name after the patterns that begin like it; so every name that is
    /// known has an entry of its own, and only for tools of MCP servers that two patterns match it may
    /// matter which of them comes later.
    pub(super) fn for_configuration(&self) -> BTreeMap<&str, ToolAction> {
        let all = self.told_of(ALL);
        let mut told = BTreeMap::from([(ALL, all)]);
        let known = TOOLS.into_iter().filter(|name| self.told_of(name) != all);
        let named = self.all.iter().map(|rule| rule.permission);
        for name in known.chain(named).chain(NO_TOOLS) {
            told.insert(name, self.told_of(name));
        }
        told.insert(QUESTION, ToolAction::Deny);
        told
    }

    /// What OpenCode is told of one permission.
    fn told_of(&self, permission: &str) -> ToolAction {
        let mut all = self.all.iter().rev();
        all.find(|rule| matches(rule.permission, permission))
            .map_or(ToolAction::Allow, Rule::told)
    }

    /// Decides about a call that OpenCode asks about. `patterns` is what it is used for: all of it must
    /// be allowed, and what one rule denies is denied.
    pub(crate) fn decide(&self, permission: &str, patterns: &[String]) -> Ruling {
        if permission == QUESTION {
            return Ruling::Deny("nobody is there to answer questions".to_owned());
        }
        if let Some(enabled) = &self.enabled
            && !NO_TOOLS.contains(&permission)
            && !enabled.iter().any(|name| matches(name, permission))
        {
            return Ruling::Deny("it is none of the session's enabled_tools".to_owned());
        }
        let nothing = [String::new()];
        let patterns = if patterns.is_empty() {
            &nothing
        } else {
            patterns
        };
        let mut found = Ruling::Allow("no rule is against it".to_owned());
        for pattern in patterns {
            let mut all = self.all.iter().rev();
            let Some(rule) = all.find(|rule| rule.matches(permission, pattern)) else {
                continue;
            };
            match rule.action {
                ToolAction::Deny => return Ruling::Deny(rule.name()),
                ToolAction::Ask => found = Ruling::Ask,
                ToolAction::Allow if found != Ruling::Ask => found = Ruling::Allow(rule.name()),
                ToolAction::Allow => {}
            }
        }
        found
    }
}

impl Rule<'_> {
    fn told(&self) -> ToolAction {
        match self.pattern {
            Some(_) => ToolAction::Ask,
            None => self.action,
        }
    }

    fn matches(&self, permission: &str, pattern: &str) -> bool {
        matches(self.permission, permission)
            && self.pattern.is_none_or(|wanted| matches(wanted, pattern))
    }

    /// For the journal.
    fn name(&self) -> String {
        let action = match self.action {
            ToolAction::Allow => "allow",
            ToolAction::Ask => "ask",
            ToolAction::Deny => "deny",
        };
        match self.number {
            Some(number) => format!(
                "policy: rule {number} ({action} {} {})",
                self.permission,
                self.pattern.unwrap_or(ALL)
            ),
            None => format!("agent.tools ({action} {})", self.permission),
        }
    }
}

fn told(permission: &str, action: ToolAction) -> PermissionRule {
    PermissionRule {
        permission: permission.to_owned(),
        pattern: ALL.to_owned(),
        action,
    }
}

/// OpenCode's permission for a tool: all that change files have one.
fn permission_of(tool: &str) -> &str {
    match tool {
        "write" | "apply_patch" | "patch" | "multiedit" => "edit",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::pod::{Approvals, PolicyRule, ToolRule};

    fn pod(tools: &[(&str, ToolAction)], policy: &[(&str, &str, ToolAction)]) -> PodConfig {
        let tools = tools.iter().map(|(name, action)| ToolRule {
            name: (*name).into(),
            action: *action,
        });
        let policy = policy.iter().map(|(tool, pattern, action)| PolicyRule {
            tool: (*tool).into(),
            pattern: (!pattern.is_empty()).then(|| (*pattern).into()),
            action: *action,
        });
        PodConfig {
            tools: tools.collect(),
            approvals: Approvals {
                policy: policy.collect(),
                ..Approvals::default()
            },
            ..PodConfig::default()
        }
    }

    /// As OpenCode decides, which knows only what it is told.
    fn told_of(pod: &PodConfig, enabled: Option<&[&str]>, name: &str) -> ToolAction {
        let enabled: Option<Vec<String>> =
            enabled.map(|names| names.iter().map(|n| (*n).into()).collect());
        let rules = Rules::of(pod, enabled.as_deref()).for_opencode();
        let mut all = rules.iter().rev();
        all.find(|rule| matches(&rule.permission, name))
            .unwrap()
            .action
    }

    fn decide(pod: &PodConfig, permission: &str, patterns: &[&str]) -> Ruling {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).into()).collect();
        Rules::of(pod, None).decide(permission, &patterns)
    }

    use ToolAction::{Allow, Ask, Deny};

    #[test]
    fn rules_of_a_session_keep_the_pods_order() {
        let pod = pod(&[("bash", Allow), ("*", Deny), ("read", Ask)], &[]);
        assert_eq!(told_of(&pod, None, "bash"), Deny);
        assert_eq!(told_of(&pod, None, "read"), Ask);
        let open = PodConfig::default();
        assert_eq!(told_of(&open, None, "anything"), Allow);
        assert_eq!(told_of(&open, None, "question"), Deny);
        assert_eq!(
            told_of(&self::pod(&[("question", Allow)], &[]), None, "question"),
            Deny
        );
    }

    #[test]
    fn a_session_names_its_tools_and_gets_no_more_than_the_pod_allows() {
        let pod = pod(&[("bash", Deny), ("edit", Ask), ("mcp_*", Deny)], &[]);
        let enabled: &[&str] = &["bash", "write", "read", "mcp_secrets", "question"];
        let told = |name| told_of(&pod, Some(enabled), name);
        assert_eq!(told("bash"), Deny);
        assert_eq!(told("edit"), Ask);
        assert_eq!(told("read"), Allow);
        assert_eq!(told("mcp_secrets"), Deny);
        assert_eq!(told("webfetch"), Deny);
        assert_eq!(told("question"), Deny);
        assert_eq!(told("doom_loop"), Allow);
        // An ask of the pod does not bring back what the session left out.
        assert_eq!(told_of(&pod, Some(&["read"]), "edit"), Deny);
        assert_eq!(told_of(&pod, Some(&[]), "read"), Deny);
        assert_eq!(told_of(&pod, Some(&["*"]), "bash"), Deny);
        assert_eq!(told_of(&pod, Some(&["*"]), "read"), Allow);
        let names = ["read".to_owned()];
        assert!(matches!(
            Rules::of(&pod, Some(&names)).decide("webfetch", &["https://x".into()]),
            Ruling::Deny(by) if by.contains("enabled_tools")
        ));
    }

    #[test]
    fn a_policy_by_pattern_makes_opencode_ask_and_is_decided_here() {
        let pod = pod(
            &[("bash", Deny)],
            &[
                ("bash", "git *", Allow),
                ("bash", "git push *", Ask),
                ("bash", "git push --force*", Deny),
                ("web*", "", Deny),
            ],
        );
        assert_eq!(told_of(&pod, None, "bash"), Ask);
        assert_eq!(told_of(&pod, None, "webfetch"), Deny);
        assert_eq!(told_of(&pod, None, "read"), Allow);
        assert_eq!(
            decide(&pod, "bash", &["git status"]),
            Ruling::Allow("policy: rule 1 (allow bash git *)".into())
        );
        assert_eq!(decide(&pod, "bash", &["git push"]), Ruling::Ask);
        assert_eq!(
            decide(&pod, "bash", &["git push --force origin"]),
            Ruling::Deny("policy: rule 3 (deny bash git push --force*)".into())
        );
        assert_eq!(
            decide(&pod, "bash", &["rm x"]),
            Ruling::Deny("agent.tools (deny bash)".into())
        );
        // Every command of a line counts, and the strictest rule wins.
        assert_eq!(
            decide(&pod, "bash", &["git status", "git push"]),
            Ruling::Ask
        );
        assert_eq!(decide(&pod, "bash", &["git push", "git log"]), Ruling::Ask);
        assert!(matches!(
            decide(&pod, "bash", &["git status", "rm x"]),
            Ruling::Deny(_)
        ));
    }

    /// As OpenCode decides for a sub-agent, in the order of the entries.
    #[test]
    fn sub_agents_are_bound_by_the_configuration() {
        let pod = pod(
            &[("bash", Deny), ("web*", Allow)],
            &[
                ("b*", "git *", Allow),
                ("*fetch", "", Deny),
                ("mcp_x", "", Ask),
            ],
        );
        let rules = Rules::of(&pod, None);
        let told = rules.for_configuration();
        let decide = |name: &str| {
            let mut all = told.iter().rev();
            *all.find(|(key, _)| matches(key, name)).unwrap().1
        };
        assert_eq!(decide("bash"), Ask);
        assert_eq!(decide("webfetch"), Deny);
        assert_eq!(decide("websearch"), Allow);
        assert_eq!(decide("mcp_x"), Ask);
        assert_eq!(decide("read"), Allow);
        assert_eq!(decide("question"), Deny);
        let pod = self::pod(&[("*", Deny)], &[("read", "*.md", Allow)]);
        let rules = Rules::of(&pod, None);
        let told = rules.for_configuration();
        assert_eq!(
            (told["*"], told["read"], told["doom_loop"]),
            (Deny, Ask, Deny)
        );
    }

    #[test]
    fn the_last_match_wins_and_what_no_rule_names_runs() {
        let pod = pod(
            &[],
            &[("bash", "rm *", Deny), ("*", "", Ask), ("read", "", Allow)],
        );
        assert_eq!(decide(&pod, "bash", &["rm x"]), Ruling::Ask);
        assert!(matches!(decide(&pod, "read", &["x"]), Ruling::Allow(_)));
        let pod = self::pod(&[], &[("bash", "rm *", Deny)]);
        assert!(matches!(
            decide(&pod, "bash", &["ls"]),
            Ruling::Allow(by) if by == "no rule is against it"
        ));
        assert_eq!(told_of(&pod, None, "bash"), Ask);
        // No pattern at all: only rules for everything match.
        assert!(matches!(decide(&pod, "bash", &[]), Ruling::Allow(_)));
        assert!(matches!(decide(&pod, "question", &[]), Ruling::Deny(_)));
    }
}
