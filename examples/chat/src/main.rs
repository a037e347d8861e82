//! `larder-chat`: starts the chat, serves it until it is told to stop, and then lets what is under way finish.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::str::FromStr as _;
use std::time::Duration;

use clap::Parser as _;
use larder_chat::{App, Options, StartError, StartResult, fill, http};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How long requests under way, and after them the cache, may take to finish.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-chat: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> StartResult<()> {
    log()?;
    let config = options.config().and_then(larder::Config::env);
    let config = config.map_err(|error| StartError::new(error.to_string()))?;
    let mut signals = Signals::listen()?;
    // Filling may take minutes. What comes after it doesn't, and isn't torn off: who has registered takes that back.
    let db = tokio::select! {
        db = fill::filled(options) => db?,
        () = signals.stop() => {
            info!("stopped before the database was filled: it is as it was");
            return Ok(());
        }
    };
    let app = App::on(db, options, &config).await?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        StartError::new(format!(
            "can't listen on {}: {error}; choose another --listen",
            options.listen
        ))
    })?;
    let address = listener.local_addr().unwrap_or(options.listen);
    info!(db = %options.db, store = app.store(), "listening on http://{address}");

    let (stop, mut stopped) = watch::channel(false);
    let server =
        axum::serve(listener, http::router(app.clone())).with_graceful_shutdown(async move {
            // The sender is dropped only after the server, so that this ends with the signal.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
    let drained = async {
        signals.stop().await;
        info!("stopping: requests under way may finish");
        stop.send_replace(true);
        tokio::time::sleep(PATIENCE).await;
        warn!("requests are still under way after {PATIENCE:?}; they are cut off");
    };
    let served = tokio::select! {
        served = server => served,
        () = drained => Ok(()),
    };
    app.close(PATIENCE).await;
    served.map_err(|error| StartError::new(format!("the server failed: {error}")))
}

/// What tells the chat to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> StartResult<Self> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| StartError::new(format!("can't wait for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for either.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Logs to standard error what `RUST_LOG` asks for, such as `larder=debug,info`.
fn log() -> StartResult<()> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let targets = Targets::from_str(&wanted).map_err(|error| {
        StartError::new(format!(
            "RUST_LOG `{wanted}`: {error}; it reads like larder=debug,info"
        ))
    })?;
    tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false),
        )
        .with(targets)
        .init();
    Ok(())
}
