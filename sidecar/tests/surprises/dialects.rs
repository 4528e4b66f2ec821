//! The real OpenCode over OpenAI's `responses` and Anthropic's `messages`; all other tests speak `chat`.

use crate::{
    reader::Reader,
    stack::{Setup, Stack, run},
};
use contract::{
    EventBody, SessionId,
    event::{OutputSource, StatusKind},
    session::{CreateSession, ModelConfig, Provider},
};
use scripted_model::{RequestRecord, key_digest};
use serde_json::json;
use std::fs;

/// Two steps whose tokens are told: thinking, words and a call, then words.
const PROMPT: &str = "SCENARIO:script <<<
- usage: {input: 1000, output: 40, cached: 300}
  parts:
    - think: An echo will do.
    - say: I run it.
    - tool: {name: bash, args: {command: echo quokka, description: Say it}}
- usage: {input: 1100, output: 9, cached: 200}
  parts: [{say: It said quokka.}]
>>>";
/// What the two steps add up to.
const FRESH: u64 = 700 + 900;
const CACHED: u64 = 300 + 200;
const RECEIVED: u64 = 40 + 9;

/// How one API is spoken by the agent of a session.
struct Dialect {
    /// Name in metrics.
    api: &'static str,
    path: &'static str,
    key: &'static str,
    model: &'static str,
    /// Header with the key, and what stands before it.
    header: (&'static str, &'static str),
}

const RESPONSES: Dialect = Dialect {
    api: "responses",
    path: "/v1/responses",
    key: "sk-real",
    model: "walrus-5",
    header: ("authorization", "Bearer "),
};
const MESSAGES: Dialect = Dialect {
    api: "messages",
    path: "/v1/messages",
    key: "sk-own",
    model: "heron-4",
    header: ("x-api-key", ""),
};

/// Two providers with a key each. OpenAI's has the pod's model.
async fn stack() -> Stack {
    let stack = Stack::start(Setup::default().config(json!({
        "limits": {"maxConcurrentSessions": 5, "turnTimeoutSeconds": 600},
        "providers": [
            {"name": "scripted", "kind": "openai"},
            {"name": "river", "kind": "anthropic"},
        ],
        "model": {"provider": "scripted", "name": RESPONSES.model},
    })))
    .await;
    fs::create_dir(stack.dir.join("keys/river")).unwrap();
    fs::write(stack.dir.join("keys/river/key"), MESSAGES.key).unwrap();
    stack
}

impl Dialect {
    /// Reads the turn of [`PROMPT`] to its end; what was said, done and used is all there.
    async fn ends(&self, stack: &Stack, id: &SessionId) {
        let mut reader = Reader::default();
        stack.read_turn(&mut reader, id).await;
        reader.check_calls();
        let complete = reader.complete();
        assert_eq!(complete.final_message, "It said quokka.");
        assert_eq!(complete.finish.as_deref(), Some("stop"));
        let texts = reader.texts(OutputSource::Assistant);
        let said: Vec<&str> = texts.values().map(String::as_str).collect();
        assert_eq!(said, ["I run it.", "It said quokka."]);
        assert!(
            !reader.statuses(StatusKind::Thinking).is_empty(),
            "{:#?}",
            reader.events
        );
        let results: Vec<_> = reader
            .bodies()
            .filter_map(|body| match body {
                EventBody::ToolResult(result) => Some((result.ok, result.output.as_str())),
                _ => None,
            })
            .collect();
        assert_eq!(results, [(true, "quokka\n")]);

        // OpenCode and the proxy read the same tokens from the provider's answers.
        let usage = complete.usage;
        assert_eq!(
            (usage.input_tokens, usage.cache_read_tokens),
            (FRESH, CACHED),
            "{usage:?}"
        );
        assert_eq!(
            usage.output_tokens + usage.reasoning_tokens,
            RECEIVED,
            "{usage:?}"
        );
        let spend = stack.client.session(id).await.unwrap().spend;
        assert_eq!((spend.calls, spend.estimated_calls), (2, 0), "{spend:?}");
        assert_eq!(
            (spend.input_tokens, spend.cached_input_tokens),
            (FRESH, CACHED),
            "{spend:?}"
        );
        assert_eq!(spend.output_tokens, RECEIVED, "{spend:?}");
    }

    /// What the provider got: this API, the real key and name, and the tool's result in the second request.
    fn came(&self, requests: &[RequestRecord]) {
        let of_it = requests.iter().filter(|request| request.path == self.path);
        let of_it: Vec<_> = of_it.collect();
        let steps: Vec<_> = of_it.iter().map(|request| request.step).collect();
        assert_eq!(steps, [Some(0), Some(1)], "{requests:#?}");
        for request in &of_it {
            assert!(request.stream, "{request:#?}");
            assert_eq!(request.model.as_deref(), Some(self.model));
            let digest = key_digest(self.key);
            assert_eq!(request.key_sha256.as_ref(), Some(&digest), "{request:#?}");
            let (name, before) = self.header;
            let header = format!("{before}{digest}");
            assert_eq!(request.headers.get(name), Some(&header), "{request:#?}");
            // The placeholder that OpenCode has for a key comes by no other header.
            for other in ["authorization", "x-api-key"] {
                assert!(
                    other == name || !request.headers.contains_key(other),
                    "{request:#?}"
                );
            }
            assert!(
                request.tools.iter().any(|tool| tool == "bash"),
                "{request:#?}"
            );
        }
        let counts: Vec<_> = of_it.iter().map(|request| request.message_count).collect();
        assert!(
            counts[1] >= counts[0] + 2,
            "the call and its result: {counts:?}"
        );
    }
}

#[test]
fn a_turn_with_a_tool_works_over_responses_and_over_messages() {
    run(async {
        let stack = stack().await;
        let of_pod = stack.begin(PROMPT).await;
        let own = stack.id();
        let body = CreateSession {
            session_id: own.clone(),
            prompt: PROMPT.into(),
            model_config: Some(ModelConfig {
                provider: Provider::Anthropic,
                model: MESSAGES.model.into(),
                api_key: None,
                temperature: None,
                max_tokens: None,
                enabled_tools: None,
                model_version: None,
                api_endpoint: None,
            }),
            system_prompt: None,
        };
        stack.client.create_session(&body).await.unwrap();
        RESPONSES.ends(&stack, &of_pod).await;
        MESSAGES.ends(&stack, &own).await;

        let requests = stack.model.requests();
        assert_eq!(requests.len(), 4, "{requests:#?}");
        RESPONSES.came(&requests);
        MESSAGES.came(&requests);
        let version = |request: &RequestRecord| request.headers.contains_key("anthropic-version");
        assert!(
            requests
                .iter()
                .all(|request| version(request) == (request.path == MESSAGES.path)),
            "{requests:#?}"
        );
        let metrics = stack.metrics().await;
        for Dialect { api, .. } in [RESPONSES, MESSAGES] {
            let name =
                format!("opencode_sidecar_model_calls_total{{api=\"{api}\",outcome=\"ok\"}}");
            assert_eq!(metrics.get(&name), Some(&2.0), "{metrics:#?}");
        }
    });
}
