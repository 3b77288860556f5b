//! RabbitMQ under the contract: a prefix of its own for each test, at the broker of `TEST_AMQP_URL`.

use std::sync::Arc;

use async_trait::async_trait;
use headcount::{
    queue::{Queue, Source, rabbitmq::RabbitQueue},
    secret::Secret,
};
use lapin::{
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
    types::FieldTable,
};

use crate::support::{Harness, done, holds, id, ladder, next, publish, run};

pub(crate) struct Rabbit {
    url: String,
    prefix: String,
}

impl Rabbit {
    pub(crate) fn new() -> Self {
        let url = std::env::var("TEST_AMQP_URL")
            .expect("TEST_AMQP_URL is not set: these tests need a RabbitMQ broker; `make test` starts one");
        Self { url, prefix: format!("test-{}", uuid::Uuid::now_v7().simple()) }
    }
}

#[async_trait]
impl Harness for Rabbit {
    async fn open(&self) -> Arc<dyn Queue> {
        let url = Secret::new(self.url.clone());
        Arc::new(RabbitQueue::open(&url, &self.prefix, ladder()).await.unwrap())
    }

    async fn clean_up(&self) {
        let connection = lapin::Connection::connect(&self.url, Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let retries = ladder().delays().map(|(name, _)| format!("retry.{name}")).collect::<Vec<_>>();
        let queues = ["events", "dead", "rejections"].map(String::from).into_iter().chain(retries);
        for queue in queues {
            let name = format!("{}.{queue}", self.prefix);
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        for exchange in ["events", "retry", "dead", "unrouted", "rejections"] {
            let name = format!("{}.{exchange}", self.prefix);
            channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        connection.close(200, "done".into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_route_is_dead_as_unroutable() {
    run(Rabbit::new(), async |harness: Arc<Rabbit>| {
        let queue = harness.open().await;
        let connection = lapin::Connection::connect(&harness.url, Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let name = format!("{}.events", harness.prefix);
        channel
            .queue_unbind(name.clone().into(), name.into(), "events".into(), FieldTable::default())
            .await
            .unwrap();
        let sent = publish(&queue, 1).await;
        holds(&queue, "dead", 1).await;
        let dead = queue.subscribe(Source::Dead, 1).await.unwrap();
        let delivery = next(&*dead).await;
        assert_eq!(id(&delivery), sent[0]);
        let death = delivery.death.as_ref().unwrap();
        assert_eq!(death.reason, "unroutable");
        assert_eq!(death.headers.get("x-attempt").map(String::as_str), Some("0"));
        done(&*dead, vec![delivery]).await;
        holds(&queue, "dead", 0).await;
        connection.close(200, "done".into()).await.unwrap();
    })
    .await;
}
