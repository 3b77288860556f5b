//! Owns worlds with Clerk's API: what happens at Clerk, when the API is read and compared with the table, what is published of
//! it, and which webhooks and news are delivered when. [`run`] lets such a world happen to any [`Table`].
//!
//! Nothing is known before it has happened: the API shows the state of the moment, and the table is compared as it is by then.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

use headcount::rules::{
    Outcome,
    users::{Loaded, Policy, Row, Standing, compare},
};

use super::{
    check::{Broken, in_step},
    generate::Dice,
    history::{Deed, Fact, Kind, clerk_id, play, read},
    plan::Delivery,
    reference::{is_torn, times_in_order},
    shrink::{Simpler, plainer},
};

/// So many tries a message waits.
const PATIENCE: u32 = 3;

/// The label of the first news; webhooks have smaller ones.
const NEWS: u16 = 1_000;
/// The number of the requests in the end.
const LAST: u16 = 1_000;
/// So many labels each request to the API may use: one for each account.
const ACCOUNTS: u16 = 16;

#[derive(Clone, Debug)]
pub(crate) struct ClerkWorld {
    pub(crate) deeds: Vec<Deed>,
    pub(crate) policy: Policy,
    pub(crate) steps: Vec<Step>,
    /// What comes after all steps. A webhook that neither a step nor the end delivers is lost; news are never lost.
    pub(crate) late: Vec<u16>,
    /// How what is left is shuffled in the end.
    pub(crate) shuffle: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next deed happens at Clerk.
    Next,
    /// A transaction of some worker. What has not happened by then is left out.
    Deliver(Vec<Delivery>),
    /// Clerk's API is read, by a request that began so many milliseconds before.
    Ask { number: u16, early: i64, ask: Ask },
    /// Somebody changes a row by SQL.
    Edit { account: u8, edit: Edit },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// One user.
    User { account: u8, revive: bool },
    /// The watch: users who changed longer ago than the grace, and are missing or outdated.
    Newest { grace: i64 },
    /// The first part of a whole run: every user.
    List,
    /// Its second part: those who live here and were not on the list.
    Search,
}

/// What people do to a row by SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Another name.
    Rename,
    /// Another address, in each column of it.
    Readdress,
    /// The address is hidden.
    Hide,
    /// Another address is shown.
    Misshow,
    /// An older version.
    Age,
    /// Marked as deleted.
    Bury,
    /// The row is removed.
    Remove,
}

impl Edit {
    pub(crate) const ALL: [Self; 7] =
        [Self::Rename, Self::Readdress, Self::Hide, Self::Misshow, Self::Age, Self::Bury, Self::Remove];
}

/// What a world happens to: the fold alone, or a real store.
pub(crate) trait Table {
    /// Applies these batches, maybe at the same time. The outcomes, batch by batch.
    async fn apply(&mut self, batches: &[Vec<(Fact, bool)>]) -> Result<Vec<Vec<Outcome>>, Broken>;

    /// What the table has of these Clerk ids and of whoever claims their addresses or these, with profiles.
    async fn known(&mut self, clerk_ids: &[String], keys: &[String]) -> Loaded;

    /// Who lives here.
    async fn live(&mut self) -> Vec<String>;

    async fn edit(&mut self, clerk_id: &str, edit: Edit, at: i64);

    /// So many batches may be applied at the same time.
    fn at_once(&self) -> usize;
}

/// What has happened.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Webhooks and news that were delivered, in batches.
    pub(crate) batches: Vec<Vec<(Fact, bool)>>,
    /// Everything that could have been delivered.
    pub(crate) facts: Vec<Fact>,
}

struct Run<'w, T> {
    world: &'w ClerkWorld,
    table: T,
    history: Vec<Fact>,
    /// So much of the history has happened.
    moment: usize,
    published: Vec<Fact>,
    /// What took effect.
    folded: HashSet<u16>,
    /// Who was on the last list.
    listed: BTreeSet<String>,
    /// Who was found deleted here.
    dead: BTreeSet<String>,
    batches: Vec<Vec<(Fact, bool)>>,
    waiting_to_run: Vec<Vec<(Fact, bool)>>,
    dice: Dice,
}

