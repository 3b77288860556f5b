//! Anonymous visitors: who gets one, who claims it, and what the application does with that.

use super::*;

contract! {
    a_visitor_is_claimed_once_and_the_answer_stays
    two_users_claim_at_once_and_one_gets_it
    a_visitor_whom_nobody_claims_in_time_is_forgotten
    an_application_moves_its_data_with_the_claim
    claims_of_one_user_take_turns_whatever_the_application_does
    a_token_is_shown_once_and_kept_nowhere
}

impl Process {
    /// A visitor's id and token.
    async fn visitor(&self) -> (String, String) {
        let begun = self.ask(Method::POST, "/v1/anonymous", &[]).await;
        assert_eq!(begun.status, StatusCode::CREATED, "{begun:?}");
        let text = |name: &str| begun.body[name].as_str().unwrap().to_owned();
        (text("id"), text("token"))
    }

    async fn claim(&self, caller: &str, token: &str) -> Answer {
        self.claim_with(caller, json!({ "token": token }).to_string()).await
    }

    async fn claim_with(&self, caller: &str, body: String) -> Answer {
        let bearer = format!("Bearer {caller}");
        self.ask_with(Method::POST, "/v1/me/claim", &[("authorization", &bearer)], body.into()).await
    }
}

async fn a_visitor_is_claimed_once_and_the_answer_stays(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let (one, two) = (scene.process().await, scene.process().await);
    for user in ["user_ann", "user_bob"] {
        scene.clerk.sign_up(user, now());
    }
    let (ann, bob) = (scene.token("user_ann"), scene.token("user_bob"));
    let (id, token) = one.visitor().await;
    assert!(id.starts_with("anon_") && id.len() == 29 && token.len() == 43, "{id} {token}");
    // Nobody has met her before.
    let claimed = one.claim(&ann, &token).await;
    assert_eq!(claimed.status, StatusCode::OK, "{claimed:?}");
    let row = one.me(&ann).await.body["id"].clone();
    assert_eq!((&claimed.body["anonymous_id"], &claimed.body["claimed_by"]), (&json!(id), &row));
    for process in [&one, &two] {
        assert_eq!(process.claim(&ann, &token).await.body, claimed.body);
        let other = process.claim(&bob, &token).await;
        assert_eq!((other.status, other.code()), (StatusCode::CONFLICT, "claimed_by_another"));
        assert!(!other.body.to_string().contains(&id));
        let unknown = process.claim(&ann, &format!("{token}x")).await;
        assert_eq!((unknown.status, unknown.code()), (StatusCode::NOT_FOUND, "unknown_token"));
    }
    for body in ["", "null", "[]", "{}", r#"{"token":7}"#, "token"] {
        let refused = one.claim_with(&ann, body.to_owned()).await;
        assert_eq!((refused.status, refused.code()), (StatusCode::BAD_REQUEST, "bad_request"), "{body:.20}");
    }
    let large = one.claim_with(&ann, format!(r#"{{"token":"{}"}}"#, "x".repeat(5_000))).await;
    assert_eq!((large.status, large.code()), (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"));
    // Her second visitor is another one, and after her deletion she claims none.
    let (_, second) = two.visitor().await;
    one.store.apply(Arc::from([stores::deleted("user_ann", now() + 1)])).await.unwrap();
    let gone = one.claim(&ann, &second).await;
    assert_eq!((gone.status, gone.code()), (StatusCode::GONE, "deleted"));
    assert_eq!(one.claim(&bob, &second).await.status, StatusCode::OK);
    one.end().await;
    two.end().await;
}

async fn two_users_claim_at_once_and_one_gets_it(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let (one, two) = (scene.process().await, scene.process().await);
    let users: Vec<String> = (0..6).map(|n| format!("user_{n}")).collect();
    let mut tokens = Vec::new();
    for user in &users {
        scene.clerk.sign_up(user, now());
        tokens.push(scene.token(user));
        assert_eq!(one.me(tokens.last().unwrap()).await.status, StatusCode::OK);
    }
    for _ in 0..8 {
        let (id, token) = one.visitor().await;
        let claims = tokens.iter().enumerate().map(|(n, caller)| [&one, &two][n % 2].claim(caller, &token));
        let answers = futures_util::future::join_all(claims).await;
        let (got, others): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status == StatusCode::OK);
        assert_eq!(got.len(), 1, "{answers:?}");
        assert_eq!(got[0].body["anonymous_id"], json!(id));
        assert!(others.iter().all(|other| other.code() == "claimed_by_another"), "{answers:?}");
    }
    one.end().await;
    two.end().await;
}

async fn a_visitor_whom_nobody_claims_in_time_is_forgotten(home: Arc<Home>) {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let ann = scene.token("user_ann");
    let (_, claimed) = process.visitor().await;
    let first = process.claim(&ann, &claimed).await;
    let (late, late_token) = process.visitor().await;
    let (_, in_time) = process.visitor().await;
    let past = "'2020-01-01T00:00:00.000Z'";
    let expire = format!(
        "UPDATE anonymous_visitors SET expires_at = {past} WHERE id = '{late}' OR claimed_by IS NOT NULL"
    );
    scene.home.sql(&expire).await;
    let refused = process.claim(&ann, &late_token).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::NOT_FOUND, "unknown_token"));
    assert_eq!(process.claim(&ann, &claimed).await.body, first.body, "what was claimed stays");
    let retention =
        headcount::store::housekeeping::Retention { inbox: DAY, dead: DAY, sessions: DAY, rejections: DAY };
    assert_eq!(process.store.prune(&retention, 10).await.unwrap().rows, 1);
    assert_eq!(scene.home.number("SELECT count(*) FROM anonymous_visitors").await, 2);
    assert_eq!(process.claim(&ann, &in_time).await.status, StatusCode::OK);
    process.end().await;
}

/// The statements in the README that move a cart.
fn by_the_readme() -> String {
    let readme = include_str!("../../README.md");
    let from = readme.find("CREATE FUNCTION move_cart").expect("README.md moves a cart");
    let to = readme[from..].find("```").expect("the end of its statements");
    readme[from..from + to].to_owned()
}

async fn an_application_moves_its_data_with_the_claim(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let ann = scene.token("user_ann");
    let user = process.me(&ann).await.body["id"].as_str().unwrap().to_owned();
    let id = if scene.home.is_postgres() { "uuid" } else { "TEXT" };
    scene.home.sql(&format!("CREATE TABLE carts (visitor_id text, user_id {id})")).await;
    scene
        .home
        .sql(&if scene.home.is_postgres() {
            by_the_readme()
        } else {
            "CREATE TRIGGER move_cart AFTER UPDATE OF claimed_by ON anonymous_visitors \
         WHEN OLD.claimed_by IS NULL AND NEW.claimed_by IS NOT NULL \
         BEGIN UPDATE carts SET user_id = NEW.claimed_by WHERE visitor_id = NEW.id; END"
                .to_owned()
        })
        .await;
    let (visitor, token) = process.visitor().await;
    scene.home.sql(&format!("INSERT INTO carts (visitor_id) VALUES ('{visitor}'), ('another')")).await;
    // While the application cannot move it, nothing is claimed.
    scene.home.sql("ALTER TABLE carts RENAME TO carts_elsewhere").await;
    if !scene.home.is_postgres() {
        // SQLite renames the table in the trigger too.
        scene.home.sql("DROP TRIGGER move_cart; CREATE TRIGGER move_cart AFTER UPDATE ON anonymous_visitors BEGIN SELECT RAISE(ABORT, 'no'); END").await;
    }
    let failed = process.claim(&ann, &token).await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE, "{failed:?}");
    // What the database says is for operators.
    assert_eq!(failed.body["detail"], "the database does not do what it was asked; headcount's log says why");
    assert!(failed.body["hint"].is_null(), "{failed:?}");
    assert_eq!(
        scene.home.number("SELECT count(*) FROM anonymous_visitors WHERE claimed_by IS NOT NULL").await,
        0
    );
    scene.home.sql("ALTER TABLE carts_elsewhere RENAME TO carts").await;
    if !scene.home.is_postgres() {
        scene.home.sql("DROP TRIGGER move_cart; CREATE TRIGGER move_cart AFTER UPDATE OF claimed_by ON anonymous_visitors BEGIN UPDATE carts SET user_id = NEW.claimed_by WHERE visitor_id = NEW.id; END").await;
    }
    assert_eq!(process.claim(&ann, &token).await.status, StatusCode::OK);
    let moved = format!("SELECT count(*) FROM carts WHERE user_id = '{user}' AND visitor_id = '{visitor}'");
    assert_eq!(scene.home.number(&moved).await, 1);
    assert_eq!(scene.home.number("SELECT count(*) FROM carts WHERE user_id IS NULL").await, 1);
    process.end().await;
}

