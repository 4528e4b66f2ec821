//! What OpenCode might send.

use super::json::usage;
use super::*;

#[test]
fn unknown_kinds_and_fields_are_kept_away() {
    let event = OcEvent::parse(br#"{"type":"new.kind","properties":{"sessionID":"ses_1"}}"#);
    let event = event.unwrap();
    assert_eq!(event.session.as_deref(), Some("ses_1"));
    assert_eq!(event.kind, OcKind::Other("new.kind".into()));
    let bare = OcEvent::parse(br#"{"type":"server.heartbeat"}"#).unwrap();
    assert_eq!((bare.session, bare.kind), (None, OcKind::Heartbeat));
    let status = br#"{"type":"session.status","properties":{"status":{"type":"sleeping"}}}"#;
    assert!(matches!(
        OcEvent::parse(status).unwrap().kind,
        OcKind::Other(_)
    ));
}

#[test]
fn what_is_no_event_is_refused() {
    for json in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        br#"{"type":7}"#,
        b"{\"type\":\"\xFF\"}",
    ] {
        assert!(OcEvent::parse(json).is_err());
    }
    assert!(OcEvent::parse("[".repeat(100_000).as_bytes()).is_err());
    assert!(Message::parse_list(b"{}").is_err());
    assert_eq!(Message::parse_list(b"[7, null]").unwrap().len(), 2);
}

#[test]
fn fields_of_another_type_hide_no_others() {
    let json = br#"{"type":"message.part.updated","properties":{"sessionID":9,"part":{"id":"prt_1",
        "messageID":"msg_1","sessionID":"ses_1","type":"tool","tool":["bash"],"callID":{},
        "state":{"status":"completed","output":"out","metadata":{"exit":"0","truncated":1},
        "time":{"start":1.5,"end":"late"}}}}}"#;
    let event = OcEvent::parse(json).unwrap();
    assert_eq!(event.session.as_deref(), Some("ses_1"));
    let OcKind::PartUpdated(part) = event.kind else {
        panic!("a part")
    };
    let PartKind::Tool { tool, state, .. } = part.kind else {
        panic!("a tool")
    };
    assert_eq!(tool, "");
    let ToolState::Completed {
        output,
        exit,
        start,
        ..
    } = state
    else {
        panic!("completed")
    };
    assert_eq!((output.as_str(), exit, start), ("out", None, None));
}

#[test]
fn half_surrogates_are_read() {
    let event = |text: &str| {
        let json = format!(
            r#"{{"type":"message.part.delta","properties":{{"sessionID":"ses_1","messageID":"msg_1",
            "partID":"prt_1","field":"text","delta":"{text}"}}}}"#
        );
        match OcEvent::parse(json.as_bytes()).unwrap().kind {
            OcKind::PartDelta { delta, .. } => delta,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(event(r"\ud83c\udf89"), "\u{1F389}");
    assert_eq!(event(r"a\udf89b"), "a\u{FFFD}b");
    assert_eq!(event(r"a\uD83C"), "a\u{FFFD}");
    assert_eq!(event(r"\ud83c\ud83c\udf89\n"), "\u{FFFD}\u{1F389}\n");
    // A backslash and the letters of an escape are no escape.
    assert_eq!(event(r"\\ud83c \ud83c"), "\\ud83c \u{FFFD}");
}

#[test]
fn errors_keep_nothing_of_the_providers_answer() {
    let json = br#"{"type":"session.error","properties":{"sessionID":"ses_1","error":{"name":"APIError",
        "data":{"message":"no","statusCode":401,"isRetryable":false,"responseHeaders":{"x":"hidden"},
        "responseBody":"hidden","metadata":{"url":"hidden"}}}}}"#;
    let event = OcEvent::parse(json).unwrap();
    assert!(!format!("{event:?}").contains("hidden"));
    let OcKind::SessionError(error) = event.kind else {
        panic!("an error")
    };
    assert_eq!(
        (error.status_code, error.retryable),
        (Some(401), Some(false))
    );
}

#[test]
fn absurd_ids_and_names_are_bounded() {
    let long = "x".repeat(100_000);
    let json = format!(
        r#"{{"type":"session.created","properties":{{"sessionID":"{long}","info":{{"id":"{long}",
        "parentID":"ses_1","title":"{long}"}}}}}}"#
    );
    let event = OcEvent::parse(json.as_bytes()).unwrap();
    assert_eq!(event.session, None);
    let OcKind::SessionCreated { id, title, .. } = event.kind else {
        panic!("a session")
    };
    assert_eq!(id, "");
    assert!(title.unwrap().len() <= MAX_LINE);
}

#[test]
fn numbers_of_any_kind_count() {
    let tokens = serde_json::json!({ "input": 1e3, "output": -5, "reasoning": "7",
        "cache": { "read": 18_446_744_073_709_551_615_u64, "write": null } });
    let usage = usage(Some(&tokens));
    assert_eq!(usage.input_tokens, 1000);
    assert_eq!((usage.output_tokens, usage.reasoning_tokens), (0, 0));
    assert_eq!(
        (usage.cache_read_tokens, usage.cache_write_tokens),
        (u64::MAX, 0)
    );
}
