//! Owns a real browser: headless Chromium, and what drives it.

use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator, error::CmdError};
use serde_json::{Value, json};

use super::{PATIENCE, servers::Server};

/// A browser of its own, and what drives it.
pub struct Browser {
    pub client: Client,
    _driver: Server,
}

impl Browser {
    pub async fn open(width: u32, height: u32) -> Self {
        Self::with(width, height, &[]).await
    }

    /// One whose person prefers dark pages.
    pub async fn open_dark(width: u32, height: u32) -> Self {
        Self::with(width, height, &["--force-dark-mode"]).await
    }

    /// One that runs no script of a page. Nothing that a page's script would return can be asked.
    pub async fn open_without_script(width: u32, height: u32) -> Self {
        Self::with(width, height, &["--blink-settings=scriptEnabled=false"]).await
    }

    async fn with(width: u32, height: u32, more: &[&str]) -> Self {
        let driver = Server::chromedriver();
        let size = format!("--window-size={width},{height}");
        let common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &size];
        let arguments = [common.as_slice(), more].concat();
        let options = json!({ "goog:chromeOptions": { "args": arguments } });
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(options.as_object().unwrap().clone());
        let client = builder.connect(&driver.url()).await.unwrap();
        Self { client, _driver: driver }
    }

    pub async fn click(&self, selector: &str) {
        let began = Instant::now();
        while let Err(error) = self.try_click(selector).await {
            passing(&error, selector, began).await;
        }
    }

    async fn try_click(&self, selector: &str) -> Result<(), CmdError> {
        self.client.find(Locator::Css(selector)).await?.click().await
    }

    pub async fn text(&self, selector: &str) -> String {
        let began = Instant::now();
        loop {
            match self.try_text(selector).await {
                Ok(text) => return text,
                Err(error) => passing(&error, selector, began).await,
            }
        }
    }

    async fn try_text(&self, selector: &str) -> Result<String, CmdError> {
        self.client.find(Locator::Css(selector)).await?.text().await
    }

    /// Waits until an element says so. Returns after how long.
    pub async fn until(&self, selector: &str, so: impl Fn(&str) -> bool) -> Duration {
        let began = Instant::now();
        loop {
            let text = self.text(selector).await;
            if so(&text) {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "{selector} says {text:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What a script of the page's returns in the end.
    pub async fn script(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; (async () => {{ {script} }})().then(done, (error) => done(`${{error}}`))"
        );
        self.client.execute_async(&script, Vec::new()).await.unwrap()
    }

    /// A picture, where SCREENSHOTS names a directory for them.
    pub async fn picture(&self, name: &str) {
        if let Some(directory) = std::env::var_os("SCREENSHOTS") {
            let png = self.client.screenshot().await.unwrap();
            std::fs::write(std::path::Path::new(&directory).join(format!("{name}.png")), png).unwrap();
        }
    }

    pub async fn close(self) {
        self.client.close().await.unwrap();
    }
}

/// Waits a moment: where the page is on its way, or was just sent again, an element is not there yet, or not any more. The driver has
/// several words for that.
async fn passing(error: &CmdError, selector: &str, began: Instant) {
    assert!(began.elapsed() < PATIENCE, "{selector}: {error}");
    tokio::time::sleep(Duration::from_millis(20)).await;
}
