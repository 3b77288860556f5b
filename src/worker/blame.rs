//! Owns whose fault a failure is: one message's, or everybody's. Pure: what was seen goes in with its times, and a
//! judgement comes out. Never looks at a clock or a queue, nor at an error's class apart from "the values are refused".
//!
//! A message is guilty when three things have followed one another: it failed, alone or together with others; others of
//! its kind succeeded; it failed alone. A try that takes long can prove the first two at once: others began in its second
//! half and succeeded well before its end.
//! Once a message was found guilty, each further failure is its own, as long as no other account fails without a success
//! after it.
//! While nothing succeeds, nothing is proved. Several accounts that fail are an outage, at once or after a while. A
//! single account that fails proves nothing either way.
//! Where a whole kind fails and other kinds succeed, nobody is guilty; only after a while is a message taken for the only
//! one of its kind that fails.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use crate::clerk;

/// A moment, as the time since some fixed one.
pub type Moment = Duration;

/// So many messages that fail alone while nothing succeeds are an outage at once.
pub const RUN: usize = 10;
/// A try that takes so long tells by itself what else succeeded meanwhile.
const LONG: Duration = Duration::from_secs(1);
/// A success so close to the end of a long try may be the end of what held up both.
const CLOSE: Duration = Duration::from_millis(500);
/// How long successes are remembered, apart from the latest, ...
const RECENT: Duration = Duration::from_secs(30);
/// ... and how far apart.
const APART: Duration = Duration::from_millis(50);
/// Messages that are remembered as having failed.
const REMEMBERED: usize = 10_000;

/// What an event does: its type, where that is one of [`clerk::TYPES`]; all others are one kind. An application's trigger or
/// policy often concerns one kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(&'static str);

impl Kind {
    /// Of an envelope's type.
    pub fn of(event_type: &str) -> Self {
        Self(clerk::TYPES.into_iter().find(|known| *known == event_type).unwrap_or("other"))
    }
}

/// A message that failed alone.
#[derive(Clone, Copy, Debug)]
pub struct Suspect<'m> {
    /// The message's id.
    pub message: &'m str,
    /// The account that it is about; two messages about one account prove no more than one does.
    pub account: &'m str,
    /// What it does to that account.
    pub kind: Kind,
    /// When a transaction that it was part of failed for the first time.
    pub failed_together: Option<Moment>,
    /// It was found guilty before, here or elsewhere: it is on the ladder.
    pub convicted: bool,
}

/// The time that a try took.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When the transaction was begun.
    pub begun: Moment,
    /// When it was known how it ended.
    pub ended: Moment,
}

impl Span {
    /// So long that others may succeed which do not wait for what held it up.
    pub(super) fn is_long(self) -> bool {
        self.took() >= LONG
    }

    pub(super) fn took(self) -> Duration {
        self.ended.saturating_sub(self.begun)
    }

    /// Whether `success` shows by itself that the database worked while this try failed.
    fn proves(self, success: Self) -> bool {
        let second_half = self.begun + self.took() / 2;
        self.is_long() && success.begun >= second_half && success.ended + CLOSE <= self.ended
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The message's own.
    Guilty,
    /// Not known yet: the message is a suspect until others have succeeded.
    Unproved,
}

/// What becomes of a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// Others have succeeded, so that another try proves something.
    TryAgain,
    /// It is to blame, although no other try has proved it.
    Guilty,
    /// Nothing is proved for too long: it makes room for others, and burns no attempt.
    SetAside,
}

/// What a silence means. A silence is the time since something failed and nothing has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// There is none, or it has not lasted long enough.
    None,
    /// A single account fails, and nothing else was there to be tried.
    Lone,
    /// Nothing succeeds, whoever's it is.
    Outage,
}

/// The moment at which suspects are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Review {
    /// The present.
    pub now: Moment,
    /// How long a suspect waits for others to prove something.
    pub patience: Duration,
    /// The worker has to stop: nothing can wait any more.
    pub stopping: bool,
}

