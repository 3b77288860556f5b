//! Addresses as people write them.

use super::*;

/// A part of each secret in the tables below.
const SECRETS: [&str; 4] = ["s3cr3t", "hunter2", "pa55", "XYZ"];

/// Whether a refusal says what is wrong, how to mend it, and nothing else.
fn refused(address: &str, wrong: &Wrong, about: &str) {
    assert!(wrong.problem.contains(about), "{address}: {wrong:?}");
    assert!(!wrong.hint.is_empty(), "{address}");
    for secret in SECRETS {
        assert!(!format!("{wrong:?}").contains(secret), "{address}: {wrong:?}");
    }
}

#[test]
fn amqp_addresses_are_read_as_they_are_meant() {
    // Address, host, port, user, password, virtual host.
    let cases = [
        ("amqp://localhost", "localhost", 5672, "guest", "guest", "/"),
        ("amqp://localhost/", "localhost", 5672, "guest", "guest", "/"),
        ("amqp://localhost//", "localhost", 5672, "guest", "guest", "/"),
        ("amqp://localhost/%2f", "localhost", 5672, "guest", "guest", "/"),
        ("amqp://localhost/%2F", "localhost", 5672, "guest", "guest", "/"),
        ("amqp://localhost/app", "localhost", 5672, "guest", "guest", "app"),
        ("amqp://localhost//app", "localhost", 5672, "guest", "guest", "/app"),
        ("amqp://localhost/a%2fb", "localhost", 5672, "guest", "guest", "a/b"),
        ("amqp://app:s3cr3t@mq.example:5673/app", "mq.example", 5673, "app", "s3cr3t", "app"),
        ("  amqp://app:s3cr3t@mq.example\n", "mq.example", 5672, "app", "s3cr3t", "/"),
        ("AMQP://app:s3cr3t@mq.example", "mq.example", 5672, "app", "s3cr3t", "/"),
        ("amqps://app:s3cr3t@mq.example/", "mq.example", 5671, "app", "s3cr3t", "/"),
        ("amqps://u:s3cr3t@gull.rmq.cloudamqp.com/u", "gull.rmq.cloudamqp.com", 5671, "u", "s3cr3t", "u"),
        ("amqp://app:s3cr3t@[::1]", "::1", 5672, "app", "s3cr3t", "/"),
        ("amqp://app:s3cr3t@[2001:db8::1]:5673/v", "2001:db8::1", 5673, "app", "s3cr3t", "v"),
        ("amqp://app:s3cr3t@192.0.2.7", "192.0.2.7", 5672, "app", "s3cr3t", "/"),
        ("amqp://app:s3c%40r3t@mq", "mq", 5672, "app", "s3c@r3t", "/"),
        ("amqp://app:%2F%3F%23%25%3A@mq", "mq", 5672, "app", "/?#%:", "/"),
        ("amqp://app:s3c@r3t@mq/v", "mq", 5672, "app", "s3c@r3t", "v"),
        ("amqp://app:a:b@mq", "mq", 5672, "app", "a:b", "/"),
        ("amqp://a%40b:p%C3%A9@mq", "mq", 5672, "a@b", "p\u{e9}", "/"),
        ("amqp://app:s3cr3t@rabbit_mq:/v", "rabbit_mq", 5672, "app", "s3cr3t", "v"),
    ];
    for (text, host, port, user, password, vhost) in cases {
        let read = amqp(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
        let found = (&*read.host, read.port, &*read.user, &*read.password, &*read.vhost);
        assert_eq!(found, (host, port, user, password, vhost), "{text}");
        assert_eq!((read.tls, read.warnings.len()), (text.contains("amqps"), 0), "{text}");
    }
}

#[test]
fn amqp_addresses_that_cannot_be_used_say_why() {
    let cases = [
        ("", "scheme"),
        ("localhost:5672", "scheme"),
        ("app:s3cr3t@mq:5672/v", "scheme"),
        ("amqp:/app:s3cr3t@mq", "one slash"),
        ("amqp:app:s3cr3t@mq", "scheme"),
        ("\"amqp://app:s3cr3t@mq\"", "quotes"),
        ("'amqp://app:s3cr3t@mq'", "quotes"),
        ("AMQP_URL=amqp://app:s3cr3t@mq", "its own name"),
        ("${RABBITMQ_URL}", "another variable"),
        ("amqp://app:s3 cr3t@mq", "space"),
        ("amqp://app:s3cr3t@mq/v\u{200b}", "invisible"),
        ("rabbitmq://app:s3cr3t@mq", "rabbitmq://"),
        ("amqp+ssl://app:s3cr3t@mq", "amqp+ssl://"),
        ("pyamqp://app:s3cr3t@mq", "pyamqp://"),
        ("http://mq:15672", "management"),
        ("https://app:s3cr3t@mq", "management"),
        ("redis://mq", "RabbitMQ"),
        ("s3cr3t://mq", "scheme"),
        ("amqp://", "no host"),
        ("amqp:///v", "no host"),
        ("amqp://app:s3cr3t@", "no host"),
        ("amqp://app:s3cr3t@/v", "no host"),
        ("amqp://app@mq", "without a password"),
        ("amqp://:s3cr3t@mq", "without a user"),
        ("amqp://app:s3cr3t@mq:70000", "no port"),
        ("amqp://app:s3cr3t@mq:0", "no port"),
        ("amqp://app:s3cr3t@mq:port", "no port"),
        ("amqp://app:s3cr3t", "no port"),
        ("amqp://app:hunter2/s3cr3t@mq", "@ behind"),
        ("amqp://app:hunter2#s3cr3t@mq", "@ behind"),
        ("amqp://app:hunter2?s3cr3t@mq/v", "@ behind"),
        ("amqp://app:hun@ter/s3cr3t@mq", "@ behind"),
        ("amqp://app:s3cr3t@mq/v#XYZ", "#"),
        ("amqp://app:100%s3cr3t@mq", "%"),
        ("amqp://app:s3cr3t%@mq", "%"),
        ("amqp://app:s3cr3t%ff@mq", "no text"),
        ("amqp://app:s3cr3t@2001:db8::1", "colons"),
        ("amqp://app:s3cr3t@[mq]", "brackets"),
        ("amqp://app:s3cr3t@[::1]5672", "no port"),
        ("amqp://app:s3cr3t@mq1:5672,mq2:5672/v", "several hosts"),
        ("amqp://app:s3cr3t@m!q", "character"),
        ("amqp://app:[YOUR-PASSWORD]@mq", "placeholder"),
        ("amqp://app:s3cr3t@mq?heartbeat=0", "heartbeat"),
        ("amqp://app:s3cr3t@mq?heartbeat=often", "heartbeat"),
        ("amqp://app:s3cr3t@mq?channel_max=2", "channel_max"),
        ("amqp://app:s3cr3t@mq?frame_max=64", "frame_max"),
        ("amqp://app:s3cr3t@mq?auth_mechanism=external", "auth_mechanism"),
        ("amqp://app:s3cr3t@mq?XYZ", "no value"),
    ];
    for (text, about) in cases {
        refused(text, &amqp(text).expect_err(text), about);
    }
}

#[test]
fn amqp_parameters_are_taken_or_named() {
    let read = amqp(
        "amqp://mq/v?heartbeat=30&frame_max=131072&channel_max=0&auth_mechanism=PLAIN&connection_timeout=5000&colour=XYZ&a%20b=XYZ",
    )
    .unwrap();
    assert_eq!((read.heartbeat, read.frame_max, read.channel_max), (Some(30), Some(131_072), None));
    assert_eq!(
        read.warnings,
        [
            "holds parameters that headcount does not use: connection_timeout",
            "holds parameters that headcount does not know: colour",
            "holds a parameter whose name is none",
        ]
    );
    assert_eq!(amqp("amqp://mq?channel_max=64").unwrap().channel_max, Some(64));
}

#[test]
fn addresses_of_postgresql_are_read_as_they_are_meant() {
    // Address, host, port, user, password, database.
    let cases = [
        ("postgres://app@localhost/app", "localhost", 5432, Some("app"), None, "app"),
        ("postgres://db/app", "db", 5432, None, None, "app"),
        ("postgres://app:s3cr3t@db", "db", 5432, Some("app"), Some("s3cr3t"), ""),
        ("postgres://app:s3cr3t@db/", "db", 5432, Some("app"), Some("s3cr3t"), ""),
        ("postgresql://app:s3cr3t@db:5433/app", "db", 5433, Some("app"), Some("s3cr3t"), "app"),
        ("POSTGRES://app:s3cr3t@db/app", "db", 5432, Some("app"), Some("s3cr3t"), "app"),
        (" postgres://app:s3cr3t@db/app\r\n", "db", 5432, Some("app"), Some("s3cr3t"), "app"),
        ("postgres://app:s3cr3t@[::1]/app", "::1", 5432, Some("app"), Some("s3cr3t"), "app"),
        (
            "postgres://app:s3cr3t@[2001:db8::1]:5433/app",
            "2001:db8::1",
            5433,
            Some("app"),
            Some("s3cr3t"),
            "app",
        ),
        ("postgres://app:s3cr3t@10.0.0.7/app", "10.0.0.7", 5432, Some("app"), Some("s3cr3t"), "app"),
        ("postgres://app:s3c%40r3t@db/app", "db", 5432, Some("app"), Some("s3c@r3t"), "app"),
        ("postgres://app:s3c@r3t@db/app", "db", 5432, Some("app"), Some("s3c@r3t"), "app"),
        ("postgres://app:%2F%3F%23%25@db/app", "db", 5432, Some("app"), Some("/?#%"), "app"),
        ("postgres://app:a+b@db/app", "db", 5432, Some("app"), Some("a+b"), "app"),
        ("postgres://app:a:b@db/app", "db", 5432, Some("app"), Some("a:b"), "app"),
        (
            "postgres://app.ref:s3cr3t@aws-0-eu.pooler.supabase.com:6543/postgres?pgbouncer=true",
            "aws-0-eu.pooler.supabase.com",
            6543,
            Some("app.ref"),
            Some("s3cr3t"),
            "postgres",
        ),
        (
            "postgresql://app:npg_s3cr3t@ep-cool-1-pooler.eu.aws.neon.tech/neondb?sslmode=require",
            "ep-cool-1-pooler.eu.aws.neon.tech",
            5432,
            Some("app"),
            Some("npg_s3cr3t"),
            "neondb",
        ),
        (
            "postgres://app@/app?host=/var/run/postgresql",
            "/var/run/postgresql",
            5432,
            Some("app"),
            None,
            "app",
        ),
        (
            "postgres:///app?host=/var/run/postgresql&port=5433",
            "/var/run/postgresql",
            5433,
            None,
            None,
            "app",
        ),
        (
            "postgres://app@%2Fvar%2Frun%2Fpostgresql/app",
            "/var/run/postgresql",
            5432,
            Some("app"),
            None,
            "app",
        ),
        (
            "postgres:///?host=db&user=app&password=s3cr3t&dbname=app",
            "db",
            5432,
            Some("app"),
            Some("s3cr3t"),
            "app",
        ),
        ("postgres://app@x/app?hostaddr=2001:db8::1", "2001:db8::1", 5432, Some("app"), None, "app"),
        ("postgres://app@db/my%20app", "db", 5432, Some("app"), None, "my app"),
    ];
    for (text, host, port, user, password, name) in cases {
        let read = postgres(text).unwrap_or_else(|wrong| panic!("{text}: {wrong:?}"));
        let found = (&*read.host, read.port, read.user.as_deref(), read.password.as_deref(), &*read.database);
        assert_eq!(found, (host, port, user, password, name), "{text}");
        assert_eq!(read.warnings.len(), 0, "{text}");
        assert!(!format!("{read:?}").contains("s3c"), "{text}");
    }
}

#[test]
fn addresses_of_databases_that_cannot_be_used_say_why() {
    let cases = [
        ("localhost:5432/app", "scheme"),
        ("app:s3cr3t@db/app", "scheme"),
        ("postgres:/app:s3cr3t@db/app", "one slash"),
        ("\"postgres://app:s3cr3t@db/app\"", "quotes"),
        ("'postgres://app:s3cr3t@db/app'", "quotes"),
        ("DATABASE_URL=postgres://app:s3cr3t@db/app", "its own name"),
        ("psql 'postgres://app:s3cr3t@db/app'", "psql"),
        ("${{Postgres.DATABASE_URL}}", "another variable"),
        ("postgres://app:s3 cr3t@db/app", "space"),
        ("host=db dbname=app password=s3cr3t", "space"),
        ("host=db", "keywords"),
        ("mysql://app:s3cr3t@db/app", "mysql://"),
        ("mongodb+srv://app:s3cr3t@db/app", "mongodb+srv://"),
        ("http://db:5432", "http://"),
        ("jdbc:postgresql://db:5432/app?password=s3cr3t", "Java"),
        ("postgresql+asyncpg://app:s3cr3t@db/app", "SQLAlchemy"),
        ("postgres+psycopg2://app:s3cr3t@db/app", "SQLAlchemy"),
        ("prisma+postgres://accelerate.prisma-data.net/?api_key=s3cr3t", "Prisma"),
        ("psql://app:s3cr3t@db/app", "psql://"),
        ("sqlite3://headcount.db", "sqlite3://"),
        ("s3cr3t://db/app", "scheme"),
        ("sqlite::memory:", "no file"),
        ("sqlite://", "no file"),
        ("postgres:///app", "no host"),
        ("postgres://app:s3cr3t@/app", "no host"),
        ("postgres://app:s3cr3t@db/app/more", "a database with a / in it"),
        ("postgres://app:s3cr3t@db:99999/app", "no port"),
        ("postgres://app:s3cr3t/app", "no port"),
        ("postgres://app@db/app?port=0", "no port"),
        ("postgres://app:hunter2/s3cr3t@db/app", "@ behind"),
        ("postgres://app:hunter2#s3cr3t@db/app", "@ behind"),
        ("postgres://app:hunter2?s3cr3t@db/app", "@ behind"),
        ("postgres://app:s3cr3t@db/app#XYZ", "#"),
        ("postgres://app:50%s3cr3t@db/app", "%"),
        ("postgres://app:s3cr3t@::1/app", "colons"),
        ("postgres://app:s3cr3t@db1,db2/app", "several hosts"),
        ("postgres://app:s3cr3t@/app?host=db1,db2", "several hosts"),
        ("postgres://postgres:[YOUR-PASSWORD]@db/postgres", "placeholder"),
        ("postgres://app@db/app?sslmode=s3cr3t", "sslmode"),
        ("postgres://app@db/app?sslrootcert=system", "sslrootcert"),
        ("postgres://app@db/app?sslpassword=s3cr3t", "sslpassword"),
        ("postgres://app@db/app?target_session_attrs=standby", "standby"),
        ("postgres://app@db/app?XYZ", "no value"),
    ];
    for (text, about) in cases {
        refused(text, &database(text).expect_err(text), about);
    }
}

#[test]
fn parameters_of_postgresql_are_taken_or_named_without_their_values() {
    let read = postgres(
        "postgres://app@db/app?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem\
         &application_name=mine&options=endpoint%3Dep-cool-1&target_session_attrs=read-write&pgbouncer=true\
         &connection_limit=1&connect_timeout=10&channel_binding=require&colour=XYZ",
    )
    .unwrap();
    assert_eq!(
        read.warnings,
        [
            "holds parameters that headcount does not use: connection_limit, connect_timeout, channel_binding",
            "holds parameters that headcount does not know: colour",
        ]
    );
    assert_eq!(
        read.spelled_out(),
        "postgres:///?host=db&port=5432&dbname=app&user=app&sslmode=verify-full&sslrootcert=%2Fca.pem\
         &sslcert=%2Fc.pem&sslkey=%2Fk.pem&application_name=mine&options=endpoint%3Dep-cool-1"
    );
    let plain = postgres("postgres://a%40b:p%26%3D%2B@[::1]/my%20app?ssl=true").unwrap().spelled_out();
    assert_eq!(
        plain,
        "postgres:///?host=%3A%3A1&port=5432&dbname=my+app&user=a%40b&password=p%26%3D%2B&application_name=headcount&sslmode=require"
    );
}

#[test]
fn a_schema_in_the_address_is_ours_or_refused() {
    for named in [
        "schema=app",
        "currentSchema=app",
        "search_path=app,public",
        "options=-c%20search_path%3Dapp",
        "options=-csearch_path=app,public%20-c%20geqo=off",
    ] {
        let read = postgres(&format!("postgres://app@db/app?{named}")).unwrap();
        assert_eq!(read.agrees("app"), Ok(()), "{named}");
        let wrong = read.agrees("public").expect_err(named);
        assert!(wrong.problem.contains("another schema than public"), "{named}: {wrong:?}");
        assert!(wrong.hint.contains("HEADCOUNT_SCHEMA=app"), "{named}: {wrong:?}");
    }
    assert_eq!(postgres("postgres://app@db/app").unwrap().agrees("app"), Ok(()));
}

#[test]
fn sqlite_urls_name_files() {
    for url in ["sqlite:///tmp/a.db", "sqlite:/tmp/a.db", "sqlite:///tmp/a.db?mode=rwc"] {
        assert_eq!(sqlite(url), Some(PathBuf::from("/tmp/a.db")), "{url}");
    }
    assert_eq!(sqlite("sqlite://a.db"), Some(PathBuf::from("a.db")));
    assert_eq!(sqlite("postgres://a"), None);
}
