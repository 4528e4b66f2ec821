//! What waits for somebody's consent. On the shared stack `edit` asks.

use crate::{
    reader::Reader,
    stack::{LONG, Setup, Stack, run, shared},
};
use contract::{
    EventBody, SessionId,
    approval::{Answer, Decision},
    client::{ClientError, SidecarClient},
    event::{ApprovalEvent, ApprovalState, DecidedBy, TurnError},
    pod::KEYS_FILE,
    token::{Claims, KeySet, Scope, Signing},
};
use jiff::Timestamp;
use std::{fs, time::Duration};
use tokio::time::Instant;

pub(crate) fn approvals(reader: &Reader) -> Vec<&ApprovalEvent> {
    reader
        .bodies()
        .filter_map(|body| match body {
            EventBody::Approval(approval) => Some(approval),
            _ => None,
        })
        .collect()
}

/// Waits for the next ask; its id.
pub(crate) async fn ask(stack: &Stack, reader: &mut Reader, id: &SessionId) -> String {
    let pending = |reader: &Reader| {
        approvals(reader)
            .last()
            .is_some_and(|a| a.state == ApprovalState::Pending)
    };
    let ends = reader.ends();
    stack
        .read(reader, id, |reader| pending(reader) || reader.ends() > ends)
        .await;
    assert!(pending(reader), "{:#?}", reader.events);
    let list = stack.client.approvals(id).await.unwrap().approvals;
    assert_eq!(list.len(), 1, "{list:?}");
    assert!(list[0].call_id.is_some(), "{list:?}");
    list[0].approval_id.clone()
}

pub(crate) async fn answer(
    stack: &Stack,
    id: &SessionId,
    approval: &str,
    decision: Decision,
    message: Option<&str>,
) {
    let answer = Answer {
        decision,
        message: message.map(str::to_owned),
    };
    stack.client.answer(id, approval, &answer).await.unwrap();
}

fn file(stack: &Stack, name: &str) -> Option<String> {
    fs::read_to_string(stack.dir.join("workspace").join(name)).ok()
}

#[test]
fn once_is_once() {
    run(async {
        let stack = shared().await;
        let id = stack.begin("SCENARIO:write once.txt <<<one>>>").await;
        let mut reader = Reader::default();
        let first = ask(stack, &mut reader, &id).await;
        assert_eq!(file(stack, "once.txt"), None);
        answer(stack, &id, &first, Decision::Once, None).await;
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        assert_eq!(file(stack, "once.txt").as_deref(), Some("one"));
        // Late and unknown ones.
        for late in [first.as_str(), "per_none", "..%2f"] {
            let late = stack
                .client
                .answer(
                    &id,
                    late,
                    &Answer {
                        decision: Decision::Once,
                        message: None,
                    },
                )
                .await;
            assert!(
                matches!(late, Err(ClientError::Api { status: 404, .. })),
                "{late:?}"
            );
        }
        stack.turn(&id, "SCENARIO:write once.txt <<<two>>>").await;
        let second = ask(stack, &mut reader, &id).await;
        answer(stack, &id, &second, Decision::Once, None).await;
        stack.read_turn(&mut reader, &id).await;
        assert_eq!(file(stack, "once.txt").as_deref(), Some("two"));
        let states: Vec<_> = approvals(&reader)
            .iter()
            .map(|approval| approval.state)
            .collect();
        use ApprovalState::{Approved, Pending};
        assert_eq!(states, [Pending, Approved, Pending, Approved]);
        assert_eq!(approvals(&reader)[1].by.as_deref(), Some("shared-secret"));
    });
}

