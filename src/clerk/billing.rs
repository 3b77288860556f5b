//! Owns what Clerk tells about subscriptions: `data` of `subscription.*` and `subscriptionItem.*`, and what its API answers, read into
//! what the rules fold. Never looks at the envelope of a webhook.

use std::borrow::Cow;

use super::{
    Envelope, Heard,
    field::{Field, Path, PayloadError, Raw, fields},
    user::{content, identity, identity_at},
};
use crate::rules::{
    Version,
    subscriptions::{Mention, News, Plan, Status, tiers::NAME_MAX},
};

fields! {
    /// A subscription. Webhooks call its items `items`, the API `subscription_items`.
    Subscription { id, payer, updated_at, items, subscription_items }
}

fields! {
    /// One item. Webhooks call its period `interval`, the API `plan_period`. Only `data` of `subscriptionItem.*`, and items in the
    /// API's list of all, tell who pays and of which subscription it is.
    Item {
        id, subscription_id, payer, status, plan, interval, plan_period, period_start, period_end, canceled_at, updated_at
    }
}

fields! {
    /// Webhooks tell `amount` and `currency`, the API `fee` and `is_default`.
    PlanFields { slug, amount, currency, fee, is_default }
}

fields! {
    /// What the API calls a price.
    Fee { amount, currency }
}

fields! {
    /// Who pays. Of an id that is not set, nothing, null or an empty text is told.
    Payer { user_id, organization_id }
}

fields! {
    /// An item that the API's whole answer does not mention, and how it was known.
    Unmentioned { id, updated_at, sent, message_id }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A subscription, with some of its items.
    Subscription,
    /// One item, which stands so unless it says otherwise itself.
    Item(Option<Status>),
}

impl Kind {
    /// Of the type of an event that is read; `None` for all other types.
    pub(super) fn of(event_type: &str) -> Option<Self> {
        if !super::TYPES.contains(&event_type) {
            return None;
        }
        if event_type.starts_with("subscription.") {
            return Some(Self::Subscription);
        }
        let status = match event_type.strip_prefix("subscriptionItem.")? {
            "active" => Some(Status::Active),
            "pastDue" => Some(Status::PastDue),
            "canceled" => Some(Status::Canceled),
            "upcoming" => Some(Status::Upcoming),
            "incomplete" => Some(Status::Incomplete),
            "abandoned" => Some(Status::Abandoned),
            "ended" => Some(Status::Ended),
            "expired" => Some(Status::Expired),
            _ => None,
        };
        Some(Self::Item(status))
    }
}

