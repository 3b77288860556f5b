//! The documents agree with the code.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::{collections::BTreeSet, fs, path::Path};

use headcount::config::{Config, SETTINGS};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The configuration that a file's text gives, without any environment.
fn configuration(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("headcount.toml");
    fs::write(&file, text).unwrap();
    let configuration = format!("{:?}", Config::from([], Some(&file)).unwrap());
    // Behind it stands which settings are written: a default that is written is a default all the same.
    configuration.split_once(", chosen: ").unwrap().0.to_owned()
}

/// The commented settings of headcount.toml: the key, the line without its `# `, and the comment above it.
fn settings_of_the_file() -> Vec<(String, String, String)> {
    let mut settings = Vec::new();
    let mut comment = String::new();
    for line in read("headcount.toml").lines() {
        let text = line.strip_prefix('#').unwrap_or(line).trim();
        match text.split_once(" = ") {
            Some((key, _)) if SETTINGS.iter().any(|setting| setting.key == key) => {
                settings.push((key.to_owned(), text.to_owned(), std::mem::take(&mut comment)));
            }
            _ if text.is_empty() => comment.clear(),
            _ => comment = format!("{comment} {text}"),
        }
    }
    settings
}

#[test]
fn headcount_toml_sets_nothing() {
    let text = read("headcount.toml");
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "a line is not commented");
    assert_eq!(configuration(&text), configuration(""));
}

#[test]
fn headcount_toml_shows_the_defaults() {
    let lines: Vec<_> = settings_of_the_file().into_iter().map(|(_, line, _)| line).collect();
    assert_eq!(configuration(&lines.join("\n")), configuration(""));
    for (setting, line) in SETTINGS.iter().filter_map(|setting| {
        Some((setting, lines.iter().find(|line| line.starts_with(&format!("{} = ", setting.key)))?))
    }) {
        let value = line.split_once(" = ").unwrap().1.trim_matches('"');
        assert_eq!(value, setting.default, "{}", setting.key);
    }
}

#[test]
fn headcount_toml_explains_every_setting_once() {
    let settings = settings_of_the_file();
    let keys: Vec<_> = settings.iter().map(|(key, ..)| key.as_str()).collect();
    let known: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys.len(), known.len(), "a setting is missing, or there twice: {keys:?}");
    assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), known);
    for (key, _, comment) in &settings {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
        assert!(
            comment.trim_start().starts_with(&format!("{}: ", setting.variable)),
            "the comment above {key} does not start with {}",
            setting.variable
        );
    }
}

#[test]
fn deployments_set_only_what_is_a_setting() {
    for file in ["docker-compose.yml", "Dockerfile", ".env.example", "deploy/headcount.service"] {
        let text = read(file);
        let names = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| {
            word.starts_with("HEADCOUNT_") && !["HEADCOUNT_PUBLISH", "HEADCOUNT_API_PUBLISH"].contains(word)
        });
        for name in names {
            assert!(SETTINGS.iter().any(|setting| setting.variable == name), "{file}: {name}");
        }
    }
}

#[test]
fn docker_compose_builds_one_image_and_pins_the_tests_servers() {
    let text = read("docker-compose.yml");
    let count = |key: &str| text.lines().filter(|line| line.trim_start().starts_with(key)).count();
    assert_eq!(count("build:"), 1, "services that build one tag at once overwrite each other's");
    assert!(text.contains("x-headcount: &headcount\n  image: headcount\n  pull_policy: never\n"));
    // The worker and the application's API write the same tables.
    assert_eq!(text.matches("*tables,").count(), 2, "who writes the tables has other settings for them");
    let script = read("scripts/servers");
    for (server, variable) in [("rabbitmq", "rabbitmq_image="), ("postgres", "postgres_image=")] {
        let (_, image) = script.split_once(variable).unwrap();
        let image = image.split_whitespace().next().unwrap();
        assert!(image.starts_with(&format!("{server}:")), "{image}");
        assert_eq!(count(&format!("image: {image}")), 1, "docker-compose.yml does not pin {image}");
    }
}

/// What stands between backticks in a document.
fn quoted(document: &str) -> Vec<String> {
    document.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// All Rust source, in one text.
fn sources() -> String {
    fn walk(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for directory in ["src", "tests"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut text);
    }
    text
}

#[test]
fn every_test_and_file_that_the_architecture_names_exists() {
    let sources = sources();
    let mut tests = 0;
    for name in quoted(&read("ARCHITECTURE.md")) {
        if name.starts_with("src/") || name.starts_with("tests/") {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&name).exists(), "{name} does not exist");
        } else if name.matches('_').count() >= 3
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
            && !name.starts_with("headcount_")
        {
            let runs = |marker: &str| sources.contains(&format!("{marker}{name}"));
            assert!(runs("fn "), "{name} is no test");
            tests += 1;
        }
    }
    assert!(tests > 40, "only {tests} tests were found: does the document still link its promises?");
}

