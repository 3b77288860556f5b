//! Owns which letters a filter means, as conditions, and the questions that are put together from them, in SQL that both
//! databases know. Every value is bound. Never asks them.

use sqlx::{Database, QueryBuilder};
use uuid::Uuid;

use super::{
    StoreError,
    letters::{Filter, GROUPS_MAX, LETTERS_MAX, Page, Status},
    plain,
};
use crate::time::Millis;

/// A database, as far as the questions differ from one to the other.
pub(super) trait Dialect: Database + Sized {
    /// Appends a placeholder, with its value.
    fn bind(query: &mut QueryBuilder<Self>, value: Value<'_>);

    /// A question that stands as it is, with its values.
    fn whole<'v>(
        question: impl Into<String>,
        values: impl IntoIterator<Item = Value<'v>>,
    ) -> Result<QueryBuilder<Self>, StoreError>;

    /// The column has one of the texts of a list, which is the parameter of this number.
    fn among(column: &str, n: usize) -> String;

    /// Appends ` AND …`: the letter is one of these.
    fn and_one_of(query: &mut QueryBuilder<Self>, ids: &[Uuid]);

    /// Appends ` AND …`: `search` contains this text.
    fn and_contains(query: &mut QueryBuilder<Self>, text: &str);
}

/// A value that goes with a question.
#[derive(Clone, Copy)]
pub(super) enum Value<'v> {
    Id(Option<Uuid>),
    Text(&'v str),
    TextOrNull(Option<&'v str>),
    /// All of these, as one value.
    Texts(&'v [String]),
    Time(Millis),
    TimeOrNull(Option<Millis>),
    Number(i64),
    Flag(bool),
}

/// [`Dialect::bind`] and [`Dialect::whole`], which read alike for both databases, but for what `$texts` makes of a list.
macro_rules! binding {
    ($texts:expr) => {
        fn bind(query: &mut QueryBuilder<Self>, value: Value<'_>) {
            match value {
                Value::Id(id) => query.push_bind(id.map(Id)),
                Value::Text(text) => query.push_bind(text.to_owned()),
                Value::TextOrNull(text) => query.push_bind(text.map(str::to_owned)),
                Value::Texts(texts) => query.push_bind($texts(texts.to_vec())),
                Value::Time(at) => query.push_bind(At(at)),
                Value::TimeOrNull(at) => query.push_bind(at.map(At)),
                Value::Number(number) => query.push_bind(number),
                Value::Flag(flag) => query.push_bind(flag),
            };
        }

        fn whole<'v>(
            question: impl Into<String>,
            values: impl IntoIterator<Item = Value<'v>>,
        ) -> Result<QueryBuilder<Self>, StoreError> {
            let mut arguments = <Self as sqlx::Database>::Arguments::default();
            for value in values {
                match value {
                    Value::Id(id) => arguments.add(id.map(Id)),
                    Value::Text(text) => arguments.add(text.to_owned()),
                    Value::TextOrNull(text) => arguments.add(text.map(str::to_owned)),
                    Value::Texts(texts) => arguments.add($texts(texts.to_vec())),
                    Value::Time(at) => arguments.add(At(at)),
                    Value::TimeOrNull(at) => arguments.add(at.map(At)),
                    Value::Number(number) => arguments.add(number),
                    Value::Flag(flag) => arguments.add(flag),
                }
                .map_err(sqlx::Error::Encode)?;
            }
            Ok(QueryBuilder::with_arguments(question, arguments))
        }
    };
}

pub(super) use binding;

/// One thing that a letter has to be.
enum Condition<'f> {
    /// It is one of these.
    Ids(&'f [Uuid]),
    /// A column has this value.
    Is(&'static str, &'f str),
    /// `search` contains this text, which is in lower case.
    Contains(String),
    /// A column compares so with a time.
    Time(&'static str, Millis),
    /// It comes after this letter in a listing.
    After(Millis, Uuid),
}

impl Condition<'_> {
    /// Appends ` AND …`.
    fn push<D: Dialect>(&self, query: &mut QueryBuilder<D>) {
        match self {
            Self::Ids(ids) => D::and_one_of(query, ids),
            Self::Contains(text) => D::and_contains(query, text),
            Self::Is(column, value) => {
                query.push(format_args!(" AND {column} = "));
                D::bind(query, Value::Text(value));
            }
            Self::Time(compared, at) => {
                query.push(format_args!(" AND {compared} "));
                D::bind(query, Value::Time(*at));
            }
            Self::After(died_at, id) => {
                query.push(" AND (died_at, id) < (");
                D::bind(query, Value::Time(*died_at));
                query.push(", ");
                D::bind(query, Value::Id(Some(*id)));
                query.push(")");
            }
        }
    }
}

/// The conditions of a filter.
pub(super) struct Conditions<'f> {
    all: Vec<Condition<'f>>,
    status: Option<Status>,
    /// The tallies have all its columns.
    tallied: bool,
}

