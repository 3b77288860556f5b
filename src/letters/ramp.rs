//! Owns how many letters a replay dares to publish: one, ten, a hundred, then the rest, each step after the one before took effect;
//! and when too many of them died again. Pure.

use crate::{
    store::operations::Step,
    text::{letters, number},
};

/// The letters of each step but the last, which takes the rest.
pub const STEPS: [u64; 3] = [1, 10, 100];

/// How many steps there are.
pub const OF: u32 = STEPS.len() as u32 + 1;

/// The most letters of the last step that are under way at a time. It is also the window whose letters are judged together.
pub const WINDOW: u64 = 1_000;

/// The share of a step that may die again, unless people say otherwise.
pub const HALT_AT: f64 = 0.1;

/// How a replay stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stand {
    /// The step, and how the replay stood when it began.
    pub step: Step,
    /// Letters that the replay has claimed or taken over so far.
    pub letters: u64,
    /// Those of them that died again.
    pub died: u64,
    /// Those that neither died nor took effect yet.
    pub under_way: u64,
    /// Letters that the replay means in all.
    pub expected: u64,
    /// There is nothing left to claim.
    pub exhausted: bool,
    /// The share of a step that may die again.
    pub halt_at: f64,
}

/// What a replay does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Publishes so many letters more.
    Publish(u64),
    /// Waits until letters took effect or died again.
    Wait,
    /// Goes on with this step.
    Advance(Step),
    /// Stops, for this reason.
    Halt(String),
    /// All is done.
    Done,
}

impl Stand {
    /// What follows from it.
    pub fn next(&self) -> Next {
        if let Some(why) = self.too_many() {
            return Next::Halt(why);
        }
        let number = self.step.number + 1;
        match STEPS.get(self.step.number as usize) {
            Some(size) => {
                if self.of_step() < *size && !self.exhausted {
                    Next::Publish(size - self.of_step())
                } else if self.under_way > 0 {
                    Next::Wait
                } else if self.exhausted {
                    Next::Done
                } else {
                    Next::Advance(Step { number, from: self.letters, died: self.died })
                }
            }
            None => {
                let settled = self.letters.saturating_sub(self.under_way);
                // The next window begins with the letters that are under way, where as many are still to come.
                let is_over = settled.saturating_sub(self.step.from) >= WINDOW;
                if is_over && self.expected.saturating_sub(settled) >= WINDOW {
                    Next::Advance(Step { from: settled, died: self.died, ..self.step })
                } else if self.under_way < WINDOW && !self.exhausted {
                    Next::Publish(WINDOW - self.under_way)
                } else if self.under_way > 0 {
                    Next::Wait
                } else {
                    Next::Done
                }
            }
        }
    }

    /// Letters of this step so far.
    pub fn of_step(&self) -> u64 {
        self.letters.saturating_sub(self.step.from)
    }

    /// How many letters are judged together.
    fn planned(&self) -> u64 {
        if self.exhausted {
            return self.of_step();
        }
        let left = self.expected.saturating_sub(self.step.from).max(self.of_step());
        match STEPS.get(self.step.number as usize) {
            Some(size) => left.min(*size),
            None if left < 2 * WINDOW => left,
            None => WINDOW,
        }
    }

    /// Why it has to stop.
    fn too_many(&self) -> Option<String> {
        let died = self.died.saturating_sub(self.step.died);
        if self.step.number == 0 && died > 0 {
            return Some("the first letter died again".into());
        }
        let planned = self.planned();
        let may = share(self.halt_at);
        (died as f64 > self.halt_at * planned as f64).then(|| {
            match (self.step.number as usize) < STEPS.len() {
                true => format!(
                    "{} of the {} of this step died again; at most {may} may",
                    number(died),
                    letters(planned)
                ),
                false => {
                    let of = letters(planned.max(self.of_step()));
                    format!("{} of the last {of} died again; at most {may} may", number(died))
                }
            }
        })
    }

    /// How the step went, for people: `step 2 of 4: 10 letters published, 9 applied, 1 died again`.
    pub fn told(&self) -> String {
        let died = self.died.saturating_sub(self.step.died);
        let published = self.of_step();
        let applied = published.saturating_sub(self.under_way + died);
        let mut told = format!(
            "step {} of {OF}: {} published, {} applied",
            self.step.number + 1,
            letters(published),
            number(applied)
        );
        if died > 0 {
            told.push_str(&format!(", {} died again", number(died)));
        }
        if self.under_way > 0 {
            told.push_str(&format!(", {} under way", number(self.under_way)));
        }
        told
    }
}

