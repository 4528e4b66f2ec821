//! Whatever is missed of the stream, the stored messages make up for it, exactly once.

use super::super::outcome::Outcome;
use super::super::{Mapped, TurnMap};
use super::capture::{Capture, all};
use contract::Event;

#[test]
fn a_whole_stream_says_everything_once() {
    for capture in all() {
        for turn in 0..capture.turns.len() {
            let mut map = capture.map(turn);
            let mut said = feed(&mut map, &capture, 0, usize::MAX);
            said.extend(capture.settle(&mut map));
            said.extend(capture.settle(&mut map));
            capture.truth(turn).check(&said, &capture.name);
        }
    }
}

#[test]
fn nothing_is_left_for_the_stored_messages_after_a_whole_stream() {
    for capture in all() {
        for turn in 0..capture.turns.len() {
            let mut map = capture.map(turn);
            feed(&mut map, &capture, 0, usize::MAX);
            assert_eq!(capture.settle(&mut map), [], "{} {turn}", capture.name);
        }
    }
}

#[test]
fn a_restart_at_any_event_says_the_rest_once() {
    for capture in all() {
        for turn in 0..capture.turns.len() {
            let truth = capture.truth(turn);
            let whole = outcome(&capture, turn);
            for cut in cuts(capture.events.len()) {
                let what = format!("{} {turn} cut at {cut}", capture.name);
                let mut said = feed(&mut capture.map(turn), &capture, 0, cut);
                let mut map = restored(&capture, turn, &said);
                said.extend(capture.settle(&mut map));
                truth.check(&said, &what);
                same_end(&map.outcome(), &whole, &what);

                // And a second restart, after which nothing is left to say.
                let mut map = restored(&capture, turn, &said);
                assert_eq!(capture.settle(&mut map), [], "{what}, twice");
                same_end(&map.outcome(), &whole, &what);
            }
        }
    }
}

#[test]
fn a_restart_in_the_midst_of_a_stream_goes_on() {
    for capture in all() {
        let length = capture.events.len();
        for turn in 0..capture.turns.len() {
            let truth = capture.truth(turn);
            for cut in cuts(length).step_by(4) {
                for lost in [0, 2, 17] {
                    let what = format!("{} {turn} cut at {cut}, lost {lost}", capture.name);
                    let mut said = feed(&mut capture.map(turn), &capture, 0, cut);
                    let mut map = restored(&capture, turn, &said);
                    said.extend(feed(&mut map, &capture, cut + lost, usize::MAX));
                    said.extend(capture.settle(&mut map));
                    truth.check(&said, &what);
                }
            }
        }
    }
}

#[test]
fn any_range_may_be_missed() {
    for capture in all() {
        let length = capture.events.len();
        for turn in 0..capture.turns.len() {
            let truth = capture.truth(turn);
            let whole = outcome(&capture, turn);
            let stride = (length / 14).max(1);
            for from in (0..length).step_by(stride) {
                for to in (from..=length).step_by(stride) {
                    let what = format!("{} {turn} without {from}..{to}", capture.name);
                    let mut map = capture.map(turn);
                    let mut said = feed(&mut map, &capture, 0, from);
                    said.extend(feed(&mut map, &capture, to, usize::MAX));
                    said.extend(capture.settle(&mut map));
                    truth.check(&said, &what);
                    same_end(&map.outcome(), &whole, &what);
                }
            }
        }
    }
}

#[test]
fn stored_messages_alone_say_everything() {
    for capture in all() {
        for turn in 0..capture.turns.len() {
            let mut map = capture.map(turn);
            let said = capture.settle(&mut map);
            capture.truth(turn).check(&said, &capture.name);
        }
    }
}

fn feed(map: &mut TurnMap, capture: &Capture, from: usize, to: usize) -> Vec<Mapped> {
    let to = to.min(capture.events.len());
    let events = capture.events.get(from..to).unwrap_or_default();
    events
        .iter()
        .flat_map(|event| map.on_event(event))
        .collect()
}

fn restored(capture: &Capture, turn: usize, said: &[Mapped]) -> TurnMap {
    let mut map = capture.map(turn);
    for mapped in said {
        map.restore(&Event::from(mapped));
    }
    map
}

fn outcome(capture: &Capture, turn: usize) -> Outcome {
    let mut map = capture.map(turn);
    feed(&mut map, capture, 0, usize::MAX);
    capture.settle(&mut map);
    map.outcome()
}

/// Every cut of short captures, about sixty of long ones.
fn cuts(length: usize) -> impl Iterator<Item = usize> + Clone {
    (0..=length).step_by((length / 60).max(1))
}

/// An error that OpenCode did not store with a message may be lost with the event.
fn same_end(is: &Outcome, should: &Outcome, what: &str) {
    let error = |outcome: &Outcome| outcome.error.as_ref().map(|error| error.code);
    if should.has_assistant {
        assert_eq!(error(is), error(should), "{what}");
        assert_eq!(is.aborted, should.aborted, "{what}");
    }
    let rest = |outcome: &Outcome| Outcome {
        error: None,
        aborted: false,
        ..outcome.clone()
    };
    assert_eq!(rest(is), rest(should), "{what}");
}
