//! Owns waiting for a state that another task sets: that of being asked to stop, above all.

use tokio::sync::watch;

/// Returns once `wanted` holds of the watched state, or when nobody can set it any more. Cancel-safe.
pub async fn until<T>(state: &watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    // The error says that the sender is gone, which stops whoever waits as well.
    let _ = state.clone().wait_for(wanted).await;
}
