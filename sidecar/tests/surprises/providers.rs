//! Every way in which a model's provider fails.

use crate::{
    reader::{End, Reader},
    stack::{Stack, run, shared},
};
use contract::event::{StatusKind, TurnError};
use std::time::{Duration, Instant};

/// Plays a scenario that has to fail with this code in this time, after so many model calls at most.
async fn fails(stack: &Stack, prompt: &str, code: TurnError, within: u64, calls: usize) -> String {
    let began = Instant::now();
    let (id, reader) = stack.play(prompt).await;
    assert!(
        began.elapsed() < Duration::from_secs(within),
        "{prompt}: {:?}",
        began.elapsed()
    );
    let error = reader.failed(code).error.clone();
    assert!(!error.contains("sk-real"), "{error}");
    let made = stack.model_calls(&id).await;
    assert!(made <= calls, "{prompt}: {made} model calls");
    // The same session goes on.
    let mut reader = reader;
    stack.play_on(&id, &mut reader, "SCENARIO:hello").await;
    assert_eq!(
        reader.complete().final_message,
        "Hello from the scripted model."
    );
    error
}

#[test]
fn a_refused_key_ends_the_turn_at_once() {
    run(async {
        let stack = shared().await;
        fails(stack, "SCENARIO:err401", TurnError::ProviderAuth, 20, 1).await;
        fails(stack, "SCENARIO:err403", TurnError::ProviderAuth, 20, 1).await;
        fails(
            stack,
            "SCENARIO:err-in-step2",
            TurnError::ProviderAuth,
            20,
            2,
        )
        .await;
    });
}

#[test]
fn what_the_provider_will_never_do_ends_the_turn_at_once() {
    run(async {
        let stack = shared().await;
        fails(stack, "SCENARIO:err404", TurnError::ModelNotFound, 20, 1).await;
        fails(stack, "SCENARIO:err400", TurnError::ProviderError, 20, 1).await;
        fails(stack, "SCENARIO:filter", TurnError::ContentFilter, 20, 1).await;
    });
}

#[test]
fn an_overflowing_conversation_ends_with_its_reason() {
    run(async {
        // Not the same session again: it stays too long.
        let (_, reader) = shared().await.play("SCENARIO:overflow").await;
        reader.failed(TurnError::ContextOverflow);
        shared().await.still_works().await;
    });
}

#[test]
fn a_loop_of_answers_without_sense_is_cut() {
    run(async {
        let stack = shared().await;
        let no_reason = "SCENARIO:script <<<- {repeat: 90, finish: none, parts: [{say: Text without a finish reason}]}>>>";
        for prompt in [
            no_reason,
            "SCENARIO:html",
            "SCENARIO:empty",
            "SCENARIO:json200",
            "SCENARIO:badjson",
        ] {
            let error = fails(stack, prompt, TurnError::ProviderGarbled, 30, 12).await;
            assert!(error.contains("endpoint"), "{error}");
        }
        // Once is none too many.
        let (_, reader) = stack.play("SCENARIO:nofinish").await;
        reader.complete();
    });
}

#[test]
fn a_limit_that_passes_is_told_and_waited_for() {
    run(async {
        let stack = shared().await;
        for (scenario, text) in [
            ("err429once", "Fine after the rate limit."),
            ("err500once", "Fine after the failure."),
            ("err503once", "Fine after the overload."),
            ("cutonce", "Fine after the break."),
        ] {
            // Once: OpenCode's second wait is longer.
            let (_, reader) = stack.play(&format!("SCENARIO:{scenario} 1")).await;
            assert_eq!(reader.complete().final_message, text, "{scenario}");
            assert!(
                !reader.statuses(StatusKind::Retrying).is_empty(),
                "{scenario}: {:#?}",
                reader.events
            );
        }
    });
}

#[test]
fn an_answer_cut_by_its_length_is_complete_and_says_so() {
    run(async {
        let (_, reader) = shared().await.play("SCENARIO:length").await;
        assert_eq!(reader.complete().finish.as_deref(), Some("length"));
        assert_eq!(
            reader.complete().final_message,
            "This sentence is cut off her"
        );
    });
}

#[test]
fn a_stream_that_just_ends_keeps_its_text() {
    run(async {
        let stack = shared().await;
        let (id, reader) = stack.play("SCENARIO:cutclean").await;
        let texts = reader.texts(contract::event::OutputSource::Assistant);
        assert_eq!(texts, stack.stored_texts(&id).await);
        assert!(
            texts
                .values()
                .any(|text| text == "Some partial text and then"),
            "{texts:?}"
        );
    });
}

/// What OpenCode tries again takes it five tries and over a minute; all at once here.
#[test]
fn what_never_passes_ends_with_its_reason() {
    run(async {
        let stack = shared().await;
        let began = Instant::now();
        let faults = [
            ("err429", &[TurnError::ProviderRateLimit][..]),
            ("quota", &[TurnError::ProviderRateLimit]),
            ("err500", &[TurnError::ProviderError]),
            ("err502html", &[TurnError::ProviderError]),
            (
                "hang",
                &[TurnError::ProviderUnreachable, TurnError::ProviderError],
            ),
            (
                "hangmid",
                &[TurnError::ProviderUnreachable, TurnError::ProviderError],
            ),
            (
                "hangtool",
                &[TurnError::ProviderUnreachable, TurnError::ProviderError],
            ),
            (
                "drop",
                &[TurnError::ProviderUnreachable, TurnError::ProviderError],
            ),
            ("errmid", &[TurnError::ProviderError]),
        ];
        let mut turns = Vec::new();
        for (scenario, codes) in faults {
            turns.push((
                scenario,
                codes,
                stack.begin(&format!("SCENARIO:{scenario}")).await,
            ));
        }
        let mut wrong = Vec::new();
        for (scenario, codes, id) in turns {
            let mut reader = Reader::default();
            let bound = Duration::from_secs(240).saturating_sub(began.elapsed());
            let ends = reader.until(&stack.client, &id, |reader| reader.ends() > 0);
            let in_time = tokio::time::timeout(bound, ends).await.is_ok();
            let status = stack.client.session(&id).await.unwrap();
            match in_time.then(|| reader.end()) {
                Some(End::Failed(error)) if codes.contains(&error.code) => {
                    let told = reader.statuses(StatusKind::Retrying).len();
                    if !(2..=40).contains(&told) {
                        wrong.push(format!(
                            "{scenario}: {told} times retrying: {:#?}",
                            reader.events
                        ));
                    }
                }
                other => wrong.push(format!("{scenario}: {other:?} {status:?}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", stack.logs());
        stack.still_works().await;
    });
}
