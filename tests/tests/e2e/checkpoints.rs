//! The workspace as it was after a turn, also in the next pod.

use crate::egress::turn;
use serde_json::json;
use tests::{Namespace, Session, eventually, run, session::READY};

#[test]
fn a_turn_can_be_taken_back_in_the_next_pod() {
    run("checkpoints", |ns: Namespace| async move {
        let (session, _model) = Session::apply(&ns, "attic", None, json!({})).await;
        session.ready().await;
        turn(&session, "first", "echo one > note.txt").await;
        turn(
            &session,
            "second",
            "echo two > note.txt; echo new > more.txt",
        )
        .await;

        let listed = session.client().await.checkpoints().await.unwrap();
        assert!(listed.last_error.is_none(), "{listed:?}");
        let of = |name: &str| {
            let mut all = listed.checkpoints.iter();
            let found = all.find(|c| c.session_id.as_ref().is_some_and(|id| id.as_str() == name));
            let found = found.unwrap_or_else(|| panic!("none of {name}: {listed:?}"));
            assert!(!found.mixed, "{found:?}");
            found.checkpoint_id.clone()
        };
        let (first, second) = (of("first"), of("second"));

        let before = session.pod_uid().await;
        ns.kubectl(&["delete", "pod", "attic", "--wait=false"], "")
            .await;
        eventually("another pod", READY, || async {
            let now = session.pod_uid().await;
            if now == before {
                Err("the same pod".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
        session.ready().await;

        let client = session.client().await;
        let diff = client.diff(&first, &second).await.unwrap();
        let files: Vec<_> = diff
            .files
            .iter()
            .map(|file| (file.path.as_str(), file.status.as_str()))
            .collect();
        assert_eq!(files, [("more.txt", "added"), ("note.txt", "modified")]);
        let restored = client.restore(&first).await.unwrap();
        assert!(restored.exact, "{restored:?}");
        assert_eq!(session.file("note.txt").await, "one\n");
        let gone = session
            .exec("agent", &["test", "!", "-e", "/workspace/more.txt"])
            .await;
        assert!(gone.ok, "more.txt is still there: {}", gone.err);
        // And forth again.
        client
            .restore(&restored.before.checkpoint_id)
            .await
            .unwrap();
        assert_eq!(session.file("more.txt").await, "new\n");
    });
}