/// The successes of one kind, thinned out; the latest is always among them.
#[derive(Debug, Default)]
struct Successes(VecDeque<Span>);

impl Successes {
    fn add(&mut self, success: Span) {
        if let [.., before, last] = self.0.make_contiguous()
            && last.begun.saturating_sub(before.begun) < APART
        {
            *last = success;
        } else {
            self.0.push_back(success);
        }
        while self.0.len() > 1 && self.0.front().is_some_and(|oldest| oldest.ended + RECENT < success.ended) {
            self.0.pop_front();
        }
    }

    fn any(&self, proves: impl Fn(Span) -> bool) -> bool {
        self.0.iter().rev().any(|success| proves(*success))
    }
}

/// Accounts that have failed since a success. Two are as good as many.
#[derive(Debug, Default)]
struct Failing(Vec<String>);

impl Failing {
    fn add(&mut self, account: &str) {
        if self.0.len() < 2 && !self.0.iter().any(|known| known == account) {
            self.0.push(account.to_owned());
        }
    }

    fn is_lone(&self, account: &str) -> bool {
        self.0.iter().all(|known| known == account)
    }
}

/// Failures since the last success, or since the last one that was dealt with.
#[derive(Debug)]
struct Run {
    since: Moment,
    messages: HashSet<String>,
}

/// What has been seen of one database.
#[derive(Debug, Default)]
pub struct Blame {
    succeeded: HashMap<Kind, Successes>,
    /// Accounts that failed since one of that kind succeeded.
    failing: HashMap<Kind, Failing>,
    /// Accounts that failed, and had not been to blame, since anything succeeded.
    silenced: Failing,
    /// When each message failed alone for the first time since it was found guilty.
    failed: HashMap<String, Moment>,
    /// In the order of their first failure.
    order: VecDeque<String>,
    run: Option<Run>,
}

impl Blame {
    /// A transaction that changed a row has committed.
    pub fn succeeded(&mut self, kind: Kind, tried: Span) {
        self.succeeded.entry(kind).or_default().add(tried);
        self.failing.remove(&kind);
        self.silenced = Failing::default();
        self.run = None;
    }

    /// A transaction over several messages has failed: the beginning of a silence, and nothing against any of them.
    pub fn failed_together(&mut self, at: Moment) {
        self.run(at);
    }

    /// A message has failed alone.
    pub fn failed(&mut self, suspect: &Suspect<'_>, tried: Span) -> Judgement {
        if !suspect.convicted {
            self.failing.entry(suspect.kind).or_default().add(suspect.account);
        }
        let before = self.failed_before(suspect);
        let proves = |success: Span| {
            tried.proves(success)
                || before.is_some_and(|failed| success.begun >= failed && success.ended <= tried.begun)
        };
        let again = suspect.convicted
            && self.silenced.is_lone(suspect.account)
            && self.is_lone_of_its_kind(suspect)
            && !self.succeeded.is_empty();
        if again || self.is_proved(suspect, proves) {
            self.cleared(suspect.message);
            return Judgement::Guilty;
        }
        if before.is_none() || !self.failed.contains_key(suspect.message) {
            self.remember(suspect.message, before.unwrap_or(tried.ended));
        }
        // What was found guilty before tells nothing about the database.
        if !suspect.convicted {
            self.silenced.add(suspect.account);
            self.run(tried.ended).messages.insert(suspect.message.to_owned());
        }
        Judgement::Unproved
    }

    fn failed_before(&self, suspect: &Suspect<'_>) -> Option<Moment> {
        let alone = self.failed.get(suspect.message).copied();
        [alone, suspect.failed_together].into_iter().flatten().min()
    }

    /// Whether a success of its kind proves something.
    fn is_proved(&self, suspect: &Suspect<'_>, proves: impl Fn(Span) -> bool) -> bool {
        self.succeeded.get(&suspect.kind).is_some_and(|successes| successes.any(&proves))
    }

