//! Owns what people do at Clerk and the webhooks that Clerk makes of it.
//!
//! Whatever subset of deeds is played, the history is consistent: a deed that is impossible by then (an address that
//! somebody else has proved, a deleted account) does not happen.

use std::{fmt, sync::Arc};

use headcount::rules::{
    Change, Event,
    users::{self, Claim, Profile, Upsert, UpsertKind, Version},
};
use uuid::Uuid;

/// What one account does, at some time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Deed {
    /// Names the deed and its webhook, also after others were taken out of the history.
    pub(crate) label: u16,
    pub(crate) account: u8,
    pub(crate) act: Act,
    /// Milliseconds since the deed before.
    pub(crate) after: i64,
    /// How the webhook is written.
    pub(crate) style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Act {
    /// With an address, or with a phone number only.
    SignUp(Option<Address>),
    /// The primary address from now on.
    SetAddress(Option<Address>),
    /// Anything else about the user.
    Rename,
    Delete,
    /// Another webhook tells of the same deletion.
    TellDeletionAgain,
    /// Something that is not about the user.
    SignIn,
    /// Clerk's API is read, and what it says of the account is published, be it that it is gone. Where the request began
    /// depends on [`Style::early`].
    Read {
        /// A person asks for the account to live again.
        revive: bool,
    },
    /// It is published that the account is gone, although it lives: somebody's mistake.
    Misread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// 0 is `x@example.com`.
    pub(crate) name: u8,
    pub(crate) verified: bool,
    /// In capitals.
    pub(crate) loud: bool,
}

/// Details of a webhook that must not change the result of any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Style {
    /// The envelope's time, in milliseconds after the event's; `None` where the envelope has none.
    pub(crate) lag: Option<i64>,
    /// Greater ones make greater message ids.
    pub(crate) tie: u8,
    /// `created_at` is given.
    pub(crate) tells_birth: bool,
    /// A deletion is dated so many milliseconds too early: its time is of another clock than that of updates. A request to
    /// the API began so many milliseconds before what it was answered.
    pub(crate) early: i64,
}

impl Style {
    pub(crate) const PLAIN: Self = Self { lag: Some(0), tie: 0, tells_birth: true, early: 0 };
}

/// One webhook, or what was read from Clerk's API: the whole user as Clerk knows it at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fact {
    pub(crate) label: u16,
    pub(crate) account: u8,
    pub(crate) kind: Kind,
    /// `data.updated_at`; the envelope's time of a deletion.
    pub(crate) at: i64,
    /// The envelope's time.
    pub(crate) sent: Option<i64>,
    pub(crate) tie: u8,
    /// `data.created_at`.
    pub(crate) created_at: Option<i64>,
    pub(crate) address: Option<Address>,
    pub(crate) phone: Option<String>,
    pub(crate) first_name: String,
    /// When it happened: the time of the deed.
    pub(crate) happened: i64,
    /// `None`: a webhook.
    pub(crate) reading: Option<Reading>,
}

/// How Clerk's API was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reading {
    pub(crate) revive: bool,
    /// It says that the account is gone, and it lives.
    pub(crate) mistake: bool,
    /// When the account signed in last: webhooks do not tell it here, the API does.
    pub(crate) signed_in: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Created,
    Updated,
    Deleted,
    Other,
}

/// The first millisecond of every history.
const BEGINNING: i64 = 1_000;

