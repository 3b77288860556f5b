//! Owns the webhooks that are measured: bodies about users who come round again and again, each time with newer news, in
//! an order that jumps from one end of the table to the other. The same number gives the same body, whoever asks.

use headcount::{clerk::made_up::Person, time::Millis};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Outcome;

/// Thirteen digits, as all later times.
const START: Millis = 1_760_000_000_000;
/// A prime: as far as two webhooks in a row are apart.
const STRIDE: u64 = 7_368_787;
/// Bodies differ as people do; so many are enough to take turns.
const TEMPLATES: u64 = 10_000;
/// Written wherever a template has its user's number.
const PLACE: &str = "b0000000";

/// What webhooks are wanted. Travels to the load generator as JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// Users that the webhooks are about: the first round tells of each once, the later ones change them.
    pub users: u64,
    /// Bytes that every body has beyond its usual 2 to 3 kB.
    pub padding: usize,
}

/// The bodies, ready to be stamped.
pub struct Webhooks {
    shape: Shape,
    templates: Vec<Template>,
}

struct Template {
    body: Vec<u8>,
    /// Where the thirteen digits of `data.updated_at` are.
    updated_at: usize,
    /// Where [`PLACE`] is.
    places: Vec<usize>,
}

impl Webhooks {
    /// Makes the templates, so that making a body costs a copy while the clock runs.
    pub fn new(shape: Shape) -> Outcome<Self> {
        let most = if shape.padding == 0 { TEMPLATES } else { 10 };
        let templates = (0..shape.users.min(most)).map(|number| Template::new(number, shape.padding));
        Ok(Self { shape, templates: templates.collect::<Outcome<_>>()? })
    }

    /// The body of webhook `number`.
    pub fn body(&self, number: u64) -> Vec<u8> {
        let user = number * STRIDE % self.shape.users;
        let Some(template) = self.templates.get(user as usize % self.templates.len()) else {
            return Vec::new();
        };
        let mut body = template.body.clone();
        let mut stamp = |at: usize, text: &str| body[at..at + text.len()].copy_from_slice(text.as_bytes());
        stamp(template.updated_at, &(START + 1 + (number / self.shape.users) as Millis).to_string());
        template.places.iter().for_each(|at| stamp(*at, &place(user)));
        body
    }

    /// Bytes of a body, on average.
    pub fn size(&self) -> usize {
        self.templates.iter().map(|template| template.body.len()).sum::<usize>() / self.templates.len()
    }
}

impl Template {
    fn new(number: u64, padding: usize) -> Outcome<Self> {
        let mut sample = Person::of(format!("user_bench{number:07}"), START);
        sample.id = format!("user_{PLACE}");
        sample.email = Some(email(PLACE));
        sample.second_email = None;
        if padding > 0 {
            sample.public_metadata = json!({"padding": "x".repeat(padding)});
        }
        let body = sample.event("user.updated", START);
        let all = |text: &str| {
            let text = text.as_bytes();
            body.windows(text.len())
                .enumerate()
                .filter(|(_, window)| *window == text)
                .map(|(at, _)| at)
                .collect()
        };
        let places: Vec<usize> = all(PLACE);
        // data's own is the last: its keys are in alphabetical order.
        let key = "\"updated_at\":";
        let updated_at = all(key).last().ok_or("a sample without updated_at")? + key.len();
        Ok(Self { updated_at, places, body })
    }
}

/// The id of webhook `number`.
pub fn id(number: u64) -> String {
    format!("msg_2bench{number:012}")
}

/// The address of the user at a place.
fn email(place: &str) -> String {
    format!("{place}@example.com")
}

fn place(number: u64) -> String {
    format!("b{number:07}")
}
