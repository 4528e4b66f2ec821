//! The store on a disk that fails, fills up and hangs.

mod gaps;
mod readers;

use super::{
    BeginError, NewTurn, Store,
    record::{Created, TurnNote},
    session::{Running, now},
};
use crate::proxy::Target;
use contract::{EventBody, SessionId, event::TurnError, pod::PodConfig, session::ModelConfig};
use journal::fs::{DirEntry, Fs, FsFile, Lock, Mode, RealFs};
use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// The real file system, until told otherwise.
#[derive(Clone, Default)]
struct Disk(Arc<Switches>);

#[derive(Default)]
struct Switches {
    sync_fails: AtomicBool,
    writes: Gate,
    reading: Gate,
    reads: AtomicUsize,
}

/// Where calls hang while it is shut.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    news: Condvar,
}

impl Gate {
    fn shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.news.notify_all();
    }

    fn pass(&self) {
        let shut = self.shut.lock().unwrap();
        drop(self.news.wait_while(shut, |shut| *shut).unwrap());
    }
}

impl Disk {
    fn stall(&self, stalled: bool) {
        self.0.writes.shut(stalled);
    }

    fn stall_reads(&self, stalled: bool) {
        self.0.reading.shut(stalled);
    }

    /// Hangs as long as the disk does.
    fn touch(&self) {
        self.0.writes.pass();
    }
}

struct File(Box<dyn FsFile>, Disk);

impl FsFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn read_at(&self, out: &mut Vec<u8>, offset: u64, len: usize) -> io::Result<()> {
        self.1.0.reads.fetch_add(1, Ordering::SeqCst);
        self.1.0.reading.pass();
        self.0.read_at(out, offset, len)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.touch();
        if self.1.0.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.0.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
}

impl Fs for Disk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(File(RealFs.open(path, mode)?, self.clone())))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        RealFs.list(dir)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.touch();
        RealFs.make_dir(dir)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.remove_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFs.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.touch();
        RealFs.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        RealFs.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        RealFs.lock(path)
    }

    fn random(&self) -> io::Result<u64> {
        RealFs.random()
    }
}

fn id(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

pub(super) fn created(name: &str) -> Created {
    Created {
        session_id: id(name),
        at: now(),
        opencode_session: format!("ses_{name}"),
        model_config: None,
        own_key: false,
        system_prompt: None,
    }
}

/// One that brings everything along.
fn model() -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "provider": "local", "model": "burrow-1", "api_key": "sk-hole",
        "api_endpoint": "http://127.0.0.1:9/v1",
    }))
    .unwrap()
}

pub(super) fn turn(number: u32) -> NewTurn {
    NewTurn {
        note: TurnNote {
            turn: number,
            at: now(),
            message_id: format!("msg_{number}"),
            prompt: "dig".into(),
            author: "badger".into(),
            trace: None,
            idempotency: None,
        },
        target: Arc::new(Target::resolve(&PodConfig::default(), Some(&model())).unwrap()),
        limit: 2,
    }
}

fn world() -> (tempfile::TempDir, Disk, Store) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let (store, _) = Store::open_on(Arc::new(disk.clone()), dir.path()).unwrap();
    (dir, disk, store)
}

#[tokio::test]
async fn a_failed_sync_takes_the_turn_back_and_is_final() {
    let (_dir, disk, store) = world();
    let (session, first) = store.create(created("oak"), None, turn(1)).await.unwrap();
    end(&store, &session, &first).await;

    disk.0.sync_fails.store(true, Ordering::SeqCst);
    let refused = store.begin_turn(&session, turn(2)).await.err().unwrap();
    assert!(matches!(refused, BeginError::Journal(_)), "{refused:?}");
    tokio::time::timeout(Duration::from_secs(10), store.failed())
        .await
        .expect("the process learns of it");
    assert_eq!(store.running(), 0, "the place is free");
    assert!(!session.view().borrow().active, "readers need not wait");

    // The next process reads what is really there.
    disk.0.sync_fails.store(false, Ordering::SeqCst);
    let again = store.begin_turn(&session, turn(3)).await.err().unwrap();
    assert!(matches!(again, BeginError::Journal(_)), "never tried again");
}

