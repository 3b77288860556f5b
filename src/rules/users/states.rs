//! Owns the states of an account as the documentation draws them, and holds the drawing to the rules.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Event, OnDelete, Outcome, Policy, Relink,
    fixtures::{Books, DEFAULT, ERASE, created, deleted, updated},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Unknown,
    Waiting,
    Live,
    Deleted,
    Erased,
    Former,
}

use State::{Deleted, Erased, Former, Live, Unknown, Waiting};

/// From, to, and by which outcomes of the account's events (or what another account does).
type Arrow = (State, State, &'static [&'static str]);

const TAKEN: &str = "another account takes the row";

/// What the documentation draws, in its order.
const DRAWN: [Arrow; 17] = [
    (Unknown, Waiting, &["waiting"]),
    (Unknown, Live, &["created", "relinked"]),
    (Unknown, Former, &["deleted"]),
    (Waiting, Waiting, &["waiting"]),
    (Waiting, Live, &["created", "relinked"]),
    (Waiting, Former, &["deleted"]),
    (Live, Live, &["updated", "stale", TAKEN]),
    (Live, Deleted, &["deleted"]),
    (Live, Erased, &["deleted"]),
    (Deleted, Deleted, &["updated", "deleted", "stale"]),
    (Deleted, Erased, &["deleted"]),
    (Deleted, Former, &[TAKEN]),
    (Deleted, Live, &["revived"]),
    (Erased, Erased, &["deleted", "stale"]),
    (Erased, Live, &["revived"]),
    (Former, Former, &["stale"]),
    (Former, Live, &["revived"]),
];

/// The lines of the diagram, without what surrounds them.
fn diagram() -> Vec<String> {
    let arrow = |(from, to, labels): &Arrow| format!("    {from} --> {to} : {}", labels.join(", "));
    ["stateDiagram-v2".to_owned(), "    [*] --> unknown".to_owned()]
        .into_iter()
        .chain(DRAWN.iter().map(arrow))
        .collect()
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unknown => "unknown",
            Waiting => "waiting",
            Live => "live",
            Deleted => "deleted",
            Erased => "erased",
            Former => "former",
        })
    }
}

/// The first diagram of this kind in a document.
fn diagram_in(document: &str) -> Vec<&str> {
    let from = document.lines().skip_while(|line| *line != "stateDiagram-v2");
    from.take_while(|line| !line.starts_with("```")).collect()
}

const X: &str = "x@example.com";

/// Of `ann`, who waited before this.
fn state(books: &Books, waited: bool) -> State {
    if books.former.iter().any(|former| former.clerk_id == "ann") {
        return Former;
    }
    if !books.has_row("ann") {
        return if waited { Waiting } else { Unknown };
    }
    let row = books.row("ann");
    match (row.deleted_at, row.erased) {
        (None, _) => Live,
        (Some(_), false) => Deleted,
        (Some(_), true) => Erased,
    }
}

/// Ways into each state; the others' rows differ.
fn ways() -> Vec<(State, Books)> {
    let story = |parts: &[(Policy, Event)]| {
        let mut books = Books::default();
        for (policy, event) in parts {
            books.tell(policy, [event.clone()]);
        }
        books
    };
    let ann = || (DEFAULT, created("ann", 30).verified(X).event());
    let bob = || (DEFAULT, created("bob", 10).verified(X).event());
    let bob_gone = || (DEFAULT, deleted("bob", 20));
    let eve = || (DEFAULT, created("eve", 60).verified(X).event());
    vec![
        (Unknown, story(&[])),
        (Unknown, story(&[bob()])),
        (Unknown, story(&[bob(), bob_gone()])),
        (Waiting, story(&[bob(), ann()])),
        (Waiting, story(&[bob(), ann(), bob_gone()])),
        (Live, story(&[ann()])),
        (Live, story(&[bob(), bob_gone(), ann()])),
        (Deleted, story(&[ann(), (DEFAULT, deleted("ann", 40))])),
        (Erased, story(&[ann(), (ERASE, deleted("ann", 40))])),
        (Former, story(&[(DEFAULT, deleted("ann", 40))])),
        (Former, story(&[ann(), (DEFAULT, deleted("ann", 40)), eve()])),
    ]
}

fn events() -> Vec<Event> {
    let mut events = vec![deleted("ann", 35), deleted("ann", 45), deleted("bob", 20)];
    for news in
        [created("ann", 30), updated("ann", 25).born(25), updated("ann", 50).born(30), created("eve", 70)]
    {
        for news in [news.clone(), news.clone().unverified(X), news.verified(X)] {
            events.extend([news.clone().event(), news.clone().at_last(), news.read_at(60).revive().event()]);
        }
    }
    events
}

/// What the rules do, over every policy.
fn found() -> BTreeMap<(State, State), BTreeSet<&'static str>> {
    let mut arrows: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for relink in [Relink::Deleted, Relink::Match, Relink::Never] {
        for on_delete in [OnDelete::Keep, OnDelete::Erase] {
            for (from, before) in ways() {
                for event in events() {
                    let mut books = before.clone();
                    let [outcome] = books.tell(&Policy { relink, on_delete }, [event.clone()]);
                    let own = event.change.clerk_id() == Some("ann");
                    let to = state(&books, from == Waiting || own && outcome == Outcome::Waiting);
                    let holds = |books: &Books| books.has_row("ann").then(|| books.row("ann").id);
                    let taken = holds(&before) != holds(&books);
                    if own {
                        arrows.entry((from, to)).or_default().insert(outcome.as_str());
                    } else if from != to || taken {
                        arrows.entry((from, to)).or_default().insert(TAKEN);
                    }
                }
            }
        }
    }
    arrows
}

#[test]
fn each_way_leads_to_its_state() {
    for (state, books) in ways() {
        assert_eq!(self::state(&books, state == Waiting), state);
    }
}

#[test]
fn the_rules_do_what_is_drawn_and_nothing_else() {
    let drawn: BTreeMap<_, BTreeSet<_>> =
        DRAWN.into_iter().map(|(from, to, labels)| ((from, to), labels.iter().copied().collect())).collect();
    assert_eq!(found(), drawn);
}

#[test]
fn the_documentation_draws_these_states() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let document = std::fs::read_to_string(path).expect("the document with the diagram");
    assert_eq!(diagram_in(&document), diagram());
}