/// Lets the world happen, to its end: all that is not lost is delivered, Clerk's API is read once more, and what that brings
/// is delivered too. Then the table is as Clerk is. Nobody who lives is ever marked deleted, and nobody deleted ever lives again,
/// unless people edit rows or ask for it.
pub(crate) async fn run<T: Table>(world: &ClerkWorld, table: T) -> Result<(Log, T), Broken> {
    let mut run = Run {
        world,
        table,
        history: play(&world.deeds),
        moment: 0,
        published: Vec::new(),
        folded: HashSet::new(),
        listed: BTreeSet::new(),
        dead: BTreeSet::new(),
        batches: Vec::new(),
        waiting_to_run: Vec::new(),
        dice: Dice::new(world.shuffle),
    };
    for step in &world.steps {
        run.step(step).await?;
    }
    run.end().await?;
    let facts = run.history.into_iter().chain(run.published).collect();
    Ok((Log { batches: run.batches, facts }, run.table))
}

impl<T: Table> Run<'_, T> {
    async fn step(&mut self, step: &Step) -> Result<(), Broken> {
        if let Step::Deliver(deliveries) = step {
            let batch: Vec<(Fact, bool)> =
                deliveries.iter().filter_map(|delivery| self.found(delivery)).collect();
            if !batch.is_empty() {
                self.waiting_to_run.push(batch);
            }
            if self.waiting_to_run.len() < self.table.at_once() {
                return Ok(());
            }
        }
        self.flush().await?;
        match step {
            Step::Deliver(_) => {}
            Step::Next => self.moment = (self.moment + 1).min(self.history.len()),
            Step::Ask { number, early, ask } => {
                let read_at = self.read_at(*early);
                self.ask(*number, read_at, *ask, self.world.is_edited()).await;
            }
            Step::Edit { account, edit } => {
                let now = self.now();
                self.table.edit(&clerk_id(*account), *edit, now).await;
            }
        }
        Ok(())
    }

    fn found(&self, delivery: &Delivery) -> Option<(Fact, bool)> {
        let happened = &self.history[..self.moment];
        let fact = happened.iter().chain(&self.published).find(|fact| fact.label == delivery.label)?;
        Some((fact.clone(), delivery.patience_over))
    }

    /// Applies what has been gathered.
    async fn flush(&mut self) -> Result<Vec<Vec<Outcome>>, Broken> {
        let batches = std::mem::take(&mut self.waiting_to_run);
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = self.table.apply(&batches).await?;
        for ((fact, _), outcome) in batches.iter().flatten().zip(outcomes.iter().flatten()) {
            if outcome.is_final() || *outcome == Outcome::Duplicate {
                self.folded.insert(fact.label);
            }
        }
        self.batches.extend(batches);
        self.nobody_is_taken_for_another().await?;
        Ok(outcomes)
    }

    /// Who lives at Clerk is not deleted here, and who was deleted here does not live again.
    async fn nobody_is_taken_for_another(&mut self) -> Result<(), Broken> {
        if self.world.is_edited() {
            return Ok(());
        }
        let ids: Vec<String> = (0..ACCOUNTS as u8).map(clerk_id).collect();
        let Loaded { rows, former } = self.table.known(&ids, &[]).await;
        let of = |id: &String| rows.iter().find(|row| row.clerk_id == *id);
        for (account, id) in ids.iter().enumerate() {
            let lives_here = of(id).is_some_and(|row| row.deleted_at.is_none());
            let is_dead = former.contains_key(id) || of(id).is_some_and(|row| row.deleted_at.is_some());
            if is_dead && self.user(account as u8).is_some() {
                return Err(format!("{id} lives and is marked deleted"));
            }
            if lives_here && self.dead.contains(id) && !self.world.revives() {
                return Err(format!("{id} was deleted and lives again"));
            }
            if is_dead {
                self.dead.insert(id.clone());
            }
        }
        Ok(())
    }

    /// What Clerk knows of an account by now.
    fn user(&self, account: u8) -> Option<&Fact> {
        let own = self.history[..self.moment].iter().rev().filter(|fact| fact.account == account);
        own.filter(|fact| fact.kind != Kind::Other).take(1).find(|fact| fact.is_upsert())
    }

    fn accounts(&self) -> BTreeSet<u8> {
        self.history[..self.moment].iter().map(|fact| fact.account).collect()
    }

    fn now(&self) -> i64 {
        self.history[..self.moment].last().map_or(0, |fact| fact.happened)
    }

    /// When the request began: never after what it does not show yet.
    fn read_at(&self, early: i64) -> i64 {
        let next = self.history.get(self.moment).map_or(i64::MAX, |fact| fact.happened);
        (self.now() - early).min(next)
    }

    async fn ask(&mut self, number: u16, read_at: i64, ask: Ask, revive: bool) {
        match ask {
            Ask::User { account, revive } => {
                let read = self.read(number, read_at, account, revive);
                let Some(read) = read else { return };
                if read.is_absence() {
                    if self.table.live().await.contains(&read.clerk_id()) {
                        self.publish(read);
                    }
                } else if self.differs(&read, |_| true, revive).await {
                    self.publish(read);
                }
            }
            Ask::Newest { grace } => {
                for account in self.accounts() {
                    let Some(read) = self.read(number, read_at, account, false).filter(Fact::is_upsert)
                    else {
                        continue;
                    };
                    let is_behind =
                        |standing: &Standing| matches!(standing, Standing::Missing | Standing::Outdated(_));
                    if read_at - read.at >= grace && self.differs(&read, is_behind, false).await {
                        self.publish(read);
                    }
                }
            }
            Ask::List => {
                self.listed.clear();
                for account in self.accounts() {
                    let Some(read) = self.read(number, read_at, account, revive).filter(Fact::is_upsert)
                    else {
                        continue;
                    };
                    self.listed.insert(read.clerk_id());
                    if self.differs(&read, |_| true, revive).await {
                        self.publish(read);
                    }
                }
            }
            Ask::Search => {
                let live: BTreeSet<String> = self.table.live().await.into_iter().collect();
                for account in self.accounts() {
                    let id = clerk_id(account);
                    if !live.contains(&id) || self.listed.contains(&id) {
                        continue;
                    }
                    let Some(read) = self.read(number, read_at, account, revive) else { continue };
                    if read.is_absence() || self.differs(&read, |_| true, revive).await {
                        self.publish(read);
                    }
                }
            }
        }
    }

    fn read(&self, number: u16, read_at: i64, account: u8, revive: bool) -> Option<Fact> {
        let label = NEWS + number * ACCOUNTS + u16::from(account);
        read(&self.history[..self.moment], account, revive, read_at, label, self.now())
    }

    /// Whether the table differs from what was read in a way that is repaired.
    async fn differs(&mut self, read: &Fact, how: impl Fn(&Standing) -> bool, revive: bool) -> bool {
        let upsert = read.snapshot();
        let keys: Vec<String> = upsert.claim.iter().map(|claim| claim.key.clone()).collect();
        let known = self.table.known(std::slice::from_ref(&upsert.clerk_id), &keys).await;
        match compare(&known, &upsert) {
            Standing::InStep { .. } | Standing::Newer(_) => false,
            Standing::BuriedAlive => revive,
            standing => how(&standing),
        }
    }

    /// The same reading is the same message.
    fn publish(&mut self, news: Fact) {
        let id = news.message_id();
        if self.published.iter().all(|other| other.message_id() != id) {
            self.published.push(news);
        }
    }

    async fn end(&mut self) -> Result<(), Broken> {
        self.flush().await?;
        self.moment = self.history.len();
        let mut coming: BTreeSet<u16> = self.world.late.iter().copied().collect();
        for step in &self.world.steps {
            if let Step::Deliver(deliveries) = step {
                coming.extend(deliveries.iter().map(|delivery| delivery.label));
            }
        }
        let webhooks = self.history.iter().filter(|fact| coming.contains(&fact.label));
        let mut left: Vec<Fact> = webhooks
            .chain(&self.published)
            .filter(|fact| !self.folded.contains(&fact.label))
            .cloned()
            .collect();
        // By times that tell the order, and with nothing in the API that webhooks lack, the newest news wins even if it came
        // first.
        let mut after = Vec::new();
        if times_in_order(&self.history) && !self.world.is_edited() {
            let readings = self.accounts().into_iter().filter_map(|account| self.read(0, 0, account, false));
            let all: Vec<Fact> = self.history.iter().cloned().chain(readings).collect();
            let lives: BTreeSet<u8> =
                self.accounts().into_iter().filter(|account| self.user(*account).is_some()).collect();
            let may = |fact: &Fact| {
                fact.is_upsert() && lives.contains(&fact.account) && !is_torn(&all, fact.account)
            };
            let dice = &mut self.dice;
            after = left.extract_if(.., |fact| may(fact) && dice.one_in(3)).collect();
        }
        self.deliver(left).await?;

        // Later than anything was sent.
        let read_at = self.now() + 10;
        let before = self.published.len();
        let revive = self.world.is_edited();
        self.ask(LAST, read_at, Ask::List, revive).await;
        self.ask(LAST, read_at, Ask::Search, revive).await;
        after.extend(self.published[before..].iter().cloned());
        self.deliver(after).await?;
        self.is_in_step().await
    }

    /// Delivers in any order, in batches of any size, again and again until nothing waits.
    async fn deliver(&mut self, mut left: Vec<Fact>) -> Result<(), Broken> {
        for waits in 0..=PATIENCE + 1 {
            self.dice.shuffle(&mut left);
            let mut rest = &left[..];
            let mut waiting = Vec::new();
            while !rest.is_empty() {
                while !rest.is_empty() && self.waiting_to_run.len() < self.table.at_once() {
                    let (batch, later) = rest.split_at((1 + self.dice.below(4)).min(rest.len()));
                    self.waiting_to_run
                        .push(batch.iter().map(|fact| (fact.clone(), waits >= PATIENCE)).collect());
                    rest = later;
                }
                let batches = self.waiting_to_run.clone();
                let outcomes = self.flush().await?;
                let each = batches.into_iter().flatten().zip(outcomes.into_iter().flatten());
                waiting.extend(
                    each.filter(|(_, outcome)| *outcome == Outcome::Waiting).map(|((fact, _), _)| fact),
                );
            }
            left = waiting;
            if left.is_empty() {
                return Ok(());
            }
        }
        Err("something waits for ever".into())
    }

    async fn is_in_step(&mut self) -> Result<(), Broken> {
        let accounts = self.accounts();
        let ids: Vec<String> = accounts.iter().map(|account| clerk_id(*account)).collect();
        let rows: Vec<Row> = self.table.known(&ids, &[]).await.rows;
        let read_at = self.now() + 20;
        let users: BTreeMap<u8, Fact> = accounts
            .iter()
            .filter_map(|account| Some((*account, self.read(0, read_at, *account, false)?)))
            .filter(|(_, read)| read.is_upsert())
            .collect();
        in_step(&rows, users.values(), |_| false)?;
        let live = self.table.live().await.len();
        if live != users.len() {
            return Err(format!("{live} live rows, and {} users at Clerk", users.len()));
        }
        // And the comparison says so too.
        for read in users.values() {
            if self.differs(read, |_| true, true).await {
                return Err(format!("{} is in step and said to differ", read.clerk_id()));
            }
        }
        Ok(())
    }
}

