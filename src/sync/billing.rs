//! Owns bringing subscriptions in step in a whole run: reads the list of all items, and asks for each user who pays here for something
//! that the list does not have. Promises that nothing ends but what Clerk's whole answer about its user leaves out, and that memory
//! does not grow with the number of items.

use super::{Difference, SyncError, Told, publish::News, run::Work};
use crate::{
    clerk::api::{ApiError, Reading},
    message::Message,
    rules::subscriptions::Row,
    store::sync::Seen,
    text::number,
};

/// So many items stand on the next page again: items move while they are read.
const OVERLAP: u64 = 50;
/// A list that is longer does not end.
const PAGES_MAX: u32 = 100_000;
/// So many items are looked through at a time.
const STEP: u32 = 2_000;
/// So many users' tiers are looked at, and set, at a time.
const TIERS_STEP: u32 = 500;

/// Whether what is outstanding is about a subscription. It stands under its message's id, because under the account's own id news about
/// the user may be outstanding.
pub(super) fn is_of_subscription(key: &str) -> bool {
    key.starts_with("api_")
}

/// What a run found of subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Users whose subscriptions differed.
    pub(super) differing: u64,
    /// Items whose user Clerk did not tell.
    nameless: u64,
    /// Users who pay for something here, and of whom Clerk names no subscription.
    without: u64,
    /// Clerk's API lists none.
    pub(super) not_compared: bool,
}

