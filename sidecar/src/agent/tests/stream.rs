use super::{Act, Double, STREAM_HEAD, connected, event, idle, say};
use crate::agent::{
    stream::{EventStream, LINE_MAX, StreamError, StreamItem},
    wire::OcKind,
};
use std::time::Duration;
use tokio::sync::mpsc;

/// A double whose stream sends what the test says, after the first event.
async fn stream_of(chunks: Vec<Vec<u8>>) -> (Double, EventStream, mpsc::Sender<Vec<u8>>) {
    let (sender, receiver) = mpsc::channel(64);
    sender.send(connected()).await.unwrap();
    let receiver = std::sync::Mutex::new(Some(receiver));
    let double =
        Double::start(move |_| Act::Stream(receiver.lock().unwrap().take().unwrap())).await;
    let stream = EventStream::open(&double.client()).await.unwrap();
    let feeder = sender.clone();
    tokio::spawn(async move {
        for chunk in chunks {
            feeder.send(chunk).await.unwrap();
        }
    });
    (double, stream, sender)
}

fn is_idle(item: &StreamItem) -> bool {
    matches!(item, StreamItem::Event(event, _) if event.kind == OcKind::SessionIdle)
}

#[tokio::test]
async fn events_come_whole_however_they_are_cut() {
    let mut text = idle("ses_1");
    text.extend(b": a comment\r\n\r\nevent: x\n");
    text.extend(idle("ses_2").iter().flat_map(|b| {
        if *b == b'\n' {
            vec![b'\r', b'\n']
        } else {
            vec![*b]
        }
    }));
    let bytes = text.iter().map(|byte| vec![*byte]).collect();
    let (double, mut stream, _open) = stream_of(bytes).await;
    for session in ["ses_1", "ses_2"] {
        let StreamItem::Event(event, _) = stream.next().await.unwrap() else {
            panic!("skipped");
        };
        assert_eq!(event.session.as_deref(), Some(session));
    }
    assert_eq!(double.got()[0].path, "/event?directory=%2Fw%20s");
}

#[tokio::test]
async fn garbage_is_skipped_and_said() {
    let garbage = [
        &event("{")[..],
        &event("[]"),
        b"data:\n\n",
        b"data: \xff\xfe\n\n",
    ]
    .concat();
    let (_double, mut stream, _open) = stream_of(vec![garbage, idle("ses_1")]).await;
    for _ in 0..4 {
        assert_eq!(stream.next().await.unwrap(), StreamItem::Skipped);
    }
    assert!(is_idle(&stream.next().await.unwrap()));
}

#[tokio::test]
async fn a_line_beyond_the_bound_is_skipped_and_the_next_one_read() {
    let mut chunks = vec![b"data: ".to_vec()];
    chunks.extend(std::iter::repeat_n(
        vec![b'x'; 1 << 20],
        LINE_MAX / (1 << 20) + 1,
    ));
    chunks.push(b"\n\n".to_vec());
    chunks.push(idle("ses_1"));
    let (_double, mut stream, _open) = stream_of(chunks).await;
    assert_eq!(stream.next().await.unwrap(), StreamItem::Skipped);
    assert!(is_idle(&stream.next().await.unwrap()));
}

#[tokio::test]
async fn an_endless_line_ends_the_stream_in_constant_memory() {
    let double = Double::start(|_| {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\n\r\ndata: {\"type\":\"server.connected\"}\n\n";
        Act::Flood(head, vec![b'x'; 1 << 16])
    })
    .await;
    let mut stream = EventStream::open(&double.client()).await.unwrap();
    let before = resident();
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, StreamError::Slow(_)), "{error:?}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "grew by {grown} bytes");
}

/// Resident bytes of this process, which runs other tests too.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_drip_that_finishes_no_line_ends_the_stream() {
    let (sender, receiver) = mpsc::channel(8);
    let (_double, mut stream, _open) = {
        sender.send(connected()).await.unwrap();
        let receiver = std::sync::Mutex::new(Some(receiver));
        let double =
            Double::start(move |_| Act::Stream(receiver.lock().unwrap().take().unwrap())).await;
        let stream = EventStream::open(&double.client()).await.unwrap();
        (double, stream, ())
    };
    let drip = tokio::spawn(async move {
        while sender.send(vec![b'x']).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    assert!(matches!(stream.next().await, Err(StreamError::Slow(_))));
    drip.abort();
}

#[tokio::test]
async fn heartbeats_keep_it_and_silence_ends_it() {
    let (_double, mut stream, sender) = stream_of(Vec::new()).await;
    let beats = tokio::spawn(async move {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sender
                .send(event(r#"{"type":"server.heartbeat","properties":{}}"#))
                .await
                .unwrap();
        }
        sender
    });
    for _ in 0..6 {
        assert!(
            matches!(stream.next().await.unwrap(), StreamItem::Event(event, _) if event.kind == OcKind::Heartbeat)
        );
    }
    let _open = beats.await.unwrap();
    assert!(matches!(stream.next().await, Err(StreamError::Silent(_))));
}

#[tokio::test]
async fn time_in_which_nobody_reads_is_no_silence() {
    let (_double, mut stream, sender) = stream_of(vec![b"data: ".to_vec()]).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(100), stream.next())
            .await
            .is_err()
    );
    // Longer than every bound.
    std::thread::sleep(Duration::from_millis(3200));
    sender.send(idle("ses_1")[6..].to_vec()).await.unwrap();
    assert!(is_idle(&stream.next().await.unwrap()));
}

#[tokio::test]
async fn an_event_survives_a_reader_that_looks_away() {
    let (_double, mut stream, sender) = stream_of(Vec::new()).await;
    let whole = idle("ses_1");
    let (first, rest) = whole.split_at(20);
    sender.send(first.to_vec()).await.unwrap();
    for _ in 0..3 {
        assert!(
            tokio::time::timeout(Duration::from_millis(20), stream.next())
                .await
                .is_err()
        );
    }
    sender.send(rest.to_vec()).await.unwrap();
    assert!(is_idle(&stream.next().await.unwrap()));
}

#[tokio::test]
async fn the_end_is_an_end() {
    let (_double, mut stream, sender) = stream_of(Vec::new()).await;
    drop(sender);
    assert!(matches!(stream.next().await, Err(StreamError::Closed)));
}

#[tokio::test]
async fn a_stream_that_is_none_is_not_opened() {
    for (act, silent) in [(401, false), (500, false), (0, true)] {
        let double = Double::start(move |_| match act {
            0 => Act::Raw(STREAM_HEAD.to_vec()),
            code => Act::Say(code, "no".into()),
        })
        .await;
        let error = EventStream::open(&double.client()).await.unwrap_err();
        assert_eq!(matches!(error, StreamError::Closed), silent, "{error:?}");
    }
    let double = Double::start(|_| Act::Hang).await;
    assert!(matches!(
        EventStream::open(&double.client()).await,
        Err(StreamError::Open(_))
    ));
    let double = Double::start(|_| say("{}")).await;
    assert!(EventStream::open(&double.client()).await.is_err());
}