impl ClerkWorld {
    pub(crate) fn is_edited(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Edit { .. }))
    }

    fn revives(&self) -> bool {
        let revives = |ask: &Ask| matches!(ask, Ask::User { revive: true, .. });
        self.steps.iter().any(|step| matches!(step, Step::Ask { ask, .. } if revives(ask)))
    }
}

/// Whose news it is, in words.
fn name(label: u16) -> String {
    match label.checked_sub(NEWS) {
        None => format!("#{label}"),
        Some(news) => format!("api {}: {}", news / ACCOUNTS, clerk_id((news % ACCOUNTS) as u8)),
    }
}

/// The labels that a request may use.
pub(crate) fn labels(number: u16, accounts: u8) -> impl Iterator<Item = u16> {
    (0..u16::from(accounts)).map(move |account| NEWS + number * ACCOUNTS + account)
}

impl fmt::Display for ClerkWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "policy: relink {:?}, on delete {:?}", self.policy.relink, self.policy.on_delete)?;
        let mut facts = play(&self.deeds).into_iter();
        for step in &self.steps {
            match step {
                Step::Next => match facts.next() {
                    Some(fact) => writeln!(f, "    {fact}")?,
                    None => continue,
                },
                Step::Deliver(batch) => {
                    write!(f, "    deliver")?;
                    for Delivery { label, patience_over } in batch {
                        let over = if *patience_over { " (patience over)" } else { "" };
                        write!(f, " [{}{over}]", name(*label))?;
                    }
                    writeln!(f)?;
                }
                Step::Ask { number, early, ask } => {
                    writeln!(f, "    api {number}: {ask:?}, {early} ms before")?
                }
                Step::Edit { account, edit } => writeln!(f, "    edit {}: {edit:?}", clerk_id(*account))?,
            }
        }
        for fact in facts {
            writeln!(f, "    {fact}")?;
        }
        let late: Vec<String> = self.late.iter().map(|label| name(*label)).collect();
        writeln!(
            f,
            "    deliver in the end {} and what is published, shuffled by {}",
            late.join(", "),
            self.shuffle
        )
    }
}

