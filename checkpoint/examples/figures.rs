//! Figures of docs/benchmarks.md: `make bench-checkpoint`, or `hack/bench-checkpoint.sh [FILES] [MIB]`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people"
)]

use checkpoint::{Checkpoints, Limits};
use std::{
    fs,
    time::{Duration, Instant},
};

fn main() {
    let number = |at: usize, default: usize| {
        std::env::args()
            .nth(at)
            .map_or(default, |text| text.parse().unwrap())
    };
    let (files, mib) = (number(1, 50_000), number(2, 1024));
    let dir = tempfile::tempdir().unwrap();
    let (w, h) = (dir.path().join("w"), dir.path().join("h"));
    fs::create_dir(&h).unwrap();
    let size = mib * 1024 * 1024 / files;
    let mut state = 1_u32;
    for n in 0..files {
        let at = w.join(format!("d{}/e{}", n % 100, n / 100 % 20));
        fs::create_dir_all(&at).unwrap();
        // Half of it words, half of it noise: about as well packed as sources with some binaries.
        let content: Vec<u8> = (0..size)
            .map(|byte| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if byte % 2 == 0 {
                    b"the quick "[byte / 2 % 10]
                } else {
                    (state >> 24) as u8
                }
            })
            .collect();
        fs::write(at.join(format!("f{n}")), content).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    let all = Checkpoints::new(w.clone(), h, "store");
    let limits = Limits {
        include_ignored: false,
        max_files: 1_000_000,
        max_pack_bytes: 1 << 40,
        time: Duration::from_secs(600),
    };
    let timed = |what: &str| {
        let began = Instant::now();
        let taken = all.take(&limits).unwrap();
        let took = began.elapsed();
        println!(
            "{what}: {took:.2?}, {} files, {} MiB, {} new objects, {} KiB stored, peak {} MiB",
            taken.files,
            taken.bytes >> 20,
            taken.new_objects,
            taken.new_bytes >> 10,
            peak()
        );
        taken
    };
    let first = timed("first checkpoint");
    timed("nothing changed");
    for round in 0..5 {
        for n in 0..10 {
            // In ten folders.
            let n = (n * (files / 10 + 7) + round) % files;
            let at = w.join(format!("d{}/e{}/f{n}", n % 100, n / 100 % 20));
            fs::write(at, format!("{n} changed in round {round}")).unwrap();
        }
        timed("10 files changed");
    }
    let began = Instant::now();
    let restored = all.restore(first.root, "figures", &limits).unwrap();
    println!(
        "restore: {:.2?}, {} written, exact {}, peak {} MiB",
        began.elapsed(),
        restored.written,
        restored.exact,
        peak()
    );
}

/// Most memory that this process ever had.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0);
    kib / 1024
}
