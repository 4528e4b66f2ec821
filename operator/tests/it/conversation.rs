//! A round as a conversation with the API server: verb, whole URI, body; nothing more, nothing less.

use crate::fixtures::{identity, now, session, settings, summaries};
use http::{Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client::Body, runtime::reflector};
use operator::{
    apply::{Applied, Target, Write, Writer},
    metrics::Metrics,
    session::{
        observe::Stores,
        reconcile::{Context, reconcile},
    },
};
use serde_json::{Value, json};
use std::sync::Arc;
use tower_test::mock::{Handle, SendResponse};

type Server = Handle<Request<Body>, Response<Body>>;

fn context() -> (Context, Server) {
    let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let (pods, _) = reflector::store();
    let (claims, _) = reflector::store();
    let context = Context {
        stores: Stores { pods, claims },
        summaries: summaries(),
        settings: settings(),
        writer: Writer::new(Client::new(service, "default"), None),
        metrics: Metrics::default(),
    };
    (context, server)
}

async fn expect(
    server: &mut Server,
    verb: &str,
    uri: &str,
) -> (Value, SendResponse<Response<Body>>) {
    let (request, send) = server.next_request().await.expect("a further request");
    assert_eq!(
        (
            request.method().as_str(),
            request.uri().to_string().as_str()
        ),
        (verb, uri)
    );
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    (serde_json::from_slice(&bytes).unwrap_or(Value::Null), send)
}

fn answer(send: SendResponse<Response<Body>>, code: u16, body: &Value) {
    send.send_response(
        Response::builder()
            .status(code)
            .body(Body::from(body.to_string().into_bytes()))
            .unwrap(),
    );
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message})
}

const CLAIMS: &str = "/api/v1/namespaces/burrow/persistentvolumeclaims";
const PODS: &str = "/api/v1/namespaces/burrow/pods";
const STATUS: &str =
    "/apis/opencode-operator.dev/v1alpha1/namespaces/burrow/opencodesessions/quokka/status?";