impl Simpler for ClerkWorld {
    fn simpler(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        let mut add = |edit: &dyn Fn(&mut Self)| {
            let mut candidate = self.clone();
            edit(&mut candidate);
            worlds.push(candidate);
        };
        for place in 0..self.deeds.len() {
            add(&|world| {
                world.deeds.remove(place);
            });
        }
        for (place, step) in self.steps.iter().enumerate() {
            add(&|world| drop(world.steps.remove(place)));
            let Step::Deliver(batch) = step else { continue };
            for at in 0..batch.len() {
                let of = |world: &mut Self, edit: &dyn Fn(&mut Vec<Delivery>)| {
                    if let Some(Step::Deliver(batch)) = world.steps.get_mut(place) {
                        edit(batch);
                    }
                };
                if batch.len() > 1 {
                    add(&|world| {
                        of(world, &|batch| {
                            batch.remove(at);
                        })
                    });
                }
                if batch[at].patience_over {
                    add(&|world| of(world, &|batch| batch[at].patience_over = false));
                }
            }
        }
        for place in 0..self.late.len() {
            add(&|world| {
                world.late.remove(place);
            });
        }
        for (place, step) in self.steps.iter().enumerate() {
            if matches!(step, Step::Ask { early, .. } if *early != 0) {
                add(&|world| {
                    if let Some(Step::Ask { early, .. }) = world.steps.get_mut(place) {
                        *early = 0;
                    }
                });
            }
        }
        for place in 0..self.deeds.len() {
            for deed in plainer(&self.deeds[place]) {
                add(&|world| world.deeds[place] = deed.clone());
            }
        }
        worlds
    }
}
