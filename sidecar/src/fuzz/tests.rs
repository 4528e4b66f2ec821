//! The fuzz targets on their seeds and on mutations of them, the same in every run. `FUZZ_ROUNDS` sets how
//! many mutations each target gets.

use super::{Body, TARGETS};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

const ROUNDS: u64 = 300;
/// Mutations of an input grow no longer than this.
const LENGTH_MAX: usize = 16 * 1024;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// What parsers trip over.
const TOKENS: [&[u8]; 18] = [
    b"\"",
    b"\\ud800",
    b"\\",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"data: ",
    b"event: ",
    b"\"id\":\"\",",
];

fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.below(input.len() + 1);
    let upto = at + rng.below(input.len() + 1 - at).min(64);
    match rng.below(7) {
        0 if !input.is_empty() => {
            let at = at.min(input.len() - 1);
            input[at] ^= 1 << rng.below(8);
        }
        1 => drop(input.splice(at..upto, [])),
        2 => drop(input.splice(at..at, TOKENS[rng.below(TOKENS.len())].iter().copied())),
        3 => {
            let copy = input[at..upto].to_vec();
            let to = rng.below(input.len() + 1);
            drop(input.splice(to..to, copy));
        }
        4 => input.truncate(at),
        5 => {
            let from = rng.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => drop(input.splice(at..upto, TOKENS[rng.below(TOKENS.len())].iter().copied())),
    }
    input.truncate(LENGTH_MAX);
}

fn run(name: &str, body: Body, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| body(input))).is_err() {
        let path = std::env::temp_dir().join(format!("fuzz-{name}-{}", std::process::id()));
        std::fs::write(&path, input).unwrap();
        panic!("{name} broke on {what}; the input is in {}", path.display());
    }
}

#[test]
fn no_seed_and_no_mutation_of_one_breaks_a_promise() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(ROUNDS, |v| v.parse().expect("a number"));
    for (name, body) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (path, seed) in &seeds {
            run(name, body, seed, &path.display().to_string());
        }
        for round in 0..rounds {
            let mut rng = Rng(round);
            let mut input = seeds[rng.below(seeds.len())].1.clone();
            let other = &seeds[rng.below(seeds.len())].1;
            for _ in 0..=rng.below(6) {
                mutate(&mut input, other, &mut rng);
            }
            run(name, body, &input, &format!("round {round}"));
        }
    }
}