#[tokio::test]
async fn the_first_round_makes_claim_and_pod_and_says_so() {
    let (context, mut server) = context();
    let talk = tokio::spawn(async move {
        let (claim, send) = expect(
            &mut server,
            "POST",
            &format!("{CLAIMS}?&fieldManager=opencode-operator"),
        )
        .await;
        assert_eq!(claim["metadata"]["name"], "quokka-workspace");
        assert_eq!(
            claim["metadata"]["ownerReferences"][0]["uid"],
            "11111111-aaaa"
        );
        answer(send, 201, &claim);
        let (pod, send) = expect(
            &mut server,
            "POST",
            &format!("{PODS}?&fieldManager=opencode-operator"),
        )
        .await;
        assert_eq!(pod["metadata"]["name"], "quokka");
        let config: Value = serde_json::from_str(
            pod["metadata"]["annotations"]["opencode-operator.dev/config"]
                .as_str()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(config["uid"], "11111111-aaaa");
        answer(send, 201, &pod);
        let (status, send) = expect(&mut server, "PATCH", STATUS).await;
        assert_eq!(status["metadata"], json!({ "uid": "11111111-aaaa" }));
        assert_eq!(status["status"]["phase"], "Starting");
        assert_eq!(status["status"]["podName"], "quokka");
        assert!(status.get("spec").is_none());
        answer(send, 200, &serde_json::to_value(session("")).unwrap());
        assert!(server.next_request().await.is_none(), "nothing more");
    });
    reconcile(&context, Arc::new(session("")), now())
        .await
        .unwrap();
    drop(context);
    talk.await.unwrap();
}

#[tokio::test]
async fn a_pod_of_somebody_else_is_looked_at_and_reported() {
    let (context, mut server) = context();
    let talk = tokio::spawn(async move {
        let (claim, send) = expect(
            &mut server,
            "POST",
            &format!("{CLAIMS}?&fieldManager=opencode-operator"),
        )
        .await;
        answer(send, 201, &claim);
        let (_, send) = expect(
            &mut server,
            "POST",
            &format!("{PODS}?&fieldManager=opencode-operator"),
        )
        .await;
        answer(
            send,
            409,
            &failure(409, "AlreadyExists", "pods \"quokka\" already exists"),
        );
        let (_, send) = expect(&mut server, "GET", &format!("{PODS}/quokka")).await;
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop", "uid": "x", "controller": true});
        answer(
            send,
            200,
            &json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": {"name": "quokka", "namespace": "burrow", "uid": "theirs", "ownerReferences": [owner]}}),
        );
        let (status, send) = expect(&mut server, "PATCH", STATUS).await;
        let text = status["status"]["conditions"].to_string();
        assert!(text.contains("ReplicaSet shop"), "{text}");
        answer(send, 200, &serde_json::to_value(session("")).unwrap());
        let (event, send) = expect(
            &mut server,
            "POST",
            "/apis/events.k8s.io/v1/namespaces/burrow/events?",
        )
        .await;
        assert_eq!(
            (&event["reason"], &event["type"]),
            (&json!("ForeignObject"), &json!("Warning"))
        );
        answer(send, 201, &event);
        assert!(
            server.next_request().await.is_none(),
            "neither deleted nor patched"
        );
    });
    let requeue = reconcile(&context, Arc::new(session("")), now())
        .await
        .unwrap();
    assert_eq!(
        requeue.map(|r| r.as_secs()),
        Some(10),
        "no watch tells when it goes"
    );
    drop(context);
    talk.await.unwrap();
}

#[tokio::test]
async fn a_refused_claim_stops_the_round_before_the_pod_and_is_told() {
    let (context, mut server) = context();
    let talk = tokio::spawn(async move {
        let (_, send) = expect(
            &mut server,
            "POST",
            &format!("{CLAIMS}?&fieldManager=opencode-operator"),
        )
        .await;
        answer(
            send,
            403,
            &failure(403, "Forbidden", "exceeded quota: tiny"),
        );
        let (status, send) = expect(&mut server, "PATCH", STATUS).await;
        assert!(
            status["status"]["conditions"]
                .to_string()
                .contains("exceeded quota: tiny")
        );
        answer(send, 200, &serde_json::to_value(session("")).unwrap());
        let (event, send) = expect(
            &mut server,
            "POST",
            "/apis/events.k8s.io/v1/namespaces/burrow/events?",
        )
        .await;
        assert_eq!(event["reason"], "Refused");
        answer(send, 201, &event);
        assert!(server.next_request().await.is_none());
    });
    let requeue = reconcile(&context, Arc::new(session("")), now())
        .await
        .unwrap();
    assert_eq!(requeue.map(|r| r.as_secs()), Some(15));
    drop(context);
    talk.await.unwrap();
}

#[tokio::test]
async fn a_spec_that_makes_no_sense_is_told_and_nothing_is_made() {
    let (context, mut server) = context();
    let talk = tokio::spawn(async move {
        let (status, send) = expect(&mut server, "PATCH", STATUS).await;
        assert_eq!(status["status"]["phase"], "Failed");
        answer(send, 200, &serde_json::to_value(session("")).unwrap());
        let (event, send) = expect(
            &mut server,
            "POST",
            "/apis/events.k8s.io/v1/namespaces/burrow/events?",
        )
        .await;
        assert_eq!(event["reason"], "UnknownProvider");
        answer(send, 201, &event);
        assert!(server.next_request().await.is_none());
    });
    let wrong = session("  smallModel: {provider: nobody, name: x}\n");
    let requeue = reconcile(&context, Arc::new(wrong), now()).await.unwrap();
    assert_eq!(requeue, None, "only another spec can help");
    drop(context);
    talk.await.unwrap();
}

fn resize() -> Write {
    Write::ResizePod {
        target: Target {
            namespace: "burrow".into(),
            name: "quokka".into(),
        },
        uid: "pod-uid-1".into(),
        resize: json!({"spec": {"containers": [{"name": "agent"}]}}),
        record: json!({"metadata": {"uid": "pod-uid-1"}}),
        replace_if_refused: true,
    }
}

const RESIZE: &str = "/api/v1/namespaces/burrow/pods/quokka/resize?";

#[tokio::test]
async fn a_forbidden_resize_leaves_the_pod_alone_and_an_impossible_one_replaces_it() {
    let (context, mut server) = context();
    let talk = tokio::spawn(async move {
        let why = "exceeded quota: burrow";
        let (_, send) = expect(&mut server, "PATCH", RESIZE).await;
        answer(send, 403, &failure(403, "Forbidden", why));
        // Another pod would be forbidden too: nothing is deleted before the next resize.
        let (_, send) = expect(&mut server, "PATCH", RESIZE).await;
        answer(
            send,
            422,
            &failure(422, "Invalid", "cannot be changed in place"),
        );
        let (body, send) = expect(&mut server, "DELETE", &format!("{PODS}/quokka?")).await;
        assert_eq!(body["preconditions"], json!({ "uid": "pod-uid-1" }));
        answer(
            send,
            200,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        );
        assert!(server.next_request().await.is_none(), "nothing more");
    });
    let identity = identity(&session(""));
    let forbidden = context.writer.apply(&identity, resize()).await.unwrap();
    assert_eq!(forbidden, Applied::Refused("exceeded quota: burrow".into()));
    let impossible = context.writer.apply(&identity, resize()).await.unwrap();
    assert_eq!(
        impossible,
        Applied::Replaced("cannot be changed in place".into())
    );
    drop(context);
    talk.await.unwrap();
}
