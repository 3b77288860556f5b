//! Owns made-up events: what `send`, `doctor`, the demo and tests post in Clerk's place. Promises bodies shaped as Clerk's are
//! (keys in alphabetical order, milliseconds, 2 to 3 kB a user) about people who do not exist, at addresses that
//! are reserved for examples. Never reads a clock: the same call gives the same bytes.

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use crate::{digest::sha256, message::PROBE, time::Millis};

pub mod world;

#[rustfmt::skip]
const FIRST_NAMES: &[&str] = &[
    "Ada", "Aiko", "Amara", "Anton", "Beatriz", "Björn", "Chidi", "Chloé", "Dalia", "Davi", "Elif", "Emeka",
    "Farah", "Finn", "Grace", "Hana", "Hugo", "Ines", "Ivo", "Jun", "Kofi", "Lena", "Lucía", "Mateo", "Maya",
    "Mehmet", "Nadia", "Noor", "Olu", "Priya", "Quinn", "Rosa", "Sami", "Sofia", "Tariq", "Uma", "Viktor",
    "Wei", "Yara", "Zoë",
];

#[rustfmt::skip]
const LAST_NAMES: &[&str] = &[
    "Abara", "Adeyemi", "Ahlström", "Almeida", "Bakker", "Banerjee", "Castillo", "Chen", "Dubois", "Eriksen",
    "Farouk", "Ferreira", "García", "Haddad", "Hoffmann", "Ivanova", "Jansen", "Kaya", "Kimura", "Kowalska",
    "Lindqvist", "Mbeki", "Moreau", "Nakamura", "Nguyen", "O'Brien", "Okafor", "Petrov", "Quispe", "Rahman",
    "Rossi", "Santos", "Schmidt", "Silva", "Tanaka", "Usman", "Vargas", "Wójcik", "Yilmaz", "Zhang",
];

/// The Clerk instance that all made-up events come from.
pub const INSTANCE: &str = "ins_2hCntMadeUpInstance0000001";

/// Where the images of made-up users are, and nobody else's.
pub const IMAGES: &str = "https://img.example.com/";

/// Domains that are reserved for examples (RFC 2606).
const DOMAINS: &[&str] = &["example.com", "example.org", "example.net"];

/// A made-up user, as Clerk would know it. Change the fields and take the next event.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// `user_2…`
    pub id: String,
    /// The primary address.
    pub email: Option<String>,
    /// Whether the primary address is verified.
    pub verified: bool,
    /// A secondary, unverified address; it stands before the primary one, as it may in real events.
    pub second_email: Option<String>,
    /// The primary phone number.
    pub phone: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Given name.
    pub first_name: Option<String>,
    /// Family name.
    pub last_name: Option<String>,
    /// The avatar's address.
    pub image_url: Option<String>,
    /// The application's own id.
    pub external_id: Option<String>,
    /// A JSON object.
    pub public_metadata: Value,
    /// A JSON object.
    pub private_metadata: Value,
    /// A JSON object.
    pub unsafe_metadata: Value,
    /// Banned from signing in.
    pub banned: bool,
    /// Locked after failed sign-ins.
    pub locked: bool,
    /// Signed up with Google.
    pub google: bool,
    /// The slug of the plan that events about the subscription are about; `None`: the usual one.
    pub plan: Option<String>,
    /// Milliseconds.
    pub created_at: Millis,
    /// Milliseconds.
    pub updated_at: Millis,
    /// Milliseconds.
    pub last_sign_in_at: Option<Millis>,
}