/// Plays the deeds and gives the webhooks in the order in which the deeds happened.
pub(crate) fn play(deeds: &[Deed]) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::new();
    let mut now = BEGINNING;
    for deed in deeds {
        let before = facts.iter().rev().find(|fact| fact.account == deed.account && fact.is_state());
        let alive = before.is_some_and(|fact| fact.kind != Kind::Deleted);
        let free = |address: Option<Address>| match address {
            Some(address) if address.verified => !proved_by_another(&facts, deed.account, address.name),
            _ => true,
        };
        if let Act::Read { revive } = deed.act {
            now += deed.after;
            facts.extend(read(&facts, deed.account, revive, now - deed.style.early, deed.label, now));
            continue;
        }
        if let Act::Misread = deed.act {
            now += deed.after;
            let read = read(&facts, deed.account, false, now - deed.style.early, deed.label, now);
            let misread = read.filter(Fact::is_upsert).map(Fact::misread);
            let is_new = |new: &Fact| facts.iter().all(|fact| fact.message_id() != new.message_id());
            facts.extend(misread.filter(is_new));
            continue;
        }
        let (possible, kind, address) = match deed.act {
            Act::SignUp(address) => (before.is_none() && free(address), Kind::Created, address),
            Act::SetAddress(address) => (alive && free(address), Kind::Updated, address),
            Act::Rename => (alive, Kind::Updated, before.and_then(|fact| fact.address)),
            Act::Delete => (alive, Kind::Deleted, None),
            Act::TellDeletionAgain => (before.is_some() && !alive, Kind::Deleted, None),
            Act::SignIn => (true, Kind::Other, None),
            Act::Read { .. } | Act::Misread => (false, Kind::Other, None),
        };
        if !possible {
            continue;
        }
        now += deed.after;
        let at = if kind == Kind::Deleted { now - deed.style.early } else { now };
        let born = match kind {
            Kind::Created => Some(now),
            _ => facts
                .iter()
                .find(|fact| fact.account == deed.account && fact.kind == Kind::Created)
                .map(|fact| fact.at),
        };
        facts.push(Fact {
            label: deed.label,
            account: deed.account,
            kind,
            at,
            sent: deed.style.lag.map(|lag| at + lag),
            tie: deed.style.tie,
            created_at: born.filter(|_| deed.style.tells_birth),
            address,
            phone: address.is_none().then(|| format!("+1555010{:02}", deed.account)),
            first_name: format!("name {}", deed.label),
            happened: now,
            reading: None,
        });
    }
    facts
}

/// What Clerk's API says of an account after these facts, to a request that began at `read_at`: the user, or that it is gone.
/// `None` where there never was one, or where the same reading was published before.
pub(crate) fn read(
    facts: &[Fact],
    account: u8,
    revive: bool,
    read_at: i64,
    label: u16,
    happened: i64,
) -> Option<Fact> {
    let own = || facts.iter().rev().filter(|fact| fact.account == account);
    let last = own().find(|fact| fact.is_state())?;
    let signed_in = own().find(|fact| fact.kind == Kind::Other).map(|fact| fact.happened);
    let reading = Some(Reading { revive, mistake: false, signed_in });
    let fact = if last.kind == Kind::Deleted {
        let (at, sent) = (read_at, Some(read_at));
        Fact { label, at, sent, happened, reading, ..last.clone() }
    } else {
        let created = facts.iter().find(|fact| fact.account == account && fact.kind == Kind::Created);
        let created_at = created.map(|fact| fact.at);
        let (kind, sent) = (Kind::Updated, Some(read_at));
        Fact { label, kind, sent, created_at, happened, reading, ..last.clone() }
    };
    let id = fact.message_id();
    facts.iter().all(|other| other.message_id() != id).then_some(fact)
}

/// Whether some other live account's address is this one, proved.
fn proved_by_another(facts: &[Fact], account: u8, name: u8) -> bool {
    facts.iter().enumerate().any(|(place, fact)| {
        let is_last = || {
            let later = facts.iter().skip(place + 1).filter(|later| later.account == fact.account);
            later.into_iter().all(|later| !later.is_state())
        };
        fact.account != account && fact.is_upsert() && fact.proves(name) && is_last()
    })
}

impl Fact {
    pub(crate) fn clerk_id(&self) -> String {
        clerk_id(self.account)
    }

    pub(crate) fn message_id(&self) -> String {
        if self.reading.is_some() {
            let gone = if self.kind == Kind::Deleted { "gone_" } else { "" };
            return format!("api_{}_{gone}{}", self.clerk_id(), self.sent.unwrap_or_default());
        }
        format!("msg_{}_{:02}", self.tie, self.label)
    }

    pub(crate) fn born(&self) -> i64 {
        self.created_at.unwrap_or(self.at)
    }

    pub(crate) fn is_upsert(&self) -> bool {
        matches!(self.kind, Kind::Created | Kind::Updated)
    }

    /// The account has proved the address with this name, and it is the primary one.
    pub(crate) fn proves(&self, name: u8) -> bool {
        self.address.is_some_and(|address| address.verified && address.name == name)
    }

    pub(crate) fn profile(&self) -> Profile {
        Profile {
            first_name: Some(self.first_name.clone()),
            phone: self.phone.clone(),
            created_at: self.created_at,
            updated_at: Some(self.at),
            last_sign_in_at: self.reading.and_then(|reading| reading.signed_in),
            ..Profile::default()
        }
    }

