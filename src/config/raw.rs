//! Owns the values as they are written, in the environment or in the file. Promises that an error names the setting as it
//! is written there, and that no error holds a value that may be a secret. Never decides what a value means.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Value;

use super::{ConfigError, FILE, SETTINGS, Setting, settings, wrong};
use crate::queue::delay_name;

/// What is written, by variable.
#[derive(Debug, Default)]
pub(super) struct Raw {
    values: HashMap<&'static str, Written>,
    /// The file that was read.
    file: PathBuf,
}

#[derive(Debug)]
struct Written {
    text: String,
    in_file: bool,
    /// The name under which it is written, where that is another tool's.
    synonym: Option<&'static str>,
}

impl Raw {
    /// Reads both. Also returns warnings about names that look like mistakes.
    pub(super) fn read(
        environment: impl IntoIterator<Item = (String, String)>,
        file: Option<&Path>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let file = file.map_or_else(|| (Path::new(FILE), false), |file| (file, true));
        let mut raw = Self::at(file.0);
        raw.read_file(file.1)?;
        let (mut others, mut synonyms) = (Vec::new(), HashMap::new());
        for (name, text) in environment {
            let synonym = settings::SYNONYMS.iter().find(|(synonym, _)| *synonym == name);
            match SETTINGS.iter().find(|setting| setting.variable == name) {
                Some(setting) => {
                    raw.values.insert(setting.variable, Written { text, in_file: false, synonym: None });
                }
                None => match synonym {
                    Some((synonym, variable)) => drop(synonyms.insert(*variable, (*synonym, text))),
                    None => others.push(name),
                },
            }
        }
        for (variable, (synonym, text)) in synonyms {
            if raw.written(variable).is_none() {
                raw.values.insert(variable, Written { text, in_file: false, synonym: Some(synonym) });
            }
        }
        for setting in SETTINGS {
            raw.refuse_quotes(setting.variable)?;
        }
        others.sort_unstable();
        let warnings = others.iter().filter_map(|name| {
            // No error: other software sets such names too, Kubernetes for one.
            let ours = name.starts_with("HEADCOUNT_") && !settings::is_of_kubernetes(name);
            match settings::variable(name).filter(|near| ours || raw.written(near).is_none()) {
                Some(near) => Some(format!("{name} is not a setting; did you mean {near}?")),
                None => ours.then(|| format!("{name} is not a setting")),
            }
        });
        let warnings = warnings.collect();
        Ok((raw, warnings))
    }

    pub(super) fn at(file: &Path) -> Self {
        Self { values: HashMap::new(), file: file.to_owned() }
    }

