//! Owns the process: parse, telemetry, dispatch, exit code.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::{process::ExitCode, sync::Arc};

use headcount::{
    app::{self, Addresses, Roles},
    clerk::secret,
    cli::{
        self, Cli, Command, dead, demo::Demo, doctor, operations, output::Output, rejections, send, status,
        sync, users,
    },
    config::Config,
    failure::{Exit, Failure},
    store::Store,
    telemetry::{logs, metrics},
};
use tokio::sync::watch;
use tracing::{info, warn};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("the runtime cannot start: {error}")))
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(cli));
            // Left alone, as a frozen database's transaction is: it must not keep the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            failure.report(std::io::stderr());
            failure.exit.into()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let config = Config::load(cli.config.as_deref())?;
    let mut output = Output::stdout();
    let filter = match cli.command {
        _ if std::env::var_os("RUST_LOG").is_some() => &config.log_filter,
        Command::Up(_) | Command::Ingress | Command::Worker | Command::Api | Command::Console => {
            &config.log_filter
        }
        // The database's own warnings are of use here.
        Command::Migrate => "warn",
        // The command's own errors are enough: its log, and a library's, would only repeat them.
        Command::Doctor(_) | Command::Status(_) => "off",
        Command::Send(_)
        | Command::Users(_)
        | Command::Dead(_)
        | Command::Operations(_)
        | Command::Rejections(_)
        | Command::Sync(_) => "headcount=error",
    };
    logs::init(filter, config.log_format)
        .map_err(|problem| Failure::usage(problem).hint("write RUST_LOG=info, or info,headcount=debug"))?;
    match cli.command {
        Command::Up(args) => {
            info!("queue: {}; users: {}", config.queue_choice(), config.store_choice());
            up(&config, args.demo).await
        }
        Command::Ingress => {
            info!("queue: {}", config.queue_choice());
            if config.signing_secrets.is_empty() {
                return Err(Failure::usage("CLERK_WEBHOOK_SIGNING_SECRET is not set")
                    .hint("copy it from the endpoint's page in the Clerk dashboard; it starts with whsec_")
                    .hint("to try headcount without Clerk: headcount up --demo"));
            }
            let roles = Roles { ingress: Some(config.signing_secrets.clone()), ..Roles::default() };
            serve(&config, roles, |_, _| {}).await
        }
        Command::Worker => {
            info!("queue: {}; users: {}", config.queue_choice(), config.store_choice());
            let roles = Roles { worker: true, ..Roles::default() };
            serve(&config, roles, |_, _| {}).await
        }
        Command::Api => {
            info!("users: {}", config.store_choice());
            let Some(tokens) = config.tokens() else {
                return Err(Failure::usage("no session token can be checked: the Clerk instance is not known")
                    .hint("set CLERK_PUBLISHABLE_KEY to the key on the page of API keys in the Clerk dashboard; it starts with pk_")
                    .hint("or set CLERK_JWT_ISSUER_DOMAIN to the address of its Frontend API"));
            };
            let roles = Roles { api: Some(tokens), ..Roles::default() };
            serve(&config, roles, |_, _| {}).await
        }
        Command::Console => {
            info!("queue: {}; users: {}", config.queue_choice(), config.store_choice());
            serve(&config, Roles { console: true, ..Roles::default() }, |_, _| {}).await
        }
        Command::Migrate => migrate(&config, &mut output).await,
        Command::Send(args) => send::run(&args, &config, &mut output).await,
        Command::Status(args) => status::run(args, &config, &mut output).await,
        Command::Users(args) => users::run(args, &config, &mut output).await,
        Command::Dead(args) => dead::run(args, &config, &mut output).await,
        Command::Sync(args) => sync::run(args, &config, &mut output).await,
        Command::Operations(args) => operations::run(args, &config, &mut output).await,
        Command::Rejections(args) => rejections::run(args, &config, &mut output).await,
        Command::Doctor(args) => doctor::run(args, &config, &mut output).await,
    }
}

async fn up(config: &Config, demo: bool) -> Result<(), Failure> {
    let mut secrets = config.signing_secrets.clone();
    if secrets.is_empty() {
        secrets.push(secret::make_development(&config.data_dir)?);
        let place = config.data_dir.join(secret::DEVELOPMENT_FILE);
        warn!("CLERK_WEBHOOK_SIGNING_SECRET is not set: using the development secret in {}", place.display());
    }
    let Some(secret) = secrets.first().cloned() else {
        return Err(Failure::new("there is no signing secret"));
    };
    let demo = if demo { Some(Demo::prepare(config).await?) } else { None };
    let config = demo.as_ref().map_or(config, |demo| &demo.config);
    let roles = Roles {
        ingress: Some(secrets),
        worker: true,
        console: false,
        api: config.tokens(),
        pages: demo.as_ref().map(Demo::pages),
        migrate: true,
    };
    let (stop_demo, demo_stop) = watch::channel(false);
    let result = serve(config, roles, |addresses, store| {
        if let Some(demo) = &demo {
            demo.play(addresses, store, secret, demo_stop);
        }
    })
    .await;
    stop_demo.send_replace(true);
    result
}

async fn serve(
    config: &Config,
    roles: Roles,
    started: impl FnOnce(Addresses, Option<Arc<dyn Store>>),
) -> Result<(), Failure> {
    let prometheus =
        metrics::install().map_err(|error| Failure::new(format!("metrics cannot start: {error}")))?;
    let stop =
        app::stop_signal().map_err(|error| Failure::new(format!("signals cannot be heard: {error}")))?;
    let path = config.webhook_path.clone();
    let started = move |addresses: Addresses, store| {
        if let Some(address) = addresses.ingress {
            info!("webhooks: http://{address}{path}");
        }
        if let Some(address) = addresses.api {
            info!("the application's API: http://{address}/v1/me");
        }
        info!("operators: http://{}/", addresses.ops);
        started(addresses, store);
    };
    app::run(config, roles, prometheus, started, stop).await
}

async fn migrate(config: &Config, output: &mut Output) -> Result<(), Failure> {
    let store = app::open_store(config).await?;
    let applied = store.migrate().await?;
    store.close().await;
    if applied.is_empty() {
        return output.line("the schema is up to date");
    }
    for name in applied {
        output.line(format!("applied {name}"))?;
    }
    Ok(())
}
