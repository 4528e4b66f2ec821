//! Readers: cut, late, slow, many; nothing lost, nothing doubled.

use contract::{Cursor, Epoch, SessionId};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;
use tests::{Recorder, Session, run, session::TURN};

#[test]
fn a_hundred_cuts_in_one_stream_lose_and_double_nothing() {
    run("cuts", |ns| async move {
        let (session, _model) =
            Session::apply(&ns, "swift", Some("SCENARIO:bash-chatty"), json!({})).await;
        let id = session.prompt_id();
        let mut cut = Recorder::default();
        let reading = async {
            let mut wanted = 1_u64;
            while !cut.ended() {
                let Some(mut stream) = cut.open(&session, &id).await else {
                    break;
                };
                let mut got = 0;
                while let Some(Ok(event)) = stream.next().await {
                    cut.take(&event);
                    got += 1;
                    // A varying number, so that cuts fall everywhere.
                    if got >= wanted && cut.connections <= 100 {
                        break;
                    }
                }
                wanted = wanted % 5 + 1;
            }
            while cut.connections <= 100 {
                // The turn was over before a hundred cuts: go on over the stored events.
                let mut again = Recorder::default();
                let mut stream = again.open(&session, &id).await.expect("stored events");
                for _ in 0..cut.connections {
                    again.take(&stream.next().await.expect("stored").expect("read"));
                }
                drop(stream);
                again.read_to_end(&session, &id).await;
                assert_eq!(again.events.len(), cut.events.len());
                cut.connections += 1;
            }
        };
        tokio::time::timeout(TURN, reading).await.expect("in time");
        let whole = session.read(&id).await;
        whole.check();
        let text = |r: &Recorder| {
            serde_json::to_string(&r.events.iter().map(|e| &e.event).collect::<Vec<_>>())
                .expect("JSON")
        };
        assert_eq!(text(&cut), text(&whole));
        assert!(cut.connections >= 100, "{}", cut.connections);
    });
}

#[test]
fn cursors_are_served_or_refused_by_the_rules() {
    run("cursors", |ns| async move {
        let (session, _model) =
            Session::apply(&ns, "plover", Some("SCENARIO:hello"), json!({})).await;
        let id = session.prompt_id();
        let whole = session.read(&id).await;
        let last = whole.cursor().expect("events");
        let client = session.client().await;
        assert!(
            client
                .stream(&id, Some(last), false)
                .await
                .expect("taken")
                .is_none(),
            "204 at the end"
        );
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let url = format!("{}/sessions/{id}/stream", session.url().await);
        let ask = |cursor: String| {
            http.get(&url)
                .bearer_auth(&session.token)
                .header("Last-Event-ID", cursor)
                .timeout(Duration::from_secs(5))
                .send()
        };
        for bad in [
            "x",
            "1",
            "-1",
            "00000000000000aa",
            &format!("{}-{}", last.epoch, last.n + 1),
            &format!("{}-99999999999999999999999", last.epoch),
        ] {
            let answer = ask(bad.to_owned()).await.expect("answered");
            assert_eq!(answer.status(), 400, "{bad}");
            let body: serde_json::Value = answer.json().await.expect("JSON");
            assert_eq!(body["details"]["code"], "invalid_cursor", "{bad}");
        }
        // Another history: one gap, then everything.
        let mut other = Recorder::default();
        let foreign = Cursor {
            epoch: Epoch(last.epoch.0 ^ 1),
            n: 3,
        };
        let mut stream = client
            .stream(&id, Some(foreign), false)
            .await
            .expect("taken")
            .expect("a stream");
        while let Some(Ok(event)) = stream.next().await {
            other.take(&event);
        }
        assert_eq!(
            (other.gaps.len(), other.events.len()),
            (1, whole.events.len())
        );
        // Pages tell the same as the stream.
        let mut paged = 0;
        let mut after = None;
        loop {
            let page = client.events(&id, after, 3).await.expect("a page");
            paged += page.events.len();
            after = Some(page.next.parse().expect("a cursor"));
            if !page.more {
                break;
            }
        }
        assert_eq!(paged, whole.events.len());
        let unknown = SessionId::new("nobody").expect("an id");
        assert!(matches!(
            client.stream(&unknown, None, false).await,
            Err(contract::client::ClientError::Api { status: 404, .. })
        ));
    });
}
