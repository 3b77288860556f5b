//! People in Clerk, the stand-in that tells of them, tables, a queue, and a process that takes in and applies.

use std::process::Output;

use headcount::{
    clerk::stand_in::{StandIn, World as Clerk, Wrong},
    store::sync::Run,
};
use serde_json::Value;

use crate::support::{
    clerk::{differences, populate, stand_in},
    eventually,
    process::{Process, World},
    running::Running,
};

/// What a test begins with.
pub struct Scene {
    pub world: World,
    pub clerk: Clerk,
    /// `None` while no process runs.
    pub up: Option<Process>,
    _stand_in: StandIn,
}

/// A scene in which so many people live in Clerk, and nobody here.
pub async fn scene(mut world: World, people: usize) -> Scene {
    let stand_in = stand_in(&mut world).await;
    let clerk = stand_in.world().clone();
    populate(&clerk, people);
    let mut scene = Scene { world, clerk, up: None, _stand_in: stand_in };
    scene.restart().await;
    scene
}

/// The same once all of them live here too.
pub async fn scene_in_step(world: World, people: usize) -> Scene {
    let scene = scene(world, people).await;
    scene.synced(&[]);
    scene
}

fn arguments<'a>(options: &[&'a str]) -> Vec<&'a str> {
    ["sync", "--rate", "1000", "--yes"].into_iter().chain(options.iter().copied()).collect()
}

impl Scene {
    /// Runs a sync to its end. The stand-in goes on answering meanwhile, on other threads.
    pub fn sync(&self, options: &[&str]) -> Output {
        self.world.run(&arguments(options))
    }

    /// Starts one.
    pub fn begin(&self, options: &[&str]) -> Running {
        self.world.begin(&arguments(options))
    }

    /// Runs one that goes well. Returns its report.
    pub fn synced(&self, options: &[&str]) -> Value {
        let options: Vec<&str> = options.iter().copied().chain(["--json"]).collect();
        report(&self.sync(&options))
    }

    /// What one that goes well counts.
    pub fn counted(&self, options: &[&str]) -> Vec<(&'static str, u64)> {
        counted(&self.synced(options))
    }

    /// What a sync would still repair.
    pub fn drift(&self) -> Vec<(&'static str, u64)> {
        let found = self.counted(&["--dry-run"]);
        found.into_iter().filter(|(name, _)| !["clerk", "in_step"].contains(name)).collect()
    }

    /// The live rows say what Clerk says.
    pub async fn is_in_step(&self) {
        assert_eq!(differences(&self.clerk, &self.world.users().await), [""; 0]);
    }

    /// How many live here.
    pub async fn live(&self) -> usize {
        self.world.users().await.iter().filter(|row| row.deleted_at.is_none()).count()
    }

    pub fn process(&self) -> &Process {
        self.up.as_ref().expect("a process runs")
    }

    /// Stops the process.
    pub fn down(&mut self) {
        self.up.take().expect("a process runs").stop();
    }

    /// Stops the process if one runs, and starts one with the world's settings of now.
    pub async fn restart(&mut self) {
        if self.up.is_some() {
            self.down();
        }
        self.up = Some(self.world.start(&["up"]));
        let store = self.world.store().await;
        eventually("the tables are made", async || store.check_schema().await.is_ok()).await;
        store.close().await;
    }

    /// From the `nth` request to a path on, counted from now, the stand-in does this instead of answering.
    pub fn fail_from(&self, path: &'static str, nth: u64, wrong: &Wrong) {
        let fail = {
            let wrong = wrong.clone();
            move |clerk: &Clerk| {
                clerk.faults(|faults| (faults.wrong, faults.path) = (Some(wrong.clone()), Some(path)));
            }
        };
        let sound = self.clerk.asked(path) + nth - 1;
        if nth == 1 {
            fail(&self.clerk);
        }
        // What is set before a request counts for the next one.
        self.clerk.before_each(move |clerk, _| {
            if clerk.asked(path) >= sound {
                fail(clerk);
            }
        });
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.clerk.before_each(|_, _| {});
        self.clerk.faults(|faults| (faults.wrong, faults.path) = (None, None));
    }

    /// Waits until Clerk was asked at a path so often, beside what it was asked `before`.
    pub async fn until_asked(&self, path: &str, before: u64, times: u64) {
        let asked = async || self.clerk.asked(path) >= before + times;
        eventually(&format!("Clerk is asked {times} times for {path}"), asked).await;
    }

    /// Waits until the newest run is in this phase.
    pub async fn until_phase(&self, phase: &str) {
        let store = self.world.store().await;
        let is_so = async || store.runs(1).await.unwrap().first().is_some_and(|run| run.phase == phase);
        eventually(&format!("a run is {phase}"), is_so).await;
        store.close().await;
    }

    /// The newest run.
    pub async fn last_run(&self) -> Run {
        let store = self.world.store().await;
        let runs = store.runs(1).await.unwrap();
        store.close().await;
        runs.into_iter().next().expect("a run")
    }

    /// Ends the lease of a process that was killed, which otherwise lasts for up to half a minute.
    pub async fn end_lease(&self) {
        let past = "'2001-01-01T00:00:00.000Z'";
        self.world.sql(&format!("UPDATE leases SET expires_at = {past} WHERE name = 'sync'")).await;
    }

    /// Stops the process, and removes what the world left on shared servers.
    pub async fn close(mut self) {
        if self.up.is_some() {
            self.down();
        }
        self.world.clean_up().await;
    }
}

/// The last phase of a run.
pub const APPLYING: &str = "waiting until all is applied";

/// All that a command has said.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), said(output))
}

/// What a command has said on stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report of a run that went well.
pub fn report(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(output));
    printed(output)
}

/// The report that was printed, however the run ended.
pub fn printed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// The counts of a report, without those that are 0.
pub fn counted(report: &Value) -> Vec<(&'static str, u64)> {
    const NAMES: [&str; 9] = [
        "clerk",
        "in_step",
        "missing",
        "outdated",
        "different",
        "gone",
        "buried_alive",
        "repaired",
        "failed",
    ];
    let counts =
        NAMES.map(|name| (name, report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"))));
    counts.into_iter().filter(|(_, users)| *users > 0).collect()
}

/// It failed so: the error and a hint hold these words.
pub fn fails(output: &Output, code: i32, error: &str, hint: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let line =
        |mark: &str, words: &str| said.lines().any(|line| line.starts_with(mark) && line.contains(words));
    assert!(line("error: ", error), "no error about {error:?}: {said}");
    assert!(line("hint: ", hint), "no hint about {hint:?}: {said}");
}