async fn claims_of_one_user_take_turns_whatever_the_application_does(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let (one, two) = (scene.process().await, scene.process().await);
    scene.clerk.sign_up("user_ann", now());
    let ann = scene.token("user_ann");
    one.me(&ann).await;
    let pay = "UPDATE users SET credits_balance = credits_balance + 1 WHERE id = NEW.claimed_by;";
    scene.home.sql(&if scene.home.is_postgres() {
        format!(
            "CREATE FUNCTION pay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {pay} RETURN NULL; END $$; \
             CREATE TRIGGER pay AFTER UPDATE ON anonymous_visitors FOR EACH ROW EXECUTE FUNCTION pay()"
        )
    } else {
        format!("CREATE TRIGGER pay AFTER UPDATE ON anonymous_visitors BEGIN {pay} END")
    })
    .await;
    let mut visitors = Vec::new();
    for _ in 0..10 {
        visitors.push(one.visitor().await.1);
    }
    let claims = visitors.iter().enumerate().map(|(n, token)| [&one, &two][n % 2].claim(&ann, token));
    for claimed in futures_util::future::join_all(claims).await {
        assert_eq!(claimed.status, StatusCode::OK, "{claimed:?}");
    }
    assert_eq!(one.me(&ann).await.body["credits_balance"], stores::CREDITS + 10);
    one.end().await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_body_does_not_come_is_ended() {
    Home::sqlite().await.run(without_a_body).await;
}

async fn without_a_body(home: Arc<Home>) {
    use tokio::io::AsyncReadExt as _;
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    scene.clerk.sign_up("user_ann", now());
    let token = scene.token("user_ann");
    for (length, status) in [(100_u64, "408"), (99_999_999_999, "413")] {
        let mut socket = TcpStream::connect(process.url.trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "POST /v1/me/claim HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.expect("an answer").unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"));
    }
    process.end().await;
}

