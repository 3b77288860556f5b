//! Owns the retry ladder: which delay follows which failed try, and how a rung is called.

use std::time::Duration;

/// The delays of `HEADCOUNT_RETRY_DELAYS`, in order. At least one rung, each at least 1 ms and at most 7 days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder(Vec<Duration>);

impl Ladder {
    /// The longest delay.
    pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    /// The most rungs.
    pub const MOST: usize = 20;

    /// Takes 1 to [`MOST`](Self::MOST) delays of 1 ms to [`LONGEST`](Self::LONGEST).
    ///
    /// # Errors
    /// In words, which of them is out of bounds.
    pub fn new(delays: Vec<Duration>) -> Result<Self, String> {
        if delays.is_empty() || delays.len() > Self::MOST {
            return Err(format!("takes 1 to {} delays", Self::MOST));
        }
        for delay in &delays {
            if *delay < Duration::from_millis(1) || *delay > Self::LONGEST {
                return Err(format!("a delay has to be between 1ms and 7d, not {}", delay_name(*delay)));
            }
        }
        Ok(Self(delays))
    }

    /// How many retries a message gets.
    pub fn rungs(&self) -> usize {
        self.0.len()
    }

    /// The delay of a rung; the last one for all beyond.
    pub fn delay(&self, rung: usize) -> Duration {
        self.0[rung.min(self.0.len() - 1)]
    }

    /// The name of a rung, as in the name of its queue: `1s`, `2m`, `1h`, `250ms`.
    pub fn name(&self, rung: usize) -> String {
        delay_name(self.delay(rung))
    }

    /// The delays, each once, with its name: a queue each.
    pub fn delays(&self) -> impl Iterator<Item = (String, Duration)> + '_ {
        let first = |(index, delay): &(usize, &Duration)| !self.0[..*index].contains(delay);
        self.0.iter().enumerate().filter(first).map(|(_, delay)| (delay_name(*delay), *delay))
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Self([1, 5, 30, 120, 600, 3600].map(Duration::from_secs).to_vec())
    }
}

/// The shortest exact name: whole days, hours, minutes or seconds, else milliseconds.
pub fn delay_name(delay: Duration) -> String {
    let ms = delay.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if ms >= size && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_ladder_is_the_documented_one() {
        let names: Vec<String> = Ladder::default().delays().map(|(name, _)| name).collect();
        assert_eq!(names.join(","), "1s,5s,30s,2m,10m,1h");
    }

    #[test]
    fn the_last_rung_serves_all_beyond() {
        let ladder = Ladder::new(vec![Duration::from_millis(250), Duration::from_secs(90)]).unwrap();
        assert_eq!(
            (ladder.name(0), ladder.name(1), ladder.name(9)),
            ("250ms".into(), "90s".into(), "90s".into())
        );
    }

    #[test]
    fn a_delay_may_stand_on_several_rungs() {
        let ladder = Ladder::new([60, 1, 60, 1].map(Duration::from_secs).to_vec()).unwrap();
        let delays: Vec<String> = ladder.delays().map(|(name, _)| name).collect();
        assert_eq!(delays, ["1m", "1s"]);
        assert_eq!((ladder.rungs(), ladder.name(2), ladder.name(3)), (4, "1m".into(), "1s".into()));
    }

    #[test]
    fn a_ladder_without_rungs_or_with_endless_delays_is_refused() {
        assert!(Ladder::new(vec![]).is_err());
        assert!(Ladder::new(vec![Duration::ZERO]).is_err());
        assert!(Ladder::new(vec![Ladder::LONGEST + Duration::from_secs(1)]).is_err());
    }
}