    pub(super) fn read_file(&mut self, has_to_exist: bool) -> Result<(), ConfigError> {
        let shown = self.file.display().to_string();
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            // A link that leads nowhere exists.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && !has_to_exist
                    && self.file.symlink_metadata().is_err() =>
            {
                return Ok(());
            }
            Err(error) => {
                return Err(wrong(
                    format!("{shown} cannot be read: {error}"),
                    "check the path and its permissions",
                ));
            }
        };
        let table: BTreeMap<String, Value> = toml::from_str(&text).map_err(|error| {
            // Its place and its message: the error's rendering would quote the line, which may hold a secret.
            let place = error.span().map(|span| place(&text, span.start)).unwrap_or_default();
            wrong(
                format!("{shown}{place} is not valid TOML: {}", error.message()),
                "write lines such as  listen = \"127.0.0.1:8080\"",
            )
        })?;
        for (key, value) in table {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                let hint = match settings::key(&key) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "see the headcount.toml that headcount ships with".into(),
                };
                return Err(wrong(format!("{shown}: {key} is not a setting"), hint));
            };
            let text = match value {
                Value::String(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Boolean(flag) if matches!(setting.default, "true" | "false") => flag.to_string(),
                Value::Array(parts) if parts.iter().all(Value::is_str) => {
                    parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
                }
                other => {
                    let problem = format!("{shown}: {key} is {}", kind(&other));
                    return Err(wrong(problem, "write it as a string in quotes, or a number"));
                }
            };
            self.values.insert(setting.variable, Written { text, in_file: true, synonym: None });
        }
        Ok(())
    }

    /// Docker's `--env-file` and the like make quotes a part of the value.
    fn refuse_quotes(&self, variable: &'static str) -> Result<(), ConfigError> {
        let text = self.written(variable).unwrap_or_default();
        let quoted = |quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
        if ['"', '\'', '`'].into_iter().any(quoted) {
            let name = self.name(variable);
            return Err(wrong(format!("{name} has quotes around its value"), "write it without them"));
        }
        Ok(())
    }

    /// The setting as it is called where it is written.
    pub(super) fn name(&self, variable: &'static str) -> String {
        match self.values.get(variable) {
            Some(written) if written.in_file => format!("{}: {}", self.file.display(), setting(variable).key),
            Some(Written { synonym: Some(synonym), .. }) => (*synonym).to_owned(),
            _ => variable.to_owned(),
        }
    }

    /// Whether it is written under another tool's name only, so that the value may not be meant for headcount.
    pub(super) fn is_borrowed(&self, variable: &'static str) -> bool {
        self.values.get(variable).is_some_and(|written| written.synonym.is_some())
    }

    /// The written value; `None` where there is none, or an empty one.
    pub(super) fn written(&self, variable: &'static str) -> Option<&str> {
        let text = self.values.get(variable)?.text.trim();
        (!text.is_empty()).then_some(text)
    }

    /// The written value, else the default; `None` where both are empty.
    pub(super) fn get(&self, variable: &'static str) -> Option<&str> {
        let default = setting(variable).default;
        self.written(variable).or((!default.is_empty()).then_some(default))
    }

    pub(super) fn parse<T>(
        &self,
        variable: &'static str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let text = self.get(variable).unwrap_or_default();
        parse(text).map_err(|problem| wrong(format!("{} is {text:?}: {problem}", self.name(variable)), hint))
    }

    pub(super) fn choice<T: Copy>(
        &self,
        variable: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.parse(variable, &format!("use {}", names.join(" or ")), |text| {
            let chosen = choices.iter().find(|(name, _)| *name == text);
            chosen.map(|(_, choice)| *choice).ok_or_else(|| "has to be one of the choices".into())
        })
    }

    pub(super) fn duration(
        &self,
        variable: &'static str,
        least: Duration,
        most: Duration,
    ) -> Result<Duration, ConfigError> {
        self.parse(variable, "write a time such as 10ms, 25s, 5m, 1h or 14d", |text| {
            let duration = humantime::parse_duration(text).map_err(|_| "has to be a time".to_owned())?;
            if duration < least || duration > most {
                return Err(format!("has to be between {} and {}", delay_name(least), delay_name(most)));
            }
            Ok(duration)
        })
    }

    /// The same; `None` where nothing is written and nothing is the default, or where it is `0`.
    pub(super) fn duration_or_off(
        &self,
        variable: &'static str,
        least: Duration,
        most: Duration,
    ) -> Result<Option<Duration>, ConfigError> {
        let off = self
            .get(variable)
            .is_none_or(|text| humantime::parse_duration(text).is_ok_and(|duration| duration.is_zero()));
        if off { Ok(None) } else { self.duration(variable, least, most).map(Some) }
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &self,
        variable: &'static str,
        least: i64,
        most: i64,
    ) -> Result<T, ConfigError> {
        let problem = || format!("has to be a whole number between {least} and {most}");
        self.parse(variable, "write a plain number", |text| {
            let number = text.parse().ok().filter(|number| (least..=most).contains(number));
            number.and_then(|number: i64| T::try_from(number).ok()).ok_or_else(problem)
        })
    }
}

const UNKNOWN: Setting = Setting { variable: "", key: "", default: "" };

fn setting(variable: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.variable == variable).unwrap_or(&UNKNOWN)
}

/// `, line 3 (database_url),`: where something stands in a TOML text, and under which key.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let key = line.split_once('=').map_or("", |(key, _)| key.trim());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match !key.is_empty() && key.bytes().all(plain) {
        true => format!(", line {number} ({key}),"),
        false => format!(", line {number},"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list of other things than strings",
        Value::Table(_) => "a table",
    }
}