impl Heard<'_> {
    /// What a webhook says.
    pub(super) fn billing(&self, data: Raw<'_>, kind: Kind) -> Result<News, PayloadError> {
        match kind {
            Kind::Subscription => {
                let subscription: Subscription<'_> = content(data)?;
                let payer = payer(subscription.payer)?;
                self.subscription(subscription, payer)
            }
            Kind::Item(status) => {
                let item: Item<'_> = content(data)?;
                let payer = payer(item.payer)?;
                let mention = self.item(|tail| Path::of(of_data(tail)), item, status, None)?;
                Ok(News { payer, at: mention.version.at, items: vec![mention], unmentioned: Vec::new() })
            }
        }
    }

    /// What was read of the API.
    pub(super) fn reading(&self, envelope: &Envelope<'_>) -> Result<News, PayloadError> {
        let payer = identity("payer", envelope.payer)?;
        let news = self.subscription(content(envelope.data)?, payer)?;
        let unmentioned = Field::at("unmentioned", envelope.unmentioned).array()?;
        let unmentioned = unmentioned.into_iter().enumerate().map(|(index, raw)| {
            let at = |tail| Path::element("unmentioned", index, tail);
            let object = Field::new(at(""), Some(raw));
            let item: Unmentioned<'_> = object.object()?.ok_or_else(|| object.error("missing"))?;
            let version = Version {
                at: Field::new(at(".updated_at"), item.updated_at).number()?.unwrap_or_default(),
                sent: Field::new(at(".sent"), item.sent).number()?.unwrap_or_default(),
                message_id: identity_at(Field::new(at(".message_id"), item.message_id))?,
            };
            Ok((identity_at(Field::new(at(".id"), item.id))?, version))
        });
        Ok(News { unmentioned: unmentioned.collect::<Result<_, PayloadError>>()?, ..news })
    }

    fn subscription(&self, data: Subscription<'_>, payer: String) -> Result<News, PayloadError> {
        let id = Field::at("data.id", data.id).any_text()?.map(Cow::into_owned);
        let updated_at = Field::at("data.updated_at", data.updated_at).time()?;
        let (list, items) = match data.subscription_items {
            Some(_) => ("data.subscription_items", data.subscription_items),
            None => ("data.items", data.items),
        };
        let items = Field::at(list, items).array()?.into_iter().enumerate().map(|(index, raw)| {
            let at = |tail| Path::element(list, index, tail);
            let object = Field::new(at(""), Some(raw));
            let item = object.object()?.ok_or_else(|| object.error("missing"))?;
            self.item(at, item, None, id.clone())
        });
        let items = items.collect::<Result<_, PayloadError>>()?;
        let at = updated_at.or(self.sent).unwrap_or(self.received_at);
        Ok(News { payer, at, items, unmentioned: Vec::new() })
    }

    fn item(
        &self,
        at: impl Fn(&'static str) -> Path,
        item: Item<'_>,
        by_type: Option<Status>,
        subscription_id: Option<String>,
    ) -> Result<Mention, PayloadError> {
        let field = |tail, raw| Field::new(at(tail), raw);
        let id = identity_at(field(".id", item.id))?;
        let updated_at = field(".updated_at", item.updated_at).time()?;
        let version = self.version(updated_at.or(self.sent).unwrap_or(self.received_at));
        let status = match field(".status", item.status).any_text()? {
            Some(said) => Status::ALL.into_iter().find(|status| status.as_str() == said),
            None => by_type,
        };
        let status = status
            .ok_or_else(|| field(".status", item.status).error("missing, or one that is new to headcount"))?;
        let told = field(".subscription_id", item.subscription_id).any_text()?;
        let told = told.filter(|id| !id.is_empty()).map(Cow::into_owned);
        let (plan, is_default) = plan(field(".plan", item.plan))?;
        let canceled_at = field(".canceled_at", item.canceled_at).time()?;
        Ok(Mention {
            id,
            subscription_id: told.or(subscription_id),
            status,
            plan,
            is_default,
            period: soft_text(item.interval).or_else(|| soft_text(item.plan_period)),
            period_start: field(".period_start", item.period_start).time()?,
            period_end: field(".period_end", item.period_end).time()?,
            // Webhooks do not tell it: their news is that it was canceled.
            canceled_at: canceled_at.or_else(|| (status == Status::Canceled).then_some(version.at)),
            version,
        })
    }
}

/// Where a field of `data` itself stands.
fn of_data(tail: &'static str) -> &'static str {
    match tail {
        ".id" => "data.id",
        ".updated_at" => "data.updated_at",
        ".status" => "data.status",
        ".subscription_id" => "data.subscription_id",
        ".plan" => "data.plan",
        ".canceled_at" => "data.canceled_at",
        ".period_start" => "data.period_start",
        ".period_end" => "data.period_end",
        _ => "data",
    }
}

/// The plan, where it has a slug; and whether it is told to be the default one. What is only for people, and for the order of plans
/// that nobody ranked, is left out where it is strange.
fn plan(plan: Field<'_>) -> Result<(Option<Plan>, Option<bool>), PayloadError> {
    let Some(fields): Option<PlanFields<'_>> = plan.object()? else { return Ok((None, None)) };
    let fee: Option<Fee<'_>> = Field::at("fee", fields.fee).object().ok().flatten();
    let (fee_amount, fee_currency) = fee.map(|fee| (fee.amount, fee.currency)).unwrap_or_default();
    let amount = |raw| Field::at("amount", raw).number().ok().flatten();
    let slug = Field::at("slug", fields.slug).name(NAME_MAX).ok().flatten();
    let plan = slug.map(|slug| Plan {
        slug: slug.into_owned(),
        amount: amount(fields.amount).or_else(|| amount(fee_amount)),
        currency: soft_text(fields.currency).or_else(|| soft_text(fee_currency)),
    });
    let is_default = Field::at("is_default", fields.is_default).flag().ok().flatten();
    Ok((plan, is_default))
}

/// A short text, where it is one.
fn soft_text(raw: Raw<'_>) -> Option<String> {
    Field::at("text", raw).name(NAME_MAX).ok().flatten().map(Cow::into_owned)
}

/// The organization that pays, else the user.
pub(super) fn payer(raw: Raw<'_>) -> Result<String, PayloadError> {
    let field = Field::at("data.payer", raw);
    let payer: Payer<'_> = field.object()?.ok_or_else(|| field.error("missing"))?;
    let set = |path, raw: Raw<'_>| match Field::at(path, raw).any_text()?.is_none_or(|id| id.is_empty()) {
        true => Ok(None),
        false => identity(path, raw).map(Some),
    };
    let organization = set("data.payer.organization_id", payer.organization_id)?;
    let id = organization.map_or_else(|| set("data.payer.user_id", payer.user_id), |id| Ok(Some(id)))?;
    id.ok_or_else(|| field.error("names neither a user nor an organization"))
}

