//! The demo's page, and pages of other origins, in a real browser: headless Chromium.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use fantoccini::Locator;
use headcount::{clerk::stand_in::tokens::Signer, time::now};
use support::{
    browser::Browser,
    clerk::{populate, stand_in, user},
    eventually,
    process::{Backends, World},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_signs_up_sees_the_row_and_every_change_without_reloading() {
    let mut world = World::new(Backends::Embedded);
    world.set("HEADCOUNT_BILLING", "clerk");
    let up = world.start(&["up", "--demo"]);
    eventually("the page is served", async || up.log().contains("an application's page")).await;
    let log = up.log();
    let page = log.lines().find_map(|line| line.split_once("see your row: ")).unwrap().1.trim().to_owned();
    let browser = Browser::open(1440, 1200).await;
    browser.client.goto(&page).await.unwrap();
    browser.script("window.loaded = 1").await;

    // A visitor fills a cart, and signs up under a hostile name.
    browser.click("[data-goods=Assam]").await;
    browser.until("#whose", |text| text.contains("The cart of a visitor: anon_")).await;
    browser.click("[data-goods=Sencha]").await;
    browser.picture("demo-cart").await;
    let name = "<img src=x onerror=alert(1)>\u{202e}";
    browser.client.find(Locator::Css("#name")).await.unwrap().send_keys(name).await.unwrap();
    let began = Instant::now();
    browser.click("#sign-up button").await;
    browser.until("#tier", |text| text == "free").await;
    // Within a second on a machine that is not busy; the page shows it.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(browser.text("#me-title").await.starts_with(name), "{}", browser.text("#me-title").await);
    assert!(browser.text("#arrived").await.contains("No webhook has come"));
    assert_eq!(browser.text("#credits").await, "10,000");
    let id = browser.text("#id").await;
    browser.until("#whose", |text| text.contains(&format!("claimed by {id}"))).await;
    let clerk_id = browser.text("#clerk-id").await;
    let row = world.users().await.into_iter().find(|row| row.clerk_id == clerk_id).unwrap();
    assert_eq!(row.id.to_string(), id);

    // What commands and webhooks change shows by itself.
    let run = |arguments: &[&str]| {
        let output = world.run(arguments);
        assert!(output.status.success(), "{output:?}");
    };
    run(&["users", "grant", &clerk_id, "premium_lifetime", "--note", "a friend"]);
    let seen = browser.until("#tier", |text| text == "premium_lifetime").await;
    assert!(seen < Duration::from_secs(5), "{seen:?}");
    run(&["users", "revoke", &clerk_id]);
    browser.until("#tier", |text| text == "free").await;
    browser.click("#buy").await;
    browser.until("#tier", |text| text == "premium_monthly").await;
    browser.picture("demo-signed-in").await;
    browser.click("#end").await;
    browser.until("#tier", |text| text == "free").await;
    let front = up.webhooks.clone().unwrap();
    run(&["send", "user.updated", "--user", &clerk_id, "--email", "new@example.com", "--url", &front]);
    browser.until("#email", |text| text == "new@example.com").await;
    browser.until("#changes", |text| text.contains("subscription_tier: free → premium_lifetime")).await;
    browser.click("#sync").await;
    assert_eq!(browser.script("return window.loaded").await, 1, "nothing was loaded again");

    // It lets go of the user, and takes the next one; narrow too.
    browser.client.set_window_size(390, 844).await.unwrap();
    browser.picture("demo-narrow").await;
    let wide = browser.script("return document.documentElement.scrollWidth > window.innerWidth").await;
    assert_eq!(wide, false, "nothing is cut off");
    browser.click("#sign-out").await;
    browser.until("#whose", |text| text.starts_with("You have signed out")).await;
    browser.click("#sign-up button").await;
    browser.until("#tier", |text| text == "free").await;
    assert_ne!(browser.text("#id").await, id);
    assert_eq!(browser.text("#trouble").await, "");
    browser.close().await;
    up.stop();
}

/// Serves an empty page on a port of its own, which makes it another origin. Answers its origin.
async fn other_origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let page = "<!doctype html><title>x</title>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    origin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_application_read_and_act_and_pages_of_others_do_neither() {
    const ISSUER: &str = "https://clerk.example.com";
    let (ours, foreign) = (other_origin().await, other_origin().await);
    let mut world = World::new(Backends::Embedded);
    let clerk = stand_in(&mut world).await;
    populate(clerk.world(), 1);
    let signer = Signer::new("ins_1").unwrap();
    world.set("CLERK_JWT_KEY", &signer.pem());
    world.set("CLERK_JWT_ISSUER_DOMAIN", ISSUER);
    world.set("HEADCOUNT_AUTHORIZED_PARTIES", &ours);
    let up = world.start(&["up"]);
    let api = up.api.as_ref().unwrap().to_string().trim_end_matches("/v1/me").to_owned();
    let browser = Browser::open(800, 600).await;

    // Cookies know no ports: all three pages send this one.
    let token = signer.session(ISSUER, &user(0), "sess_1", &ours, now());
    let sign_in = format!("document.cookie = '__session={token}; path=/; SameSite=Lax'");
    let with_cookie = |path: &str, method: &str| {
        format!(
            "try {{ const answer = await fetch('{api}{path}', {{ method: '{method}', credentials: 'include' }}); \
             return [answer.status, await answer.text()] }} catch (error) {{ return [0, `${{error}}`] }}"
        )
    };
    browser.client.goto(&ours).await.unwrap();
    browser.script(&sign_in).await;
    let read = browser.script(&with_cookie("/v1/me", "GET")).await;
    assert_eq!(read[0], 200, "{read}");
    assert!(read[1].as_str().unwrap().contains(&user(0)));
    let acted = browser.script(&with_cookie("/v1/me/sync", "POST")).await;
    assert_eq!(acted[0], 200, "{acted}");

    browser.client.goto(&foreign).await.unwrap();
    assert!(browser.script("return document.cookie").await.as_str().unwrap().contains("__session"));
    let asked = clerk.world().asked("/v1/users/{id}");
    let read = browser.script(&with_cookie("/v1/me", "GET")).await;
    assert_eq!(read[0], 0, "its answer cannot be read: {read}");
    let acted = browser.script(&with_cookie("/v1/me/sync", "POST")).await;
    assert_eq!(acted[0], 0, "{acted}");
    // A plain form reaches the server all the same, and has no effect.
    let form = format!(
        "const form = document.createElement('form'); form.method = 'post'; form.action = '{api}/v1/me/sync'; \
         form.target = '_self'; document.body.append(form); form.submit()"
    );
    browser.client.execute(&form, Vec::new()).await.unwrap();
    eventually("the form is answered", async || {
        browser.client.source().await.is_ok_and(|source| source.contains("\"code\""))
    })
    .await;
    assert_eq!(clerk.world().asked("/v1/users/{id}"), asked, "nobody was synced");
    browser.close().await;
    up.stop();
}
