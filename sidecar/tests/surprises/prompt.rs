//! The pod's own prompt.

use crate::{
    launch::configure,
    reader::Reader,
    stack::{LONG, Setup, Stack, run},
};
use contract::SessionId;
use serde_json::json;
use std::{fs, time::Duration};
use tokio::time::{Instant, sleep};

/// It comes while as many turns run as are allowed: it is refused now and begins later, once.
#[test]
fn a_prompt_that_is_refused_begins_when_there_is_room() {
    run(async {
        let limits = json!({"limits": {"maxConcurrentSessions": 1, "turnTimeoutSeconds": 600}});
        let stack = Stack::start(Setup::default().config(limits.clone())).await;
        let busy = stack.begin("SCENARIO:bash-sleep").await;
        let mut config = limits;
        config["prompt"] = json!("SCENARIO:hello");
        configure(&stack.dir, &stack.model.base_url(), config);
        let refused = || {
            let log = fs::read_to_string(stack.dir.join("sidecar.log")).unwrap();
            log.contains("the pod's prompt was not started")
        };
        let deadline = Instant::now() + LONG;
        while !refused() {
            assert!(Instant::now() < deadline, "never tried\n{}", stack.logs());
            sleep(Duration::from_millis(50)).await;
        }
        let prompted = SessionId::new("zebra").unwrap();
        assert!(stack.client.session(&prompted).await.is_err(), "not yet");

        stack.client.cancel(&busy).await.unwrap();
        let deadline = Instant::now() + LONG;
        while stack.client.session(&prompted).await.is_err() {
            assert!(Instant::now() < deadline, "never begun\n{}", stack.logs());
            sleep(Duration::from_millis(50)).await;
        }
        let mut reader = Reader::default();
        stack
            .read(&mut reader, &prompted, |reader| reader.ends() == 1)
            .await;
        assert_eq!(
            reader.complete().final_message,
            "Hello from the scripted model."
        );
    });
}
