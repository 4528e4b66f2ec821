//! Traces reach a collector, join the caller's, and cost nothing when the collector is gone.

use crate::{
    callers::post,
    reader::Reader,
    stack::{Setup, Stack, run},
};
use axum::{Router, body::Bytes, routing};
use contract::SessionId;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message;
use serde_json::json;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, time::Instant};

/// What a collector got.
type Got = Arc<Mutex<Vec<Span>>>;

async fn collector() -> (String, Got) {
    let got = Got::default();
    let spans = Arc::clone(&got);
    let take = move |body: Bytes| async move {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let scopes = request
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        let new = scopes.flat_map(|scope| scope.spans);
        spans.lock().unwrap().extend(new);
        // An empty ExportTraceServiceResponse.
        Bytes::new()
    };
    let router = Router::new().route("/v1/traces", routing::post(take));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, got)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|a| a.key == name)?;
    Some(format!("{:?}", found.value))
}

#[test]
fn one_trace_joins_caller_turn_model_calls_and_tools() {
    run(async {
        let (endpoint, got) = collector().await;
        let setup = Setup::default()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", 100);
        let stack = Stack::start(setup).await;
        // Who has no token makes no spans, or could fill the queue with them.
        for path in ["/sessions", "/ready"] {
            let refused = stack.http.post(stack.url(path)).send().await.unwrap();
            assert!(refused.status().is_client_error(), "{path}");
        }
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let body = json!({
            "session_id": "wombat",
            "prompt": "SCENARIO:bash <<<echo canary-out>>> canary-prompt",
        });
        let answer = post(&stack, "/sessions", body.to_string())
            .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 201);
        let mut reader = Reader::default();
        let id = SessionId::new("wombat").unwrap();
        stack.read_turn(&mut reader, &id).await;
        reader.complete();
        let deadline = Instant::now() + Duration::from_secs(30);
        let spans = loop {
            let spans = got.lock().unwrap().clone();
            if spans
                .iter()
                .any(|span| span.name == "invoke_agent opencode")
            {
                break spans;
            }
            assert!(Instant::now() < deadline, "{spans:#?}\n{}", stack.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let named =
            |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
        let one = |name: &str| -> &Span {
            let found = named(name);
            assert_eq!(found.len(), 1, "{name}: {spans:#?}");
            assert_eq!(hex(&found[0].trace_id), trace, "{name}");
            found[0]
        };
        let request = one("POST /sessions");
        assert!(!spans.iter().any(|span| span.name.contains("/ready")));
        assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
        let turn = one("invoke_agent opencode");
        assert_eq!(turn.parent_span_id, request.span_id);
        assert!(
            attribute(turn, "gen_ai.conversation.id")
                .unwrap()
                .contains("wombat")
        );
        assert_eq!(one("wait for agent").parent_span_id, turn.span_id);
        let tool = one("execute_tool bash");
        assert_eq!(tool.parent_span_id, turn.span_id);
        assert!(tool.end_time_unix_nano > tool.start_time_unix_nano);
        let calls = named("chat scripted-1");
        assert!(calls.len() >= 2, "{spans:#?}");
        for call in calls {
            assert_eq!(hex(&call.trace_id), trace);
            assert_eq!(call.parent_span_id, turn.span_id);
            let operation = attribute(call, "gen_ai.operation.name").unwrap();
            assert!(operation.contains("chat"), "{operation}");
        }
        // No content, no key; and the provider learns nothing of the trace.
        let all = format!("{spans:?}");
        for secret in ["canary", "sk-real", "test-token"] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
        for request in stack.model.requests() {
            let told = request
                .headers
                .keys()
                .find(|name| name.starts_with("trace"));
            assert!(told.is_none(), "{request:?}");
            let values = format!("{:?}", request.headers);
            assert!(!values.contains(trace), "{values}");
        }
        // The log names the trace.
        let log = std::fs::read_to_string(stack.dir.join("sidecar.log")).unwrap();
        let ended = log
            .lines()
            .find(|line| line.contains("\"turn ended\""))
            .unwrap();
        assert!(ended.contains(trace), "{ended}");
    });
}

#[test]
fn a_dead_collector_delays_nobody() {
    run(async {
        // One that takes connections and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hole = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        let setup = Setup::default()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", 50)
            .env("OTEL_BSP_MAX_QUEUE_SIZE", 4)
            .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2);
        let stack = Stack::start(setup).await;
        for _ in 0..3 {
            stack.still_works().await;
        }
        // The end waits for the collector no longer than its own bound.
        let began = Instant::now();
        crate::process::signal(stack.sidecar_pid(), rustix::process::Signal::TERM);
        let status = stack.sidecar_ended(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}\n{}", stack.logs());
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        hole.abort();
    });
}
