//! Following a sidecar over real HTTP.

use crate::fixtures::{http, identity, idle, running_pod, session, valid};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse,
        sse::{Event, Sse},
    },
    routing::get,
};
use contract::{
    summary::Summary,
    token::{KeySet, Scope, Signing},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{reflector, watcher};
use operator::summaries::Summaries;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

const SEED: [u8; 32] = [9; 32];

#[derive(Clone)]
struct Sidecar {
    keys: Arc<KeySet>,
    said: broadcast::Sender<Option<Summary>>,
    first: Arc<Summary>,
}

async fn events(State(sidecar): State<Sidecar>, headers: HeaderMap) -> axum::response::Response {
    let token = headers["authorization"]
        .to_str()
        .unwrap()
        .strip_prefix("Bearer ")
        .unwrap();
    let claims = sidecar
        .keys
        .verify(token, "11111111-aaaa", Timestamp::now().as_second());
    match claims {
        Ok(claims) if claims.scopes == [Scope::SummaryRead] && claims.iss == "operator" => {}
        other => return (StatusCode::UNAUTHORIZED, format!("{other:?}")).into_response(),
    }
    let first = futures::stream::iter([Some(sidecar.first.as_ref().clone())]);
    let rest = futures::stream::unfold(sidecar.said.subscribe(), |mut said| async move {
        said.recv().await.ok().map(|summary| (summary, said))
    });
    // None ends the stream, as a restart of the sidecar does.
    let stream = first
        .chain(rest)
        .take_while(|s| std::future::ready(s.is_some()))
        .map(|summary| {
            Ok::<_, Infallible>(
                Event::default()
                    .event("summary")
                    .json_data(summary.unwrap())
                    .unwrap(),
            )
        });
    Sse::new(stream).into_response()
}

async fn sidecar() -> (String, broadcast::Sender<Option<Summary>>) {
    let (said, _) = broadcast::channel(16);
    let keys = Arc::new(KeySet {
        keys: vec![Signing::from_seed(&SEED).public()],
    });
    let state = Sidecar {
        keys,
        said: said.clone(),
        first: Arc::new(idle()),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new()
        .route("/events", get(events))
        .with_state(state);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (base, said)
}

fn pods(pod: Option<&Pod>) -> (reflector::Store<Pod>, reflector::store::Writer<Pod>) {
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    if let Some(pod) = pod {
        writer.apply_watcher_event(&watcher::Event::InitApply(pod.clone()));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    (store, writer)
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .unwrap_or_else(|_| panic!("{what} takes too long"))
}

#[tokio::test]
async fn what_the_sidecar_says_is_known_and_wakes_and_ends_with_the_pod() {
    let session = session("");
    let identity = identity(&session);
    let pod = running_pod(&valid(&session), true);
    let (store, mut writer) = pods(Some(&pod));
    let (base, said) = sidecar().await;
    let (wake, mut woken) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let summaries = Summaries::new(
        http(),
        Arc::new(Signing::from_seed(&SEED)),
        wake,
        stop.clone(),
    );
    summaries.follow(&identity, "pod-uid-1", base.clone(), true, &store);
    summaries.follow(&identity, "pod-uid-1", base, true, &store);

    let object = within("the first summary", woken.recv()).await.unwrap();
    assert_eq!(
        (object.name.as_str(), object.namespace.as_deref()),
        ("quokka", Some("burrow"))
    );
    assert_eq!(
        *summaries.get(&identity.uid, "pod-uid-1").unwrap().summary,
        idle()
    );
    assert!(
        summaries.get(&identity.uid, "pod-uid-2").is_none(),
        "of another pod nothing is known"
    );

    let mut busy = idle();
    busy.running_turns = 1;
    busy.missing_keys = vec!["acme".into()];
    said.send(Some(busy.clone())).unwrap();
    within("the change", woken.recv()).await.unwrap();
    let seen = summaries.get(&identity.uid, "pod-uid-1").unwrap();
    assert_eq!((seen.summary.running_turns, seen.connected), (1, true));
    let since = seen.missing_since.expect("it is missing since now");

    // Tokens alone change the figures without a round for each.
    busy.usage.input_tokens = 5;
    said.send(Some(busy.clone())).unwrap();
    busy.running_turns = 2;
    said.send(Some(busy)).unwrap();
    within("the next change", woken.recv()).await.unwrap();
    let seen = summaries.get(&identity.uid, "pod-uid-1").unwrap();
    assert_eq!(
        (seen.summary.usage.input_tokens, seen.summary.running_turns),
        (5, 2)
    );
    assert_eq!(seen.missing_since, Some(since), "still the same absence");
    assert!(woken.try_recv().is_err(), "one round for two messages");

    // The sidecar restarts: what it said no longer holds, then it is there again.
    said.send(None).unwrap();
    within("the end of the stream", woken.recv()).await.unwrap();
    within("the reconnect", woken.recv()).await.unwrap();
    assert!(summaries.get(&identity.uid, "pod-uid-1").unwrap().connected);

    // The pod is gone: the task ends by itself.
    writer.apply_watcher_event(&watcher::Event::Delete(pod));
    said.send(None).unwrap();
    within(
        "the end of the task, though nobody stopped it",
        summaries.ended(),
    )
    .await;
    assert!(summaries.get(&identity.uid, "pod-uid-1").is_none());
    assert!(!stop.is_cancelled());
}

#[tokio::test]
async fn a_sidecar_that_refuses_is_asked_again_and_the_end_is_prompt() {
    let session = session("");
    let pod = running_pod(&valid(&session), true);
    let (store, _writer) = pods(Some(&pod));
    let (base, _said) = sidecar().await;
    let (wake, mut woken) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    // Signed with a key that the sidecar does not know.
    let summaries = Summaries::new(
        http(),
        Arc::new(Signing::from_seed(&[0; 32])),
        wake,
        stop.clone(),
    );
    summaries.follow(&identity(&session), "pod-uid-1", base, true, &store);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), woken.recv())
            .await
            .is_err()
    );
    stop.cancel();
    within("the end", summaries.ended()).await;
}

#[tokio::test]
async fn a_pod_that_got_another_address_is_listened_to_there() {
    let session = session("");
    let identity = identity(&session);
    let pod = running_pod(&valid(&session), true);
    let (store, _writer) = pods(Some(&pod));
    let (old, _old_said) = sidecar().await;
    let (new, new_said) = sidecar().await;
    let (wake, mut woken) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let signing = Arc::new(Signing::from_seed(&SEED));
    let summaries = Summaries::new(http(), signing, wake, stop.clone());
    summaries.follow(&identity, "pod-uid-1", old, true, &store);
    within("the first summary", woken.recv()).await.unwrap();

    // Its sandbox was made anew: the same pod, another address.
    summaries.follow(&identity, "pod-uid-1", new, true, &store);
    within("the first summary from there", woken.recv())
        .await
        .unwrap();
    let mut busy = idle();
    busy.running_turns = 3;
    let known = async {
        loop {
            // Until the new connection listens; the old one has no part in it.
            let _ = new_said.send(Some(busy.clone()));
            let seen = summaries.get(&identity.uid, "pod-uid-1");
            if seen.is_some_and(|seen| seen.summary.running_turns == 3) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    within("what the new one says", known).await;
    stop.cancel();
    within("the end", summaries.ended()).await;
    assert!(
        summaries.get(&identity.uid, "pod-uid-1").is_none(),
        "each forgets its own"
    );
}
