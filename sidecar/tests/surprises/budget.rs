//! Budgets, loops and the audit log, with the real agent.

use crate::{
    launch::configure,
    reader::Reader,
    stack::{LONG, Setup, Stack, run},
};
use contract::{
    event::TurnError,
    session::{CreateSession, ModelConfig, Provider},
    summary::Summary,
};
use futures::StreamExt;
use serde_json::{Value, json};
use std::process::Command;

fn limits(more: Value) -> Value {
    let mut limits = json!({"maxConcurrentSessions": 40, "turnTimeoutSeconds": 600});
    for (name, value) in more.as_object().unwrap() {
        limits[name] = value.clone();
    }
    json!({"limits": limits})
}

/// The summary, once it is as wanted.
async fn summary(stack: &Stack, wanted: impl Fn(&Summary) -> bool) -> Summary {
    let mut summaries = stack.client.summaries().await.unwrap();
    let found = async {
        loop {
            let summary = summaries.next().await.unwrap().unwrap();
            if wanted(&summary) {
                return summary;
            }
        }
    };
    tokio::time::timeout(LONG, found)
        .await
        .unwrap_or_else(|_| panic!("{}", stack.logs()))
}

fn audit(stack: &Stack, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_opencode-sidecar"))
        .args(["audit", args[0]])
        .arg(stack.dir.join("journal/audit"))
        .args(&args[1..])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), text)
}

/// Input that the proxy estimated for the last call, in tokens.
fn last_estimate(stack: &Stack) -> u64 {
    let text = std::fs::read_to_string(stack.dir.join("journal/audit/calls-000001.jsonl")).unwrap();
    let mut records = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let last = records.rfind(|record| record["kind"] == "start").unwrap();
    last["input_tokens"].as_u64().unwrap()
}

#[test]
fn a_budget_ends_the_turn_in_mid_stream_and_can_be_raised() {
    run(async {
        let stack = Stack::start(Setup::default().config(limits(json!({})))).await;
        let (first, _) = stack.play("SCENARIO:hello").await;
        let told = stack.client.session(&first).await.unwrap();
        assert_eq!(
            (told.spend.calls, told.spend.estimated_calls),
            (1, 0),
            "OpenCode asks for usage itself"
        );
        assert!(told.spend.input_tokens > 0 && told.spend.output_tokens > 0);
        assert!(told.budget_left.is_none());

        // Enough for the next prompt and some hundred words, not for 2000.
        let budget = told.spend.tokens() + last_estimate(&stack) + 600;
        let endpoint = stack.model.base_url();
        configure(
            &stack.dir,
            &endpoint,
            limits(json!({"budget": {"tokens": budget}})),
        );
        summary(&stack, |s| {
            s.budget_left.is_some_and(|left| left.tokens.is_some())
        })
        .await;
        let (id, mut reader) = stack.play("SCENARIO:slow 2000 20").await;
        let error = reader.failed(TurnError::BudgetExhausted).error.clone();
        assert!(
            error.contains(&format!("of {budget} used"))
                && error.contains("spec.limits.budget.tokens"),
            "{error}"
        );
        let words: usize = reader
            .texts(contract::event::OutputSource::Assistant)
            .values()
            .map(|text| text.split(' ').count())
            .sum();
        assert!((20..1900).contains(&words), "{words} words were passed on");
        assert_eq!(
            stack.model_calls(&id).await,
            1,
            "OpenCode does not ask again\n{}",
            stack.logs()
        );
        let told = stack.client.session(&id).await.unwrap();
        assert_eq!((told.spend.calls, told.spend.estimated_calls), (1, 1));

        // A kill forgets nothing: the next prompt is refused at once, with its reason.
        stack.kill_sidecar();
        stack.start_sidecar();
        stack.ready().await;
        let (_, refused) = stack.play("SCENARIO:hello").await;
        refused.failed(TurnError::BudgetExhausted);
        let before = summary(&stack, |_| true).await.spend;
        assert_eq!(before.calls, 2);

        // Raised in the file that the kubelet shows: no restart.
        configure(
            &stack.dir,
            &endpoint,
            limits(json!({"budget": {"tokens": budget * 10}})),
        );
        summary(&stack, |s| {
            s.budget_left.is_some_and(|left| left.tokens > Some(budget))
        })
        .await;
        stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
        assert_eq!(
            reader.complete().final_message,
            "Hello from the scripted model."
        );

        let after = summary(&stack, |s| s.spend.calls == 3).await;
        let head = after.audit.unwrap();
        let (good, text) = audit(&stack, &["verify", "--head", &head.hash]);
        assert!(good && text.contains(&head.hash), "{text}");
        let (_, calls) = audit(&stack, &["show"]);
        assert_eq!(
            calls.lines().count(),
            4,
            "three calls and a refusal:\n{calls}"
        );
        assert!(
            calls.contains("budget_exhausted") && calls.contains("scripted/scripted-1"),
            "{calls}"
        );
        let file = stack.dir.join("journal/audit/calls-000001.jsonl");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(
            &file,
            text.replacen("\"output_tokens\":", "\"output_tokens\":1", 1),
        )
        .unwrap();
        assert!(!audit(&stack, &["verify"]).0);
        let kept: Vec<&str> = text.lines().take(5).collect();
        std::fs::write(&file, kept.join("\n") + "\n").unwrap();
        assert!(
            audit(&stack, &["verify"]).0,
            "a cut of the end needs the anchor"
        );
        assert!(!audit(&stack, &["verify", "--head", &head.hash]).0);
    });
}

