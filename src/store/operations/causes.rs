//! Owns why open letters died: their groups, and for each of them when its letters did. Promises to look into the index only, once for
//! each group and hour, so that it is quick however many letters there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Cause, HOURS};
use crate::{
    store::{
        StoreError,
        columns::Many,
        filter::{Dialect as _, Value},
        letters::{Filter, Group, Status},
        questions::{self, Planned},
        sync::tables::{Kind, Words as _, Works, ask},
    },
    time::{Millis, rfc3339},
};

/// A group, the place of an hour, and how many letters died in it.
type Counted = (String, i64, Many);

const HOUR: Millis = 3_600_000;
const DAY: Millis = HOURS as Millis * HOUR;

pub(super) async fn read<S: Works>(store: &S, now: Millis) -> Result<Vec<Cause>, StoreError> {
    let open = Filter { status: Some(Status::Open), ..Filter::default() };
    let groups = questions::groups(store, &open).await?;
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let keys: BTreeSet<&str> = groups.iter().map(|group| group.group.as_str()).collect();
    let keys = json!(keys.iter().map(|key| json!({ "grp": key })).collect::<Vec<_>>()).to_string();
    let spans = (0..HOURS).map(|n| {
        let from = now - DAY + n as Millis * HOUR;
        // Letters are dated by other clocks, which may be ahead of this one.
        let until = if n + 1 == HOURS { now + DAY } else { from + HOUR };
        json!({ "n": n, "since": rfc3339(from), "until": rfc3339(until) })
    });
    let spans = json!(spans.collect::<Vec<_>>()).to_string();
    let question = format!(
        "SELECT g.grp, s.n, (SELECT count(*) FROM dead_letters AS l WHERE l.grp = g.grp AND l.status = 'open' \
         AND l.died_at >= s.since AND l.died_at < s.until) AS letters FROM {}, {}",
        S::Db::records("g", 1, &[("grp", Kind::Text)]),
        S::Db::records("s", 2, &[("n", Kind::Number), ("since", Kind::Time), ("until", Kind::Time)])
    );
    let question = S::Db::whole(question, [Value::Text(&keys), Value::Text(&spans)])?;
    let older = format!(
        "SELECT g.grp FROM {} WHERE EXISTS (SELECT 1 FROM (SELECT 'open' AS status UNION ALL SELECT 'replayed' \
         UNION ALL SELECT 'applied' UNION ALL SELECT 'discarded') AS s \
         WHERE EXISTS (SELECT 1 FROM dead_letters AS l WHERE l.grp = g.grp AND l.status = s.status AND l.died_at < $2))",
        S::Db::records("g", 1, &[("grp", Kind::Text)])
    );
    let older = S::Db::whole(older, [Value::Text(&keys), Value::Time(now - DAY)])?;
    // Neither depends on the other, and with a million letters each takes its time.
    let (counts, older) = tokio::try_join!(
        ask::<S, Counted>(store, question, Planned::EachTime),
        ask::<S, (String,)>(store, older, Planned::EachTime)
    )?;
    let older: BTreeSet<String> = older.into_iter().map(|(key,)| key).collect();
    let mut hours: BTreeMap<String, [u64; HOURS]> = BTreeMap::new();
    for (key, n, Many(letters)) in counts {
        if let Some(hour) = usize::try_from(n).ok().filter(|n| *n < HOURS) {
            hours.entry(key).or_insert([0; HOURS])[hour] = letters;
        }
    }
    let cause = |group: Group| {
        let hours = hours.get(&group.group).copied().unwrap_or([0; HOURS]);
        let is_new = !older.contains(&group.group);
        Cause { group, hours: hours.to_vec(), is_new }
    };
    Ok(groups.into_iter().map(cause).collect())
}
