//! Owns what is logged and how it looks: to standard error, as text or JSON.
//!
//! Promises that no filter can make another crate log what is personal. Never writes to standard output.

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt};

use crate::config::LogFormat;

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
    let lines = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter_fn(harmless))).with(filter))
}

/// lapin's own lines, and those of sqlx's pool, only where the filter asks for them: what they tell of a broker and of a
/// database, hundreds of times, our lines tell once.
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

/// Whatever the filter asks for: lapin logs returned messages with their bodies, and frames at trace level; sqlx logs
/// statements.
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
