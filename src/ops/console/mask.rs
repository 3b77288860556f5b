//! Owns showing a body without what is personal in it: shapes, ids, times and types stay, every other text is hidden. Pure.
//!
//! Promises that a text is shown only where its key says that it is no person's: what is not known is hidden.

use serde_json::Value;

/// Stands for what is hidden.
const HIDDEN: &str = "•••";
/// Keys whose texts say what something is, and not who somebody is.
const PLAIN: [&str; 12] = [
    "object",
    "type",
    "status",
    "strategy",
    "instance_id",
    "currency",
    "payer_type",
    "plan_period",
    "interval",
    "event_type",
    "provider",
    "slug",
];
/// Objects of the application's own: whatever they hold is hidden.
const OPAQUE: [&str; 3] = ["public_metadata", "private_metadata", "unsafe_metadata"];
/// The longest id that is shown.
const ID_MAX: usize = 80;

/// A body's JSON over several lines, without what is personal; `None` for a body that is no JSON.
pub(super) fn masked(body: &[u8]) -> Option<String> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    hide(&mut value, "");
    serde_json::to_string_pretty(&value).ok()
}

fn hide(value: &mut Value, key: &str) {
    match value {
        Value::String(text) if !is_plain(key, text) => HIDDEN.clone_into(text),
        Value::Number(_) if !is_time(key) => *value = Value::String(HIDDEN.to_owned()),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, key)),
        Value::Object(fields) if OPAQUE.contains(&key) && !fields.is_empty() => {
            *value = Value::String(HIDDEN.to_owned());
        }
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| hide(value, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_plain(key: &str, text: &str) -> bool {
    let is_key_of_id = key == "id" || key.ends_with("_id");
    (PLAIN.contains(&key) && text.len() <= ID_MAX) || (is_key_of_id && key != "external_id" && is_id(text))
}

/// Clerk's ids have a prefix: `user_…`, `idn_…`.
fn is_id(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.len() <= ID_MAX && text.contains('_') && text.chars().all(is_word)
}

fn is_time(key: &str) -> bool {
    key == "timestamp" || key.ends_with("_at") || key == "period_start" || key == "period_end"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_personal_is_hidden_and_the_shape_stays() {
        let body = br#"{"type":"user.created","timestamp":1760000000000,"data":{"id":"user_2abc","object":"user",
            "first_name":"Ada","age":36,"banned":false,"email_addresses":[{"id":"idn_1","email_address":"ada@example.com",
            "verification":{"status":"verified","strategy":"email_code"}}],"external_id":"ada_lovelace",
            "public_metadata":{"ada@example.com":1},"unsafe_metadata":{},"primary_email_address_id":"idn_1",
            "last_sign_in_at":1,"profile_image_url":"https://x/ada"}}"#;
        let shown = masked(body).unwrap();
        for plain in [
            "user.created",
            "1760000000000",
            "user_2abc",
            "idn_1",
            "verified",
            "email_code",
            "\"banned\": false",
        ] {
            assert!(shown.contains(plain), "{plain}: {shown}");
        }
        for personal in ["Ada", "ada@", "lovelace", "36", "example.com", "https"] {
            assert!(!shown.contains(personal), "{personal}: {shown}");
        }
        assert!(masked(b"Ada Lovelace").is_none());
        assert_eq!(masked(b"\"Ada\"").unwrap(), format!("\"{HIDDEN}\""));
        assert!(!masked(br#"{"id":"Ada Lovelace","user_id":"ada@example.com"}"#).unwrap().contains("da"));
    }
}
