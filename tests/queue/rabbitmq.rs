//! RabbitMQ under the contract: a prefix of its own for each test, at the broker of `TEST_AMQP_URL`.

use std::sync::Arc;

use async_trait::async_trait;
use headcount::{
    config::Secret,
    queue::{Queue, rabbitmq::RabbitQueue},
};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};

use crate::support::{Harness, ladder};

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
        let retries = ladder().iter().map(|(name, _)| format!("retry.{name}")).collect::<Vec<_>>();
        let queues = ["events", "dead", "rejections"].map(String::from).into_iter().chain(retries);
        for queue in queues {
            let name = format!("{}.{queue}", self.prefix);
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        for exchange in ["events", "retry", "dead", "unrouted"] {
            let name = format!("{}.{exchange}", self.prefix);
            channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        connection.close(200, "done".into()).await.unwrap();
    }
}