/// The columns whose indexes have the status next: a listing by one of them is read in the order of the index where the
/// status is known.
const BEFORE_STATUS: [&str; 3] = ["grp", "reason", "event_type"];

impl<'f> Conditions<'f> {
    /// `None`: no letter can be selected.
    pub(super) fn of(filter: &'f Filter) -> Option<Self> {
        let mut all = Vec::new();
        for (column, value) in [
            ("grp", &filter.group),
            ("reason", &filter.reason),
            ("event_type", &filter.event_type),
            ("clerk_id", &filter.clerk_id),
        ] {
            if let Some(value) = value {
                all.push(Condition::Is(column, plain::stored(value)?));
            }
        }
        let mut tallied = filter.clerk_id.is_none();
        let mut also = |condition| {
            tallied = false;
            all.push(condition);
        };
        if !filter.ids.is_empty() {
            also(Condition::Ids(&filter.ids));
        }
        if let Some(text) = &filter.text {
            also(Condition::Contains(plain::stored(text)?.to_lowercase()));
        }
        if let Some(since) = filter.since {
            also(Condition::Time("died_at >=", since));
        }
        if let Some(until) = filter.until {
            also(Condition::Time("died_at <", until));
        }
        if let Some(since) = filter.settled_since {
            also(Condition::Time("settled_at >=", since));
        }
        Some(Self { all, status: filter.status, tallied })
    }

    /// The conditions for letters of one status; `None` where the filter asks for another.
    pub(super) fn of_status(filter: &'f Filter, status: Status) -> Option<Self> {
        let conditions = Self::of(filter)?;
        conditions.status.is_none_or(|asked| asked == status).then_some(())?;
        Some(Self { status: Some(status), ..conditions })
    }

    /// The conditions for letters of one status, whichever the filter asks for.
    pub(super) fn despite_status(filter: &'f Filter, status: Status) -> Option<Self> {
        Some(Self { status: Some(status), ..Self::of(filter)? })
    }

    /// Appends ` WHERE …`.
    pub(super) fn push<D: Dialect>(&self, query: &mut QueryBuilder<D>) {
        self.push_with(query, self.status);
    }

    fn push_with<D: Dialect>(&self, query: &mut QueryBuilder<D>, status: Option<Status>) {
        query.push(" WHERE true");
        self.and(query, status);
    }

    fn and<D: Dialect>(&self, query: &mut QueryBuilder<D>, status: Option<Status>) {
        if let Some(status) = status {
            Condition::Is("status", status.as_str()).push(query);
        }
        self.all.iter().for_each(|condition| condition.push(query));
    }

    /// Asks for a page. Where an index has the status before the time and the filter names no status, this reads one page of
    /// each status, in the order of the index, and merges them.
    pub(super) fn page<D: Dialect>(mut self, page: &Page) -> QueryBuilder<D> {
        let limit = page.limit.min(LETTERS_MAX);
        if let Some((died_at, id)) = page.after {
            self.all.push(Condition::After(died_at, id));
        }
        let order = format!(" ORDER BY died_at DESC, id DESC LIMIT {limit}");
        let led = |condition: &Condition<'_>| matches!(condition, Condition::Is(column, _) if BEFORE_STATUS.contains(column));
        let statuses = match self.status {
            None if self.all.iter().any(led) => Status::ALL.map(Some).to_vec(),
            status => vec![status],
        };
        let mut query = QueryBuilder::new("SELECT * FROM (");
        for (index, status) in statuses.into_iter().enumerate() {
            let glue = if index == 0 { "" } else { " UNION ALL " };
            query.push(format!("{glue}SELECT * FROM (SELECT {COLUMNS} FROM dead_letters"));
            self.push_with(&mut query, status);
            query.push(format!("{order}) AS page_{index}"));
        }
        query.push(format!(") AS pages{order}"));
        query
    }

