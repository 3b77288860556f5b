//! Owns looking after a file in use: every second whether it is still there, now and then whether it can be read, and
//! saving what it holds where it was taken away. Holds a connection open, so that nobody else's leaving ends the log.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::JoinHandle};

use super::{Anchor, DataFile, Examined, Kind, Leftover, lock, private, saved, side};

/// How often the file is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is read through.
const EXAMINE: Duration = Duration::from_secs(20);
/// How long reading it through may take each time: a file of some 100 MiB is read whole.
const EXAMINE_LIMIT: Duration = Duration::from_millis(300);
/// How long reading it through may take where there is a reason to doubt it.
const DOUBT_LIMIT: Duration = Duration::from_secs(120);
/// How long the file may be away before its content is saved: somebody may just be moving it.
const GRACE: Duration = Duration::from_secs(2);

/// The task that looks after a file, until it is stopped or dropped.
#[derive(Debug)]
pub struct Guard {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Guard {
    /// Starts looking after the file.
    pub fn start(file: Arc<DataFile>, anchor: Anchor) -> Self {
        let (stop, stopping) = oneshot::channel();
        Self { stop, task: tokio::spawn(look_after(file, anchor, stopping)) }
    }

    /// Ends it: the held connection is closed, and the file is no longer in use by this process. What is to be saved is
    /// saved first. All other connections have to be closed before.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::warn!("looking after a file has failed: {error}");
        }
    }
}

async fn look_after(file: Arc<DataFile>, mut anchor: Anchor, mut stopping: oneshot::Receiver<()>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut examine_at = Instant::now();
    let mut away: Option<Instant> = None;
    file.tell_of_saved();
    loop {
        tokio::select! {
            _ = &mut stopping => break,
            _ = look.tick() => {}
        }
        match file.check().map_err(|trouble| trouble.kind) {
            Err(Kind::Gone | Kind::Replaced | Kind::PartGone(_)) => {
                if away.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                    file.save(&mut anchor).await;
                }
                continue;
            }
            Err(Kind::Cut) => {
                if let Examined::Damaged(problem) = anchor.examine(DOUBT_LIMIT).await {
                    file.damaged(problem);
                } else if anchor.restart_log().await {
                    // Somebody has tidied up, as SQLite's own shell can: nothing is missing.
                    file.accept_sizes();
                }
            }
            Err(Kind::Damaged) if Instant::now() >= examine_at => {
                if anchor.examine(DOUBT_LIMIT).await == Examined::Sound {
                    file.sound();
                }
                examine_at = Instant::now() + EXAMINE;
            }
            Ok(()) if Instant::now() >= examine_at => {
                if let Examined::Damaged(problem) = anchor.examine(EXAMINE_LIMIT).await {
                    file.damaged(problem);
                }
                examine_at = Instant::now() + EXAMINE;
            }
            Err(Kind::Damaged | Kind::Linked | Kind::Shared) | Ok(()) => {}
        }
        away = None;
    }
    if file
        .check()
        .is_err_and(|trouble| matches!(trouble.kind, Kind::Gone | Kind::Replaced | Kind::PartGone(_)))
    {
        file.save(&mut anchor).await;
    }
    anchor.close(&file.path).await;
    file.release();
}

impl DataFile {
    /// It was read through, and every page is as it has to be.
    fn sound(&self) {
        self.state().damage = None;
        self.accept_sizes();
        let _ = self.check();
    }

    /// Copies what it holds to a file beside it, once for all its processes.
    async fn save(&self, anchor: &mut Anchor) {
        if let Some(saved) = self.with_lock(lock::saved) {
            self.state().saved = Some(saved);
            return;
        }
        if std::mem::replace(&mut self.state().tried, true) {
            return;
        }
        let path = self.path.display();
        match self.copy(anchor).await {
            Ok(None) => {}
            Ok(Some(saved)) => {
                self.with_lock(|file| lock::note_saved(file, &saved).ok());
                tracing::error!(
                    "what {path} held is saved in {}: {}",
                    saved.display(),
                    saved::advice(&self.path, &saved)
                );
                self.state().saved = Some(saved);
            }
            Err(problem) => tracing::error!(
                "what {path} held cannot be saved beside it: {problem}; put the file back before this process ends"
            ),
        }
    }

    async fn copy(&self, anchor: &mut Anchor) -> Result<Option<PathBuf>, String> {
        let text = |error: std::io::Error| error.to_string();
        let target = saved::free(&self.real).ok_or("too many were saved before")?;
        let part = side(&self.real, &format!(".saving-{}", std::process::id()));
        if let Some(directory) = part.parent() {
            private::make_directory(directory).map_err(text)?;
        }
        private::make_file(&part).map_err(text)?;
        let copied = anchor.copy(&part).await;
        let whole = copied.and_then(|anything| match anything {
            true => {
                std::fs::File::open(&part).and_then(|file| file.sync_all()).map_err(text)?;
                std::fs::rename(&part, &target).map_err(text).map(|()| Some(target))
            }
            false => Ok(None),
        });
        if !matches!(whole, Ok(Some(_))) {
            let _ = std::fs::remove_file(&part);
        }
        whole
    }

    fn tell_of_saved(&self) {
        if let Some(Leftover { message, hint }) = self.leftover() {
            tracing::warn!("{message}; {hint}");
        }
    }

    pub(super) fn with_lock<T>(&self, use_it: impl FnOnce(&std::fs::File) -> Option<T>) -> Option<T> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(use_it)
    }
}