/// Who pays for an item of the API's list, as far as it tells.
pub(super) fn payer_of_item(raw: Raw<'_>) -> Option<String> {
    let item: Item<'_> = Field::at("data", raw).object().ok()??;
    payer(item.payer).ok()
}

/// The id of an item of the API's list, where it is sound.
pub(super) fn id_of_item(raw: Raw<'_>) -> Option<String> {
    let item: Item<'_> = Field::at("data", raw).object().ok()??;
    identity("data.id", item.id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clerk::{self, Known},
        message::{MessageId, Origin},
        rules::Change,
        time::Millis,
    };

    const AT: Millis = 1_760_000_000_123;

    fn id() -> MessageId {
        MessageId::of_body(b"")
    }

    fn news(body: &str) -> Result<News, String> {
        let id = id();
        match clerk::parse(body.as_bytes(), &Known::webhook(&id, AT)).map_err(|error| error.detail)?.change {
            Change::Subscription(news) => Ok(*news),
            other => panic!("{other:?}"),
        }
    }

    const USER: &str = "user_3semJtesl21dIwkfaBd5FHRgKnF";

    #[test]
    fn a_subscription_is_read_as_clerk_sends_it() {
        let read = news(include_str!("subscription.updated.json")).unwrap();
        assert_eq!((read.payer.as_str(), read.at, read.items.len()), (USER, 1_796_029_200_000, 2));
        let [premium, free] = &read.items[..] else { panic!("{read:?}") };
        assert_eq!(premium.id, "csubi_3XHRx2zuGhqTtgMHNCD0G8o1rle");
        assert_eq!(premium.subscription_id.as_deref(), Some("csub_34lgQHPePSNsdULtdFtRWJ72NeG"));
        let plan = premium.plan.as_ref().unwrap();
        assert_eq!(
            (plan.slug.as_str(), plan.amount, plan.currency.as_deref()),
            ("premium_monthly", Some(900), Some("USD"))
        );
        assert_eq!((premium.status, premium.period.as_deref()), (Status::Canceled, Some("month")));
        assert_eq!(
            (premium.period_start, premium.period_end, premium.canceled_at),
            (Some(1_795_597_200_000), Some(1_798_189_200_000), Some(1_796_029_200_000))
        );
        assert_eq!((premium.version.at, premium.version.sent), (1_796_029_200_000, 1_796_029_200_055));
        assert_eq!((free.status, free.period_end, free.canceled_at), (Status::Upcoming, None, None));
    }

    #[test]
    fn an_item_is_read_alone_as_it_is_in_its_subscription() {
        let alone = news(include_str!("subscriptionItem.canceled.json")).unwrap();
        let together = news(include_str!("subscription.updated.json")).unwrap();
        assert_eq!(alone.payer, USER);
        let (mut one, mut other) = (alone.items[0].clone(), together.items[0].clone());
        assert_eq!((one.version.sent, other.version.sent), (1_796_029_200_020, 1_796_029_200_055));
        (one.version, other.version) = Default::default();
        assert_eq!(one, other);
    }

    #[test]
    fn what_the_api_answers_is_read_alike_and_tells_the_default_plan() {
        let data = include_str!("subscription.api.json");
        let body =
            format!(r#"{{"type":"headcount.subscription","timestamp":{AT},"payer":"{USER}","data":{data}}}"#);
        let id = id();
        let known = Known { origin: Origin::Api, ..Known::webhook(&id, AT) };
        let Change::Subscription(read) = clerk::parse(body.as_bytes(), &known).unwrap().change else {
            panic!()
        };
        let mut webhook = news(include_str!("subscription.updated.json")).unwrap().items;
        (webhook[0].is_default, webhook[1].is_default) = (Some(false), Some(true));
        let versions = |items: &[Mention]| items.iter().map(|item| item.version.at).collect::<Vec<_>>();
        assert_eq!(versions(&read.items), versions(&webhook));
        let mut items = read.items.clone();
        items.iter_mut().chain(&mut webhook).for_each(|item| item.version = Version::default());
        assert_eq!(items, webhook);
        // A webhook cannot say so, and it is about its payer.
        assert_eq!(news_error(&body), "type: only headcount itself makes events of this type");
        assert_eq!(clerk::whose(body.as_bytes()).as_deref(), Some(USER));
        assert_eq!(clerk::whose(include_bytes!("subscriptionItem.canceled.json")).as_deref(), Some(USER));
    }

    fn news_error(body: &str) -> String {
        let id = id();
        clerk::parse(body.as_bytes(), &Known::webhook(&id, AT)).unwrap_err().detail
    }

    #[test]
    fn an_item_needs_an_id_a_status_and_somebody_who_pays() {
        let item = |more: &str| {
            format!(
                r#"{{"type":"subscriptionItem.updated","timestamp":{AT},"data":{{"id":"csubi_1","status":"active",{more}}}}}"#
            )
        };
        for (body, detail) in [
            (item(r#""payer":null"#), "data.payer: missing"),
            (item(r#""payer":{}"#), "data.payer: names neither a user nor an organization"),
            (item(r#""payer":{"user_id":"","organization_id":""}"#), "data.payer: names neither a user nor an organization"),
            (item(r#""payer":{"user_id":7}"#), "data.payer.user_id: expected a string, found a number"),
            (item(r#""payer":{"user_id":"user 1"}"#), "data.payer.user_id: holds white space"),
            (item(r#""payer":{"user_id":"user_1"},"plan":[]"#), "data.plan: expected an object, found an array"),
            (
                item(r#""payer":{"user_id":"user_1"},"period_end":"soon""#),
                "data.period_end: expected a time, found a string",
            ),
            (
                r#"{"type":"subscriptionItem.updated","data":{"id":"csubi_1","payer":{"user_id":"user_1"}}}"#.into(),
                "data.status: missing, or one that is new to headcount",
            ),
            (
                r#"{"type":"subscription.active","data":{"payer":{"user_id":"user_1"},"items":[{"id":"a","status":"odd"}]}}"#.into(),
                "data.items[0].status: missing, or one that is new to headcount",
            ),
            (
                r#"{"type":"subscription.active","data":{"payer":{"user_id":"user_1"},"items":[{"status":"active"}]}}"#.into(),
                "data.items[0].id: missing",
            ),
        ] {
            assert_eq!(news_error(&body), detail);
            // Where subscriptions are not kept nothing is asked of them.
            let id = id();
            let off = Known { billing: false, ..Known::webhook(&id, AT) };
            assert!(matches!(clerk::parse(body.as_bytes(), &off).unwrap().change, Change::Other), "{body}");
        }
    }

    #[test]
    fn what_is_only_for_people_holds_up_nothing() {
        let body = format!(
            r#"{{"type":"subscriptionItem.ended","timestamp":{AT},"data":{{"id":"csubi_1","payer":{{"user_id":"user_1"}},
            "interval":7,"plan":{{"slug":"pro","amount":"much","currency":[]}},"period_end":null}}}}"#
        );
        let read = news(&body).unwrap();
        let item = &read.items[0];
        assert_eq!(
            (item.status, item.version.at, read.at),
            (Status::Ended, AT, AT),
            "by its type and its envelope"
        );
        assert_eq!(item.plan, Some(Plan { slug: "pro".into(), amount: None, currency: None }));
        assert_eq!((&item.period, item.period_end), (&None, None));
        for plan in ["null", "{}", r#"{"slug":""}"#, r#"{"slug":null}"#] {
            let body = body.replace(r#"{"slug":"pro","amount":"much","currency":[]}"#, plan);
            assert_eq!(news(&body).unwrap().items[0].plan, None, "{plan}");
        }
    }
}
