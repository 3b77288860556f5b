//! The console in a real browser, of a running pipeline: the questions that an on-call person has, and whether everybody can ask
//! them.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fantoccini::Locator;
use headcount::{clerk::made_up::Person, cli::post::Poster, secret::Secret, time::now};
use serde_json::Value;
use support::{
    PATIENCE,
    browser::Browser,
    eventually,
    process::{Backends, Process, World},
};

/// axe-core checks a page for what keeps people out.
const AXE: &str = include_str!("support/axe.min.js");

/// An application's trigger that refuses some users.
const REFUSES: &str = "
    CREATE FUNCTION house_rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.username LIKE 'refused%' THEN RAISE EXCEPTION 'the house refuses it'; END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER house_rule AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION house_rule();
";

async fn post(process: &Process, id: &str, body: impl Into<Bytes>) {
    assert!(process.poster().post(id, body.into()).await.unwrap().is_success());
}

fn person(id: &str, username: &str) -> Vec<u8> {
    let mut person = Person::of(id.to_owned(), now());
    person.username = Some(username.to_owned());
    person.event("user.created", now())
}

impl Browser {
    async fn goto(&self, process: &Process, path: &str) {
        self.client.goto(&format!("{}{path}", process.operators.trim_end_matches('/'))).await.unwrap();
    }