impl Person {
    /// The user of this id: the same person each time, so that events sent one by one are about one user.
    pub fn of(id: impl Into<String>, created_at: Millis) -> Self {
        let id = id.into();
        let mut rng = dice(&id);
        let pick = |from: &[&'static str], rng: &mut StdRng| from.choose(rng).copied().unwrap_or("Ada");
        let (first, last) = (pick(FIRST_NAMES, &mut rng), pick(LAST_NAMES, &mut rng));
        let handle = format!("{}.{}", plain(first), plain(last));
        let address = |rng: &mut StdRng| format!("{handle}.{}@{}", letters(rng, 6), pick(DOMAINS, rng));
        let email = address(&mut rng);
        let second_email = rng.random_bool(0.15).then(|| address(&mut rng));
        let phone = rng.random_bool(0.25).then(|| format!("+1555{:07}", rng.random_range(0..10_000_000)));
        let username = rng.random_bool(0.4).then(|| format!("{handle}.{}", letters(&mut rng, 4)));
        let external_id = rng.random_bool(0.2).then(|| format!("cust_{}", letters(&mut rng, 10)));
        let onboarded = rng.random_bool(0.7);
        let theme = *["light", "dark", "system"].choose(&mut rng).unwrap_or(&"system");
        let referrer = *["search", "friend", "conference", "blog"].choose(&mut rng).unwrap_or(&"blog");
        let image = format!("{IMAGES}{}", letters(&mut dice(&format!("image {id}")), 120));
        Self {
            email: Some(email),
            verified: true,
            second_email,
            phone,
            username,
            first_name: Some(first.into()),
            last_name: Some(last.into()),
            image_url: Some(image),
            external_id,
            public_metadata: json!({"onboarded": onboarded, "roles": ["member"]}),
            private_metadata: json!({"referrer": referrer, "risk_score": rng.random_range(0..40)}),
            unsafe_metadata: json!({"newsletter": rng.random_bool(0.5), "theme": theme}),
            banned: false,
            locked: false,
            google: rng.random_bool(0.3),
            plan: None,
            created_at,
            updated_at: created_at,
            last_sign_in_at: Some(created_at),
            id,
        }
    }

    /// The body of an event of any type about this user, sent at `sent`. Types that headcount does not know get what
    /// every event has.
    pub fn event(&self, event_type: &str, sent: Millis) -> Vec<u8> {
        self.event_of(INSTANCE, event_type, sent)
    }

    /// The same, of this Clerk instance.
    pub fn event_of(&self, instance: &str, event_type: &str, sent: Millis) -> Vec<u8> {
        let mut rng = dice(&format!("{event_type} {} {sent}", self.id));
        let data = match event_type {
            "user.created" | "user.updated" => self.data(),
            "user.deleted" => json!({"deleted": true, "id": self.id, "object": "user"}),
            _ => self.other(event_type, sent, &mut rng),
        };
        let octet = rng.random_range(1..255);
        json!({
            "data": data,
            "event_attributes": {
                "http_request": {
                    "client_ip": format!("203.0.113.{octet}"),
                    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
                }
            },
            "instance_id": instance,
            "object": "event",
            "timestamp": sent,
            "type": event_type,
        })
        .to_string()
        .into_bytes()
    }

    /// The user as Clerk's API gives it, and `data` of an event that carries a whole user.
    pub fn data(&self) -> Value {
        let second = self.second_email.as_deref().map(|address| self.email_address(address, false));
        let primary = self.email.as_deref().map(|address| self.email_address(address, self.verified));
        let phones: Vec<Value> = self.phone.iter().map(|number| self.phone_number(number)).collect();
        let accounts: Vec<Value> = self.google.then(|| self.google_account()).into_iter().collect();
        json!({
            "backup_code_enabled": false,
            "banned": self.banned,
            "create_organization_enabled": true,
            "create_organizations_limit": null,
            "created_at": self.created_at,
            "delete_self_enabled": true,
            "email_addresses": second.into_iter().chain(primary).collect::<Vec<_>>(),
            "enterprise_accounts": [],
            "external_accounts": accounts,
            "external_id": self.external_id,
            "first_name": self.first_name,
            "has_image": true,
            "id": self.id,
            "image_url": self.image_url,
            "last_active_at": self.updated_at,
            "last_name": self.last_name,
            "last_sign_in_at": self.last_sign_in_at,
            "legal_accepted_at": null,
            "locale": null,
            "locked": self.locked,
            "lockout_expires_in_seconds": null,
            "mfa_disabled_at": null,
            "mfa_enabled_at": null,
            "object": "user",
            "passkeys": [],
            "password_enabled": !self.google,
            "phone_numbers": phones,
            "primary_email_address_id": self.email.as_deref().map(contact_id),
            "primary_phone_number_id": self.phone.as_deref().map(contact_id),
            "primary_web3_wallet_id": null,
            "private_metadata": self.private_metadata,
            "profile_image_url": self.image_url,
            "public_metadata": self.public_metadata,
            "saml_accounts": [],
            "totp_enabled": false,
            "two_factor_enabled": false,
            "unsafe_metadata": self.unsafe_metadata,
            "updated_at": self.updated_at,
            "username": self.username,
            "verification_attempts_remaining": 100,
            "web3_wallets": [],
        })
    }

    fn email_address(&self, address: &str, verified: bool) -> Value {
        json!({
            "created_at": self.created_at,
            "email_address": address,
            "id": contact_id(address),
            "linked_to": [],
            "matches_sso_connection": false,
            "object": "email_address",
            "reserved": false,
            "updated_at": self.created_at,
            "verification": self.verification("email_code", verified),
        })
    }

    fn phone_number(&self, number: &str) -> Value {
        json!({
            "backup_codes": null,
            "created_at": self.created_at,
            "default_second_factor": false,
            "id": contact_id(number),
            "linked_to": [],
            "object": "phone_number",
            "phone_number": number,
            "reserved": false,
            "reserved_for_second_factor": false,
            "updated_at": self.created_at,
            "verification": self.verification("phone_code", true),
        })
    }

    fn verification(&self, strategy: &str, verified: bool) -> Value {
        json!({
            "attempts": 1,
            "expire_at": self.created_at + 600_000,
            "object": "verification_otp",
            "status": if verified { "verified" } else { "unverified" },
            "strategy": strategy,
        })
    }

    fn google_account(&self) -> Value {
        let mut rng = dice(&format!("google {}", self.id));
        json!({
            "approved_scopes": "email openid profile",
            "created_at": self.created_at,
            "email_address": self.email,
            "external_account_id": base62("eac_2", &mut rng),
            "family_name": self.last_name,
            "given_name": self.first_name,
            "id": base62("idn_2", &mut rng),
            "identification_id": base62("idn_2", &mut rng),
            "label": null,
            "object": "google_account",
            "provider": "oauth_google",
            "public_metadata": {},
            "updated_at": self.created_at,
            "username": null,
            "verification": {
                "attempts": null,
                "expire_at": self.created_at + 600_000,
                "object": "verification_oauth",
                "status": "verified",
                "strategy": "oauth_google",
            },
        })
    }

    /// The item of the user's plan, as Clerk tells it.
    pub fn item(&self, status: &str, at: Millis) -> Value {
        let slug = self.plan.as_deref().unwrap_or("premium_monthly");
        let free = slug == "free_user";
        json!({
            "created_at": at,
            // The same each time, so that events sent one by one are about one item.
            "id": base62("csubi_2", &mut dice(&format!("item {slug} {}", self.id))),
            "interval": "month",
            "is_free_trial": false,
            "object": "commerce_subscription_item",
            "period_end": (!free).then_some(at + 2_592_000_000),
            "period_start": at,
            "plan": {
                "amount": if free { 0 } else { 900 },
                "currency": "USD",
                "id": base62("cplan_2", &mut dice(&format!("plan {slug}"))),
                "is_recurring": !free,
                "name": slug,
                "slug": slug,
            },
            "status": status,
            "updated_at": at,
        })
    }

    /// `data` of an event that is about something of the user's.
    fn other(&self, event_type: &str, sent: Millis, rng: &mut StdRng) -> Value {
        let (object, verb) = event_type.split_once('.').unwrap_or((event_type, ""));
        if verb == "deleted" {
            return json!({"deleted": true, "id": base62("obj_2", rng), "object": object});
        }
        let status = match verb {
            "canceled" | "upcoming" | "incomplete" | "abandoned" | "ended" | "expired" => verb,
            "pastDue" => "past_due",
            _ => "active",
        };
        let payer = || {
            let id = base62("cpayer_2", &mut dice(&format!("payer {}", self.id)));
            json!({ "id": id, "object": "commerce_payer", "organization_id": "", "user_id": self.id })
        };
        let subscription = || base62("csub_2", &mut dice(&format!("subscription {}", self.id)));
        match object {
            "subscription" => json!({
                "active_at": self.created_at,
                "created_at": self.created_at,
                "id": subscription(),
                "items": [self.item(status, sent)],
                "object": "commerce_subscription",
                "payer": payer(),
                "status": status,
                "updated_at": sent,
            }),
            "subscriptionItem" => {
                let mut item = self.item(status, sent);
                item["payer"] = payer();
                item["subscription_id"] = json!(subscription());
                item
            }
            "session" => json!({
                "abandon_at": sent + 2_592_000_000,
                "actor": null,
                "client_id": base62("client_2", rng),
                "created_at": sent,
                "expire_at": sent + 604_800_000,
                // The same each time, so that events sent one by one are about one session.
                "id": base62("sess_2", &mut dice(&format!("session {}", self.id))),
                "last_active_at": sent,
                "object": "session",
                "status": if verb == "created" { "active" } else { verb },
                "updated_at": sent,
                "user_id": self.id,
            }),
            "organization" => json!({
                "admin_delete_enabled": true,
                "created_at": sent,
                "created_by": self.id,
                "has_image": false,
                "id": base62("org_2", rng),
                "max_allowed_memberships": 5,
                "name": "Example & Daughters",
                "object": "organization",
                "public_metadata": {},
                "slug": format!("example-{}", letters(rng, 6)),
                "updated_at": sent,
            }),
            "email" => json!({
                "body": "<p>Your code is 424242.</p>",
                "body_plain": "Your code is 424242.",
                "delivered_by_clerk": true,
                "email_address_id": self.email.as_deref().map(contact_id),
                "from_email_name": "notifications",
                "id": base62("ema_2", rng),
                "object": "email",
                "slug": "verification_code",
                "status": "queued",
                "subject": "Your code",
                "to_email_address": self.email,
                "user_id": self.id,
            }),
            "sms" => json!({
                "delivered_by_clerk": true,
                "from_phone_number": "+15555550100",
                "id": base62("sms_2", rng),
                "message": "Your code is 424242.",
                "object": "sms_message",
                "slug": "verification_code",
                "status": "queued",
                "to_phone_number": self.phone,
                "user_id": self.id,
            }),
            _ => json!({
                "created_at": sent,
                "id": base62("obj_2", rng),
                "object": object,
                "updated_at": sent,
                "user_id": self.id,
            }),
        }
    }
}

/// The body that `doctor` asks an ingress with.
pub fn probe(now: Millis) -> Vec<u8> {
    json!({"data": {}, "object": "event", "timestamp": now, "type": PROBE}).to_string().into_bytes()
}

/// A new Clerk user id: `user_2…`, 27 base62 characters.
pub fn user_id(rng: &mut impl RngExt) -> String {
    base62("user_2", rng)
}

/// A new webhook id as Svix makes them: `msg_2…`.
pub fn message_id(rng: &mut impl RngExt) -> String {
    base62("msg_2", rng)
}

/// The id of an address or a number: the same each time, as it is with Clerk over a user's events.
fn contact_id(contact: &str) -> String {
    base62("idn_2", &mut dice(contact))
}

/// Randomness that depends on `seed` alone.
fn dice(seed: &str) -> StdRng {
    StdRng::from_seed(sha256(seed.as_bytes()))
}

/// `prefix`, which ends in the first of 27 base62 characters, and the other 26.
fn base62(prefix: &str, rng: &mut impl RngExt) -> String {
    let random = (0..26).map(|_| char::from(rng.sample(rand::distr::Alphanumeric)));
    prefix.chars().chain(random).collect()
}

/// Lower-case letters and digits.
fn letters(rng: &mut impl RngExt, length: usize) -> String {
    (0..length).map(|_| char::from(rng.sample(rand::distr::Alphanumeric)).to_ascii_lowercase()).collect()
}

/// A name as it stands in an address.
fn plain(name: &str) -> String {
    name.to_lowercase()
        .chars()
        .filter_map(|c| match c {
            'é' | 'ë' => Some('e'),
            'í' => Some('i'),
            'ö' | 'ó' => Some('o'),
            c if c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clerk,
        message::MessageId,
        rules::{
            Change,
            users::{self, Claim},
        },
    };

    const AT: Millis = 1_760_000_000_123;

    fn parsed(body: &[u8]) -> clerk::Parsed {
        clerk::parse(body, &clerk::Known::webhook(&MessageId::of_body(body), 0)).unwrap()
    }

    #[test]
    fn ids_look_like_clerks() {
        let id = user_id(&mut dice("x"));
        let random = id.strip_prefix("user_").unwrap();
        assert!(random.len() == 27 && random.starts_with('2'));
        assert!(random.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(MessageId::parse(&message_id(&mut dice("x"))).is_some());
    }

    #[test]
    fn a_sample_is_read_as_what_it_is() {
        for n in 0..200 {
            let mut person = Person::of(format!("user_{n}"), AT);
            person.verified = n % 3 > 0;
            person.banned = n % 2 > 0;
            person.updated_at = AT + 5;
            let body = person.event("user.updated", AT + 9);
            assert!((1500..=3500).contains(&body.len()), "{} bytes", body.len());
            let clerk::Parsed { change: Change::User(users::Change::Upsert(user)), event_type, sent, .. } =
                parsed(&body)
            else {
                panic!()
            };
            assert_eq!((event_type.as_str(), sent), ("user.updated", Some(AT + 9)));
            assert_eq!((user.clerk_id, user.born, user.version.at), (person.id, AT, AT + 5));
            assert_eq!(user.claim, Some(Claim::new(person.email.unwrap(), person.verified)));
            assert_eq!(user.profile.phone, person.phone);
            assert_eq!(user.profile.username, person.username);
            assert_eq!(user.profile.first_name, person.first_name);
            assert_eq!(user.profile.external_id, person.external_id);
            assert_eq!(user.profile.public_metadata, Some(person.public_metadata.to_string()));
            assert_eq!(user.profile.banned, Some(person.banned));
            assert_eq!(user.profile.last_sign_in_at, Some(AT));
        }
    }

    #[test]
    fn the_same_call_gives_the_same_bytes() {
        let body = || Person::of("user_1", AT).event("user.created", AT);
        assert_eq!(body(), body());
        assert_ne!(Person::of("user_1", AT).email, Person::of("user_2", AT).email);
    }

    #[test]
    fn keys_are_in_alphabetical_order_as_on_the_wire() {
        let body = String::from_utf8(Person::of("user_1", AT).event("user.created", AT)).unwrap();
        let place = |key: &str| body.find(&format!("\"{key}\":")).unwrap();
        assert!(place("data") < place("event_attributes"));
        assert!(place("object") < place("timestamp") && place("timestamp") < place("type"));
        assert!(body.starts_with(r#"{"data":{"backup_code_enabled""#));
    }

    #[test]
    fn other_types_are_other_types() {
        let person = Person::of("user_1", AT);
        for event_type in
            ["organization.created", "email.created", "sms.created", "role.deleted", "session.touched", "x"]
        {
            let body = person.event(event_type, AT);
            assert!(matches!(parsed(&body).change, Change::Other), "{event_type}");
            assert!((300..2000).contains(&body.len()));
        }
        let begun = parsed(&person.event("session.created", AT)).change;
        let ended = parsed(&person.event("session.ended", AT + 1)).change;
        let (Change::Session(begun), Change::Session(ended)) = (begun, ended) else { panic!() };
        assert_eq!((&begun.id, begun.clerk_id.as_str()), (&ended.id, "user_1"));
        let bought = Person { plan: Some("gold".into()), ..person.clone() };
        for event_type in ["subscription.active", "subscriptionItem.active"] {
            let Change::Subscription(news) = parsed(&bought.event(event_type, AT)).change else { panic!() };
            assert_eq!((news.payer.as_str(), news.items.len()), ("user_1", 1), "{event_type}");
            assert_eq!(news.items[0].plan.as_ref().map(|plan| plan.slug.as_str()), Some("gold"));
        }
        let deleted = parsed(&person.event("user.deleted", AT)).change;
        assert!(
            matches!(deleted, Change::User(users::Change::Delete { clerk_id, at: AT }) if clerk_id == "user_1")
        );
    }
}
