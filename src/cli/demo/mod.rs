//! Owns the demo: made-up people, the webhooks about them, and the stand-in for Clerk's API that knows the same people. Promises
//! that made-up people never mix with those of a real Clerk instance.
//!
//! In order: this file prepares the demo and starts it, `people` says who lives, `stream` plays what happens, `operator` looks
//! after what died, `page` is an application that its people sign up to.

use std::{io::ErrorKind, net::TcpListener, sync::Arc};

use tokio::sync::watch;
use tracing::info;

use self::{page::Desk, people::People};
use crate::{
    app::{self, Addresses},
    clerk::{made_up::INSTANCE, stand_in::StandIn},
    cli::post::Poster,
    config::Config,
    failure::Failure,
    secret::Secret,
    store::Store,
};

mod operator;
mod page;
mod people;
mod stream;

/// Webhooks per second.
const RATE: f64 = 20.0;

/// A demo, ready to be played. The stand-in is served until this is dropped.
#[derive(Debug)]
pub struct Demo {
    /// How the process is to work: with the stand-in in Clerk's place.
    pub config: Config,
    stand_in: StandIn,
    people: People,
    desk: Desk,
}

impl Demo {
    /// Serves the stand-in, with the people who live in the table of an earlier demo. Brings the schema up.
    ///
    /// # Errors
    /// The table, or the configuration, is a real instance's. The database does not answer.
    pub async fn prepare(config: &Config) -> Result<Self, Failure> {
        if let Some(instance) = config.clerk_instance.as_deref().filter(|instance| *instance != INSTANCE) {
            return Err(Failure::usage(format!(
                "HEADCOUNT_CLERK_INSTANCE is {instance}, and the demo's people are of no real instance"
            ))
            .hint("unset it for the demo, and give the demo a table of its own"));
        }
        let store = app::open_store(config).await?;
        let people = Self::people(store.as_ref(), config).await;
        store.close().await;
        let people = people?;
        let cannot = |error| Failure::new(format!("the stand-in for Clerk's API cannot be served: {error}"));
        let stand_in = StandIn::start(people.known()).await.map_err(cannot)?;
        let desk = Desk::new(people.clone(), format!("http://{}", config.api_listen));
        let desk = desk.map_err(|problem| Failure::new(format!("the demo cannot sign tokens: {problem}")))?;
        let config = config.clone().with_stand_in(stand_in.url(), stand_in.key(), INSTANCE);
        let is_taken = |at| TcpListener::bind(at).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        let config = config.with_demo_tokens(desk.tokens(), is_taken);
        Ok(Self { config, stand_in, people, desk })
    }

    /// The page of an application that its people sign up to.
    pub fn pages(&self) -> axum::Router {
        self.desk.pages()
    }

    async fn people(store: &dyn Store, config: &Config) -> Result<People, Failure> {
        store.migrate().await?.iter().for_each(|name| info!("applied migration {name}"));
        People::of(store, config).await
    }

    /// Plays in a task of its own until `stop` turns true.
    pub fn play(
        &self,
        addresses: Addresses,
        store: Option<Arc<dyn Store>>,
        secret: Secret,
        stop: watch::Receiver<bool>,
    ) {
        let (Some(address), Some(store)) = (addresses.ingress, store) else { return };
        self.people.look_into(Arc::clone(&store));
        tokio::spawn(operator::run(store, stop.clone()));
        let url = format!("http://{address}{}", self.config.webhook_path);
        info!("the demo posts {RATE} webhooks per second to {url}; a few get lost on their way");
        info!("look at: headcount status, headcount users list, and the console: http://{}/", addresses.ops);
        if let Some(api) = addresses.api {
            info!("an application's page, where you sign up and see your row: http://{api}/");
        }
        if let Ok(poster) = Poster::new(&url, &secret) {
            self.desk.post_with(poster);
        }
        let (clerk, key) = (self.stand_in.url(), self.stand_in.key());
        info!("a stand-in for Clerk's API, not Clerk, knows the made-up users: {clerk}");
        // The key is made up, and of use on this machine only.
        let key = key.expose();
        info!(
            "to ask it from another terminal: export HEADCOUNT_BILLING=clerk CLERK_SECRET_KEY={key} CLERK_API_URL={clerk}"
        );
        info!("then: headcount sync --dry-run, headcount sync USER");
        let people = self.people.clone();
        tokio::spawn(async move {
            if let Err(failure) =
                stream::run(&url, &secret, RATE, |happened| people.happen(happened), stop).await
            {
                failure.report(std::io::stderr());
            }
        });
    }
}
