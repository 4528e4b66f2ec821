//! How long stops wait before they kill. There may be several at once, one under way and the others
//! behind it: the most hurried one counts for all.

use crate::config::GRACE_MAX;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// What the stops that were asked for want, all together.
#[derive(Debug)]
pub struct Patience(watch::Sender<Wishes>);

#[derive(Debug)]
struct Wishes {
    /// Stops that were asked for and are not over.
    stops: usize,
    /// The least grace that one of them gives.
    grace: Duration,
    /// When the one under way kills.
    until: Option<Instant>,
}

/// A stop that was asked for; over when dropped.
#[derive(Debug)]
pub struct Stop<'a>(&'a Patience);

impl Patience {
    /// Nobody asked for anything.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(Wishes {
            stops: 0,
            grace: GRACE_MAX,
            until: None,
        }))
    }

    /// Asks for a stop; the ones under way hurry as well.
    pub fn stop(&self, grace: Duration) -> Stop<'_> {
        self.0.send_modify(|wishes| wishes.stops += 1);
        self.hurry(grace);
        Stop(self)
    }

    /// Shortens the grace of all stops that were asked for.
    pub fn hurry(&self, grace: Duration) {
        let grace = grace.min(GRACE_MAX);
        let at = Instant::now() + grace;
        self.0.send_modify(|wishes| {
            wishes.grace = wishes.grace.min(grace);
            wishes.until = wishes.until.map(|until| until.min(at));
        });
    }

    /// The process was told to end: its grace begins.
    pub fn begin(&self) {
        self.0
            .send_modify(|wishes| wishes.until = Some(Instant::now() + wishes.grace));
    }

    /// Waits until the grace that [`Self::begin`] began is over. Cancel safe.
    pub async fn over(&self) {
        let mut wishes = self.0.subscribe();
        loop {
            let until = wishes.borrow_and_update().until;
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender lives as long as `self`.
                _ = wishes.changed() => {}
            }
        }
    }

    /// Waits until somebody asks for a stop. Cancel safe.
    pub async fn asked(&self) {
        // As above: it cannot be closed.
        let _ = self.0.subscribe().wait_for(|wishes| wishes.stops > 0).await;
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|wishes| {
            wishes.stops -= 1;
            if wishes.stops == 0 {
                wishes.grace = GRACE_MAX;
                wishes.until = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn grace_begins_with_the_stop_and_only_gets_shorter() {
        let secs = Duration::from_secs;
        let patience = Patience::new();
        let began = Instant::now();
        {
            let _first = patience.stop(secs(10));
            // It waits for its turn meanwhile.
            advance(secs(7)).await;
            patience.begin();
            let _second = patience.stop(secs(60));
            patience.over().await;
            assert_eq!(began.elapsed(), secs(17));
        }
        {
            let _first = patience.stop(secs(10));
            patience.begin();
            let began = Instant::now();
            patience.hurry(secs(2));
            patience.over().await;
            assert_eq!(began.elapsed(), secs(2));
        }
        // A hurry is forgotten with the stops that it was for.
        let _next = patience.stop(secs(3));
        patience.begin();
        let began = Instant::now();
        patience.over().await;
        assert_eq!(began.elapsed(), secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hurry_that_comes_before_the_stop_begins_counts() {
        let patience = Patience::new();
        let _stop = patience.stop(Duration::from_secs(600));
        patience.hurry(Duration::ZERO);
        patience.asked().await;
        patience.begin();
        let began = Instant::now();
        patience.over().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