async fn a_token_is_shown_once_and_kept_nowhere(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    let (one, token) = process.visitor().await;
    let (other, _) = process.visitor().await;
    assert_ne!(one, other);
    let columns = "id || ' ' || token_hash";
    let kept = scene.home.texts(&format!("SELECT {columns} FROM anonymous_visitors")).await;
    assert!(kept.len() == 2 && kept.iter().all(|row| !row.contains(&token)), "{kept:?}");
    // Knowing the id is no claim.
    scene.clerk.sign_up("user_eve", now());
    let guessed = process.claim(&scene.token("user_eve"), &one).await;
    assert_eq!(guessed.code(), "unknown_token");
    process.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_visitors_is_bounded() {
    Home::sqlite().await.run(flooded_with_visitors).await;
}

async fn flooded_with_visitors(home: Arc<Home>) {
    let scene = Scene::new(home).await;
    let process = scene.process().await;
    let began = Instant::now();
    let flood = (0..300).map(|_| process.ask(Method::POST, "/v1/anonymous", &[]));
    let answers = futures_util::future::join_all(flood).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count() as u64;
    assert!((60..=61 + began.elapsed().as_secs()).contains(&made), "{made} were made");
    let refused = answers.iter().find(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).unwrap();
    assert_eq!(refused.code(), "too_many_requests");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    assert_eq!(scene.home.number("SELECT count(*) FROM anonymous_visitors").await as u64, made);
    // Users are answered meanwhile.
    scene.clerk.sign_up("user_ann", now());
    assert_eq!(process.me(&scene.token("user_ann")).await.status, StatusCode::OK);
    process.end().await;
}