#[test]
fn always_is_for_one_session_and_survives_a_restart() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let id = stack.begin("SCENARIO:write always.txt <<<one>>>").await;
        let mut reader = Reader::default();
        let first = ask(&stack, &mut reader, &id).await;
        answer(&stack, &id, &first, Decision::Always, None).await;
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        stack
            .play_on(&id, &mut reader, "SCENARIO:write always.txt <<<two>>>")
            .await;
        reader.complete();
        assert_eq!(file(&stack, "always.txt").as_deref(), Some("two"));
        assert_eq!(
            approvals(&reader).last().unwrap().state,
            ApprovalState::Approved
        );
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        stack
            .play_on(&id, &mut reader, "SCENARIO:write always.txt <<<three>>>")
            .await;
        reader.complete();
        assert_eq!(file(&stack, "always.txt").as_deref(), Some("three"));

        let other = stack.begin("SCENARIO:write always.txt <<<four>>>").await;
        let mut reader = Reader::default();
        let asked = ask(&stack, &mut reader, &other).await;
        // Asked while a crash comes: it still waits afterwards, and only once.
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        assert_eq!(ask(&stack, &mut reader, &other).await, asked);
        answer(&stack, &other, &asked, Decision::Once, None).await;
        stack.read_turn(&mut reader, &other).await;
        reader.complete();
        assert_eq!(file(&stack, "always.txt").as_deref(), Some("four"));
        assert_eq!(approvals(&reader).len(), 2, "{:#?}", approvals(&reader));
    });
}

#[test]
fn a_refusal_ends_the_turn_and_one_with_words_lets_it_go_on() {
    run(async {
        let stack = shared().await;
        let id = stack.begin("SCENARIO:write refused.txt <<<one>>>").await;
        let mut reader = Reader::default();
        let asked = ask(stack, &mut reader, &id).await;
        answer(stack, &id, &asked, Decision::Reject, None).await;
        stack.read_turn(&mut reader, &id).await;
        reader.failed(TurnError::Rejected);

        stack
            .turn(&id, "SCENARIO:write refused.txt <<<two>>>")
            .await;
        let asked = ask(stack, &mut reader, &id).await;
        answer(
            stack,
            &id,
            &asked,
            Decision::Reject,
            Some("use another name"),
        )
        .await;
        stack.read_turn(&mut reader, &id).await;
        assert_eq!(reader.complete().final_message, "done");
        assert_eq!(file(stack, "refused.txt"), None);
        reader.check_calls();
    });
}

#[test]
fn cancelling_frees_the_file_that_an_ask_holds() {
    run(async {
        let stack = shared().await;
        let id = stack.begin("SCENARIO:write held.txt <<<one>>>").await;
        let mut reader = Reader::default();
        ask(stack, &mut reader, &id).await;
        stack.client.cancel(&id).await.unwrap();
        assert!(
            stack
                .client
                .approvals(&id)
                .await
                .unwrap()
                .approvals
                .is_empty()
        );
        let other = stack.begin("SCENARIO:write held.txt <<<two>>>").await;
        let mut reader = Reader::default();
        let asked = ask(stack, &mut reader, &other).await;
        answer(stack, &other, &asked, Decision::Once, None).await;
        stack.read_turn(&mut reader, &other).await;
        reader.complete();
        assert_eq!(file(stack, "held.txt").as_deref(), Some("two"));
    });
}

