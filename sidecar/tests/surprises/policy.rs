//! Rules about tool calls, their deadline, and answers that meet a crash.

use crate::{
    approvals::{answer, approvals, ask},
    launch::configure,
    process,
    reader::Reader,
    stack::{LONG, Setup, Stack, run},
};
use contract::{
    EventBody, SessionId,
    approval::Decision,
    event::{ApprovalState, DecidedBy},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

fn config(approvals: Value) -> Value {
    json!({
        "limits": {"maxConcurrentSessions": 10, "turnTimeoutSeconds": 600},
        "approvals": approvals,
    })
}

/// Result of the last tool call.
fn result(reader: &Reader) -> (bool, String) {
    let result = reader.bodies().rev().find_map(|body| match body {
        EventBody::ToolResult(result) => Some((result.ok, result.output.clone())),
        _ => None,
    });
    result.unwrap()
}

/// The last answer of a session: what, by which kind, by whom.
fn last(reader: &Reader) -> (ApprovalState, Option<DecidedBy>, String) {
    let approvals = approvals(reader);
    let last = approvals.last().unwrap();
    (
        last.state,
        last.decided,
        last.by.clone().unwrap_or_default(),
    )
}

/// Asks that nobody answered in time, by the sidecar's metrics: approved, rejected.
async fn by_deadline(stack: &Stack) -> (f64, f64) {
    let metrics = stack.metrics().await;
    let count = |decision: &str| {
        let name =
            format!("opencode_sidecar_approvals_total{{decision=\"{decision}\",by=\"deadline\"}}");
        *metrics.get(&name).unwrap_or_else(|| panic!("{metrics:#?}"))
    };
    (count("approved"), count("rejected"))
}

#[test]
fn rules_decide_by_what_a_tool_is_used_for() {
    run(async {
        let rules = json!({"policy": [
            {"tool": "bash", "pattern": "rm *", "action": "deny"},
            {"tool": "bash", "pattern": "touch *", "action": "ask"},
            {"tool": "bash", "pattern": "touch free*", "action": "allow"},
            {"tool": "edit", "pattern": "sub.*", "action": "allow"},
            {"tool": "webfetch", "action": "deny"},
        ]});
        let stack = Stack::start(Setup::default().config(config(rules.clone()))).await;
        use ApprovalState::{Approved, Rejected};
        use DecidedBy::{Caller, Policy};

        // Nothing is against it: it runs, and the journal says why.
        let (id, mut reader) = stack.play("SCENARIO:bash <<<echo harmless>>>").await;
        reader.complete();
        assert_eq!(result(&reader), (true, "harmless\n".into()));
        let free = (Approved, Some(Policy), "no rule is against it".to_owned());
        assert_eq!(last(&reader), free);

        // A rule is against it: the agent is told so and goes on.
        stack
            .play_on(&id, &mut reader, "SCENARIO:bash <<<echo x; rm -rf keep>>>")
            .await;
        assert_eq!(reader.complete().final_message, "done");
        let (ok, text) = result(&reader);
        assert!(
            !ok && text.contains("policy: rule 1 (deny bash rm *)"),
            "{text}"
        );
        let (state, decided, by) = last(&reader);
        assert_eq!((state, decided), (Rejected, Some(Policy)));
        assert_eq!(by, "policy: rule 1 (deny bash rm *)");

        // The last match wins.
        stack
            .play_on(&id, &mut reader, "SCENARIO:bash <<<touch free.txt>>>")
            .await;
        reader.complete();
        assert!(stack.dir.join("workspace/free.txt").exists());

        // Somebody is asked, and the entry says what waits, for whom, since when and until when.
        stack.turn(&id, "SCENARIO:bash <<<touch asked.txt>>>").await;
        let asked = ask(&stack, &mut reader, &id).await;
        let list = stack.client.approvals(&id).await.unwrap().approvals;
        assert_eq!(list[0].tool.as_deref(), Some("bash"));
        assert_eq!(list[0].patterns, ["touch asked.txt"]);
        assert_eq!((&list[0].session_id, list[0].agent.as_str()), (&id, "main"));
        let bound = list[0].until.unwrap().duration_since(list[0].since);
        assert!((599..=601).contains(&bound.as_secs()), "{list:?}");
        answer(&stack, &id, &asked, Decision::Once, None).await;
        stack.read_turn(&mut reader, &id).await;
        assert!(stack.dir.join("workspace/asked.txt").exists());
        assert_eq!(
            last(&reader),
            (Approved, Some(Caller), "shared-secret".into())
        );

        // As documented: where its parser finds no command, OpenCode does not ask.
        let before = approvals(&reader).len();
        stack
            .play_on(&id, &mut reader, "SCENARIO:bash <<<x=1; > made.txt>>>")
            .await;
        reader.complete();
        assert_eq!(approvals(&reader).len(), before, "{:#?}", reader.events);

        // A sub-agent is bound too, and named.
        let sub = stack.begin("SCENARIO:sub-agent").await;
        let mut of_sub = Reader::default();
        stack.read_turn(&mut of_sub, &sub).await;
        of_sub.complete();
        let of_sub = of_sub.events.iter();
        let asked = of_sub.filter(|event| matches!(event.body, EventBody::Approval(_)));
        assert!(asked.clone().count() > 0);
        assert!(asked.clone().all(|event| event.agent == "main/1"));

        // A changed policy counts for a call that waits.
        stack.turn(&id, "SCENARIO:bash <<<touch later.txt>>>").await;
        ask(&stack, &mut reader, &id).await;
        configure(
            &stack.dir,
            &stack.model.base_url(),
            config(json!({"policy": [{"tool": "bash", "action": "allow"}]})),
        );
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        let (state, decided, by) = last(&reader);
        assert_eq!((state, decided), (Approved, Some(Policy)));
        assert_eq!(by, "policy: rule 1 (allow bash *)");

        let metrics = stack.metrics().await;
        for (labels, least) in [
            (r#"{decision="approved",by="policy"}"#, 4.0),
            (r#"{decision="rejected",by="policy"}"#, 1.0),
            (r#"{decision="approved",by="caller"}"#, 1.0),
        ] {
            let name = format!("opencode_sidecar_approvals_total{labels}");
            assert!(
                metrics.get(&name).is_some_and(|n| *n >= least),
                "{metrics:#?}"
            );
        }
    });
}

#[test]
fn what_nobody_answers_is_refused_in_time_and_the_agent_goes_on() {
    run(async {
        let ask = json!([{"tool": "bash", "action": "ask"}]);
        let rules = json!({"policy": ask, "timeoutSeconds": 2});
        let stack = Stack::start(Setup::default().config(config(rules))).await;
        let (id, mut reader) = stack.play("SCENARIO:bash <<<touch never>>>").await;
        assert_eq!(reader.complete().final_message, "done");
        let (ok, text) = result(&reader);
        assert!(!ok && text.contains("Nobody answered in time"), "{text}");
        let deadline = Some(DecidedBy::Deadline);
        assert_eq!(
            last(&reader),
            (ApprovalState::Rejected, deadline, "deadline".into())
        );
        assert!(!stack.dir.join("workspace/never").exists());
        assert_eq!(by_deadline(&stack).await, (0.0, 1.0));

        // Its deadline passes while the sidecar is away.
        stack.turn(&id, "SCENARIO:bash <<<touch never>>>").await;
        crate::approvals::ask(&stack, &mut reader, &id).await;
        stack.kill_sidecar();
        tokio::time::sleep(Duration::from_secs(3)).await;
        stack.start_sidecar();
        stack.read_turn(&mut reader, &id).await;
        assert_eq!(reader.complete().final_message, "done");
        assert_eq!(
            last(&reader),
            (ApprovalState::Rejected, deadline, "deadline".into())
        );
        assert!(!stack.dir.join("workspace/never").exists());
        // A new sidecar counts from zero: it is this one that refused.
        assert_eq!(by_deadline(&stack).await, (0.0, 1.0));

        let rules = json!({"policy": ask, "timeoutSeconds": 2, "onTimeout": "allow"});
        // Nothing but the log tells that the file was read again.
        let changes = || stack.logged("\"configuration changed\"");
        let before = changes();
        configure(&stack.dir, &stack.model.base_url(), config(rules));
        let patience = Instant::now() + LONG;
        while changes() == before {
            assert!(Instant::now() < patience, "{}", stack.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stack
            .play_on(&id, &mut reader, "SCENARIO:bash <<<touch allowed>>>")
            .await;
        reader.complete();
        assert_eq!(
            last(&reader),
            (ApprovalState::Approved, deadline, "deadline".into())
        );
        assert!(stack.dir.join("workspace/allowed").exists());
        assert_eq!(by_deadline(&stack).await, (1.0, 1.0));
    });
}

/// Answers while OpenCode is held, so that it cannot have heard, and kills the sidecar once the answer
/// is recorded.
async fn answered_and_killed(
    stack: &Stack,
    reader: &mut Reader,
    id: &SessionId,
    decision: Decision,
    message: Option<&str>,
) {
    let asked = ask(stack, reader, id).await;
    let opencode = stack.opencode().await;
    process::signal(opencode, Signal::STOP);
    let body = json!({"decision": decision, "message": message}).to_string();
    let path = format!("/sessions/{id}/approvals/{asked}");
    let post = crate::callers::post(stack, &path, body).send();
    let recorded = stack.read(reader, id, |reader| {
        approvals(reader).last().unwrap().state != ApprovalState::Pending
    });
    let mut post = std::pin::pin!(post);
    tokio::select! {
        () = recorded => {}
        answer = &mut post => panic!("OpenCode is held: {answer:?}"),
    }
    stack.kill_sidecar();
    process::signal(opencode, Signal::CONT);
    stack.start_sidecar();
    tokio::time::timeout(LONG, stack.read_turn(reader, id))
        .await
        .unwrap();
}

#[test]
fn an_answer_right_before_a_crash_is_neither_lost_nor_doubled() {
    run(async {
        let rules = json!({"policy": [{"tool": "bash", "action": "ask"}]});
        let stack = Stack::start(Setup::default().config(config(rules))).await;
        let id = stack
            .begin("SCENARIO:bash <<<echo ran >> once.txt>>>")
            .await;
        let mut reader = Reader::default();
        answered_and_killed(&stack, &mut reader, &id, Decision::Once, None).await;
        reader.complete();
        let path = stack.dir.join("workspace/once.txt");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "ran\n");
        assert_eq!(approvals(&reader).len(), 2, "{:#?}", approvals(&reader));

        // A refusal keeps its words: without them the agent would stop.
        stack.turn(&id, "SCENARIO:bash <<<touch never>>>").await;
        let words = Some("use another name");
        answered_and_killed(&stack, &mut reader, &id, Decision::Reject, words).await;
        assert_eq!(reader.complete().final_message, "done");
        let (ok, text) = result(&reader);
        assert!(!ok && text.contains("use another name"), "{text}");
        assert!(!stack.dir.join("workspace/never").exists());
        assert_eq!(approvals(&reader).len(), 4, "{:#?}", approvals(&reader));
    });
}

#[test]
fn what_the_agents_side_answers_itself_is_recorded_as_such() {
    run(async {
        let rules = json!({"policy": [{"tool": "bash", "action": "ask"}]});
        let stack = Stack::start(Setup::default().config(config(rules))).await;
        let id = stack.begin("SCENARIO:bash <<<echo sly>>>").await;
        let mut reader = Reader::default();
        let asked = ask(&stack, &mut reader, &id).await;
        stack
            .post_opencode(
                &format!("/permission/{asked}/reply"),
                json!({"reply": "once"}),
            )
            .await;
        stack.read_turn(&mut reader, &id).await;
        let (state, decided, by) = last(&reader);
        assert_eq!(
            (state, decided),
            (ApprovalState::Approved, Some(DecidedBy::Agent))
        );
        assert!(by.contains("past this API"), "{by}");
        assert!(
            stack
                .client
                .approvals(&id)
                .await
                .unwrap()
                .approvals
                .is_empty()
        );

        // Of two calls that wait, one is refused: OpenCode refuses the other too, and nothing is left waiting.
        let two = stack.begin("SCENARIO:parallel").await;
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &two, |reader| approvals(reader).len() == 2)
            .await;
        let first = approvals(&reader)[0].approval_id.clone();
        answer(&stack, &two, &first, Decision::Reject, None).await;
        stack.read_turn(&mut reader, &two).await;
        reader.failed(contract::event::TurnError::Rejected);
        let all = approvals(&reader);
        let refused = all.iter().filter(|a| a.state == ApprovalState::Rejected);
        let by: Vec<_> = refused.map(|a| a.decided.unwrap()).collect();
        assert_eq!(by, [DecidedBy::Caller, DecidedBy::Agent], "{all:#?}");
    });
}
