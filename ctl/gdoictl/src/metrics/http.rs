//! HTTP for who reads: nothing can be changed over it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use ctl::observe::Snapshot;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::html;
use crate::connect::Daemon;
use crate::{Failure, say};

/// What Prometheus asks for and is given.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The daemon that is looked at. One looks at a time: many readers together cost it no more than one.
#[derive(Debug, Clone)]
struct Looker {
    /// From the command line; none: whichever daemon runs here at that moment.
    socket: Arc<Option<PathBuf>>,
    turn: Arc<Mutex<()>>,
}

impl Looker {
    /// The daemon as it is now, counted; none while it is away.
    async fn look(&self) -> Option<Snapshot> {
        let _turn = self.turn.lock().await;
        let socket = Arc::clone(&self.socket);
        let look = move || Daemon::either(socket.as_deref()).and_then(|daemon| daemon.summary());
        tokio::task::spawn_blocking(look).await.ok()?.ok()
    }
}

/// Answers at `listen` until it is ended, also while the daemon is away: metrics, and `with_page` the web page.
///
/// # Errors
/// [`Failure::Refused`] when the address cannot be listened on, [`Failure::Usage`] when it is not clear which daemon is meant.
pub fn serve(socket: Option<PathBuf>, listen: SocketAddr, with_page: bool) -> Result<(), Failure> {
    match Daemon::either(socket.as_deref()) {
        Ok(_) | Err(Failure::Unreachable(_)) => {}
        Err(unclear) => return Err(unclear),
    }
    let failed = |what: &'static str| move |error| Failure::Refused(format!("{what}: {error}"));
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("tokio cannot be started"))?;
    tokio.block_on(async {
        let listener = TcpListener::bind(listen).await;
        let listener =
            listener.map_err(|error| Failure::Refused(format!("cannot listen on {listen}: {error}")))?;
        let address = listener.local_addr().map_err(failed("no address"))?;
        say(&format!("listening on http://{address}/{}\n", if with_page { "" } else { "metrics" }))?;
        let looker = Looker { socket: Arc::new(socket), turn: Arc::default() };
        let router = Router::new().route("/metrics", get(metrics));
        let router = if with_page { router.route("/", get(page)) } else { router };
        let router = router.with_state(looker);
        axum::serve(listener, router).await.map_err(failed("serving ended"))
    })
}

async fn metrics(State(looker): State<Looker>) -> Response {
    let snapshot = looker.look().await;
    let page = tokio::task::spawn_blocking(move || super::text(snapshot.as_ref())).await;
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn page(State(looker): State<Looker>) -> Response {
    let snapshot = looker.look().await;
    let headers = [
        (header::CONTENT_SECURITY_POLICY, html::POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(html::page(snapshot.as_ref()))).into_response()
}
