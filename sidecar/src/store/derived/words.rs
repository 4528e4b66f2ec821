//! The lines of `decisions.md`. What users, models and tools wrote stands in code spans, so that none
//! of it is taken for markup.

use crate::store::record::Note;
use contract::{
    Event, EventBody,
    event::{ApprovalState, StatusKind},
};
use jiff::Timestamp;

/// Most bytes of a name.
pub(super) const SHORT: usize = 128;
/// Most bytes of a sentence.
pub(super) const LONG: usize = 400;
/// Patterns of an approval that are shown.
const PATTERNS: usize = 5;

pub(super) fn heading(session: &str) -> String {
    format!(
        "# {session}\n\nWhat was decided in this session, made by the sidecar from its journal. Times are UTC.\n\n"
    )
}

/// One line of bounded length without control characters.
pub(super) fn plain(text: &str, most: usize) -> String {
    let mut out = String::new();
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    for c in text.chars().map(clean) {
        if c == ' ' && (out.is_empty() || out.ends_with(' ')) {
            continue;
        }
        if out.len() + c.len_utf8() > most {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

fn code(text: &str, most: usize) -> String {
    format!("`{}`", plain(text, most).replace('`', "'"))
}

fn line(at: Timestamp, text: &str) -> String {
    format!("- {}: {text}\n", at.strftime("%Y-%m-%d %H:%M:%S"))
}

pub(super) fn of_note(note: &Note) -> Option<String> {
    Some(match note {
        Note::Created(created) => line(created.at, "the session was made"),
        Note::Turn(turn) => line(
            turn.at,
            &format!(
                "turn {} was asked for by {}: {}",
                turn.turn,
                code(&turn.author, SHORT),
                code(&turn.prompt, LONG)
            ),
        ),
        Note::TakenUp { turn, at } => line(
            *at,
            &format!("the sidecar was started anew and took turn {turn} up again"),
        ),
        Note::Always(always) => format!(
            "- from here on {} of {} needs no consent in this session\n",
            code(&always.permission, SHORT),
            patterns(&always.patterns)
        ),
        Note::Delivered { .. } | Note::Checkpoints(_) => return None,
    })
}

fn patterns(patterns: &[String]) -> String {
    let mut shown: Vec<_> = patterns
        .iter()
        .take(PATTERNS)
        .map(|p| code(p, LONG))
        .collect();
    if patterns.len() > PATTERNS {
        shown.push(format!("{} more", patterns.len() - PATTERNS));
    }
    if shown.is_empty() {
        return "anything".into();
    }
    shown.join(", ")
}

pub(super) fn of_event(event: &Event, began: Option<Timestamp>) -> Option<String> {
    let turn = event.turn;
    let after = began.map_or_else(String::new, |began| {
        let seconds = event
            .ts
            .as_second()
            .saturating_sub(began.as_second())
            .max(0);
        format!(" after {seconds} s")
    });
    let text = match &event.body {
        EventBody::Status(status) => {
            let why = status.progress.as_deref().unwrap_or_default();
            match status.status {
                StatusKind::Cancelled => {
                    format!("turn {turn} was cancelled{after}: {}", code(why, LONG))
                }
                StatusKind::AgentRestarted => {
                    format!("turn {turn}: OpenCode was restarted: {}", code(why, LONG))
                }
                StatusKind::Watchdog => {
                    format!("turn {turn}: the watchdog saw: {}", code(why, LONG))
                }
                StatusKind::WaitingForKey => {
                    format!("turn {turn} waits for a key: {}", code(why, LONG))
                }
                _ => return None,
            }
        }
        EventBody::Complete(complete) => {
            let files = match complete.files_modified.len() {
                0 => "no file".into(),
                1 => "1 file".into(),
                n => format!("{n} files"),
            };
            format!("turn {turn} was completed{after}, {files} changed")
        }
        EventBody::Error(error) if error.fatal => {
            let kind = serde_json::to_value(error.code).unwrap_or_default();
            let kind = kind.as_str().unwrap_or("error").to_owned();
            format!(
                "turn {turn} failed{after} ({kind}): {}",
                code(&error.error, LONG)
            )
        }
        EventBody::Approval(approval) => {
            let what = format!(
                "{} of {} (approval {})",
                code(&approval.permission, SHORT),
                patterns(&approval.patterns),
                code(&approval.approval_id, SHORT)
            );
            let by = code(approval.by.as_deref().unwrap_or("nobody known"), SHORT);
            let said = approval
                .message
                .as_deref()
                .map_or_else(String::new, |m| format!(": {}", code(m, LONG)));
            match approval.state {
                ApprovalState::Pending => format!("turn {turn}: consent is needed for {what}"),
                ApprovalState::Approved => format!("turn {turn}: {by} allowed {what}{said}"),
                ApprovalState::Rejected => format!("turn {turn}: {by} refused {what}{said}"),
            }
        }
        EventBody::Error(_)
        | EventBody::Output(_)
        | EventBody::ToolCall(_)
        | EventBody::ToolResult(_)
        | EventBody::Gap(_) => return None,
    };
    Some(line(event.ts, &text))
}