    fn is_lone_of_its_kind(&self, suspect: &Suspect<'_>) -> bool {
        self.failing.get(&suspect.kind).is_none_or(|failing| failing.is_lone(suspect.account))
    }

    /// Whether another try of a message that failed can prove anything: others of its kind have succeeded since.
    fn may_be_proved(&self, suspect: &Suspect<'_>) -> bool {
        let Some(failed) = self.failed_before(suspect) else { return true };
        self.is_proved(suspect, |success| success.begun >= failed)
    }

    /// Whether a message that has failed and waited is to blame although its kind is too rare for a proof: no other account
    /// of its kind fails, and other kinds have succeeded since.
    fn is_lone(&self, suspect: &Suspect<'_>) -> bool {
        let since = self.failed_before(suspect).unwrap_or_default();
        self.is_lone_of_its_kind(suspect)
            && self.succeeded.values().any(|successes| successes.any(|success| success.begun >= since))
    }

    /// What becomes of a suspect whose last try ended at `failed`; `None` while it has to wait.
    pub fn conclude(&self, suspect: &Suspect<'_>, failed: Moment, review: Review) -> Option<Conclusion> {
        if self.may_be_proved(suspect) {
            return Some(Conclusion::TryAgain);
        }
        if review.stopping {
            return Some(Conclusion::SetAside);
        }
        let has_waited = review.now.saturating_sub(failed) >= review.patience;
        // While nothing at all succeeds it is not known whether this is an outage.
        if !has_waited || (self.silent_since().is_some() && !suspect.convicted) {
            return None;
        }
        Some(if self.is_lone(suspect) { Conclusion::Guilty } else { Conclusion::SetAside })
    }

    /// What becomes of a suspect of the one account that has failed for long enough ([`Silence::Lone`]). Refused values
    /// are the payload's fault; all else waits for others to prove something.
    pub fn conclude_alone(suspect: &Suspect<'_>, values_are_refused: bool) -> Option<Conclusion> {
        match (suspect.convicted, values_are_refused) {
            (true, _) => None,
            (false, true) => Some(Conclusion::Guilty),
            (false, false) => Some(Conclusion::SetAside),
        }
    }

    /// The message is no longer of interest: it has succeeded, or it was judged.
    pub fn cleared(&mut self, message: &str) {
        if self.failed.remove(message).is_some() {
            self.order.retain(|known| known != message);
        }
    }

    /// What it means that nothing has succeeded for a while; `patience` is how long the worker waits for a success.
    pub fn silence(&self, now: Moment, patience: Duration) -> Silence {
        let Some(run) = &self.run else { return Silence::None };
        if run.messages.len() >= RUN {
            return Silence::Outage;
        }
        if now.saturating_sub(run.since) < patience {
            return Silence::None;
        }
        if self.silenced.0.len() == 1 && !run.messages.is_empty() && !self.succeeded.is_empty() {
            Silence::Lone
        } else {
            Silence::Outage
        }
    }

    /// When the first failure since the last success was seen.
    pub fn silent_since(&self) -> Option<Moment> {
        self.run.as_ref().map(|run| run.since)
    }

    /// The present silence is dealt with; what fails next begins another.
    pub fn break_silence(&mut self) {
        self.run = None;
    }

    fn run(&mut self, at: Moment) -> &mut Run {
        self.run.get_or_insert_with(|| Run { since: at, messages: HashSet::new() })
    }

    fn remember(&mut self, message: &str, failed: Moment) {
        if self.failed.insert(message.to_owned(), failed).is_some() {
            return;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.failed.remove(&oldest);
        }
        self.order.push_back(message.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREATED: Kind = Kind("user.created");
    const UPDATED: Kind = Kind("user.updated");
    const DELETED: Kind = Kind("user.deleted");

    const PATIENCE: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> Moment {
        Duration::from_millis(millis)
    }

    fn span(begun: u64, ended: u64) -> Span {
        Span { begun: at(begun), ended: at(ended) }
    }

    fn suspect(account: &str) -> Suspect<'_> {
        Suspect { message: account, account, kind: CREATED, failed_together: None, convicted: false }
    }

    fn of(kind: Kind, account: &str) -> Suspect<'_> {
        Suspect { kind, ..suspect(account) }
    }

