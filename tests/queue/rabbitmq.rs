//! RabbitMQ under the contract: a prefix of its own for each test, at the broker of `TEST_AMQP_URL`.

use std::sync::Arc;

use async_trait::async_trait;
use headcount::{
    message::{Message, Origin},
    queue::{Queue, Source, rabbitmq::RabbitQueue},
    secret::Secret,
};
use lapin::{
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
    types::FieldTable,
};

use crate::support::{Harness, done, holds, id, ladder, message, next, publish, run};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_overtake_what_was_read_from_clerks_api_where_the_broker_can() {
    run(Rabbit::new(), async |harness: Arc<Rabbit>| {
        let queue = harness.open().await;
        let mut sent = Vec::new();
        for origin in [Origin::Api, Origin::Webhook, Origin::Api, Origin::Webhook] {
            let message = Message { origin, ..message("{}") };
            sent.push(message.id.to_string());
            queue.publish(message).await.unwrap();
        }
        let events = queue.subscribe(Source::Events, 1).await.unwrap();
        let mut came = Vec::new();
        for _ in 0..4 {
            let delivery = next(&*events).await;
            came.push(id(&delivery));
            done(&*events, vec![delivery]).await;
        }
        let overtakes = version(&harness.url).await >= (4, 3);
        let expected: &[usize] = if overtakes { &[1, 3, 0, 2] } else { &[0, 1, 2, 3] };
        assert_eq!(came, expected.iter().map(|&place| sent[place].clone()).collect::<Vec<_>>());
    })
    .await;
}

/// Major and minor version of a broker, from its greeting: `version` is a text in the table of `connection.start`.
async fn version(url: &str) -> (u32, u32) {
    let address: url::Url = url.parse().unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let place = (address.host_str().unwrap(), address.port().unwrap_or(5672));
    let mut stream = tokio::net::TcpStream::connect(place).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    let mut greeting = vec![0; 4096];
    let read = stream.read(&mut greeting).await.unwrap();
    let text = String::from_utf8_lossy(&greeting[..read]).into_owned();
    let (_, after) = text.rsplit_once("versionS").expect("the broker tells its version");
    let digits = after.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = digits.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
