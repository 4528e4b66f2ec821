//! What end-to-end tests share: a namespace of their own, the language model's double in it, a session,
//! and eyes everywhere when something fails.

#![expect(
    clippy::print_stderr,
    reason = "what a failed test shows goes to stderr"
)]

pub mod kubectl;
pub mod model;
pub mod namespace;
pub mod node;
pub mod opencode;
pub mod session;
pub mod stream;
pub mod witness;

pub use model::Model;
pub use namespace::{Namespace, run, run_alone};
pub use session::Session;
pub use stream::{Recorder, SeenEvent};
pub use witness::Witness;

use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// Waits until `look` gives a value; panics with what it was waiting for and what it saw last.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    let mut seen = "nothing yet".to_owned();
    loop {
        // One look may hang as long as all of them may; what was seen before it still explains the most.
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(now)) => seen = now,
            Err(_) => {}
        }
        assert!(
            Instant::now() < deadline,
            "after {within:?} still waiting for {what}; last seen: {seen}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The project's image for `target`, as the cluster knows it: what `hack/e2e.sh` says, else as `make images` loads it.
#[must_use]
pub fn image(target: &str) -> String {
    let variable = format!("IMAGE_{}", target.replace('-', "_").to_uppercase());
    std::env::var(variable).unwrap_or_else(|_| format!("localhost/opencode-operator/{target}:dev"))
}

/// A figure of a test's, for those who read its log.
pub fn figure(text: &str) {
    eprintln!("FIGURE {text}");
}
