use crate::agent::{
    router::{EVENTS_MAX, FromAgent, Router},
    wire::OcEvent,
};
use contract::event::TurnError;
use std::time::Duration;
use tokio::time::{Instant, timeout};

fn idle(session: &str) -> Box<OcEvent> {
    parse(&format!(
        r#"{{"type":"session.idle","properties":{{"sessionID":"{session}"}}}}"#
    ))
}

fn created(session: &str, parent: &str) -> Box<OcEvent> {
    parse(&format!(
        r#"{{"type":"session.created","properties":{{"sessionID":"{session}","info":{{"id":"{session}","parentID":"{parent}"}}}}}}"#
    ))
}

fn parse(json: &str) -> Box<OcEvent> {
    Box::new(OcEvent::parse(json.as_bytes()).unwrap())
}

/// What is there now.
async fn drain(subscription: &mut crate::agent::router::Subscription) -> Vec<FromAgent> {
    let mut all = Vec::new();
    while let Ok(Some(message)) = timeout(Duration::ZERO, subscription.recv()).await {
        all.push(message);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn each_session_gets_its_own_and_its_childrens() {
    let router = Router::default();
    let (mut a, mut b) = (router.subscribe("ses_a"), router.subscribe("ses_b"));
    router.add_child("ses_b1", "ses_b");
    for event in [
        idle("ses_a"),
        created("ses_a1", "ses_a"),
        created("ses_a2", "ses_a1"),
        idle("ses_a2"),
        idle("ses_b1"),
        idle("ses_c"),
        parse(r#"{"type":"file.edited","properties":{"file":"x"}}"#),
    ] {
        router.dispatch(event, 10).await;
    }
    let expected = [
        idle("ses_a"),
        created("ses_a1", "ses_a"),
        created("ses_a2", "ses_a1"),
        idle("ses_a2"),
    ];
    assert_eq!(drain(&mut a).await, expected.map(FromAgent::Event));
    assert_eq!(drain(&mut b).await, [FromAgent::Event(idle("ses_b1"))]);
}

#[tokio::test(start_paused = true)]
async fn a_root_is_never_made_anothers_child() {
    let router = Router::default();
    let (mut a, mut b) = (router.subscribe("ses_a"), router.subscribe("ses_b"));
    router.dispatch(created("ses_b", "ses_a"), 10).await;
    router.dispatch(created("ses_x", "ses_a"), 10).await;
    router.dispatch(created("ses_x", "ses_b"), 10).await;
    router.dispatch(idle("ses_b"), 10).await;
    router.dispatch(idle("ses_x"), 10).await;
    assert!(
        drain(&mut b)
            .await
            .contains(&FromAgent::Event(idle("ses_b")))
    );
    let a = drain(&mut a).await;
    assert!(a.contains(&FromAgent::Event(idle("ses_x"))));
    assert!(!a.contains(&FromAgent::Event(idle("ses_b"))));
}

#[tokio::test(start_paused = true)]
async fn news_keeps_its_place_between_events() {
    let router = Router::default();
    let mut a = router.subscribe("ses_a");
    router.dispatch(idle("ses_a"), 10).await;
    router.agent_down("gone", TurnError::AgentDied);
    router.resync();
    router.resync();
    router.dispatch(idle("ses_a"), 10).await;
    let down = FromAgent::AgentDown {
        reason: "gone".into(),
        code: TurnError::AgentDied,
    };
    let event = FromAgent::Event(idle("ses_a"));
    assert_eq!(
        drain(&mut a).await,
        [event.clone(), down, FromAgent::Resync, event]
    );
    // The one that was read does not stand for what comes later.
    router.resync();
    assert_eq!(drain(&mut a).await, [FromAgent::Resync]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_the_stream_up_until_it_is_read() {
    let router = Router::default();
    let mut a = router.subscribe("ses_a");
    for _ in 0..EVENTS_MAX {
        router.dispatch(idle("ses_a"), 10).await;
    }
    let mut more = Box::pin(router.dispatch(idle("ses_a"), 10));
    assert!(timeout(Duration::from_secs(1), &mut more).await.is_err());
    assert!(a.recv().await.is_some());
    more.await;
    let rest = drain(&mut a).await;
    assert_eq!(rest.len(), EVENTS_MAX);
    assert!(!rest.contains(&FromAgent::Resync));
}

#[tokio::test(start_paused = true)]
async fn bytes_fill_a_queue_too() {
    let router = Router::default();
    let mut a = router.subscribe("ses_a");
    for _ in 0..2 {
        router.dispatch(idle("ses_a"), 16 << 20).await;
    }
    let third = router.dispatch(idle("ses_a"), 16 << 20);
    assert!(timeout(Duration::from_secs(1), third).await.is_err());
    drain(&mut a).await;
    // One event that is larger than all the room still gets through, alone.
    router.dispatch(idle("ses_a"), usize::MAX).await;
    assert_eq!(drain(&mut a).await, [FromAgent::Event(idle("ses_a"))]);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_told_to_reconcile_and_holds_nobody_up() {
    let router = Router::default();
    let (mut slow, mut quick) = (router.subscribe("ses_a"), router.subscribe("ses_b"));
    let began = Instant::now();
    for _ in 0..10 * EVENTS_MAX {
        router.dispatch(idle("ses_a"), 10).await;
        router.dispatch(idle("ses_b"), 10).await;
        assert!(matches!(quick.recv().await, Some(FromAgent::Event(_))));
    }
    // Waited for once, not for each.
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let all = drain(&mut slow).await;
    assert_eq!(all.len(), EVENTS_MAX + 1);
    assert_eq!(all.last(), Some(&FromAgent::Resync));
    router.dispatch(idle("ses_a"), 10).await;
    assert_eq!(drain(&mut slow).await, [FromAgent::Event(idle("ses_a"))]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_subscriber_blocks_nothing() {
    let router = Router::default();
    let a = router.subscribe("ses_a");
    for _ in 0..EVENTS_MAX {
        router.dispatch(idle("ses_a"), 10).await;
    }
    let began = Instant::now();
    let mut waiting = Box::pin(router.dispatch(idle("ses_a"), 10));
    assert!(
        timeout(Duration::from_millis(10), &mut waiting)
            .await
            .is_err()
    );
    drop(a);
    waiting.await;
    for _ in 0..1000 {
        router.dispatch(idle("ses_a"), 10).await;
    }
    assert_eq!(began.elapsed(), Duration::from_millis(10));
    let ending = router.ending();
    assert!(!router.is_idle(), "a turn ends");
    drop(ending);
    assert!(router.is_idle());
}

#[tokio::test(start_paused = true)]
async fn news_without_a_reader_ends_the_subscription() {
    let router = Router::default();
    let mut a = router.subscribe("ses_a");
    for _ in 0..1000 {
        router.agent_down("again", TurnError::AgentDied);
        router.resync();
    }
    assert!(router.is_idle());
    let mut read = 0;
    while a.recv().await.is_some() {
        read += 1;
    }
    assert!(read <= 65, "{read}");
}

#[tokio::test(start_paused = true)]
async fn children_are_forgotten_with_their_root() {
    let router = Router::default();
    let first = router.subscribe("ses_a");
    router.add_child("ses_a1", "ses_a");
    drop(first);
    let mut again = router.subscribe("ses_a");
    router.dispatch(idle("ses_a1"), 10).await;
    assert!(drain(&mut again).await.is_empty());
    // Nor is anything kept for sessions that nobody follows.
    router.add_child("ses_z1", "ses_z");
    assert!(!format!("{router:?}").contains("ses_z1"));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_sub_agents_is_bounded() {
    let router = Router::default();
    let mut a = router.subscribe("ses_a");
    for n in 0..10_500 {
        router.add_child(&format!("ses_{n}"), "ses_a");
    }
    router.dispatch(idle("ses_1"), 10).await;
    router.dispatch(idle("ses_10400"), 10).await;
    assert_eq!(drain(&mut a).await, [FromAgent::Event(idle("ses_1"))]);
}

#[tokio::test(start_paused = true)]
async fn a_run_begins_with_work_or_an_error_of_its_own_session() {
    let status = |session: &str, kind: &str| {
        parse(&format!(
            r#"{{"type":"session.status","properties":{{"sessionID":"{session}","status":{{"type":"{kind}"}}}}}}"#
        ))
    };
    let error = parse(
        r#"{"type":"session.error","properties":{"sessionID":"ses_a","error":{"name":"UnknownError","data":{"message":"x"}}}}"#,
    );
    let router = Router::default();
    for begins in [status("ses_a", "busy"), error] {
        let (mut run, other) = (router.expect_run("ses_a"), router.expect_run("ses_b"));
        for event in [
            idle("ses_a"),
            status("ses_a", "idle"),
            created("ses_a1", "ses_a"),
        ] {
            router.dispatch(event, 10).await;
        }
        assert!(!run.has_begun());
        // Nobody has subscribed.
        router.dispatch(begins, 10).await;
        timeout(Duration::from_secs(1), run.begins()).await.unwrap();
        assert!(run.has_begun() && !other.has_begun());
    }
    let (mut old, new) = (router.expect_run("ses_a"), router.expect_run("ses_a"));
    router.dispatch(status("ses_a", "busy"), 10).await;
    assert!(new.has_begun() && !old.has_begun());
    assert!(timeout(Duration::from_secs(1), old.begins()).await.is_err());
}
