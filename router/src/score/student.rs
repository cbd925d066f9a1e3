//! Distilling a scorer: a big one, the blend, teaches the linear one whose decision takes microseconds.
//!
//! Grades are rare and noisy: one bit for a prompt, and much of it chance. The blend has drawn what can be drawn from them, so
//! that its calibrated probability says more about a prompt than the bit does, and it has something to say about prompts
//! that nobody graded (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015; Bucila, Caruana and
//! Niculescu-Mizil, "Model compression", 2006, for unlabelled data). Of graded prompts the student sees the probability that
//! the blend's parts gave without having seen their cluster: what a teacher has learnt by heart teaches nothing.

use super::blend::{BlendError, HEAVIEST, Shared, raw};
use crate::evidence::calibration::{Calibration, Scored};
use crate::evidence::outcome::Outcome;
use local_worker::scorer::{Example, FitError, FitOptions, Learner, Scorer, Turn};

/// A teacher's probabilities.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Of the rows it was fitted on, in their order, each from parts that have not seen its cluster.
    held_out: Vec<f64>,
    scorer: Scorer,
    calibration: Calibration,
}

impl Teacher {
    /// Fits the blend on rows and calibrates it on what its parts say of rows that they have not seen.
    ///
    /// # Errors
    /// Too few rows, or rows of one class only.
    pub fn fit(rows: &[&Outcome], shared: &Shared, seed: u64) -> Result<Self, BlendError> {
        let blend = raw(rows, shared, seed)?;
        let scored = |(row, score): (&&Outcome, &f64)| Scored { score: *score, suffices: row.small_suffices() };
        let scored: Vec<Scored> = rows.iter().zip(&blend.held_out).map(scored).collect();
        let calibration = Calibration::fit(&scored)?;
        let held_out = blend.held_out.iter().map(|score| calibration.apply(*score)).collect();
        Ok(Self { held_out, scorer: blend.scorer, calibration })
    }

    /// The probability that the small model suffices.
    pub fn says(&self, prompt: &str) -> f64 {
        self.calibration.apply(self.scorer.score(&[Turn::user(prompt)]))
    }
}

/// What a teacher adds to the grades.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// Who teaches the rows.
    pub teacher: &'a Teacher,
    /// How much the teacher's probability counts beside the grade, 0 to 1.
    pub soft: f32,
    /// Prompts that nobody graded; each counts as much as the teacher's part of a graded one.
    pub unlabelled: &'a [&'a str],
}

/// Fits a linear scorer on rows, with a teacher or without.
///
/// # Errors
/// No rows, or options out of range.
pub fn linear(rows: &[&Outcome], options: FitOptions, lesson: Option<&Lesson<'_>>) -> Result<Scorer, FitError> {
    let soft = lesson.map_or(0.0, |lesson| lesson.soft);
    let unlabelled = lesson.filter(|lesson| lesson.soft > 0.0).map_or(&[][..], |lesson| lesson.unlabelled);
    let prompts = rows.iter().map(|row| row.prompt.as_str()).chain(unlabelled.iter().copied());
    let turns: Vec<[Turn<'_>; 1]> = prompts.map(|prompt| [Turn::user(prompt)]).collect();
    let graded = rows.iter().enumerate().map(|(place, row)| {
        let grade = f32::from(u8::from(row.small_suffices()));
        let said = lesson.and_then(|lesson| lesson.teacher.held_out.get(place)).map_or(grade, |said| *said as f32);
        ((1.0 - soft) * grade + soft * said, (1.0 / row.sampling_probability).min(HEAVIEST) as f32)
    });
    let taught = unlabelled.iter().map(|prompt| {
        let said = lesson.map_or(0.5, |lesson| lesson.teacher.says(prompt));
        (said as f32, soft)
    });
    let example = |(turns, (target, weight))| Example { turns, target, weight };
    let turns = turns.iter().map(|turns| turns.as_slice());
    let examples: Vec<Example<'_>> = turns.zip(graded.chain(taught)).map(example).collect();
    let mut learner = Learner::new(options)?;
    learner.fit(&examples)?;
    Ok(learner.scorer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::outcome::Outcomes;

    #[test]
    fn a_teacher_moves_the_student_as_far_as_it_has_a_say() {
        let row = |id: usize| {
            let (ask, good) =
                if id.is_multiple_of(2) { ("name", 1) } else { ("prove", u8::from(id.is_multiple_of(3))) };
            format!(
                "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"{ask} the thing {id}\",\"weak_model\":\"a\",\"strong_model\":\"b\",\"weak_quality\":{good},\"strong_quality\":1,\"cluster\":\"{id}\"}}\n"
            )
        };
        let outcomes = Outcomes::parse([("made", (0..200).map(row).collect::<String>().as_str())]).unwrap();
        let rows: Vec<&Outcome> = outcomes.rows.iter().collect();
        let teacher = Teacher::fit(&rows, &Shared::of(rows.iter().copied()), 1).unwrap();
        assert!(teacher.says("name the thing") > teacher.says("prove the thing"));
        let fitted = |lesson: Option<&Lesson<'_>>| linear(&rows, FitOptions::default(), lesson).unwrap();
        let taught = |soft, unlabelled| fitted(Some(&Lesson { teacher: &teacher, soft, unlabelled }));
        let (alone, more) = (fitted(None), ["colour a vase"; 40]);
        assert_eq!(taught(0.0, &more).version(), alone.version(), "without a say nothing changes");
        assert_ne!(taught(0.5, &[]).version(), alone.version());
        // Words that nobody graded weigh nothing until the teacher says something of them.
        let strange = [Turn::user("colour vase")];
        let (without, with) = (taught(0.5, &[]).score(&strange), taught(0.5, &more).score(&strange));
        assert!((without - with).abs() > 0.01, "{without} {with}");
    }
}