    /// Whether counting first pays: the tallies know the event types of a group, its indexes do not.
    pub(super) fn may_be_few(&self) -> bool {
        self.tallied && self.all.iter().any(|condition| matches!(condition, Condition::Is("event_type", _)))
    }

    /// Asks for groups, the largest first. Where the letters are `few` it reads all of them; else it looks into the index
    /// once for each group.
    pub(super) fn groups<D: Dialect>(&self, few: bool) -> QueryBuilder<D> {
        if few || !self.tallied {
            let mut query = QueryBuilder::new(
                "SELECT grp, reason, count(*) AS letters, min(died_at) AS first_died_at, max(died_at) AS last_died_at, \
                 max(detail) AS detail FROM dead_letters",
            );
            self.push(&mut query);
            query.push(format!(" GROUP BY grp, reason ORDER BY letters DESC, grp LIMIT {GROUPS_MAX}"));
            return query;
        }
        let mut query = QueryBuilder::new(
            "WITH tally AS (SELECT grp, reason, status, CAST(sum(letters) AS bigint) AS letters FROM dead_letter_tallies",
        );
        self.push(&mut query);
        query.push(format!(
            " GROUP BY grp, reason, status HAVING sum(letters) > 0), \
             top AS (SELECT grp, reason, sum(letters) AS letters FROM tally \
             GROUP BY grp, reason ORDER BY letters DESC, grp LIMIT {GROUPS_MAX}), \
             ends AS (SELECT t.grp, t.reason, t.letters"
        ));
        // One look into the index for each.
        for (what, order, name) in [
            ("died_at", "died_at, id", "first_died_at"),
            ("died_at", "died_at DESC, id DESC", "last_died_at"),
            ("detail", "died_at DESC, id DESC", "detail"),
        ] {
            query.push(format!(
                ", (SELECT {what} FROM dead_letters AS l \
                 WHERE l.grp = t.grp AND l.reason = t.reason AND l.status = t.status"
            ));
            let by_type = |condition: &&Condition<'_>| matches!(condition, Condition::Is("event_type", _));
            self.all.iter().filter(by_type).for_each(|condition| condition.push(&mut query));
            query.push(format!(" ORDER BY {order} LIMIT 1) AS {name}"));
        }
        query.push(
            " FROM tally AS t JOIN top ON top.grp = t.grp AND top.reason = t.reason) \
             SELECT grp, reason, CAST(sum(letters) AS bigint) AS letters, min(first_died_at) AS first_died_at, \
             max(last_died_at) AS last_died_at, max(detail) AS detail \
             FROM ends GROUP BY grp, reason ORDER BY letters DESC, grp",
        );
        query
    }

    /// Asks how many there are, by event type and reason.
    pub(super) fn count<D: Dialect>(&self) -> QueryBuilder<D> {
        let mut query = QueryBuilder::new(if self.tallied {
            "SELECT event_type, reason, CAST(sum(letters) AS bigint) AS letters FROM dead_letter_tallies"
        } else {
            "SELECT event_type, reason, count(*) AS letters FROM dead_letters"
        });
        self.push(&mut query);
        query.push(" GROUP BY event_type, reason");
        if self.tallied {
            query.push(" HAVING sum(letters) > 0");
        }
        query.push(" ORDER BY letters DESC, event_type, reason");
        query
    }
}

/// The columns of a listing.
const COLUMNS: &str = "id, message_id, origin, round, event_type, clerk_id, reason, detail, attempts, first_seen, died_at, status, outcome, grp";
