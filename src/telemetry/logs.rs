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
    EnvFilter::builder().parse(filter).map_err(|error| format!("RUST_LOG is {filter:?}: {error}"))
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
