//! Records and their chain.
//!
//! A line is `{"n":…,"prev":"…","at":"…","kind":"…",…,"hash":"…"}`. The hash is the SHA-256 of all bytes
//! of the line before `,"hash":"`, and `prev` is the hash of the line before.

use contract::spend::{Price, Spend, Tokens};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// `prev` of the first record of all.
pub(crate) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What stands before a line's hash.
const SEAM: &[u8] = b",\"hash\":\"";
/// Sessions whose sums are carried from file to file; of others the least recent are left out.
const SESSIONS_MAX: usize = 1000;
/// Version of the format.
pub(crate) const VERSION: u32 = 1;

/// One line, without its hash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// From 1, without holes, over all files.
    pub(crate) n: u64,
    pub(crate) prev: String,
    pub(crate) at: Timestamp,
    #[serde(flatten)]
    pub(crate) body: Body,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Body {
    /// First line of a file.
    Begin(Box<Begin>),
    /// A call goes to a provider.
    Start(Box<Started>),
    /// It ended, or was refused without one.
    End(Box<Ended>),
}

/// What a file begins with: enough to go on without the files before it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) version: u32,
    /// Number of this file.
    pub(crate) file: u64,
    /// Number of the oldest file that is kept: nobody but the log itself removes one.
    pub(crate) oldest: u64,
    /// Number of the next call.
    pub(crate) next_call: u64,
    /// All calls that ended before.
    pub(crate) spend: Spend,
    /// The same by session.
    pub(crate) sessions: BTreeMap<String, Spend>,
    /// Calls under way.
    pub(crate) open: Vec<Started>,
}

/// Who calls what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Who {
    /// The pod's own where OpenCode's session is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) turn: Option<u32>,
    /// Who asked for the turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    /// As the call named it: of the agent or one of its sub-agents, and untrusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) opencode_session: Option<String>,
    pub(crate) api: String,
    /// Name of the declared provider, or the host of another endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
}

/// A call goes to a provider.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) call: u64,
    #[serde(flatten)]
    pub(crate) who: Who,
    /// Estimated from the request's size.
    pub(crate) input_tokens: u64,
    /// Of these tokens; absent: no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost_nano_usd: Option<u64>,
}

/// A call ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// As in its [`Started`]; absent: it was refused before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) call: Option<u64>,
    #[serde(flatten)]
    pub(crate) who: Who,
    /// In a word.
    pub(crate) outcome: String,
    /// The provider's HTTP status, or ours where it was refused; absent: none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// Code of the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
    #[serde(flatten)]
    pub(crate) tokens: Counted,
    pub(crate) ms: u64,
    /// Refusals that were not written since the last one: they come in floods.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) not_written: u64,
    /// Beginning of the request and of the answer, where the configuration asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<String>,
}

/// What a call used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cached_input_tokens: u64,
    /// Not in records of older versions, which counted them as input.
    #[serde(default)]
    pub(crate) cache_write_tokens: u64,
    /// Not all of it was told by the provider.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) estimated: bool,
    /// Absent: the model has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cost_nano_usd: Option<u64>,
}

impl Counted {
    pub(crate) fn new(tokens: Tokens, estimated: bool, price: Option<&Price>) -> Self {
        Self {
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            cached_input_tokens: tokens.cached_input,
            cache_write_tokens: tokens.cache_write,
            estimated,
            cost_nano_usd: price.map(|price| price.of(tokens)),
        }
    }

    /// Tokens sent, whatever became of them.
    pub(crate) fn sent(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.cached_input_tokens)
            .saturating_add(self.cache_write_tokens)
    }

    /// What it adds to a sum.
    pub(crate) fn spend(&self) -> Spend {
        Spend {
            calls: 1,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            cached_input_tokens: self.cached_input_tokens,
            cache_write_tokens: self.cache_write_tokens,
            cost_nano_usd: self.cost_nano_usd.unwrap_or(0),
            estimated_calls: u64::from(self.estimated),
            unpriced_calls: u64::from(self.cost_nano_usd.is_none()),
        }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Started {
    /// Its end, if the process that made it died.
    pub(crate) fn interrupted(&self) -> Ended {
        Ended {
            call: Some(self.call),
            who: self.who.clone(),
            outcome: "interrupted".into(),
            tokens: Counted {
                input_tokens: self.input_tokens,
                estimated: true,
                cost_nano_usd: self.cost_nano_usd,
                ..Counted::default()
            },
            ..Ended::default()
        }
    }
}

/// Sums over the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) next_call: u64,
    pub(crate) spend: Spend,
    /// With the number of the last record that changed it.
    pub(crate) sessions: BTreeMap<String, (u64, Spend)>,
    pub(crate) open: BTreeMap<u64, Started>,
}

impl Totals {
    /// Takes a record's part in the sums.
    pub(crate) fn apply(&mut self, n: u64, body: &Body) {
        match body {
            Body::Begin(begin) => {
                self.next_call = begin.next_call;
                self.spend = begin.spend;
                self.sessions = begin
                    .sessions
                    .iter()
                    .map(|(id, spend)| (id.clone(), (n, *spend)))
                    .collect();
                self.open = begin.open.iter().map(|s| (s.call, s.clone())).collect();
            }
            Body::Start(started) => {
                self.next_call = self.next_call.max(started.call + 1);
                self.open.insert(started.call, (**started).clone());
            }
            Body::End(ended) => {
                let Some(call) = ended.call else { return };
                self.open.remove(&call);
                let spend = ended.tokens.spend();
                self.spend += spend;
                if let Some(session) = &ended.who.session {
                    let sum = self.sessions.entry(session.clone()).or_default();
                    sum.0 = n;
                    sum.1 += spend;
                }
            }
        }
    }

    /// The first line of a file.
    pub(crate) fn begin(&self, file: u64, oldest: u64) -> Body {
        let mut recent: Vec<_> = self.sessions.iter().collect();
        recent.sort_by_key(|(_, (n, _))| std::cmp::Reverse(*n));
        recent.truncate(SESSIONS_MAX);
        Body::Begin(Box::new(Begin {
            version: VERSION,
            file,
            oldest,
            next_call: self.next_call,
            spend: self.spend,
            sessions: recent
                .into_iter()
                .map(|(id, (_, spend))| (id.clone(), *spend))
                .collect(),
            open: self.open.values().cloned().collect(),
        }))
    }
}

/// A record's line with its line feed, and its hash.
pub(crate) fn seal(record: &Record) -> (Vec<u8>, String) {
    let mut line = serde_json::to_vec(record).expect("plain data has a JSON form");
    // The closing brace comes after the hash.
    line.pop();
    let hash = hash(&line);
    line.extend_from_slice(SEAM);
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(b"\"}\n");
    (line, hash)
}

/// Reads a line without its line feed. The error is what is wrong with it.
pub(crate) fn open(line: &[u8]) -> Result<(Record, String), &'static str> {
    const TAIL: usize = SEAM.len() + 64 + 2;
    let seam = line.len().checked_sub(TAIL).ok_or("it is too short")?;
    let (body, tail) = line.split_at(seam);
    let hash = tail
        .strip_prefix(SEAM)
        .and_then(|tail| tail.strip_suffix(b"\"}"))
        .ok_or("it does not end with a hash")?;
    let computed = self::hash(body);
    if computed.as_bytes() != hash {
        return Err("its hash is not that of its bytes");
    }
    let mut json = body.to_vec();
    json.push(b'}');
    let record = serde_json::from_slice(&json).map_err(|_| "it is no record")?;
    Ok((record, computed))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
