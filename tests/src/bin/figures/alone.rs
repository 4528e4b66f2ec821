//! OpenCode without us, in the agent's container of a session: started by hand, and asked what the sidecar asks.

use tests::Session;

/// Milliseconds.
pub(crate) struct Alone {
    /// From its process until it listens.
    pub(crate) listening: f64,
    /// From its first answer until it has a prompt.
    pub(crate) prompt: f64,
}

/// Starts a second OpenCode with a HOME and a port of its own, and ends it.
pub(crate) async fn start(session: &Session) -> Alone {
    let said = session
        .exec("agent", &["perl", "-e", include_str!("alone.pl")])
        .await;
    let mut times = said.out.split_whitespace().map(str::parse::<f64>);
    let (Some(Ok(listening)), Some(Ok(prompt))) = (times.next(), times.next()) else {
        panic!("no times: {} {}", said.out, said.err)
    };
    Alone { listening, prompt }
}