#[test]
fn a_loop_of_calls_ends_the_turn_with_its_reason() {
    run(async {
        let config = limits(json!({"loops": {"callsPerMinute": 4, "sameRequest": 5}}));
        let stack = Stack::start(Setup::default().config(config)).await;
        let prompt = "SCENARIO:script <<<- {repeat: 30, parts: [{tool: {name: bash, args: {command: 'true', description: Nothing}}}]}>>>";
        let (id, reader) = stack.play(prompt).await;
        let error = &reader.failed(TurnError::CallLoop).error;
        assert!(error.contains("limits.loops.callsPerMinute"), "{error}");
        assert_eq!(
            stack.model_calls(&id).await,
            5,
            "four, and the one that was refused"
        );
        let metrics = stack
            .http
            .get(stack.url("/metrics"))
            .bearer_auth(crate::stack::TOKEN)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert!(
            metrics.contains("model_loop_stops_total{reason=\"calls_per_minute\"} 1"),
            "{metrics}"
        );
    });
}

#[test]
fn an_answer_that_is_none_ends_the_turn_at_the_first_call() {
    run(async {
        let stack = crate::stack::shared().await;
        for scenario in ["html", "empty", "json200"] {
            let (id, reader) = stack.play(&format!("SCENARIO:{scenario}")).await;
            let error = &reader.failed(TurnError::ProviderGarbled).error;
            assert!(error.contains("providers[].endpoint"), "{error}");
            assert_eq!(stack.model_calls(&id).await, 1, "{scenario}");
        }
    });
}

/// Two models in one pod: what a sub-agent calls is its parent's model, from its first call on.
#[test]
fn a_sub_agent_calls_its_parents_model() {
    run(async {
        let stack = Stack::start(Setup::default().config(limits(json!({})))).await;
        let mut ids = Vec::new();
        for model in ["own-1", "own-2", "own-3"] {
            let id = stack.id();
            let body = CreateSession {
                session_id: id.clone(),
                prompt: "SCENARIO:sub-agent".into(),
                model_config: Some(ModelConfig {
                    provider: Provider::Local,
                    model: model.into(),
                    api_key: Some("sk-own".into()),
                    temperature: None,
                    max_tokens: None,
                    enabled_tools: None,
                    model_version: None,
                    api_endpoint: Some(stack.model.base_url()),
                }),
                system_prompt: None,
            };
            stack.client.create_session(&body).await.unwrap();
            ids.push((id, model));
        }
        for (id, model) in &ids {
            let mut reader = Reader::default();
            stack.read_turn(&mut reader, id).await;
            assert_eq!(
                reader.complete().final_message,
                "The sub-agent has finished.",
                "{model}"
            );
        }
        let requests = stack.model.requests();
        let of = |scenario: &str| {
            let mut models: Vec<_> = requests
                .iter()
                .filter(|request| request.scenario.as_deref() == Some(scenario))
                .map(|request| request.model.clone().unwrap())
                .collect();
            models.sort();
            models
        };
        for scenario in ["sub-agent", "sub-work"] {
            assert_eq!(
                of(scenario),
                ["own-1", "own-1", "own-2", "own-2", "own-3", "own-3"],
                "{scenario}"
            );
        }
        // And they count for their parents' sessions.
        for (id, model) in &ids {
            assert_eq!(
                stack.client.session(id).await.unwrap().spend.calls,
                4,
                "{model}"
            );
        }
    });
}
