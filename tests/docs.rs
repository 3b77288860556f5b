//! What people read beside the code agrees with it.

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
    format!("{:?}", Config::from([], Some(&file)).unwrap())
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
    for file in ["docker-compose.yml", "Dockerfile", ".env.example"] {
        let text = read(file);
        let names = text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("HEADCOUNT_") && *word != "HEADCOUNT_PUBLISH");
        for name in names {
            assert!(SETTINGS.iter().any(|setting| setting.variable == name), "{file}: {name}");
        }
    }
}