impl Work<'_> {
    /// Compares what users pay for, and publishes what differs.
    pub(super) async fn compare_subscriptions(&mut self) -> Result<(), SyncError> {
        match self.read_items().await {
            // The key may read users, or the run would not be here.
            Err(SyncError::Api(error @ (ApiError::Refused { .. } | ApiError::Key { .. }))) => {
                self.subscriptions.not_compared = true;
                self.notes.push(format!("subscriptions were not compared: {error}"));
                return Ok(());
            }
            read => read?,
        }
        self.ask_for_unlisted().await?;
        self.put_right_tiers().await?;
        let Subscriptions { differing, nameless, without, .. } = self.subscriptions;
        if differing > 0 {
            let done = if self.order.dry_run { "" } else { ", and are repaired" };
            self.notes.push(format!("users whose subscriptions differed{done}: {}", number(differing)));
        }
        if nameless > 0 {
            self.notes.push(format!(
                "subscription items of which Clerk does not tell who pays, and which were left as they are: {}",
                number(nameless)
            ));
        }
        if without > 0 {
            self.notes.push(format!(
                "users who pay for something here, and of whom Clerk names no subscription: {}; nothing of theirs was changed",
                number(without)
            ));
        }
        Ok(())
    }

    async fn read_items(&mut self) -> Result<(), SyncError> {
        let mut offset = 0;
        for _ in 0..PAGES_MAX {
            self.hold().await?;
            let page = self.patience.asked(self.sync.api.subscription_items(offset)).await?;
            let (store, ids) = (self.sync.store.clone(), page.ids);
            let known = self.patience.tried(|| store.items(&ids, &[])).await?;
            self.subscriptions.nameless += page.nameless;
            let read = page.items;
            // What was on the page before, too, is on its way.
            let run = self.run.id;
            let new = self.patience.tried(|| store.new_to(run, &ids)).await?;
            let is_new = |reading: &Reading| match &reading.news {
                Ok(news) => news.items.iter().any(|item| new.contains(&item.id)),
                Err(_) => true,
            };
            let readings: Vec<Reading> = page.readings.into_iter().filter(is_new).collect();
            self.note_readings(&readings, &known, ids).await?;
            if !page.more || read == 0 {
                return Ok(());
            }
            offset += read.saturating_sub(OVERLAP).max(1);
        }
        self.notes.push("the list of subscription items does not end, and was not read further".to_owned());
        Ok(())
    }

    /// Asks for each user who pays here for something that was not in the list.
    async fn ask_for_unlisted(&mut self) -> Result<(), SyncError> {
        let mut after: Option<(String, String)> = None;
        loop {
            let (run, store) = (self.run.id, self.sync.store.clone());
            let step = self.patience.tried(|| store.unlisted_payers(run, after.as_ref(), STEP)).await?;
            for payer in step.payers {
                self.hold().await?;
                self.touch().await?;
                // Read first: what comes meanwhile is not ended.
                let payers = [payer];
                let known = self.patience.tried(|| store.items(&[], &payers)).await?;
                match self.patience.asked(self.sync.api.subscription(&payers[0])).await {
                    Ok(Some(reading)) => {
                        self.note_readings(std::slice::from_ref(&reading), &known, Vec::new()).await?;
                    }
                    Ok(None) => self.subscriptions.without += 1,
                    Err(SyncError::Api(error)) if error.is_about_one() => {
                        let [payer] = payers;
                        self.not_read(payer, error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
            after = step.scanned_to;
            if after.is_none() {
                return Ok(());
            }
            self.hold().await?;
            self.touch().await?;
        }
    }

    /// Looks whether the tiers follow from what is known here: somebody may have edited them.
    async fn put_right_tiers(&mut self) -> Result<(), SyncError> {
        let store = self.sync.store.clone();
        let (mut after, mut left, mut refusal) = (None::<String>, 0, None);
        loop {
            let payers = self.patience.tried(|| store.payers(after.as_deref(), TIERS_STEP)).await?;
            let Some(last) = payers.last() else { break };
            after = Some(last.clone());
            let strays = self.patience.tried(|| store.stray_tiers(&payers)).await?;
            for clerk_id in strays.iter().cloned() {
                self.subscriptions.differing += 1;
                self.patience.tell(Told::Differs { clerk_id, difference: Difference::Subscription });
            }
            if !self.order.dry_run && !strays.is_empty() {
                let settle = || async {
                    match store.settle_tiers(&strays).await {
                        Err(error) if !error.is_outage() => Ok(Some(error)),
                        settled => settled.map(|_| None),
                    }
                };
                if let Some(error) = self.patience.tried(settle).await? {
                    // The worker sets each alone, so that whom the database refuses holds up no other.
                    self.patience.tried(|| store.look_again(&strays)).await?;
                    left += strays.len() as u64;
                    refusal = Some(error);
                }
            }
            self.hold().await?;
            self.touch().await?;
        }
        if let Some(error) = refusal {
            self.notes.push(format!(
                "users whose tiers the database did not take together, and which the worker sets one by one within minutes: {}; {error}",
                number(left)
            ));
        }
        Ok(())
    }

    fn not_read(&mut self, payer: String, why: String) {
        self.run.counts.failed += 1;
        self.patience.tell(Told::Failed { clerk_id: Some(payer), why });
    }

    /// Publishes what differs, and then notes the items as seen.
    async fn note_readings(
        &mut self,
        readings: &[Reading],
        known: &[Row],
        ids: Vec<String>,
    ) -> Result<(), SyncError> {
        for reading in readings {
            if let Err(error) = &reading.news {
                let why = format!("what Clerk says of its subscription cannot be read: {error}");
                self.not_read(reading.payer.clone(), why);
            }
        }
        // By what nobody else is noted: under the account's own id, news about the user may be outstanding.
        let differing: Vec<(String, &Reading, Message)> = readings
            .iter()
            .filter_map(|reading| {
                let message = reading.message(known, &self.instance)?;
                Some((format!("subscription of {}", reading.payer), reading, message))
            })
            .collect();
        let payers: Vec<String> = differing.iter().map(|(payer, ..)| payer.clone()).collect();
        let (run, store) = (self.run.id, self.sync.store.clone());
        let new = self.patience.tried(|| store.new_to(run, &payers)).await?;
        let mut seen: Vec<Seen> =
            ids.into_iter().chain(payers).map(|clerk_id| Seen { clerk_id, message_id: None }).collect();
        let mut news = Vec::new();
        for (payer, reading, message) in differing {
            if new.contains(&payer) {
                self.subscriptions.differing += 1;
                let (clerk_id, difference) = (reading.payer.clone(), Difference::Subscription);
                self.patience.tell(Told::Differs { clerk_id, difference });
            }
            if !self.order.dry_run {
                let clerk_id = message.id.as_str().to_owned();
                seen.push(Seen { clerk_id: clerk_id.clone(), message_id: Some(clerk_id.clone()) });
                news.push(News { clerk_id, message, is_drift: false });
            }
        }
        self.publish(news).await?;
        let run = self.run.clone();
        self.patience.tried(|| self.sync.store.see(&run, &seen)).await
    }
}
