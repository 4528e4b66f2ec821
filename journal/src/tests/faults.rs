//! One fault at every call of a run that does everything once.

use std::sync::Arc;

use super::memfs::{Fault, MemFs};
use super::support::{Item, Rng};
use super::world::World;
use crate::{AppendError, CreateError, Health, Journal, Options, Position};

fn options() -> Options {
    Options {
        segment_bytes: 150,
        reserve_bytes: 400,
        ..Options::default()
    }
}

/// Creates, appends, begins new segments, marks, trims, closes, reopens.
fn script(world: &mut World) {
    let mut rng = Rng(7);
    world.create("a");
    world.create("b");
    for round in 0..6 {
        for model in world.logs.values_mut() {
            for _ in 0..3 {
                let _ = model.append(&mut rng);
            }
        }
        world.step();
        if round % 2 == 0 {
            world.idle();
        }
    }
    if let Some(model) = world.logs.get_mut("a") {
        model.trim(8);
    }
    world.check();
    world.close();
    if world.open().is_err() {
        return;
    }
    for model in world.logs.values_mut() {
        let _ = model.append(&mut rng);
    }
    world.step();
}

fn each_call(fault: Fault, mut then: impl FnMut(&mut World, &'static str)) {
    let fs = MemFs::new(1);
    let mut world = World::new(fs.clone(), options());
    let begin = fs.calls();
    script(&mut world);
    let calls = fs.calls();
    assert!(
        calls - begin > 100,
        "the script does something: {}",
        calls - begin
    );
    let mut kinds = std::collections::BTreeSet::new();
    for at in begin..calls {
        let fs = MemFs::new(at as u64);
        let mut world = World::new(fs.clone(), options());
        fs.inject(at, fault);
        script(&mut world);
        let call = fs.disarm().expect("the fault came");
        kinds.insert(call);
        then(&mut world, call);
    }
    for call in [
        "write", "sync", "sync_dir", "open", "rename", "remove", "read", "allocate",
    ] {
        assert!(kinds.contains(call), "{call} is among them");
    }
}

#[test]
fn an_io_error_anywhere_loses_nothing() {
    each_call(Fault::Eio, |world, call| {
        let failed = world.running.is_some() && matches!(world.health(), Health::Failed(_));
        if failed {
            for model in world.logs.values_mut() {
                let again = model.append(&mut Rng(1));
                assert_eq!(again, Err(AppendError::Failed), "after {call}");
            }
            assert!(!world.create("late"));
            world.check();
        }
        for power in [true, false, true] {
            world.crash(power);
            world.open().unwrap();
        }
    });
}

#[test]
fn a_failed_sync_stops_everything_and_is_not_retried() {
    let fs = MemFs::new(3);
    let mut world = World::new(fs.clone(), Options::default());
    world.create("a");
    let model = world.logs.get_mut("a").unwrap();
    model.append(&mut Rng(1)).unwrap();
    // The write, then the sync.
    fs.inject(fs.calls() + 1, Fault::Eio);
    world.step();
    assert_eq!(fs.disarm(), Some("sync"));
    let syncs = fs.syncs();
    assert!(matches!(world.health(), Health::Failed(_)));
    world.step();
    world.idle();
    let model = world.logs.get_mut("a").unwrap();
    assert_eq!(
        model.log.position(),
        Position {
            first: 1,
            last: 0,
            ticket: 0
        }
    );
    assert!(model.log.read(0, 1000).unwrap().is_empty());
    assert_eq!(model.append(&mut Rng(1)), Err(AppendError::Failed));
    let (journal, committer) = world.running.take().unwrap();
    assert!(matches!(
        committer.finish(),
        Err(crate::CloseError::Failed(_))
    ));
    assert_eq!(fs.syncs(), syncs);
    drop(journal);
    // The kernel believes that it has written what it has lost. After a start and then a power
    // loss it must be there all the same, because the start has shown it.
    world.open().unwrap();
    let last = world.logs["a"].log.position().last;
    world.crash(true);
    world.open().unwrap();
    assert!(world.logs["a"].log.position().last >= last);
}

#[test]
fn no_space_once_anywhere_is_survived() {
    each_call(Fault::Enospc, |world, call| {
        if world.running.is_none() {
            world.open().unwrap();
        }
        // Syncs, reads and the like never say so; there it is a failure like any other.
        if matches!(world.health(), Health::Failed(_)) {
            assert!(
                !matches!(call, "write" | "allocate" | "open"),
                "{call} stopped the journal"
            );
            world.crash(true);
            world.open().unwrap();
        }
        world.step();
        world.step();
        assert_eq!(world.health(), Health::Ok, "after {call}");
        world.close();
        world.open().unwrap();
    });
}

#[test]
fn a_short_write_anywhere_is_continued() {
    each_call(Fault::Short, |world, call| {
        assert_eq!(world.health(), Health::Ok, "after {call}");
        world.close();
        world.open().unwrap();
    });
}

#[test]
fn a_full_disk_records_how_it_ended_and_recovers() {
    let fs = MemFs::new(3);
    let shared = Arc::new(fs.clone());
    let (journal, mut committer) = Journal::open_parts(shared, "/j".as_ref(), options()).unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    journal.on_health(Box::new(move |health| sink.lock().unwrap().push(health)));
    let log = journal.create("a").unwrap();
    fs.set_capacity(fs.used() + 20);
    // More than the 20 bytes left, less than the reserve.
    log.append(Item::event(&[1; 100])).unwrap();
    committer.step();
    assert_eq!(journal.health(), Health::Full);
    assert_eq!(log.position().last, 1);
    assert_eq!(log.append(Item::event(b"more")), Err(AppendError::Full));
    assert!(matches!(journal.create("b"), Err(CreateError::Full)));
    log.append_urgent(Item::event(b"the disk is full")).unwrap();
    committer.step();
    assert_eq!(log.position().last, 2);
    // Past the reserve it is kept in memory, in order, and nothing is torn.
    log.append_urgent(Item::event(&[3; 300])).unwrap();
    log.append_urgent(Item::event(b"end")).unwrap();
    committer.step();
    committer.idle();
    assert_eq!((log.position().last, log.queued_bytes()), (2, 303));
    fs.set_capacity(u64::MAX);
    committer.step();
    assert_eq!(log.position().last, 4);
    assert_eq!(journal.health(), Health::Ok);
    log.append(Item::event(b"again")).unwrap();
    committer.step();
    assert_eq!(log.position().last, 5);
    assert_eq!(*told.lock().unwrap(), [Health::Full, Health::Ok]);
    committer.finish().unwrap();
    drop(journal);
    let (journal, _committer) =
        Journal::<Item>::open_parts(Arc::new(fs), "/j".as_ref(), options()).unwrap();
    assert!(journal.repairs().is_empty());
    assert_eq!(journal.logs()[0].position().last, 5);
}

#[test]
fn a_start_on_a_full_disk_reads_and_recovers() {
    let fs = MemFs::new(3);
    let mut world = World::new(fs.clone(), options());
    world.create("a");
    world
        .logs
        .get_mut("a")
        .unwrap()
        .append(&mut Rng(1))
        .unwrap();
    world.step();
    world.crash(true);
    fs.set_capacity(0);
    world.open().unwrap();
    assert_eq!(world.health(), Health::Full);
    fs.set_capacity(u64::MAX);
    world.step();
    assert_eq!(world.health(), Health::Ok);
}
