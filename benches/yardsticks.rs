//! How fast headcount is beside what it could be: its real processes, and the broker and the database driven with
//! nothing in between, on the same machine in the same run. `make bench` starts the servers, runs it, and keeps the
//! table in benches/RESULTS.md. BENCH_ROUNDS (3), BENCH_MESSAGES (30000 in a backlog) and BENCH_SECONDS (8 of a load)
//! change how much; BENCH_ONLY takes one scenario and keeps nothing; BENCH_BINARY measures another build.
//! BENCH_ONLY=scale is another run (`make bench-scale`), which keeps its table in benches/SCALE.md.

#![allow(unreachable_pub)]

#[allow(dead_code, reason = "sync uses the rest")]
mod support;

use std::{path::Path, process::ExitCode, str::FromStr};

use support::{
    Outcome, database, load,
    report::Report,
    scenarios::{self, Size, USUAL},
    webhooks::Webhooks,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.iter().position(|argument| argument == load::ARGUMENT) {
        Some(at) => load::generate(arguments.get(at + 1).map_or("", String::as_str)),
        None if std::env::var_os("TEST_AMQP_URL").is_none()
            || std::env::var_os("TEST_DATABASE_URL").is_none() =>
        {
            println!("yardsticks: no servers to measure with; make bench starts them");
            Ok(())
        }
        None => measure(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("yardsticks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Outcome<()> {
    let size = Size { messages: setting("BENCH_MESSAGES", 30_000)?, seconds: setting("BENCH_SECONDS", 8.0)? };
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let scale = only == "scale";
    let rounds: u32 = setting("BENCH_ROUNDS", if scale { 1 } else { 3 })?;
    let webhooks = Webhooks::new(USUAL)?;
    let mut report = Report::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        if scale {
            runtime.block_on(scenarios::scale(&mut report))?;
        } else {
            runtime.block_on(scenarios::round(size, &only, &webhooks, &mut report))?;
        }
    }
    let server = runtime.block_on(database::about_server())?;
    let bodies = format!("{server}; bodies of {} bytes on average", webhooks.size());
    let (file, text) = if scale {
        ("SCALE.md", report.markdown("make bench-scale", &format!("{bodies}; everything on one machine.")))
    } else {
        let load = format!(
            "{bodies}; backlogs of {} messages; loads of {} s; everything on one machine.",
            size.messages, size.seconds
        );
        ("RESULTS.md", report.markdown("make bench", &load))
    };
    println!("{text}");
    if scale || only.is_empty() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(file), text)?;
    }
    Ok(())
}

fn setting<T: FromStr>(name: &str, otherwise: T) -> Outcome<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name} is no number").into()),
        Err(_) => Ok(otherwise),
    }
}