    fn on_the_ladder(account: &str) -> Suspect<'_> {
        Suspect { convicted: true, ..suspect(account) }
    }

    #[test]
    fn a_message_is_guilty_that_fails_before_and_after_others_succeed() {
        let mut blame = Blame::default();
        blame.succeeded(CREATED, span(0, 5));
        assert_eq!(blame.failed(&suspect("bad"), span(10, 12)), Judgement::Unproved);
        assert!(!blame.may_be_proved(&suspect("bad")));
        blame.succeeded(CREATED, span(13, 15));
        assert!(blame.may_be_proved(&suspect("bad")));
        assert_eq!(blame.failed(&suspect("bad"), span(16, 18)), Judgement::Guilty);
    }

    #[test]
    fn failing_among_others_counts_as_the_first_time() {
        let mut blame = Blame::default();
        blame.failed_together(at(10));
        blame.succeeded(CREATED, span(11, 15));
        let bad = Suspect { failed_together: Some(at(10)), ..suspect("bad") };
        assert_eq!(blame.failed(&bad, span(16, 18)), Judgement::Guilty);
    }

    #[test]
    fn a_try_that_began_before_the_success_proves_nothing() {
        let mut blame = Blame::default();
        blame.failed(&suspect("m"), span(0, 2));
        // It hung in the outage whose end the success is.
        blame.succeeded(CREATED, span(20, 25));
        assert_eq!(blame.failed(&suspect("m"), span(10, 30)), Judgement::Unproved);
    }

    #[test]
    fn a_long_try_is_proved_by_what_succeeded_in_its_second_half() {
        let case = |success: Span| {
            let mut blame = Blame::default();
            blame.succeeded(CREATED, success);
            blame.failed(&suspect("hangs"), span(1000, 5000))
        };
        assert_eq!(case(span(3000, 3010)), Judgement::Guilty);
        assert_eq!(case(span(2900, 2990)), Judgement::Unproved, "in its first half");
        assert_eq!(case(span(3000, 4900)), Judgement::Unproved, "a thaw frees both at once");
    }

    #[test]
    fn among_many_successes_a_long_try_finds_its_proof() {
        let mut blame = Blame::default();
        for n in 0..2000 {
            blame.succeeded(CREATED, span(n * 5, n * 5 + 4));
        }
        assert_eq!(blame.failed(&suspect("hangs"), span(5990, 9990)), Judgement::Guilty);
        assert!(blame.succeeded[&CREATED].0.len() <= 600, "thinned out");
    }

    #[test]
    fn each_event_type_that_is_read_is_a_kind_of_its_own() {
        let kinds: HashSet<Kind> = clerk::TYPES.into_iter().map(Kind::of).collect();
        assert_eq!(kinds.len(), clerk::TYPES.len());
        assert_eq!(Kind::of("no.family"), Kind::of("none.either"));
        assert!(!kinds.contains(&Kind::of("no.family")));
    }

    #[test]
    fn a_failing_kind_blames_nobody_but_a_lone_account_of_a_rare_kind_is() {
        let mut blame = Blame::default();
        let others = |blame: &mut Blame, from: u64| blame.succeeded(CREATED, span(from, from + 1));
        let deletion = |account| of(DELETED, account);
        blame.failed(&deletion("a"), span(0, 1));
        assert!(!blame.is_lone(&deletion("a")), "nothing has succeeded since");
        others(&mut blame, 2);
        assert_eq!(
            blame.failed(&deletion("a"), span(4, 5)),
            Judgement::Unproved,
            "the first may not be the only one"
        );
        assert!(blame.is_lone(&deletion("a")));
        blame.failed(&deletion("b"), span(4, 5));
        others(&mut blame, 6);
        for account in ["a", "b"] {
            assert!(!blame.may_be_proved(&deletion(account)) && !blame.is_lone(&deletion(account)));
            let on_the_ladder = Suspect { convicted: true, ..deletion(account) };
            assert_eq!(blame.failed(&on_the_ladder, span(8, 9)), Judgement::Unproved, "its kind fails");
        }
        blame.succeeded(DELETED, span(10, 11));
        assert_eq!(blame.failed(&deletion("a"), span(12, 13)), Judgement::Guilty);
    }

    #[test]
    fn a_suspect_waits_until_others_succeed_or_its_patience_is_over() {
        let review = |now: u64| Review { now: at(now), patience: PATIENCE, stopping: false };
        let stop = |now: u64| Review { stopping: true, ..review(now) };
        let mut blame = Blame::default();
        let (bad, deletion, convicted) =
            (suspect("bad"), of(DELETED, "rare"), Suspect { convicted: true, ..suspect("c") });
        blame.failed(&bad, span(0, 1));
        assert_eq!(blame.conclude(&bad, at(1), review(4999)), None);
        assert_eq!(blame.conclude(&bad, at(1), review(60_000)), None, "it may be an outage");
        assert_eq!(blame.conclude(&bad, at(1), stop(2)), Some(Conclusion::SetAside));
        blame.failed(&convicted, span(0, 1));
        assert_eq!(blame.conclude(&convicted, at(1), review(5001)), Some(Conclusion::SetAside));

        blame.failed(&deletion, span(2, 3));
        blame.succeeded(CREATED, span(4, 5));
        for review in [review(6), stop(6)] {
            assert_eq!(blame.conclude(&bad, at(1), review), Some(Conclusion::TryAgain));
        }
        // Nothing of its kind succeeds, and no other account of its kind fails.
        assert_eq!(blame.conclude(&deletion, at(3), review(5002)), None);
        assert_eq!(blame.conclude(&deletion, at(3), stop(5002)), Some(Conclusion::SetAside));
        assert_eq!(blame.conclude(&deletion, at(3), review(5003)), Some(Conclusion::Guilty));
        blame.failed(&of(DELETED, "other"), span(6, 7));
        blame.succeeded(CREATED, span(8, 9));
        assert_eq!(blame.conclude(&deletion, at(3), review(5003)), Some(Conclusion::SetAside));
    }

    #[test]
    fn alone_in_silence_only_refused_values_are_proof() {
        assert_eq!(Blame::conclude_alone(&suspect("a"), true), Some(Conclusion::Guilty));
        assert_eq!(Blame::conclude_alone(&suspect("a"), false), Some(Conclusion::SetAside));
        assert_eq!(Blame::conclude_alone(&on_the_ladder("a"), true), None);
    }

    #[test]
    fn on_the_ladder_each_failure_is_its_own_unless_others_fail_in_silence() {
        let mut blame = Blame::default();
        assert_eq!(
            blame.failed(&on_the_ladder("a"), span(0, 1)),
            Judgement::Unproved,
            "nothing has succeeded yet"
        );
        blame.succeeded(UPDATED, span(2, 3));
        assert_eq!(blame.failed(&on_the_ladder("a"), span(4, 5)), Judgement::Guilty);
        assert_eq!(blame.failed(&on_the_ladder("b"), span(6, 7)), Judgement::Guilty);
        blame.failed(&suspect("c"), span(8, 9));
        assert_eq!(
            blame.failed(&on_the_ladder("a"), span(10, 11)),
            Judgement::Unproved,
            "an outage, perhaps"
        );
        assert_eq!(blame.silence(at(5010), PATIENCE), Silence::Lone);
    }

    #[test]
    fn a_silence_of_many_is_an_outage_and_of_one_account_its_own_trouble() {
        let mut blame = Blame::default();
        assert_eq!(blame.silence(at(0), PATIENCE), Silence::None);
        blame.failed(&suspect("a"), span(0, 1));
        assert_eq!(blame.silence(at(5000), PATIENCE), Silence::None);
        assert_eq!(blame.silence(at(5001), PATIENCE), Silence::Outage, "the database was never seen to work");
        blame.succeeded(CREATED, span(6000, 6001));
        blame.cleared("a");
        assert_eq!(blame.silence(at(20_000), PATIENCE), Silence::None);

        blame.failed(&suspect("a"), span(20_000, 20_001));
        blame.failed(&Suspect { message: "a2", ..suspect("a") }, span(20_000, 20_002));
        assert_eq!(blame.silence(at(25_001), PATIENCE), Silence::Lone);
        blame.break_silence();
        // Dealt with; but should another account fail before anything succeeds, it was no single account's trouble.
        blame.failed(&suspect("b"), span(30_000, 30_001));
        assert_eq!(blame.silence(at(35_001), PATIENCE), Silence::Outage);

        let mut blame = Blame::default();
        blame.failed_together(at(0));
        assert_eq!(blame.silence(at(5000), PATIENCE), Silence::Outage);

        let mut blame = Blame::default();
        for n in 0..RUN {
            assert_eq!(blame.silence(at(1), PATIENCE), Silence::None);
            blame.failed(&suspect(&format!("m{n}")), span(0, 1));
        }
        assert_eq!(blame.silence(at(1), PATIENCE), Silence::Outage);
    }

    #[test]
    fn what_failed_is_remembered_within_bounds() {
        let mut blame = Blame::default();
        for n in 0..3 * REMEMBERED {
            blame.failed(&suspect(&format!("m{n}")), span(0, 1));
            if n % 3 == 0 {
                blame.cleared(&format!("m{n}"));
            }
        }
        assert!(blame.failed.len() <= REMEMBERED && blame.order.len() == blame.failed.len());
    }

    /// One try in a world that is worked through in order.
    #[derive(Clone, Debug)]
    struct Try {
        account: u8,
        gap: u16,
        takes: u16,
    }

    fn tries() -> impl Strategy<Value = Vec<Try>> {
        let one = (0..12_u8, 0..3000_u16, 1..3000_u16).prop_map(|(account, gap, takes)| Try {
            account,
            gap,
            takes,
        });
        prop::collection::vec(one, 1..200)
    }

    proptest! {
        /// From the first failure of an outage to its end nobody is found guilty, and not by its end either, whatever
        /// came before and in whatever order; the innocent who fail in it succeed after it.
        #[test]
        fn an_outage_finds_nobody_guilty(tries in tries(), from in 0..200_usize, length in 1..100_usize) {
            let mut blame = Blame::default();
            let mut clock = 0_u64;
            for (n, one) in tries.iter().enumerate() {
                clock += u64::from(one.gap);
                let tried = span(clock, clock + u64::from(one.takes));
                clock += u64::from(one.takes);
                let (message, account) = (format!("{n}"), format!("user_{}", one.account));
                let suspect = Suspect { message: &message, ..suspect(&account) };
                if (from..from + length).contains(&n) {
                    prop_assert_eq!(blame.failed(&suspect, tried), Judgement::Unproved);
                } else {
                    blame.succeeded(CREATED, tried);
                    blame.cleared(&message);
                }
            }
        }

        /// A message that always fails is found guilty as soon as others have succeeded in between, and nobody else is.
        #[test]
        fn only_the_guilty_is_found_guilty_and_always(tries in tries()) {
            let mut blame = Blame::default();
            let (mut clock, mut failed, mut succeeded_since) = (0_u64, false, false);
            for one in &tries {
                clock += u64::from(one.gap) + 1;
                let tried = span(clock, clock + u64::from(one.takes));
                clock += u64::from(one.takes);
                if one.account == 0 {
                    let guilty = blame.failed(&suspect("guilty"), tried) == Judgement::Guilty;
                    prop_assert_eq!(guilty, failed && succeeded_since);
                    failed = !guilty;
                    succeeded_since = false;
                } else {
                    blame.succeeded(CREATED, tried);
                    succeeded_since = true;
                }
                prop_assert_ne!(blame.silence(at(clock), Duration::MAX), Silence::Outage);
            }
        }
    }
}