/// A share as people write it: `10 %`.
pub fn share(share: f64) -> String {
    let percent = (share * 1_000.0).round() / 10.0;
    format!("{percent} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(number: u32, from: u64, letters: u64, died: u64, under_way: u64) -> Stand {
        let step = Step { number, from, died: 0 };
        Stand { step, letters, died, under_way, expected: 5_000, exhausted: false, halt_at: HALT_AT }
    }

    #[test]
    fn each_step_waits_until_the_one_before_took_effect() {
        assert_eq!(stand(0, 0, 0, 0, 0).next(), Next::Publish(1));
        assert_eq!(stand(0, 0, 1, 0, 1).next(), Next::Wait);
        assert_eq!(stand(0, 0, 1, 0, 0).next(), Next::Advance(Step { number: 1, from: 1, died: 0 }));
        assert_eq!(stand(1, 1, 1, 0, 0).next(), Next::Publish(10));
        // A process that died in the middle had published four.
        assert_eq!(stand(1, 1, 5, 0, 4).next(), Next::Publish(6));
        assert_eq!(stand(1, 1, 11, 1, 1).next(), Next::Wait);
        assert_eq!(stand(1, 1, 11, 1, 0).next(), Next::Advance(Step { number: 2, from: 11, died: 1 }));
        assert_eq!(stand(2, 11, 111, 0, 0).next(), Next::Advance(Step { number: 3, from: 111, died: 0 }));
        assert_eq!(stand(3, 111, 111, 0, 0).next(), Next::Publish(1_000));
        assert_eq!(stand(3, 111, 1_111, 0, 300).next(), Next::Publish(700));
        assert_eq!(stand(3, 111, 1_111, 0, 1_000).next(), Next::Wait);
    }

    #[test]
    fn it_ends_where_nothing_is_left_and_all_took_effect() {
        for (number, letters) in [(0, 0), (1, 5), (2, 50), (3, 400)] {
            let of = |under_way| Stand { exhausted: true, ..stand(number, 0, letters, 0, under_way) };
            assert_eq!(of(0).next(), Next::Done, "{number}");
            assert_eq!(of(1).next(), Next::Wait, "{number}");
        }
    }

    #[test]
    fn too_many_deaths_halt_it_at_once() {
        let halted = |stand: Stand| match stand.next() {
            Next::Halt(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(halted(stand(0, 0, 1, 1, 0)), "the first letter died again");
        assert_eq!(halted(Stand { halt_at: 1.0, ..stand(0, 0, 1, 1, 0) }), "the first letter died again");
        assert_eq!(
            halted(stand(1, 1, 11, 3, 2)),
            "3 of the 10 letters of this step died again; at most 10 % may"
        );
        // Few are there at all.
        let few = Stand { expected: 5, ..stand(1, 1, 3, 1, 1) };
        assert_eq!(halted(few), "1 of the 4 letters of this step died again; at most 10 % may");
        assert_eq!(
            halted(Stand { halt_at: 0.025, ..stand(2, 11, 60, 3, 2) }),
            "3 of the 100 letters of this step died again; at most 2.5 % may"
        );
        let last = halted(stand(3, 111, 900, 101, 2));
        assert_eq!(last, "101 of the last 1,000 letters died again; at most 10 % may");
        assert_eq!(stand(1, 1, 11, 1, 0).next(), Next::Advance(Step { number: 2, from: 11, died: 1 }));
    }

    #[test]
    fn the_last_step_judges_a_window_of_letters_after_the_other() {
        let full = stand(3, 111, 1_500, 90, 300);
        assert_eq!(full.next(), Next::Advance(Step { number: 3, from: 1_200, died: 90 }));
        // Near the end the last window grows, so that a few letters do not halt it.
        let near = Stand { expected: 1_600, ..full };
        assert_eq!(near.next(), Next::Publish(700));
        let near = Stand { died: 148, ..near };
        assert_eq!(near.next(), Next::Publish(700), "10 % of 1,489 letters");
        assert!(matches!(Stand { died: 149, ..near }.next(), Next::Halt(_)));
    }

    #[test]
    fn a_step_is_told_in_numbers() {
        assert_eq!(
            stand(1, 1, 11, 1, 0).told(),
            "step 2 of 4: 10 letters published, 9 applied, 1 died again"
        );
        assert_eq!(stand(0, 0, 1, 0, 1).told(), "step 1 of 4: 1 letter published, 0 applied, 1 under way");
    }
}
