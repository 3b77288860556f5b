//! Owns waiting for a state that another task sets, above all for the request to stop.

use tokio::sync::watch;

/// Returns once `wanted` holds of the watched state, or when nobody can set it any more. Cancel-safe.
pub async fn until<T>(state: &watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    // An error means that the sender is gone, which ends the wait as well.
    let _ = state.clone().wait_for(wanted).await;
}
