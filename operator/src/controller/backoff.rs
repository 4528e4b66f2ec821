//! How long to wait after failures, per object.

use crds::OpenCodeSession;
use kube::runtime::reflector::ObjectRef;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const MIN: Duration = Duration::from_millis(500);
const MAX: Duration = Duration::from_secs(120);

/// Failures in a row of each object. Entries live only while an object fails.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: Mutex<HashMap<ObjectRef<OpenCodeSession>, u32>>,
}

impl Backoff {
    /// The pause after another failure: it doubles from half a second to two minutes.
    pub(super) fn next(&self, object: &ObjectRef<OpenCodeSession>) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.clone()).or_default();
        let pause = MIN.saturating_mul(1 << (*count).min(16)).min(MAX);
        *count = count.saturating_add(1);
        pause
    }

    /// It succeeded, or it is gone.
    pub(super) fn forget(&self, object: &ObjectRef<OpenCodeSession>) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_waits_for_itself() {
        let backoff = Backoff::default();
        let (a, b) = (
            ObjectRef::new("a").within("n"),
            ObjectRef::new("b").within("n"),
        );
        let pauses: Vec<_> = (0..10).map(|_| backoff.next(&a).as_millis()).collect();
        assert_eq!(pauses[..4], [500, 1000, 2000, 4000]);
        assert_eq!(pauses[9], 120_000);
        assert_eq!(backoff.next(&b).as_millis(), 500);
        backoff.forget(&a);
        assert_eq!(backoff.next(&a).as_millis(), 500);
    }
}
