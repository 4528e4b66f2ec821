//! The target that FUZZ_TARGET names: one binary for all, because each would cost a build of the sidecar.
#![no_main]

use sidecar::fuzz::{Body, target};
use std::sync::LazyLock;

static BODY: LazyLock<Body> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET is set");
    target(&name).expect("FUZZ_TARGET is a target of sidecar/src/fuzz.rs")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| BODY(data));
