use super::{Act, Double, bounds, say};
use crate::agent::opencode::{Activity, OpenCodeError, PermissionRule, PromptBody};
use contract::{approval::Decision, pod::ToolAction};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

fn prompt() -> PromptBody {
    PromptBody {
        message_id: "msg_1".into(),
        text: "do it".into(),
        system: Some("be brief".into()),
        provider_id: "chat".into(),
        model_id: "c128k".into(),
    }
}

#[tokio::test]
async fn requests_carry_the_password_and_the_directory() {
    let double = Double::start(|got| match got.path.as_str() {
        "/global/health" => say(r#"{"healthy":true,"version":"1.18.33"}"#),
        _ => say("{}"),
    })
    .await;
    let client = double.client();
    assert_eq!(client.health(bounds().quick).await.unwrap(), "1.18.33");
    assert_eq!(client.activity("ses_1").await.unwrap(), Activity::Idle);
    let got = double.got();
    assert!(
        got[0]
            .head
            .to_ascii_lowercase()
            .contains("authorization: basic b3blbmnvzgu6chc=")
    );
    assert_eq!(got[1].path, "/session/status?directory=%2Fw%20s");
    assert!(!format!("{client:?}").contains("pw"));
}

#[tokio::test]
async fn a_session_is_made_with_our_id_and_then_set_up() {
    let double = Double::start(|got| match got.method.as_str() {
        "POST" => say(r#"{"data":{"id":"ses_1"}}"#),
        _ => say("{}"),
    })
    .await;
    let rules = [PermissionRule {
        permission: "bash".into(),
        pattern: "*".into(),
        action: ToolAction::Ask,
    }];
    double
        .client()
        .ensure_session("ses_1", "t", &rules)
        .await
        .unwrap();
    let got = double.got();
    let bodies: Vec<Value> = got
        .iter()
        .map(|g| serde_json::from_str(&g.body).unwrap())
        .collect();
    assert_eq!(
        (got[0].path.as_str(), got[1].path.as_str()),
        ("/api/session", "/session/ses_1")
    );
    assert_eq!(
        bodies[0],
        json!({"id": "ses_1", "location": {"directory": "/w s"}})
    );
    assert_eq!(
        bodies[1],
        json!({"title": "t", "permission": [{"permission": "bash", "pattern": "*", "action": "ask"}]})
    );
}

#[tokio::test]
async fn a_session_with_another_id_is_refused() {
    let double = Double::start(|_| say(r#"{"data":{"id":"ses_2"}}"#)).await;
    let error = double
        .client()
        .ensure_session("ses_1", "t", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, OpenCodeError::Garbage { .. }), "{error:?}");
}

#[tokio::test]
async fn ids_from_outside_stay_in_their_place() {
    let double = Double::start(|_| Act::Say(204, String::new())).await;
    let client = double.client();
    client.abort("../../global/dispose?x=/#").await.unwrap();
    client.reject_question("a b/..").await.unwrap();
    let got = double.got();
    assert_eq!(
        got[0].path,
        "/session/%2E%2E%2F%2E%2E%2Fglobal%2Fdispose%3Fx%3D%2F%23/abort"
    );
    assert_eq!(
        got[1].path,
        "/question/a%20b%2F%2E%2E/reject?directory=%2Fw%20s"
    );
}

#[tokio::test]
async fn what_was_never_answered_is_asked_once_more() {
    let asked = AtomicUsize::new(0);
    let double = Double::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Act::Hang,
        _ => say(r#"{"ses_1":{"type":"retry","attempt":1,"message":"m","next":1}}"#),
    })
    .await;
    assert_eq!(
        double.client().activity("ses_1").await.unwrap(),
        Activity::Retry
    );
    assert_eq!(double.got().len(), 2);
}

#[tokio::test]
async fn never_answering_ends_after_two_bounds() {
    let double = Double::start(|_| Act::Hang).await;
    let began = Instant::now();
    let error = double.client().children("ses_1").await.unwrap_err();
    assert!(
        matches!(error, OpenCodeError::Timeout { .. }) && error.is_transient(),
        "{error:?}"
    );
    assert!(began.elapsed() >= 2 * bounds().quick);
    assert_eq!(double.got().len(), 2);
}

#[tokio::test]
async fn a_slow_drip_does_not_stretch_the_bound() {
    let double = Double::start(|_| Act::Drip(b' ', Duration::from_millis(20))).await;
    let error = double.client().messages("ses_1").await.unwrap_err();
    assert!(matches!(error, OpenCodeError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_prompt_is_sent_once_and_looked_for_when_no_answer_comes() {
    for (code, taken) in [(200, true), (404, false)] {
        let double = Double::start(move |got| match got.method.as_str() {
            "POST" => Act::Hang,
            _ => Act::Say(code, "{}".into()),
        })
        .await;
        let result = double.client().prompt("ses_1", &prompt()).await;
        match result {
            Ok(()) => assert!(taken),
            Err(error) => assert!(
                !taken && matches!(error, OpenCodeError::Timeout { .. }),
                "{error:?}"
            ),
        }
        let got = double.got();
        assert_eq!(got.iter().filter(|g| g.method == "POST").count(), 1);
        assert_eq!(got[1].path, "/session/ses_1/message/msg_1");
        let body: Value = serde_json::from_str(&got[0].body).unwrap();
        assert_eq!(
            body,
            json!({
                "messageID": "msg_1",
                "model": {"providerID": "chat", "modelID": "c128k"},
                "parts": [{"type": "text", "text": "do it"}],
                "system": "be brief",
            })
        );
    }
}

#[tokio::test]
async fn a_prompt_whose_connection_broke_is_looked_for_too() {
    let double = Double::start(|got| match got.method.as_str() {
        "POST" => Act::Drop,
        _ => say("{}"),
    })
    .await;
    double.client().prompt("ses_1", &prompt()).await.unwrap();
}

#[tokio::test]
async fn a_refused_prompt_is_not_looked_for() {
    let double = Double::start(|_| Act::Say(400, "bad".into())).await;
    let error = double
        .client()
        .prompt("ses_1", &prompt())
        .await
        .unwrap_err();
    assert!(matches!(&error, OpenCodeError::Status { code: 400, body, .. } if body == "bad"));
    assert!(!error.is_transient());
    assert_eq!(double.got().len(), 1);
}

#[tokio::test]
async fn an_unknown_message_is_none_and_a_fault_is_a_fault() {
    for (code, known) in [(200, Some(true)), (404, Some(false)), (500, None)] {
        let double = Double::start(move |_| Act::Say(code, "{}".into())).await;
        assert_eq!(
            double.client().has_message("ses_1", "msg_1").await.ok(),
            known
        );
    }
}

#[tokio::test]
async fn an_answered_reply_whose_answer_was_lost_is_a_success() {
    let asked = AtomicUsize::new(0);
    let double = Double::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Act::Hang,
        _ => Act::Say(404, "{}".into()),
    })
    .await;
    double
        .client()
        .reply_permission("per_1", Decision::Reject, Some("no"))
        .await
        .unwrap();
    let error = double
        .client()
        .reply_permission("per_1", Decision::Once, None)
        .await
        .unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn always_never_reaches_opencode() {
    let double = Double::start(|_| say("true")).await;
    let client = double.client();
    client
        .reply_permission("per_1", Decision::Always, None)
        .await
        .unwrap();
    client
        .reply_permission("per_1", Decision::Reject, Some("why"))
        .await
        .unwrap();
    let got = double.got();
    assert_eq!(got[0].body, r#"{"reply":"once"}"#);
    assert_eq!(got[1].body, r#"{"message":"why","reply":"reject"}"#);
}

#[tokio::test]
async fn endless_bodies_are_cut_at_the_bound() {
    let head: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
    let double = Double::start(move |_| Act::Flood(head, vec![b' '; 1 << 20])).await;
    let mut bounds = bounds();
    // The bytes are to be the limit here, not the time.
    bounds.slow = Duration::from_secs(60);
    bounds.quick = Duration::from_secs(60);
    let client =
        crate::agent::opencode::OpenCode::new(double.port, &"pw".into(), "/w".as_ref(), bounds);
    let error = client.messages("ses_1").await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenCodeError::TooLarge {
                most: 67_108_864,
                ..
            }
        ),
        "{error:?}"
    );
    let error = client.permissions().await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenCodeError::TooLarge {
                most: 4_194_304,
                ..
            }
        ),
        "{error:?}"
    );
    let error = client.diff("ses_1", "msg_1").await.unwrap_err();
    assert!(matches!(error, OpenCodeError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn an_endless_refusal_is_an_excerpt() {
    let head: &[u8] = b"HTTP/1.1 500 No\r\n\r\n";
    let double = Double::start(move |_| Act::Flood(head, vec![b'x'; 65_536])).await;
    let error = double.client().activity("ses_1").await.unwrap_err();
    assert!(matches!(&error, OpenCodeError::Status { code: 500, body, .. } if body.len() == 2048));
}

#[tokio::test]
async fn an_endless_head_ends_the_connection() {
    let double = Double::start(|_| Act::Flood(b"HTTP/1.1 200 OK\r\nx: ", vec![b'y'; 65_536])).await;
    let error = double.client().activity("ses_1").await.unwrap_err();
    assert!(
        matches!(error, OpenCodeError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn garbage_is_told_apart_from_silence() {
    for body in [
        "",
        "[",
        "null",
        "\"x\"",
        "{\"ses_1\":7}",
        "{\"ses_1\":{\"type\":\"gone\"}}",
    ] {
        let double = Double::start(move |_| say(body)).await;
        let error = double.client().activity("ses_1").await.unwrap_err();
        assert!(
            matches!(error, OpenCodeError::Garbage { .. }),
            "{body}: {error:?}"
        );
        assert!(!error.is_transient());
    }
    let double = Double::start(|_| Act::Raw(b"\x00\x01 no http\r\n\r\n".to_vec())).await;
    let error = double.client().abort("ses_1").await.unwrap_err();
    assert!(
        matches!(error, OpenCodeError::Unreachable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_unhealthy_answer_is_no_health() {
    let double = Double::start(|_| say(r#"{"healthy":false,"version":"x"}"#)).await;
    assert!(double.client().health(bounds().quick).await.is_err());
}

#[tokio::test]
async fn lists_leave_out_what_makes_no_sense() {
    let double = Double::start(|got| {
        say(match got.path.split('?').next().unwrap() {
            "/session/ses_1/children" => r#"[7,{"id":"ses_2","title":"t"},{"id":null},{"id":"ses_3"}]"#,
            "/permission" => r#"[null,{"id":"per_1","sessionID":"ses_1","permission":"bash","patterns":["ls"],"metadata":{}}]"#,
            "/question" => r#"[{"id":"que_1","sessionID":"ses_1"},{}]"#,
            "/session/ses_1/diff" => {
                r#"[{"file":"/w s/a/b.txt","patch":"p","additions":2,"deletions":1e300,"status":"added"},
                    {"file":"c","additions":-1,"deletions":0},{"additions":1,"deletions":1}]"#
            }
            _ => r#"[{"info":{"id":"msg_1","role":"user"},"parts":[]},5]"#,
        })
    })
    .await;
    let client = double.client();
    let children = client.children("ses_1").await.unwrap();
    assert_eq!(
        children.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(),
        ["ses_2", "ses_3"]
    );
    let asks = client.permissions().await.unwrap();
    assert_eq!(asks.last().unwrap().id, "per_1");
    assert_eq!(asks.last().unwrap().session.as_deref(), Some("ses_1"));
    let questions = client.questions().await.unwrap();
    assert_eq!(
        (questions.len(), questions[0].session.as_str()),
        (1, "ses_1")
    );
    let messages = client.messages("ses_1").await.unwrap();
    assert_eq!(messages[0].info.id, "msg_1");
    let diff = client.diff("ses_1", "msg_1").await.unwrap();
    assert_eq!(diff.len(), 2);
    assert_eq!(
        (
            diff[0].path.as_str(),
            diff[0].status.as_str(),
            diff[0].additions
        ),
        ("a/b.txt", "added", 2)
    );
    assert_eq!(
        (
            diff[1].path.as_str(),
            diff[1].status.as_str(),
            diff[1].additions
        ),
        ("c", "modified", 0)
    );
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let client = crate::agent::opencode::OpenCode::new(port, &"pw".into(), "/w".as_ref(), bounds());
    let error = client.health(bounds().quick).await.unwrap_err();
    assert!(matches!(error, OpenCodeError::Unreachable { .. }) && error.is_transient());
}
