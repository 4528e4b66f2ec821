//! Seeded runs of everything that can happen, with crashes at any point.

use super::memfs::{Fault, MemFs};
use super::support::Rng;
use super::world::World;
use crate::{Health, Options};

/// JOURNAL_SEEDS sets how many runs there are, JOURNAL_SEED picks one.
#[test]
fn nothing_acknowledged_is_lost_doubled_or_reordered() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|v| v.parse::<u64>().expect("a number"))
    };
    if let Some(seed) = number("JOURNAL_SEED") {
        return run(seed);
    }
    let seeds = number("JOURNAL_SEEDS").unwrap_or(500);
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "failed: JOURNAL_SEED={seed}");
    }
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let fs = MemFs::new(rng.next());
    fs.set_short_writes(rng.below(4) == 0);
    let options = Options {
        segment_bytes: [0, 100, 500, 5000][rng.below(4)],
        reserve_bytes: [0, 300, 3000][rng.below(3)],
        queue_bytes: [50, 1000, 100_000][rng.below(3)],
        ..Options::default()
    };
    let mut world = World::new(fs, options);
    world.chunk_bytes = [1, 100, 1 << 20][rng.below(3)];
    let mut names = 0;
    for _ in 0..150 {
        match rng.below(24) {
            0 if names < 4 => {
                names += 1;
                world.create(&format!("log{names}"));
            }
            1 => reopen(&mut world, &mut rng, Some(false)),
            2 => reopen(&mut world, &mut rng, Some(true)),
            3 => reopen(&mut world, &mut rng, None),
            4 => {
                let at = world.fs.calls() + rng.below(30);
                let fault = [Fault::Eio, Fault::Enospc][rng.below(2)];
                world.fs.inject(at, fault);
            }
            5 => {
                let room = rng.below(600) as u64;
                world.fs.set_capacity(world.fs.used() + room);
            }
            6 => world.fs.set_capacity(u64::MAX),
            7 => {
                if let Some(model) = pick(&mut world, &mut rng) {
                    let last = model.log.position().last as usize;
                    model.trim(rng.below(last + 2) as u64);
                }
                world.check();
            }
            8..=11 => world.step(),
            12 | 13 => world.idle(),
            14 => {
                world.fs.pause(true);
                world.logs.values().for_each(|model| model.read(&mut rng));
                world.fs.pause(false);
            }
            _ => {
                for _ in 0..=rng.below(6) {
                    let mut chosen = rng.clone();
                    if let Some(model) = pick(&mut world, &mut rng) {
                        let _ = model.append(&mut chosen);
                    }
                }
            }
        }
        if matches!(world.health(), Health::Failed(_)) {
            let power = rng.below(2) == 0;
            reopen(&mut world, &mut rng, Some(power));
        }
    }
    // In the end, on a disk that works, everything that was accepted becomes durable.
    world.fs.disarm();
    world.fs.set_capacity(u64::MAX);
    world.step();
    world.step();
    assert_eq!(world.health(), Health::Ok);
    world.close();
    world.open().unwrap();
    for model in world.logs.values_mut() {
        model.append(&mut rng).unwrap();
    }
    world.step();
}

fn pick<'a>(world: &'a mut World, rng: &mut Rng) -> Option<&'a mut super::world::Model> {
    let count = world.logs.len();
    world
        .logs
        .values_mut()
        .nth(if count == 0 { 0 } else { rng.below(count) })
}

/// `power`: lost, or only the process, or neither: closed.
fn reopen(world: &mut World, rng: &mut Rng, power: Option<bool>) {
    match power {
        Some(power) => {
            world.fs.disarm();
            world.crash(power);
        }
        None => {
            world.close();
            world.fs.disarm();
        }
    }
    // The start may meet faults and crashes as well.
    for _ in 0..rng.below(3) {
        world
            .fs
            .inject(world.fs.calls() + rng.below(40), Fault::Eio);
        let opened = world.open();
        world.fs.disarm();
        if opened.is_ok() {
            break;
        }
        world.crash(rng.below(2) == 0);
    }
    if world.running.is_none() {
        world.open().unwrap();
    }
}