/// The caller's connection breaks right after its answer: the agent must hear of it all the same.
#[test]
fn an_answer_whose_caller_is_gone_still_counts() {
    run(async {
        let stack = shared().await;
        for round in 0..5 {
            let id = stack
                .begin(&format!("SCENARIO:write gone-{round}.txt <<<one>>>"))
                .await;
            let mut reader = Reader::default();
            let asked = ask(stack, &mut reader, &id).await;
            let path = format!("/sessions/{id}/approvals/{asked}");
            // One whose body was not yet read is as if it never came.
            while !stack
                .client
                .approvals(&id)
                .await
                .unwrap()
                .approvals
                .is_empty()
            {
                crate::callers::send_and_leave(stack, &path, r#"{"decision":"once"}"#).await;
            }
            stack.read_turn(&mut reader, &id).await;
            reader.complete();
        }
    });
}

#[test]
fn a_question_is_refused_and_never_waits() {
    run(async {
        let stack = shared().await;
        let (_, reader) = stack.play("SCENARIO:question").await;
        reader.complete();
        assert!(approvals(&reader).is_empty());
        stack.still_works().await;
    });
}

/// A client with a token as the gateway gives it to its users.
fn client_of(stack: &Stack, key: &Signing, user: &str, uid: &str, scope: Scope) -> SidecarClient {
    let now = Timestamp::now().as_second();
    let token = key.sign(&Claims {
        iss: "gateway".into(),
        sub: user.into(),
        aud: uid.into(),
        iat: now,
        exp: now + 60,
        scopes: vec![scope],
    });
    SidecarClient::new(stack.http.clone(), stack.url(""), token.into())
}

#[test]
fn the_answer_of_a_user_is_journaled_with_the_users_name() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let (key, foreign) = (Signing::from_seed(&[7; 32]), Signing::from_seed(&[8; 32]));
        let keys = KeySet {
            keys: vec![key.public()],
        };
        let public = stack.dir.join("config").join(KEYS_FILE);
        fs::write(&public, serde_json::to_vec(&keys).unwrap()).unwrap();
        let id = stack.begin("SCENARIO:write named.txt <<<one>>>").await;
        let mut reader = Reader::default();
        let first = ask(&stack, &mut reader, &id).await;
        // The sidecar looks for new keys by and by.
        let deadline = Instant::now() + LONG;
        loop {
            let user = client_of(&stack, &key, "vera", "u-77", Scope::SessionsRead);
            let Err(error) = user.session(&id).await else {
                break;
            };
            assert!(
                matches!(error, ClientError::Api { status: 401, .. }),
                "{error:?}"
            );
            assert!(Instant::now() < deadline, "{}", stack.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // Who may not answer decides nothing: a reader, a stranger, a user of another pod.
        let once = Answer {
            decision: Decision::Once,
            message: None,
        };
        for (key, uid, scope, wanted) in [
            (&key, "u-77", Scope::SessionsRead, 403),
            (&foreign, "u-77", Scope::SessionsWrite, 401),
            (&key, "u-78", Scope::SessionsWrite, 401),
        ] {
            let user = client_of(&stack, key, "mallory", uid, scope);
            let refused = user.answer(&id, &first, &once).await.unwrap_err();
            assert!(
                matches!(refused, ClientError::Api { status, .. } if status == wanted),
                "{refused:?}"
            );
        }
        let user = client_of(&stack, &key, "vera", "u-77", Scope::SessionsWrite);
        user.answer(&id, &first, &once).await.unwrap();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        assert_eq!(file(&stack, "named.txt").as_deref(), Some("one"));

        // Another user refuses the next one.
        stack.turn(&id, "SCENARIO:write named.txt <<<two>>>").await;
        let second = ask(&stack, &mut reader, &id).await;
        let user = client_of(&stack, &key, "ravi:ops", "u-77", Scope::SessionsWrite);
        let no = Answer {
            decision: Decision::Reject,
            message: Some("not two".into()),
        };
        user.answer(&id, &second, &no).await.unwrap();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        assert_eq!(file(&stack, "named.txt").as_deref(), Some("one"));

        // A new sidecar tells the same of both: it stands in the journal.
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        let mut again = Reader::default();
        let all = |again: &Reader| again.ends() == 2;
        stack.read(&mut again, &id, all).await;
        for reader in [&reader, &again] {
            let answers: Vec<_> = approvals(reader)
                .into_iter()
                .filter(|approval| approval.state != ApprovalState::Pending)
                .map(|approval| (approval.state, approval.decided, approval.by.as_deref()))
                .collect();
            let caller = Some(DecidedBy::Caller);
            assert_eq!(
                answers,
                [
                    (ApprovalState::Approved, caller, Some("gateway:vera")),
                    (ApprovalState::Rejected, caller, Some("gateway:ravi:ops")),
                ]
            );
        }
    });
}
