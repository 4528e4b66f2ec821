//! What OpenCode makes once and keeps for life.
//!
//! The first who needs such a thing makes it, in a turn or in a request, and the outcome is kept, also that
//! the maker was stopped: whoever needs it from then on fails with "All fibers interrupted without error",
//! for as long as the process lives (measured with 1.18.33). A turn that is cancelled in its first moments
//! does that to the models; one that waits for a slow MCP server, for as long as it waits. So these things
//! are asked for before any turn, by requests that are not given up.

use super::{Call, OpenCode, OpenCodeError};
use http::Method;
use std::time::Duration;

/// Models, tools and the connections to MCP servers. Their content is not looked at.
const KEPT: [(&str, &str); 3] = [
    ("read models", "/config/providers"),
    ("find tools", "/experimental/tool/ids"),
    ("connect to MCP servers", "/mcp"),
];
/// Longer than OpenCode waits for its MCP servers: a request that is given up may be what spoils.
const WITHIN: Duration = Duration::from_secs(300);

impl OpenCode {
    /// Returns once OpenCode has made what its turns need; at once where it had before. Whether one of
    /// the things is spoilt is [`OpenCodeError::is_spoilt`]. Not cancel safe in its first use for a
    /// process: dropping it may spoil what is being made.
    pub(crate) async fn prepare(&self) -> Result<(), OpenCodeError> {
        let asks = KEPT.map(|(name, path)| async move {
            let call = Call {
                within: WITHIN,
                ..self.call(name, Method::GET, self.in_directory(path))
            };
            self.inner.http.send(&call).await.map(drop)
        });
        let answers = futures::future::join_all(asks).await;
        let (spoilt, others): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .filter_map(Result::err)
            .partition(OpenCodeError::is_spoilt);
        match spoilt.into_iter().chain(others).next() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
