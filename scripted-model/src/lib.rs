//! The language model's double.
//!
//! A small HTTP server that speaks the OpenAI chat, OpenAI responses and Anthropic
//! messages dialects, streaming and not, and answers from scripts instead of from a
//! network of weights. It is the only double in the end-to-end tests: everything
//! between the caller and this server is real.
//!
//! The prompt chooses the script: `SCENARIO:<name>` in the newest user message that
//! has one. The number of assistant turns after that message chooses the step, so the
//! server keeps no conversation state and may be restarted in mid-conversation.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use scripted_model::{Options, ScriptedModel};
//!
//! let model = ScriptedModel::start(Options::default()).await?;
//! println!("point the agent at {}", model.base_url());
//! # Ok(()) }
//! ```

mod conversation;
mod encode;
#[cfg(test)]
mod golden;
mod handler;
mod keys;
mod library;
mod plan;
mod play;
mod record;
mod script;
mod server;
mod template;

pub use keys::key_digest;
pub use library::{Library, LibraryError};
pub use record::{Outcome, RequestLog, RequestPage, RequestRecord};
pub use script::{
    AnswerFault, ErrorBody, ErrorFault, Fault, Finish, Part, Scenario, ScriptFile, Step, TextPart,
    ToolPart, Usage,
};
pub use server::{Options, ScriptedModel, StartError};
pub use template::{Num, Template};
