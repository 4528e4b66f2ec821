//! Traces: spans that go to a collector by OTLP over HTTP, where one is configured.
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) switches them on; without it
//! every function here returns at once and makes nothing. Ended spans wait in a bounded queue, a
//! thread of its own sends them; when the collector is slow or gone they are dropped, nobody waits.
//! `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`, `OTEL_TRACES_SAMPLER` and `OTEL_BSP_*` count as usual.

use bytes::Bytes;
use opentelemetry::{
    Context, KeyValue,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
        TraceState, Tracer, TracerProvider,
    },
};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

pub use opentelemetry::trace::SpanKind as Kind;

/// Longest time for one batch to reach the collector.
const SEND_TIME: Duration = Duration::from_secs(5);
/// Largest answer of a collector that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024;
/// Longest time for the last spans to reach the collector at the end of the process.
const END_TIME: Duration = Duration::from_secs(2);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No HTTP client.
    #[error("the HTTP client for the collector cannot be made")]
    Client(#[source] reqwest::Error),
    /// The environment makes no sense.
    #[error("the exporter of traces cannot be made; check OTEL_EXPORTER_OTLP_*")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// Where spans go. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<On>);

#[derive(Clone, Debug)]
struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Where a span belongs: its trace and its parent, as a `traceparent` header says it.
/// <https://www.w3.org/TR/trace-context/>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

/// A span under way; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

impl Traces {
    /// By the environment; off where it names no collector. `attributes` say whose spans these are.
    ///
    /// Must be called within a tokio runtime, which does the sending.
    pub fn from_env(
        service: &'static str,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Result<Self, TraceError> {
        let named = |name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
        if !named("OTEL_EXPORTER_OTLP_ENDPOINT") && !named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(Self::default());
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(SEND_TIME)
            .build()
            .map_err(TraceError::Client)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Sender {
                client,
                runtime: tokio::runtime::Handle::current(),
                failing: AtomicBool::new(false),
            })
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(TraceError::Exporter)?;
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(attributes())
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("opencode-operator");
        tracing::info!("sending traces");
        Ok(Self(Some(On { provider, tracer })))
    }

    /// Whether spans go anywhere.
    #[must_use]
    pub fn on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span, at `start` if it began before. Names and attributes must not hold content.
    #[must_use]
    pub fn begin(
        &self,
        name: impl FnOnce() -> String,
        kind: SpanKind,
        parent: Option<Parent>,
        start: Option<SystemTime>,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Span {
        let Some(on) = &self.0 else {
            return Span(None);
        };
        let mut builder = on
            .tracer
            .span_builder(name())
            .with_kind(kind)
            .with_attributes(attributes());
        builder.start_time = start;
        let context = match parent {
            Some(Parent { trace, span, flags }) => Context::new().with_remote_span_context(
                SpanContext::new(trace, span, flags, true, TraceState::NONE),
            ),
            None => Context::new(),
        };
        Span(Some(builder.start_with_context(&on.tracer, &context)))
    }

    /// Sends what waits, for at most two seconds. Blocks.
    pub fn end(&self) {
        if let Some(on) = &self.0
            && let Err(error) = on.provider.shutdown_with_timeout(END_TIME)
        {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

impl Parent {
    /// From the value of a `traceparent` header; `None` for what is not well-formed.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let lower = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = header.trim().splitn(5, '-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (span, flags) = (parts.next()?, parts.next()?);
        // A later version may have more parts, this one has not.
        let sound = version.len() == 2
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && [(trace, 32), (span, 16), (flags, 2)]
                .iter()
                .all(|(part, len)| part.len() == *len && lower(part))
            && lower(version);
        if !sound {
            return None;
        }
        let parent = Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        };
        (parent.trace != TraceId::INVALID && parent.span != SpanId::INVALID).then_some(parent)
    }

    /// As the value of a `traceparent` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, self.flags.to_u8())
    }

    /// The trace's id, for logs.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.trace.to_string()
    }
}

impl Span {
    /// As a parent of others; `None` where traces are off.
    #[must_use]
    pub fn parent(&self) -> Option<Parent> {
        let context = self.0.as_ref()?.span_context();
        Some(Parent {
            trace: context.trace_id(),
            span: context.span_id(),
            flags: context.trace_flags(),
        })
    }

    /// Adds what is known only now.
    pub fn set(&mut self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(span) = &mut self.0 {
            span.set_attributes(attributes());
        }
    }

    /// It went wrong, for this reason of a fixed list.
    pub fn failed(&mut self, kind: &'static str) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(kind));
        }
    }
}

/// Sends for the exporter, whose thread knows no runtime.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
    failing: AtomicBool,
}

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, opentelemetry_http::HttpError> {
        let (parts, body) = request.into_parts();
        let client = self.client.clone();
        // All of it on the runtime: making a request with a bound starts a timer.
        let work = async move {
            let mut answer = client
                .request(parts.method, parts.uri.to_string())
                .headers(parts.headers)
                .body(body)
                .send()
                .await?;
            let mut response = http::Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await? {
                if body.len() + chunk.len() > ANSWER_MAX {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<_, opentelemetry_http::HttpError>(response.body(Bytes::from(body))?)
        };
        let result = self.runtime.spawn(work).await?;
        let fails = !matches!(&result, Ok(response) if response.status().is_success());
        // Once per change: a dead collector must not fill the log.
        if self.failing.swap(fails, Ordering::Relaxed) != fails {
            match (&result, fails) {
                (_, false) => tracing::info!("the collector takes traces again"),
                (Ok(response), true) => {
                    let status = response.status().as_u16();
                    tracing::warn!(status, "the collector refuses traces; they are dropped");
                }
                // The kind alone: the text may quote the URL with its credentials.
                (Err(_), true) => {
                    tracing::warn!("the collector cannot be reached; traces are dropped");
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_parents_are_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Parent::parse(good).unwrap().header(), good);
        assert_eq!(
            Parent::parse(&good.replace("-01", "-ff")).unwrap().header(),
            good,
            "unknown flags are dropped"
        );
        let later = good.replacen("00", "01", 1) + "-more";
        assert_eq!(Parent::parse(&later).unwrap().header(), good);
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn switched_off_nothing_is_even_made() {
        let traces = Traces::default();
        let name = || panic!("a name was made");
        let mut span = traces.begin(name, Kind::Internal, None, None, || panic!("attributes"));
        span.set(|| panic!("attributes"));
        span.failed("x");
        assert!(span.parent().is_none() && !traces.on());
        traces.end();
    }
}
