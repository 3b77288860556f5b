//! Owns the log: which lines are written, and how they look. They go to standard error, as text or JSON.
//!
//! Promises that no filter can make another crate log anything personal, and that no text from outside forges a line or
//! steers the terminal that shows the log. Never writes to standard output.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use tracing::{Level, Metadata, Subscriber, field::Field};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::MakeExt,
    filter::filter_fn,
    fmt::{
        MakeWriter,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
};

use crate::terminal;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Installs the process's logging.
///
/// # Errors
/// Where the filter (`RUST_LOG`) cannot be used, in words that name it; or where logging is installed already.
pub fn init(filter: &str, format: LogFormat) -> Result<(), String> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = !plain && std::io::stderr().is_terminal();
    let subscriber = subscriber(filter, format, ansi, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())
}

fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    ansi: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, String>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = parse(filter)?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(ansi);
    let lines = match format {
        LogFormat::Text => lines.fmt_fields(debug_fn(shown).delimited(" ")).with_writer(writer).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_writer(Escaping(writer)).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter_fn(harmless))).with(filter))
}

/// A field as text; the message is the one without a name.
fn shown(to: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    let text = terminal::safe(&text);
    match field.name() {
        "message" => to.write_str(&text),
        name => write!(to, "{name}={text}"),
    }
}

/// Escapes lines of JSON before they are written.
struct Escaping<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Escaping<W> {
    type Writer = Escaping<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaping(self.0.make_writer())
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(terminal::safe_json(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Adds lapin's own lines, and those of sqlx's pool, only where the filter asks for them: our lines say once what theirs
/// say hundreds of times.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    for part in filter.split(',').map(str::trim) {
        // EnvFilter takes a mistyped level for a crate's name, and would log next to nothing.
        let word = !part.is_empty() && !part.contains(['=', '[', ':']);
        if word
            && part != env!("CARGO_PKG_NAME")
            && part.parse::<tracing::level_filters::LevelFilter>().is_err()
        {
            return Err(format!(
                "RUST_LOG is {filter:?}: {part:?} is no level; write info, or hyper=debug and the like"
            ));
        }
    }
    let wrong = |error: &dyn std::fmt::Display| format!("RUST_LOG is {filter:?}: {error}");
    let mut parsed = EnvFilter::builder().parse(filter).map_err(|error| wrong(&error))?;
    for (library, off) in [("lapin", "lapin=off"), ("sqlx", "sqlx::pool=off")] {
        if !filter.contains(library) {
            parsed = parsed.add_directive(off.parse().map_err(|error| wrong(&error))?);
        }
    }
    Ok(parsed)
}

/// Whether a line may be logged, whatever the filter asks for: lapin logs returned messages with their bodies, and frames
/// at trace level; sqlx logs statements.
fn harmless(metadata: &Metadata<'_>) -> bool {
    let of = |module: &str| {
        metadata.target().strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    if of("lapin::returned_messages") || of("sqlx::query") {
        return false;
    }
    // TRACE is the greatest level.
    !(of("lapin") && *metadata.level() > Level::DEBUG
        || (metadata.target().starts_with("sqlx") && *metadata.level() > Level::WARN))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing::{debug, info, trace, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn no_filter_makes_another_crate_log_a_body() {
        for filter in ["trace", "lapin=trace,sqlx=trace", "lapin::returned_messages=warn,sqlx::query=trace"] {
            let text = logged(filter, LogFormat::Text, || {
                warn!(target: "lapin::returned_messages", message = "hunter2");
                trace!(target: "lapin::channels", frame = "hunter2");
                warn!(target: "sqlx::query", statement = "hunter2");
                debug!(target: "sqlx_core::query", statement = "hunter2");
            });
            assert_eq!(text, "", "{filter}");
        }
        let lines = || {
            warn!(target: "lapin::channel", "kept 1");
            warn!(target: "sqlx::pool", "kept 2");
            trace!(target: "headcount::ingress", "kept 3");
            trace!(target: "otherwise", "kept 4");
        };
        let text = logged("trace,lapin=warn,sqlx=warn", LogFormat::Text, lines);
        assert_eq!(text.matches("kept").count(), 4, "{text}");
        let text = logged("trace", LogFormat::Text, lines);
        assert_eq!(text.matches("kept").count(), 2, "{text}");
    }

    #[test]
    fn the_filter_is_obeyed_in_both_formats() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged("info,hyper=debug", format, || {
                info!(message_id = "msg_1", "queued msg_1");
                debug!("not this");
                debug!(target: "hyper::proto", "but this");
            });
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.contains("queued msg_1") && text.contains("but this"), "{text}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
                assert_eq!((&line["message_id"], &line["level"]), (&"msg_1".into(), &"INFO".into()));
            } else {
                assert!(!text.contains('\u{1b}'));
            }
        }
    }

    #[test]
    fn no_text_forges_a_line_of_the_log_or_steers_the_terminal() {
        let hostile = "msg\n1970-01-01 ERROR forged\u{1b}[2J\u{9b}\u{202e}\u{7f}";
        let shown = "msg\\u{a}1970-01-01 ERROR forged\\u{1b}[2J\\u{9b}\\u{202e}\\u{7f}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged("info", format, || {
                let error = io::Error::other(hostile);
                let error: &(dyn std::error::Error + 'static) = &error;
                info!(message_id = %hostile, code = hostile, error, "took {hostile}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end().contains(terminal::is_hidden), "{text:?}");
            match format {
                LogFormat::Text => {
                    assert!(text.contains(&format!("took {shown}")), "{text}");
                    assert!(text.contains(&format!("message_id={shown}")), "{text}");
                }
                LogFormat::Json => {
                    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(line["message_id"], hostile);
                    assert_eq!(line["message"], format!("took {hostile}"));
                }
            }
        }
    }

    #[test]
    fn a_filter_that_cannot_be_used_is_named() {
        for bad in ["inof", "headcount=loud", "info,hyper==debug", "info,[", "verbose"] {
            let error = parse(bad).map(|_| ()).unwrap_err();
            assert!(error.contains("RUST_LOG") && error.contains(bad), "{error}");
        }
        for good in ["", "info", "INFO", "off", "headcount", "warn,headcount=debug", "hyper=debug,info", "3"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
    }
}
