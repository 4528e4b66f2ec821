//! One JSON object per line, flat: what the event says, over what the spans around it say.
//!
//! A span's fields (as `request_id` and `session_id`) stand at the top level of every line within it,
//! so that one query finds all lines of a request whichever function wrote them. The nearest wins.

use serde_json::{Map, Value};
use std::fmt;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// Longest text of one field, in bytes: an error may quote what it did not understand.
const TEXT_MAX: usize = 8 * 1024;

/// The format of every daemon's log.
#[derive(Debug)]
pub(crate) struct Flat;

impl<S> FormatEvent<S, JsonFields> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        let meta = event.metadata();
        line.insert("timestamp".into(), now().into());
        line.insert("level".into(), meta.level().as_str().into());
        line.insert("target".into(), meta.target().into());
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            if let Some(Ok(Value::Object(fields))) =
                fields.map(|fields| serde_json::from_str(&fields.fields))
            {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Puts fields into an object.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let end = value.floor_char_boundary(TEXT_MAX);
        self.put(field, value[..end].into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_and_the_nearest_win() {
        let lines = Lines::default();
        let layer = {
            let lines = lines.clone();
            tracing_subscriber::fmt::layer()
                .fmt_fields(JsonFields::new())
                .event_format(Flat)
                .with_writer(move || lines.clone())
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let request = tracing::info_span!(
                "request",
                request_id = "r1",
                session_id = tracing::field::Empty
            );
            let _request = request.enter();
            tracing::info!("before");
            request.record("session_id", "quokka");
            let turn = tracing::info_span!("turn", turn = 2, request_id = "r2\n\"");
            let _turn = turn.enter();
            tracing::warn!(turn = 3, ok = true, error = %"a\nb", "after");
            tracing::info!(long = "x".repeat(TEXT_MAX + 9), "long");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["request_id"], "r1");
        assert!(lines[0].get("session_id").is_none());
        assert_eq!(lines[1]["session_id"], "quokka");
        assert_eq!(lines[1]["request_id"], "r2\n\"");
        assert_eq!(lines[1]["turn"], 3);
        assert_eq!(lines[1]["ok"], true);
        assert_eq!(lines[1]["error"], "a\nb");
        assert_eq!(lines[1]["message"], "after");
        assert_eq!(lines[1]["level"], "WARN");
        assert!(lines[1]["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(lines[2]["long"].as_str().unwrap().len(), TEXT_MAX);
    }
}
