//! Owns the webhooks that are measured: bodies of 2 to 3 kB about users who come round again and again, each time with
//! newer news. The same number gives the same body, whoever asks.

use headcount::{clerk::sample::Sample, message::Millis};

use super::Outcome;

/// Users that the webhooks are about: each webhook is about the next, so the first round signs them all up and the
/// later ones change them.
pub const USERS: u64 = 10_000;

/// Thirteen digits, as all later times.
const START: Millis = 1_760_000_000_000;

/// The bodies, ready to be stamped.
pub struct Webhooks {
    templates: Vec<Template>,
}

struct Template {
    body: Vec<u8>,
    /// Where the thirteen digits of `data.updated_at` are.
    updated_at: usize,
}

impl Webhooks {
    /// Makes the templates, so that making a body costs a copy while the clock runs.
    pub fn new() -> Outcome<Self> {
        let template = |user: u64| {
            let body = Sample::of(format!("user_bench{user:06}"), START).event("user.updated", START);
            // data's own is the last: its keys are in alphabetical order.
            let key = b"\"updated_at\":";
            let at = body.windows(key.len()).rposition(|window| window == key);
            let updated_at = at.ok_or("a sample without updated_at")? + key.len();
            Ok(Template { body, updated_at })
        };
        Ok(Self { templates: (0..USERS).map(template).collect::<Outcome<_>>()? })
    }

    /// The body of webhook `number`.
    pub fn body(&self, number: u64) -> Vec<u8> {
        let Some(template) = self.templates.get((number % USERS) as usize) else { return Vec::new() };
        let mut body = template.body.clone();
        let digits = (START + (number / USERS) as Millis).to_string();
        body[template.updated_at..template.updated_at + digits.len()].copy_from_slice(digits.as_bytes());
        body
    }

    /// Bytes of a body, on average.
    pub fn size(&self) -> usize {
        self.templates.iter().map(|template| template.body.len()).sum::<usize>() / self.templates.len()
    }
}

/// The id of webhook `number`.
pub fn id(number: u64) -> String {
    format!("msg_2bench{number:012}")
}