    /// Loads a page again and again until it says so.
    async fn until_page(&self, process: &Process, path: &str, so: impl Fn(&str) -> bool) {
        let began = Instant::now();
        loop {
            self.goto(process, path).await;
            let text = self.text("body").await;
            if so(&text) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{path} says: {text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Types keys as a person would.
    async fn keys(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    async fn path(&self) -> String {
        let url = self.client.current_url().await.unwrap();
        url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
    }

    async fn until_path(&self, path: &str) {
        eventually(&format!("the browser is at {path}"), async || self.path().await.starts_with(path)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_on_call_person_finds_out_and_puts_it_right() {
    let world = World::new(Backends::RabbitPostgres);
    assert!(world.run(&["migrate"]).status.success());
    let ingress = world.start(&["ingress"]);
    let workers = [world.start(&["worker"]), world.start(&["worker"])];
    let desk = &workers[0];
    let browser = Browser::open(1440, 1000).await;

    // Is it well?
    for n in 0..20 {
        post(&ingress, &format!("msg_{n}"), person(&format!("user_{n}"), &format!("good_{n}"))).await;
    }
    browser
        .until_page(desk, "/", |text| {
            text.contains("Everything that came in is applied") && text.contains("1 ingress, 2 workers")
        })
        .await;
    browser.picture("console-well").await;

    // Where is this user?
    browser.keys("/").await;
    browser.keys("user_7\u{e007}").await;
    browser.until_path("/users/user_7").await;
    browser.until("#happened", |text| text.contains("user.created") && text.contains("created")).await;

    // What died, and why? Others go on coming: where nothing succeeds nobody can be to blame.
    world.sql(REFUSES).await;
    let poster = ingress.poster();
    let others = tokio::spawn(async move {
        for n in 0.. {
            let body = person(&format!("user_other_{n}"), &format!("other_{n}"));
            let _ = poster.post(&format!("msg_other_{n}"), body.into()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    for n in 0..12 {
        post(&ingress, &format!("msg_r{n}"), person(&format!("user_r{n}"), &format!("refused_{n}"))).await;
    }
    post(&ingress, "msg_odd", r#"{"type":"user.created","data":{"id":"user_odd","banned":"no"}}"#).await;
    browser.until_page(desk, "/dead", |text| text.contains("12 letters") && text.contains("1 letter ")).await;
    let causes = browser.text("#main").await;
    assert!(
        causes.contains("P0001: it was raised in a function or trigger")
            && causes.contains("new since yesterday"),
        "{causes}"
    );
    assert!(
        browser.text("#verdict").await.contains("that died in the last hour"),
        "{}",
        browser.text("#verdict").await
    );
    browser.picture("console-causes").await;

    // A replay stops by itself while the cause is there: of twelve, one letter was tried.
    let replay = async || {
        browser.goto(desk, "/dead/replay?reason=rejected").await;
        browser.until("h1", |text| text.contains("Replay 12 letters?")).await;
        browser.click("button.primary").await;
        browser.until_path("/operations/").await;
        browser.path().await
    };
    let halted = replay().await;
    browser.until("#main", |text| text.contains("halted")).await;
    let told = browser.text("#main").await;
    assert!(told.contains("died again"), "{told}");
    browser.picture("console-halted").await;
    browser.goto(desk, "/dead").await;
    browser.until("#main", |text| text.contains("12 letters")).await;

    // Put it right: the cause is gone, and the rest is done, whichever page shows it.
    world.sql("DROP TRIGGER house_rule ON users").await;
    let done = replay().await;
    assert_ne!(done, halted);
    browser.until("#main", |text| text.contains("complete")).await;
    browser.client.refresh().await.unwrap();
    browser.until("#progress", |text| text.contains("Applied\n12")).await;
    browser.picture("console-complete").await;
    world
        .until_users("all are there", |users| {
            users.iter().filter(|user| user.clerk_id.starts_with("user_r")).count() == 12
        })
        .await;

    // An edit: what differs shows before it is sent.
    browser.goto(desk, "/search?q=msg_odd").await;
    browser.until_path("/dead/letters/").await;
    browser.client.find(Locator::LinkText("Edit…")).await.unwrap().click().await.unwrap();
    browser.until_path("/dead/letters/").await;
    let area = browser.client.find(Locator::Css("textarea")).await.unwrap();
    let body = area.prop("value").await.unwrap().unwrap();
    assert!(body.contains("\"banned\": \"no\""), "{body}");
    area.clear().await.unwrap();
    browser.click("button.primary").await;
    browser.until("#main", |text| text.contains("would be buried again")).await;
    let mended = String::from_utf8(person("user_odd", "odd")).unwrap();
    browser.client.find(Locator::Css("textarea")).await.unwrap().send_keys(&mended).await.unwrap();
    browser.click("button.primary").await;
    browser.until("#main", |text| text.contains("Send this?")).await;
    browser.until("ins", |text| text.starts_with("+ ")).await;
    browser.click("button.primary").await;
    browser.until("#main", |text| text.contains("applied (created)")).await;

    // Who knocks in vain?
    let stranger = Poster::new(
        ingress.webhooks.as_deref().unwrap(),
        &Secret::new("whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCBvZiBhIHRlc3Q="),
    )
    .unwrap();
    for n in 0..3 {
        assert_eq!(
            stranger.post(&format!("msg_s{n}"), Bytes::from_static(b"{}")).await.unwrap().as_u16(),
            401
        );
    }
    browser
        .until_page(desk, "/rejections", |text| {
            text.contains("no_matching_signature") && text.contains("What to do:")
        })
        .await;

    // Everything that was done is in the log.
    browser.goto(desk, "/operations").await;
    let log = browser.text("#main").await;
    for word in ["replay", "edit", "reveal", "halted", "complete", "console"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    browser.goto(desk, "/processes").await;
    assert_eq!(browser.client.find_all(Locator::Css("tbody tr")).await.unwrap().len(), 3);
    browser.close().await;
    others.abort();
    for process in workers.into_iter().chain([ingress]) {
        process.stop();
    }
    world.clean_up().await;
}

/// A demo with something on every page.
async fn demo(world: &World) -> (Process, Vec<String>) {
    let up = world.start(&["up", "--demo"]);
    let store = world.store().await;
    eventually("letters and users are there", async || {
        let users = headcount::store::UserQuery { limit: 5, ..Default::default() };
        store.check_schema().await.is_ok()
            && store.users(&users).await.is_ok_and(|users| users.len() == 5)
            && store.statuses().await.is_ok_and(|statuses| statuses.values().sum::<u64>() > 2)
    })
    .await;
    let users = headcount::store::UserQuery { limit: 1, ..Default::default() };
    let user = store.users(&users).await.unwrap()[0].clerk_id.clone();
    let page = headcount::store::letters::Page { limit: 1, after: None };
    let letter = store.list(&Default::default(), &page).await.unwrap()[0].id;
    eventually("the demo's operator has replayed", async || {
        store.replays(1).await.is_ok_and(|replays| replays.iter().any(|replay| replay.state.is_over()))
    })
    .await;
    let replay = store.replays(1).await.unwrap()[0].id;
    store.close().await;
    let mut pages: Vec<String> = [
        "/",
        "/users",
        "/users?text=nobody-is-called-so",
        "/dead",
        "/dead/letters",
        "/dead/letters?status=all&type=user.created",
        "/dead/replay?reason=invalid_payload",
        "/dead/discard?reason=invalid_payload",
        "/rejections",
        "/flow",
        "/sync",
        "/operations",
        "/processes",
        "/keys",
        "/search?q=nobody@x.example",
    ]
    .map(str::to_owned)
    .into();
    pages.extend([
        format!("/users/{user}"),
        format!("/users/{user}/clerk"),
        format!("/dead/letters/{letter}"),
        format!("/dead/letters/{letter}/edit"),
        format!("/operations/{replay}"),
        "/dead/restore?all=yes".to_owned(),
    ]);
    (up, pages)
}

/// What axe finds that is serious or critical.
async fn barriers(browser: &Browser) -> Vec<String> {
    // The driver evaluates past the page's policy, which forbids scripts of others.
    browser.client.execute(&format!("{AXE}; window.axe = axe;"), Vec::new()).await.unwrap();
    let found = browser.script("return await axe.run()").await;
    let violations = found["violations"].as_array().unwrap_or_else(|| panic!("{found}")).clone();
    let grave = |violation: &&Value| matches!(violation["impact"].as_str(), Some("serious" | "critical"));
    assert!(!found["passes"].as_array().unwrap().is_empty());
    violations
        .iter()
        .filter(grave)
        .map(|found| format!("{}: {}", found["id"], found["nodes"][0]["target"]))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_keeps_anybody_out_wide_or_narrow_light_or_dark() {
    let world = World::new(Backends::Embedded);
    let (up, pages) = demo(&world).await;
    let mut checked = 0;
    for dark in [false, true] {
        let browser = if dark { Browser::open_dark(1440, 900).await } else { Browser::open(1440, 900).await };
        for width in [1440, 390] {
            browser.client.set_window_size(width, 900).await.unwrap();
            for path in &pages {
                browser.goto(&up, path).await;
                let told = format!("{path} at {width}, dark: {dark}");
                assert_eq!(barriers(&browser).await, Vec::<String>::new(), "{told}");
                let wide =
                    browser.script("return document.documentElement.scrollWidth > window.innerWidth").await;
                assert_eq!(wide, false, "{told} scrolls sideways");
                assert_eq!(browser.script("return window.innerWidth").await, width, "{told}");
                let scheme =
                    browser.script("return matchMedia('(prefers-color-scheme: dark)').matches").await;
                assert_eq!(scheme, dark);
                browser
                    .picture(&format!(
                        "console{}-{width}-{dark}",
                        path.replace(['/', '?', '=', '&', '@'], "_")
                    ))
                    .await;
                checked += 1;
            }
        }
        browser.close().await;
    }
    assert_eq!(checked, 4 * pages.len());
    // Signing in, too.
    let mut locked = World::new(Backends::Embedded);
    locked.set("HEADCOUNT_OPS_TOKEN", "operate-hunter2");
    let up_locked = locked.start(&["up"]);
    let browser = Browser::open(390, 844).await;
    browser.goto(&up_locked, "/dead/letters?status=all").await;
    browser.until_path("/sign-in").await;
    assert_eq!(barriers(&browser).await, Vec::<String>::new());
    browser.keys("wrong-token\u{e007}").await;
    browser.until("#main", |text| text.contains("neither of the two tokens")).await;
    browser.keys("operate-hunter2\u{e007}").await;
    browser.until_path("/dead/letters?status=all").await;
    let cookie = browser.script("return document.cookie").await;
    assert_eq!(cookie, "", "no script reads the session");
    browser.close().await;
    up_locked.stop();
    up.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyboard_alone_does_everything_and_back_and_reload_work_anywhere() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    for n in 0..3 {
        post(&up, &format!("msg_{n}"), format!("no JSON {n}")).await;
    }
    let browser = Browser::open(1200, 900).await;
    browser.until_page(&up, "/dead", |text| text.contains("3 letters")).await;
    browser.keys("gl").await;
    browser.until_path("/operations").await;
    browser.keys("gd").await;
    browser.until_path("/dead").await;
    // Down to the first cause, and in.
    browser.keys("j").await;
    browser.keys("\u{e007}").await;
    browser.until_path("/dead/letters?group=").await;
    for keys in ["j", "x", "j", "x"] {
        browser.keys(keys).await;
    }
    assert_eq!(browser.client.find_all(Locator::Css("input[name=id]:checked")).await.unwrap().len(), 2);
    browser.keys("r").await;
    browser.until_path("/dead/replay?").await;
    browser.until("h1", |text| text.contains("Replay 2 letters?")).await;
    // Off while somebody types.
    browser.client.find(Locator::Css("#note")).await.unwrap().send_keys("g d / j x r ?").await.unwrap();
    assert!(browser.path().await.starts_with("/dead/replay"));
    browser.keys("\u{e007}").await;
    browser.until_path("/operations/").await;
    browser.until("#main", |text| text.contains("halted") || text.contains("complete")).await;

    for (path, title) in [("/users", "Users"), ("/flow", "Flow"), ("/dead/letters?status=all", "Letters")] {
        browser.goto(&up, path).await;
        browser.goto(&up, "/keys").await;
        browser.client.back().await.unwrap();
        assert_eq!((browser.path().await.as_str(), browser.text("h1").await.as_str()), (path, title));
        browser.client.refresh().await.unwrap();
        assert_eq!((browser.path().await.as_str(), browser.text("h1").await.as_str()), (path, title));
    }
    browser.keys("?").await;
    browser.until_path("/keys").await;

    // Live updates: paused by a person they stay so, also on the next page.
    browser.goto(&up, "/dead").await;
    let open = browser.text("#main").await;
    browser.click("#pause").await;
    browser.goto(&up, "/dead").await;
    assert_eq!(browser.text("#pause").await, "Resume live updates");
    post(&up, "msg_new", "no JSON either").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!browser.text("#main").await.contains("4 letters"), "{open}");
    browser.click("#pause").await;
    browser.until("#main", |text| text.contains("4 letters")).await;

    // They rest while the page is hidden.
    let hide = async |hidden: bool| {
        let script = format!(
            "Object.defineProperty(document, 'hidden', {{ get: () => {hidden}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        );
        browser.script(&script).await;
    };
    hide(true).await;
    post(&up, "msg_newer", "no JSON here").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!browser.text("#main").await.contains("5 letters"));
    hide(false).await;
    browser.until("#main", |text| text.contains("5 letters")).await;

    // Copying works over plain HTTP, and says so.
    browser.goto(&up, "/dead/letters?text=no+JSON").await;
    browser.goto(&up, "/search?q=msg_new").await;
    browser.until_path("/dead/letters/").await;
    browser.click("button.copy").await;
    browser.until("button.copy", |text| text == "copied").await;

    // The keys can be turned off.
    browser.goto(&up, "/keys").await;
    browser.click("#keys").await;
    browser.goto(&up, "/flow").await;
    browser.keys("gd").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(browser.path().await, "/flow");
    browser.close().await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_changes_and_reads_nothing_and_hostile_text_is_text() {
    let mut world = World::new(Backends::RabbitPostgres);
    world.set("HEADCOUNT_OPS_TOKEN", "operate-hunter2");
    world.set("HEADCOUNT_OPS_LOOK_TOKEN", "look-hunter2");
    assert!(world.run(&["migrate"]).status.success());
    let up = world.start(&["up"]);
    let hostile = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">\u{202e}\u{1b}[31mgnp.exe";
    let named = |id: &str, banned: Option<Value>| {
        let mut person = Person::of(id.to_owned(), now());
        person.first_name = Some(hostile.to_owned());
        let mut event: Value = serde_json::from_slice(&person.event("user.created", now())).unwrap();
        if let Some(banned) = banned {
            event["data"]["banned"] = banned;
        }
        event.to_string()
    };
    post(&up, "msg_good", named("user_good", None)).await;
    post(&up, "msg_bad", named("user_bad", Some("no".into()))).await;
    world.until_users("one is there", |users| users.len() == 1).await;

    let browser = Browser::open(1440, 900).await;
    browser.goto(&up, "/dead").await;
    browser.until_path("/sign-in").await;
    browser.keys("look-hunter2\u{e007}").await;
    browser.until_path("/dead").await;
    browser.until_page(&up, "/dead", |text| text.contains("1 letter")).await;
    browser.goto(&up, "/search?q=msg_bad").await;
    browser.until_path("/dead/letters/").await;
    let letter = browser.path().await;
    let page = browser.text("#main").await;
    assert!(page.contains("•••") && !page.contains("gnp.exe"), "{page}");
    let doors = "main form[method=post], main a[href$='/edit'], main a[href^='/dead/replay'], main a[href^='/dead/discard']";
    assert_eq!(browser.client.find_all(Locator::Css(doors)).await.unwrap().len(), 0, "{page}");
    browser.goto(&up, &format!("{letter}/edit")).await;
    browser.until("h1", |text| text == "Not allowed").await;

    // From there as one who operates, and on to what was wanted.
    browser.click("a.button").await;
    browser.until_path("/sign-in").await;
    browser.keys("operate-hunter2\u{e007}").await;
    browser.until_path(&format!("{letter}/edit")).await;
    browser.goto(&up, &letter).await;
    assert!(!browser.client.find_all(Locator::Css(doors)).await.unwrap().is_empty());
    browser.client.find(Locator::Css("form[action$='/reveal'] button")).await.unwrap().click().await.unwrap();
    let as_text = |text: &str| text.contains("<script>document.title") && text.contains("gnp.exe");
    browser.until("#main", as_text).await;
    browser.goto(&up, "/users/user_good").await;
    browser.until("#main", as_text).await;
    for path in [&*letter, "/users", "/users/user_good", "/dead", "/operations"] {
        browser.goto(&up, path).await;
        let ran = "return [document.title, document.querySelectorAll('main img, main script').length, \
                   /[\\u202e\\u001b]/.test(document.body.textContent)]";
        let ran = browser.script(ran).await;
        assert_ne!(ran[0], "run", "{path}");
        assert_eq!((&ran[1], &ran[2]), (&Value::from(0), &Value::from(false)), "{path}");
    }
    browser.click("form.person button").await;
    browser.until_path("/sign-in").await;
    browser.goto(&up, "/").await;
    browser.until_path("/sign-in").await;
    browser.close().await;
    up.stop();
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_script_everything_is_read_and_done() {
    let world = World::new(Backends::Embedded);
    let up = world.start(&["up"]);
    post(&up, "msg_1", "no JSON").await;
    post(&up, "msg_2", person("user_1", "ada")).await;
    let browser = Browser::open_without_script(1200, 900).await;
    browser.until_page(&up, "/dead", |text| text.contains("1 letter")).await;
    for (path, word) in [
        ("/", "What needs somebody"),
        ("/users/user_1", "user.created"),
        ("/flow", "The retry ladder"),
        ("/rejections", "Nothing was turned away"),
        ("/processes", "ingress, worker"),
        ("/keys", "replay the letters that are chosen"),
    ] {
        browser.until_page(&up, path, |text| text.contains(word)).await;
        assert!(!browser.text("body").await.contains("Pause live updates"));
    }
    browser.goto(&up, "/search?q=msg_1").await;
    browser.until_path("/dead/letters/").await;
    browser.client.find(Locator::LinkText("Discard…")).await.unwrap().click().await.unwrap();
    browser.until_path("/dead/discard").await;
    browser.client.find(Locator::Css("#note")).await.unwrap().send_keys("a test\u{e007}").await.unwrap();
    browser.until_path("/dead/letters?").await;
    browser.until("#main", |text| text.contains("1 letter discarded.")).await;
    browser.client.find(Locator::LinkText("Undo…")).await.unwrap().click().await.unwrap();
    browser.until_path("/dead/restore").await;
    browser.click("button.primary").await;
    browser.until_path("/dead/letters?").await;
    browser.until_page(&up, "/dead", |text| text.contains("1 letter")).await;
    browser.close().await;
    up.stop();
}