async fn end(store: &Store, session: &super::Session, running: &Running) {
    let body = EventBody::Error(contract::event::ErrorEvent {
        error: "enough".into(),
        fatal: true,
        code: TurnError::AgentError,
    });
    let event = contract::Event {
        turn: session.state().turn,
        ts: now(),
        agent: contract::event::MAIN_AGENT.into(),
        body,
    };
    let ticket = session.end(event).unwrap();
    store.durable(session, ticket).await.unwrap();
    session.ended(running);
}

#[tokio::test]
async fn a_turn_that_a_hanging_disk_does_not_take_is_ended_as_such() {
    let (dir, disk, store) = world();
    let (session, first) = store.create(created("elm"), None, turn(1)).await.unwrap();
    end(&store, &session, &first).await;

    tokio::time::pause();
    disk.stall(true);
    let refused = store.begin_turn(&session, turn(2)).await.err().unwrap();
    assert!(matches!(refused, BeginError::Journal(_)), "{refused:?}");
    assert_eq!(store.running(), 0, "the place is free");
    tokio::time::resume();
    disk.stall(false);

    // The disk is back: what was taken back has its end, and the next turn begins.
    let third = store.begin_turn(&session, turn(3)).await.unwrap();
    end(&store, &session, &third).await;
    let last = session.view().borrow().position.last;
    drop((session, store));
    let (store, unfinished) = Store::open(dir.path()).unwrap();
    assert!(unfinished.is_empty(), "no turn is left open");
    let session = store.get(&id("elm")).unwrap();
    assert_eq!(session.view().borrow().position.last, last);
    assert_eq!(session.state().turn, 3);
}

#[tokio::test]
async fn while_a_session_is_made_on_a_hanging_disk_others_are_told() {
    let (_dir, disk, store) = world();
    let (beech, _running) = store.create(created("beech"), None, turn(1)).await.unwrap();
    disk.stall(true);
    {
        let made = store.create(created("ash"), None, turn(1));
        tokio::pin!(made);
        // Until it hangs at the disk; it can get no further.
        tokio::time::timeout(Duration::from_millis(200), &mut made)
            .await
            .err()
            .expect("the disk hangs");
        assert!(store.get(&id("beech")).is_some());
        assert_eq!(store.running(), 2, "its place is taken");
        let twice = store.create(created("ash"), None, turn(1)).await;
        assert!(matches!(twice, Err(BeginError::Exists)));
        let third = store.create(created("yew"), None, turn(1)).await;
        assert!(matches!(third, Err(BeginError::TooMany)));
        // Its caller goes away.
    }
    assert_eq!(store.running(), 1, "the place is free");
    disk.stall(false);
    // Nobody was told of it: its id is free, whether or not its journal was made after all.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = store.create(created("ash"), None, turn(1)).await {
        assert_eq!(error, BeginError::Exists, "while it is still being made");
        assert!(tokio::time::Instant::now() < deadline, "its id is lost");
        tokio::task::yield_now().await;
    }
    assert_eq!(beech.state().turn, 1);
}

#[tokio::test]
async fn a_journal_without_a_first_note_keeps_no_id_from_use() {
    let dir = tempfile::tempdir().unwrap();
    let journal =
        journal::Journal::<super::Record>::open(dir.path(), journal::Options::default()).unwrap();
    journal.create("fir").unwrap();
    journal.close().unwrap();
    let (store, unfinished) = Store::open(dir.path()).unwrap();
    assert!(unfinished.is_empty());
    assert!(store.get(&id("fir")).is_none());
    store.create(created("fir"), None, turn(1)).await.unwrap();
    assert!(store.get(&id("fir")).is_some());
}

#[tokio::test]
async fn readers_of_a_turn_that_follows_at_once_wait_on() {
    let (_dir, _disk, store) = world();
    let (session, first) = store.create(created("oak"), None, turn(1)).await.unwrap();
    let over = |session: &super::Session| {
        let event = contract::Event {
            turn: 1,
            ts: now(),
            agent: contract::event::MAIN_AGENT.into(),
            body: EventBody::Complete(contract::event::Complete {
                final_message: String::new(),
                files_modified: Vec::new(),
                usage: contract::Usage::default(),
                finish: None,
            }),
        };
        session.end(event).unwrap()
    };
    let ticket = over(&session);
    store.durable(&session, ticket).await.unwrap();
    // The next begins before the first one's task says that it is over.
    let _second = store.begin_turn(&session, turn(2)).await.unwrap();
    session.ended(&first);
    assert!(session.view().borrow().active);
    assert!(first.ended.is_cancelled());
}
