//! How patient the supervisor is.

use std::time::Duration;

/// Bounds and pauses of the supervisor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timings {
    /// Pause before the second try to reach the runner; it doubles up to `connect_most`.
    pub(crate) connect_first: Duration,
    pub(crate) connect_most: Duration,
    /// How long a runner that does not answer may hold on to a process that does.
    pub(crate) runner_lost: Duration,
    /// Between two asks whether a starting OpenCode is well.
    pub(crate) health_step: Duration,
    /// Bound of each of them.
    pub(crate) start_health_within: Duration,
    /// From process to event stream; then it is started anew.
    pub(crate) start_within: Duration,
    /// How long it may make what its turns need before it is used all the same. It waits a minute for an MCP
    /// server that does not answer (30 s for each of two transports, measured), and its first turn with it.
    pub(crate) prepare_within: Duration,
    /// Between two looks at a running OpenCode.
    pub(crate) health_every: Duration,
    pub(crate) health_within: Duration,
    /// A process or stream that lived this long makes good for failures before it.
    pub(crate) calm: Duration,
    /// Longest pause before a restart.
    pub(crate) restart_most: Duration,
    /// Longest pause before the event stream is opened again.
    pub(crate) stream_most: Duration,
    /// Between SIGTERM and SIGKILL. OpenCode goes at once.
    pub(crate) stop_grace: Duration,
    /// Between two looks for a new launch.
    pub(crate) renew_every: Duration,
    /// Between two looks at the container's memory.
    pub(crate) memory_every: Duration,
    /// How long nobody must have begun a turn before a new launch is used.
    pub(crate) renew_pause: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let (millis, secs) = (Duration::from_millis, Duration::from_secs);
        Self {
            connect_first: millis(10),
            connect_most: millis(20),
            runner_lost: secs(5),
            health_step: millis(20),
            start_health_within: secs(1),
            start_within: secs(120),
            prepare_within: secs(75),
            health_every: secs(5),
            health_within: secs(5),
            calm: secs(60),
            restart_most: secs(30),
            stream_most: secs(5),
            stop_grace: secs(5),
            renew_every: secs(1),
            memory_every: secs(10),
            renew_pause: millis(250),
        }
    }
}

impl Timings {
    /// Before a start after so many failures in a row: 0, 0, 1, 2, 4 … seconds.
    pub(crate) fn pause_before(&self, failures: u32) -> Duration {
        match failures.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(1)
                .saturating_mul(1 << doublings.min(16))
                .min(self.restart_most),
        }
    }

    /// Before the stream is opened after it was cut so often: 0, 0, 50, 100, 200 … milliseconds.
    pub(crate) fn pause_before_stream(&self, cuts: u32) -> Duration {
        match cuts.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_millis(50)
                .saturating_mul(1 << doublings.min(16))
                .min(self.stream_most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let timings = Timings::default();
        let seconds: Vec<u64> = (0..9).map(|n| timings.pause_before(n).as_secs()).collect();
        assert_eq!(seconds, [0, 0, 1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(timings.pause_before(u32::MAX).as_secs(), 30);
        assert_eq!(timings.pause_before_stream(1), Duration::ZERO);
        assert_eq!(timings.pause_before_stream(2), Duration::from_millis(50));
        assert_eq!(timings.pause_before_stream(u32::MAX), timings.stream_most);
    }
}