    /// The row that this webhook would make.
    pub(crate) fn fresh_row(&self) -> Uuid {
        row_id(self.label)
    }

    /// The news, parsed, as a worker hands it to the fold.
    pub(crate) fn event(&self, patience_over: bool) -> Event {
        let change = match self.kind {
            Kind::Created => self.upsert(UpsertKind::Created),
            Kind::Updated => self.upsert(UpsertKind::Updated),
            Kind::Deleted => Change::User(users::Change::Delete { clerk_id: self.clerk_id(), at: self.at }),
            Kind::Other => Change::Other,
        };
        Event { message_id: self.message_id(), change, fresh_row: self.fresh_row(), patience_over }
    }

    fn upsert(&self, kind: UpsertKind) -> Change {
        Change::User(users::Change::Upsert(Box::new(self.user(kind))))
    }

    /// A reading of a user, as it is compared with the table.
    pub(crate) fn snapshot(&self) -> Upsert {
        self.user(UpsertKind::Updated)
    }

    fn user(&self, kind: UpsertKind) -> Upsert {
        Upsert {
            clerk_id: self.clerk_id(),
            version: Version {
                at: self.at,
                sent: self.sent.unwrap_or(0),
                kind,
                message_id: self.message_id(),
            },
            born: self.born(),
            claim: self.claim(),
            profile: Arc::new(self.profile()),
            source: match self.reading {
                None => users::Source::Webhook,
                Some(Reading { revive, .. }) => users::Source::Api { revive },
            },
        }
    }

    pub(crate) fn claim(&self) -> Option<Claim> {
        self.address.map(|address| Claim::new(address.text(), address.verified))
    }

    /// It tells how the account was by then.
    pub(crate) fn is_state(&self) -> bool {
        self.kind != Kind::Other && !self.reading.is_some_and(|reading| reading.mistake)
    }

    pub(crate) fn misread(self) -> Self {
        let reading = self.reading.map(|reading| Reading { mistake: true, ..reading });
        Self { kind: Kind::Deleted, at: self.sent.unwrap_or_default(), reading, ..self }
    }

    /// A reading that found the account gone.
    pub(crate) fn is_absence(&self) -> bool {
        self.reading.is_some() && self.kind == Kind::Deleted
    }
}

impl Address {
    pub(crate) fn text(&self) -> String {
        let text = format!("{}@example.com", char::from(b'x' + self.name % 3));
        if self.loud { text.to_uppercase() } else { text }
    }
}

pub(crate) fn clerk_id(account: u8) -> String {
    format!("user_{}", char::from(b'a' + account % 26))
}

/// The row that the webhook of this label makes.
pub(crate) fn row_id(label: u16) -> Uuid {
    Uuid::from_u128(u128::from(label) + 1)
}

/// The account for whose webhook the row was made.
pub(crate) fn founder(facts: &[Fact], row: Uuid) -> Option<String> {
    facts.iter().find(|fact| fact.fresh_row() == row).map(Fact::clerk_id)
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Deleted if self.reading.is_some_and(|reading| reading.mistake) => "api: gone, by mistake",
            Kind::Deleted if self.reading.is_some() => "api: gone",
            _ if self.reading.is_some_and(|reading| reading.revive) => "api, --revive:",
            _ if self.reading.is_some() => "api:",
            Kind::Created => "user.created",
            Kind::Updated => "user.updated",
            Kind::Deleted => "user.deleted",
            Kind::Other => "email.created",
        };
        write!(f, "#{:<2} t={} {what} {}", self.label, self.at - BEGINNING, self.clerk_id())?;
        if let Some(address) = self.address {
            write!(f, " {}{}", address.text(), if address.verified { "" } else { " (unverified)" })?;
        }
        match self.sent {
            None => f.write_str(", sent: missing")?,
            Some(sent) if sent != self.at => write!(f, ", sent t={}", sent - BEGINNING)?,
            Some(_) => {}
        }
        if self.tie > 0 {
            write!(f, ", {}", self.message_id())?;
        }
        match self.created_at {
            Some(born) if born != self.at && self.is_upsert() => write!(f, ", born t={}", born - BEGINNING),
            None if self.is_upsert() => f.write_str(", born: missing"),
            _ => Ok(()),
        }
    }
}