#[test]
fn the_architecture_lists_what_is_declared_on_a_broker() {
    let document = read("ARCHITECTURE.md");
    let topology =
        headcount::queue::topology::Topology::new("headcount", &headcount::queue::Ladder::default());
    let of_each = |line: &String| !line.contains(".retry.") || line.contains(".retry.1s");
    let lines = topology.exchanges.iter().map(ToString::to_string);
    let lines = lines.chain(topology.queues.iter().map(ToString::to_string));
    let lines: Vec<String> =
        lines.chain(topology.bindings.iter().map(ToString::to_string)).filter(of_each).collect();
    for line in lines {
        assert!(
            document.lines().any(|listed| listed.trim() == line),
            "ARCHITECTURE.md does not list: {line}"
        );
    }
}

#[test]
fn each_of_the_eleven_promises_names_a_test() {
    let document = read("ARCHITECTURE.md");
    let promises = document.split("## Promises").nth(1).unwrap().split("\n## ").next().unwrap();
    for number in 1..=11 {
        let promise =
            promises.split(&format!("\n{number}. ")).nth(1).unwrap_or_else(|| panic!("promise {number}"));
        let promise = promise.split(&format!("\n{}. ", number + 1)).next().unwrap();
        assert!(
            quoted(promise).iter().any(|name| name.matches('_').count() >= 3),
            "promise {number} names no test"
        );
    }
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let readme = read("README.md");
    for setting in SETTINGS {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{}` |", setting.variable)));
        let row = row.unwrap_or_else(|| panic!("{} is not in README.md", setting.variable));
        let default = row.split('|').nth(2).unwrap().trim().trim_matches('`');
        assert_eq!(default, setting.default, "{}", setting.variable);
    }
}

#[test]
fn the_commands_of_the_readme_are_understood() {
    let readme = read("README.md");
    let mut commands = 0;
    for line in readme.lines().map(str::trim) {
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let command = command.split(" #").next().unwrap();
        let arguments = command
            .strip_prefix("cargo run --release -- ")
            .or_else(|| command.strip_prefix("target/release/headcount "))
            .or_else(|| command.strip_prefix("headcount "));
        if let Some(arguments) = arguments {
            let words = std::iter::once("headcount").chain(arguments.split_whitespace());
            let parsed = <headcount::cli::Cli as clap::Parser>::try_parse_from(words);
            assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
            commands += 1;
        }
    }
    assert!(commands >= 8, "only {commands} commands were found");
}

#[test]
fn the_metrics_are_the_documented_ones() {
    let mut lines: Vec<String> = headcount::telemetry::metrics::METRICS
        .iter()
        .map(|metric| {
            format!("{} {:?} {}", metric.name, metric.kind, metric.labels.join(",")).trim().to_owned()
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "headcount_api_requests_total Counter answer",
            "headcount_api_streams Gauge",
            "headcount_batch_messages Histogram",
            "headcount_batch_seconds Histogram",
            "headcount_build_info Gauge version",
            "headcount_clerk_behind_seconds Gauge",
            "headcount_connections Gauge listener",
            "headcount_connections_closed_total Counter listener,reason",
            "headcount_dead_letters Gauge status",
            "headcount_dead_letters_total Counter reason",
            "headcount_event_age_seconds Histogram",
            "headcount_events_total Counter type,outcome",
            "headcount_first_rows_total Counter result",
            "headcount_healed_total Counter kind",
            "headcount_held_messages Gauge",
            "headcount_last_webhook_timestamp_seconds Gauge",
            "headcount_paused Gauge",
            "headcount_publish_seconds Histogram",
            "headcount_queue_messages Gauge queue",
            "headcount_queue_trouble Gauge part",
            "headcount_retries_total Counter reason",
            "headcount_sync_lag_seconds Histogram",
            "headcount_webhooks_total Counter outcome",
        ]
    );
}

#[test]
fn outcomes_and_reasons_keep_their_names() {
    let outcomes: Vec<&str> =
        headcount::rules::Outcome::ALL.into_iter().map(|outcome| outcome.as_str()).collect();
    let documented = "created updated deleted relinked revived stale duplicate ignored waiting buried";
    assert_eq!(outcomes.join(" "), documented);
    let reasons: Vec<&str> =
        headcount::queue::Reason::ALL.into_iter().map(|reason| reason.as_str()).collect();
    let documented = "invalid_payload rejected retries_exhausted crash_loop unroutable other_instance";
    assert_eq!(reasons.join(" "), documented);
}
