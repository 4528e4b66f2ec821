//! Many readers at once, some of which never read; readers and sidecars that are killed.
//!
//! With LONG=1 in full size; lines `FIGURE` are for docs/benchmarks.md.

use crate::{
    reader::Reader,
    stack::{LONG, Setup, Stack, TOKEN, run, run_alone},
};
use contract::{Cursor, SessionId};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::Instant,
};

fn long() -> bool {
    std::env::var_os("LONG").is_some_and(|long| long == "1")
}

/// Events that all readers of a round got.
static DELIVERED: AtomicU64 = AtomicU64::new(0);

async fn ask(stack: &Stack, id: &SessionId, after: Option<Cursor>, window: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(window).unwrap();
    let address = ([127, 0, 0, 1], stack.port).into();
    let mut stream = socket.connect(address).await.unwrap();
    let last = after.map_or(String::new(), |cursor| {
        format!("last-event-id: {cursor}\r\n")
    });
    let head = format!(
        "GET /sessions/{id}/stream?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{last}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads from `after` to the end of the turn; how late each tenth event was, in milliseconds.
/// Panics where a number is missing, doubled or out of order.
async fn read(stream: TcpStream, after: u64, seed: u64) -> Vec<i64> {
    let mut lines = BufReader::with_capacity(4096, stream);
    let (mut last, mut late, mut line) = (after, Vec::new(), String::new());
    loop {
        line.clear();
        let read = lines.read_line(&mut line).await.unwrap();
        assert!(read > 0, "the stream ended after event {last}");
        if let Some(id) = line.strip_prefix("id: ") {
            let cursor: Cursor = id.trim_end().parse().unwrap();
            assert_eq!(cursor.n, last + 1, "after event {last}");
            last = cursor.n;
            DELIVERED.fetch_add(1, Ordering::Relaxed);
        } else if let Some(data) = line.strip_prefix("data: ") {
            if (last + seed).is_multiple_of(10)
                && let Some((_, ts)) = data.split_once("\"ts\":\"")
            {
                let ts: Timestamp = ts.split_once('"').unwrap().0.parse().unwrap();
                late.push(Timestamp::now().duration_since(ts).as_millis() as i64);
            }
        } else if line.starts_with("event: complete") {
            return late;
        } else {
            assert!(!line.starts_with("event: gap"), "a gap after {last}");
        }
    }
}

/// `share` of all, in milliseconds.
fn quantile(late: &mut [i64], share: f64) -> i64 {
    late.sort_unstable();
    let at = (late.len() as f64 * share) as usize;
    late.get(at.min(late.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

/// Proportional set size of the sidecar, in KiB.
fn pss(stack: &Stack) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", stack.sidecar_pid());
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let size = line.unwrap().trim().trim_end_matches(" kB");
    size.trim().parse().unwrap()
}

struct Round {
    p50: i64,
    p99: i64,
    per_second: u64,
    /// Memory of the process at its peak, in KiB.
    peak: u64,
}

/// One turn of slow words, read by `awake` readers while `stalled` others read nothing.
async fn round(stack: &Stack, id: &SessionId, awake: usize, stalled: usize, words: u32) -> Round {
    let history: Cursor = {
        let session = stack.client.session(id).await.unwrap();
        session.last_event_id.parse().unwrap()
    };
    // From the first event on, with a small window: more waits for them than sockets hold.
    let mut asleep = Vec::new();
    for _ in 0..stalled {
        asleep.push(ask(stack, id, None, 2048).await);
    }
    let mut readers = JoinSet::new();
    for n in 0..awake {
        let stream = ask(stack, id, Some(history), 64 * 1024).await;
        readers.spawn(read(stream, history.n, n as u64));
    }
    DELIVERED.store(0, Ordering::Relaxed);
    let began = Instant::now();
    stack.turn(id, &format!("SCENARIO:slow {words} 40")).await;
    let mut peak = 0;
    let mut late = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            done = readers.join_next() => match done {
                Some(done) => late.extend(done.unwrap()),
                None => break,
            },
            _ = ticks.tick() => peak = peak.max(pss(stack)),
        }
    }
    let took = began.elapsed();
    drop(asleep);
    Round {
        p50: quantile(&mut late, 0.5),
        p99: quantile(&mut late, 0.99),
        per_second: (DELIVERED.load(Ordering::Relaxed) as f64 / took.as_secs_f64()) as u64,
        peak,
    }
}

#[test]
fn readers_that_do_not_read_hold_up_nobody_and_cost_little() {
    run_alone(async {
        let stack = Stack::start(Setup::default()).await;
        // Several MiB of history, so that who does not read is really behind.
        let (id, _) = stack.play("SCENARIO:long 20000").await;
        let (awake, stalled, words) = if long() {
            (900, 100, 500)
        } else {
            (90, 10, 100)
        };
        // Threads and caches that come with the first readers are nobody's share.
        round(&stack, &id, awake, 0, 25).await;
        let one = round(&stack, &id, 1, 0, words).await;
        let idle = pss(&stack);
        for n in 0..if long() { 3 } else { 1 } {
            let free = round(&stack, &id, awake, 0, words).await;
            let held = round(&stack, &id, awake, stalled, words).await;
            // Above what there was before the first of many readers: the process may keep what it once had.
            let most = free.peak.max(held.peak);
            let each = most.saturating_sub(idle) / (awake + stalled) as u64;
            println!(
                "FIGURE run {n}: {awake} readers: p50 {} ms, p99 {} ms, {}/s; with {stalled} stalled ones: p50 {} ms, \
                 p99 {} ms, {}/s, {} KiB each; one reader alone: p99 {} ms",
                free.p50,
                free.p99,
                free.per_second,
                held.p50,
                held.p99,
                held.per_second,
                each,
                one.p99
            );
            // A generous bound: this machine has other jobs. What is asked for stands in the docs.
            assert!(held.p99 < 5000, "p99 of {} ms", held.p99);
            // One piece of history waits for each of those that do not read.
            let pieces = 512 * stalled as u64 / (awake + stalled) as u64;
            assert!(each <= 32 + pieces, "{each} KiB each");
        }
        stack.still_works().await;
    });
}

#[test]
fn readers_that_never_read_are_bounded_together() {
    run_alone(async {
        let stack = Stack::start(Setup::default()).await;
        let (id, reader) = stack.play("SCENARIO:slow 4000 2").await;
        // Readers within the last 1,024 events share what they hold: these must be before those.
        let far = reader.events.len().saturating_sub(1024);
        let size = |event| serde_json::to_string(event).unwrap().len();
        let stored: usize = reader.events[..far].iter().map(size).sum();
        assert!(stored > 100 << 10, "only {far} events before the last");
        let readers = if long() { 1000 } else { 200 };
        let idle = pss(&stack);
        let mut asleep = Vec::new();
        let epoch = reader.cursor().unwrap().epoch;
        for n in 0..readers {
            // From many places, so that few come to the same piece.
            let n = n % (far as u64 / 2);
            asleep.push(ask(&stack, &id, Some(Cursor { epoch, n }), 2048).await);
        }
        // All have their first bytes, and then nothing moves any more.
        for stream in &asleep {
            stream.readable().await.unwrap();
        }
        let (mut most, mut calm) = (0, Instant::now());
        while calm.elapsed() < Duration::from_secs(2) {
            let now = pss(&stack);
            if now > most {
                (most, calm) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let each = most.saturating_sub(idle + 16 * 1024) / readers;
        println!(
            "FIGURE {readers} readers that never read: {} KiB in all, {each} KiB each above the 16 MiB of large pieces",
            most - idle
        );
        assert!(each <= 32, "{} KiB for {readers} readers", most - idle);
        // Who reads gets on, though nobody else does.
        stack.still_works().await;
        drop(asleep);
    });
}

/// A reader that is a process of its own, reading at most so many bytes a second.
fn curl(stack: &Stack, id: &SessionId, after: Option<Cursor>, out: &Path, pace: &str) -> Child {
    let mut command = Command::new("curl");
    command
        // Slowly, so that a stored history is not read at one go.
        .args(["-sN", "--limit-rate", pace])
        .args(["-H", &format!("authorization: Bearer {TOKEN}")])
        .arg(stack.url(&format!("/sessions/{id}/stream?follow=true")));
    if let Some(cursor) = after {
        command.args(["-H", &format!("last-event-id: {cursor}")]);
    }
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(File::create(out).unwrap())
        .spawn()
        .unwrap()
}

/// Whole numbered events in what a killed reader left behind.
fn whole(out: &Path) -> Vec<(Cursor, String)> {
    let text = String::from_utf8_lossy(&fs::read(out).unwrap()).into_owned();
    let Some((text, _)) = text.rsplit_once("\n\n") else {
        return Vec::new();
    };
    text.split("\n\n")
        .filter_map(|event| {
            let id = event.lines().find_map(|line| line.strip_prefix("id: "))?;
            let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
            Some((id.parse().unwrap(), data.to_owned()))
        })
        .collect()
}

#[test]
fn killed_readers_and_sidecars_lose_and_double_nothing() {
    run(async {
        let stack = Stack::start(Setup::default()).await;
        let (cuts, kills, words) = if long() {
            (1000, 20, 3000)
        } else {
            (60, 2, 300)
        };
        let prompt = format!("SCENARIO:slow {words} 30");
        let mut id = stack.begin(&prompt).await;
        let out = stack.dir.join("curl.out");
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let mut got: Vec<(Cursor, String)> = Vec::new();
        let (mut cut, mut killed, mut passes) = (0, 0, 1);
        while cut < cuts {
            let after = got.last().map(|(cursor, _)| *cursor);
            let mut child = curl(&stack, &id, after, &out, "20k");
            // Somewhere in the stream, in mid-event as well.
            let bytes = 1 + random(6000);
            let deadline = Instant::now() + Duration::from_millis(700);
            while fs::metadata(&out).map_or(0, |meta| meta.len()) < bytes
                && Instant::now() < deadline
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if killed < kills && cut >= (killed + 1) * cuts / (kills + 1) {
                stack.kill_sidecar();
                stack.start_sidecar();
                killed += 1;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            cut += 1;
            for (cursor, data) in whole(&out) {
                let last = got.last().map_or(0, |(cursor, _)| cursor.n);
                assert_eq!(cursor.n, last + 1, "after {last}, cut {cut}, pass {passes}");
                got.push((cursor, data));
            }
            let over = got.last().is_some_and(ends);
            if over && cut < cuts {
                // The turn was over before all cuts were made: on with another one.
                check(&stack, &id, &got).await;
                got.clear();
                id = stack.begin(&prompt).await;
                passes += 1;
            }
        }
        println!("FIGURE {cut} readers killed, {killed} sidecars killed, {passes} passes");
        assert_eq!(killed, kills);
        if !got.last().is_some_and(ends) {
            got.extend(rest(&stack, &id, got.last().map(|(cursor, _)| *cursor)).await);
        }
        check(&stack, &id, &got).await;
    });
}

/// Whether this is the turn's end. OpenCode gives up after five model calls that were cut: many kills end it so.
fn ends((_, data): &(Cursor, String)) -> bool {
    let body = serde_json::from_str::<Value>(data).unwrap();
    ["complete", "error"].contains(&body["type"].as_str().unwrap())
}

/// The rest of the turn, by one reader that nobody kills.
async fn rest(stack: &Stack, id: &SessionId, after: Option<Cursor>) -> Vec<(Cursor, String)> {
    let out = stack.dir.join("rest.out");
    let deadline = Instant::now() + LONG * 3;
    let mut child = curl(stack, id, after, &out, "100M");
    loop {
        let got = whole(&out);
        if got.last().is_some_and(ends) {
            child.kill().unwrap();
            child.wait().unwrap();
            return got;
        }
        if let Some(ended) = child.try_wait().unwrap() {
            assert_ne!(ended.code(), Some(2), "curl takes not all of our options");
            // The sidecar was only just starting.
            child = curl(stack, id, after, &out, "100M");
        }
        assert!(
            Instant::now() < deadline,
            "never complete\n{}",
            stack.logs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What was put together is what is stored, byte for byte, in order.
async fn check(stack: &Stack, id: &SessionId, got: &[(Cursor, String)]) {
    let mut reader = Reader::default();
    stack.ready().await;
    stack
        .read(&mut reader, id, |reader| reader.ends() > 0)
        .await;
    assert_eq!(got.len(), reader.events.len());
    for ((cursor, data), event) in got.iter().zip(&reader.events) {
        let same = serde_json::to_string(event).unwrap();
        assert_eq!(&same, data, "event {cursor}");
    }
}
