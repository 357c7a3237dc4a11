//! Constants of the cost model from measured points: weighted least squares. Pure.
//!
//! Every measured time is linear in the constants once it is known, for each iteration behind it, whether the tokens
//! or the weights take longer. So: guess the constants, take the sides that they imply, solve, and again until the
//! sides stay. A constant that would come out negative is set to zero and the others are solved for anew. Points are
//! weighted by their own size: an error of 5 % counts the same at 8 ms and at half a second.

use serde::{Deserialize, Serialize};

use crate::harness::engine::core::CostModel;
use crate::harness::engine::core::cost::H100_QWEN3_8B;

/// One measured time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Point {
    /// From sending one prompt to an idle server to its first token.
    FirstToken {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens of it that were in the prefix cache.
        cached: u32,
        /// The time, in seconds.
        seconds: f64,
    },
    /// Between two tokens of each of some sequences that decode side by side.
    Decode {
        /// Sequences.
        batch: u32,
        /// Mean context of each over that time, in tokens.
        context: f64,
        /// The time, in seconds.
        seconds: f64,
    },
}

/// What the fit needs to know of the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Server {
    /// Tokens computed per iteration at most.
    pub max_num_batched_tokens: u32,
}

/// Points that are not enough for a fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{points} points do not tell the constants apart; measure prompts of several lengths, with and without cache, and several batches"
)]
pub struct Unclear {
    /// How many there were.
    pub points: usize,
}

const CONSTANTS: usize = 8;
/// Rounds after which the sides are taken as they are.
const ROUNDS: usize = 50;

/// Factors of the constants in one time, in the order of [`CostModel::constants`].
type Factors = [f64; CONSTANTS];

impl Point {
    /// The measured time, in seconds.
    pub const fn seconds(&self) -> f64 {
        match self {
            Self::FirstToken { seconds, .. } | Self::Decode { seconds, .. } => *seconds,
        }
    }

    /// What the model says of it, in seconds.
    pub fn predicted_s(&self, cost: &CostModel, server: Server) -> f64 {
        let factors = self.factors(cost, server);
        let constants = cost.constants();
        factors.iter().zip(constants).map(|(f, (_, c))| f * c).sum()
    }

    /// The factors, on the sides that `cost` implies.
    fn factors(&self, cost: &CostModel, server: Server) -> Factors {
        let mut sum = Sum {
            cost,
            factors: [0.0; CONSTANTS],
        };
        match *self {
            Self::Decode { batch, context, .. } => {
                let batch = f64::from(batch);
                sum.iteration(batch);
                sum.factors[3] = batch * context;
                sum.factors[5] = batch;
            }
            Self::FirstToken { prompt, cached, .. } => {
                let new = prompt.saturating_sub(cached);
                let budget = server.max_num_batched_tokens.max(1);
                let mut left = new;
                while left > 0 {
                    let chunk = left.min(budget);
                    sum.iteration(f64::from(chunk));
                    left -= chunk;
                }
                sum.factors[4] = f64::from(new) * (f64::from(cached) + f64::from(new) / 2.0);
                sum.factors[6] = 2.0;
                sum.factors[7] = f64::from(prompt);
            }
        }
        sum.factors
    }
}

struct Sum<'a> {
    cost: &'a CostModel,
    factors: Factors,
}

impl Sum<'_> {
    fn iteration(&mut self, tokens: f64) {
        self.factors[0] += 1.0;
        if self.cost.token_s * tokens > self.cost.weights_s {
            self.factors[2] += tokens;
        } else {
            self.factors[1] += 1.0;
        }
    }
}

/// The constants that explain `points` best.
///
/// # Errors
/// Too few or too similar points.
pub fn fit(points: &[Point], server: Server) -> Result<CostModel, Unclear> {
    // Where it starts matters little: it only says on which side of the knee each point lies.
    let mut cost = H100_QWEN3_8B;
    for _ in 0..ROUNDS {
        let next = solve(points, &cost, server).ok_or(Unclear {
            points: points.len(),
        })?;
        if next == cost {
            break;
        }
        cost = next;
    }
    Ok(cost)
}

/// Non-negative least squares on the sides that `cost` implies; `None` where the constants cannot be told apart.
fn solve(points: &[Point], cost: &CostModel, server: Server) -> Option<CostModel> {
    let mut normal = [[0.0; CONSTANTS + 1]; CONSTANTS];
    for point in points.iter().filter(|point| point.seconds() > 0.0) {
        let weight = point.seconds().recip();
        let factors = point.factors(cost, server).map(|factor| factor * weight);
        for (row, a) in normal.iter_mut().zip(factors) {
            for (cell, b) in row.iter_mut().zip(factors) {
                *cell += a * b;
            }
            row[CONSTANTS] += a;
        }
    }
    let mut free = [true; CONSTANTS];
    loop {
        let solution = eliminate(&normal, &free)?;
        let least = (0..CONSTANTS).min_by(|a, b| solution[*a].total_cmp(&solution[*b]))?;
        if solution[least] >= 0.0 {
            return Some(from_constants(solution));
        }
        free[least] = false;
    }
}

/// Solves the normal equations for the free constants; the others are zero. Gauss with pivots on columns that are
/// scaled to their diagonal, since the constants differ by seven orders of magnitude.
fn eliminate(normal: &[[f64; CONSTANTS + 1]; CONSTANTS], free: &[bool]) -> Option<Factors> {
    let at: Vec<usize> = (0..CONSTANTS).filter(|index| free[*index]).collect();
    let scale = |index: usize| normal[index][index].sqrt();
    if at.iter().any(|index| scale(*index) <= 0.0) {
        return None;
    }
    let row = |&i: &usize| {
        let mut row: Vec<f64> = at
            .iter()
            .map(|&j| normal[i][j] / (scale(i) * scale(j)))
            .collect();
        row.push(normal[i][CONSTANTS] / scale(i));
        row
    };
    let mut rows: Vec<Vec<f64>> = at.iter().map(row).collect();
    let size = rows.len();
    for column in 0..size {
        let pivot = (column..size)
            .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        // Scaled columns have length one: less than this is no column of its own.
        if rows[pivot][column].abs() < 1e-9 {
            return None;
        }
        rows.swap(column, pivot);
        let top = rows[column].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            if index == column {
                continue;
            }
            let factor = row[column] / top[column];
            for (cell, above) in row.iter_mut().zip(&top) {
                *cell -= factor * above;
            }
        }
    }
    let mut solution = [0.0; CONSTANTS];
    for (place, &index) in at.iter().enumerate() {
        solution[index] = rows[place][size] / rows[place][place] / scale(index);
    }
    Some(solution)
}

const fn from_constants(constants: Factors) -> CostModel {
    let [
        iteration_s,
        weights_s,
        token_s,
        decode_context_s,
        prefill_pair_s,
        decode_s,
        http_s,
        http_token_s,
    ] = constants;
    CostModel {
        iteration_s,
        weights_s,
        token_s,
        decode_context_s,
        prefill_pair_s,
        decode_s,
        http_s,
        http_token_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::engine::core::cost::{RTX5090_QWEN3_8B, Work};
    use crate::harness::engine::core::output::mix;

    const SERVER: Server = Server {
        max_num_batched_tokens: 8_192,
    };

    /// What `kvgate calibrate` measures, without a time.
    fn plan() -> Vec<Point> {
        let seconds = 0.0;
        let first = |prompt, cached| Point::FirstToken {
            prompt,
            cached,
            seconds,
        };
        let mut points = Vec::new();
        for prompt in [256, 512, 1_024, 2_048, 4_096, 8_192, 16_384] {
            points.push(first(prompt, 0));
            points.push(first(prompt, prompt - 16));
        }
        for (context, most) in [(1_024.0, 32), (4_096.0, 16), (16_384.0, 4)] {
            for batch in [1, 2, 4, 8, 16, 32] {
                if batch <= most {
                    points.push(Point::Decode {
                        batch,
                        context,
                        seconds,
                    });
                }
            }
        }
        points
    }

    /// The points as a server with these constants would time them, off by up to `noise` either way.
    fn timed(cost: &CostModel, noise: f64) -> Vec<Point> {
        let off = |index: usize| {
            let unit =
                f64::from(u32::try_from(mix(index as u64 + 9) >> 32).unwrap()) / 2f64.powi(31);
            1.0 + noise * (unit - 1.0)
        };
        let time = |(index, mut point): (usize, Point)| {
            let exact = point.predicted_s(cost, SERVER) * off(index);
            match &mut point {
                Point::FirstToken { seconds, .. } | Point::Decode { seconds, .. } => {
                    *seconds = exact;
                }
            }
            point
        };
        plan().into_iter().enumerate().map(time).collect()
    }

    fn assert_close(found: &CostModel, known: &CostModel, tolerance: f64) {
        for ((name, found), (_, known)) in found.constants().into_iter().zip(known.constants()) {
            assert!(
                (found / known - 1.0).abs() < tolerance,
                "{name}: {found} for {known}"
            );
        }
    }

    #[test]
    fn the_constants_behind_exact_times_are_found() {
        for known in [H100_QWEN3_8B, RTX5090_QWEN3_8B] {
            assert_close(&fit(&timed(&known, 0.0), SERVER).unwrap(), &known, 1e-6);
        }
        // Ten times as slow: where each point lies has to be found out.
        let constants = H100_QWEN3_8B
            .constants()
            .map(|(_, constant)| 10.0 * constant);
        let slow = from_constants(constants);
        assert_close(&fit(&timed(&slow, 0.0), SERVER).unwrap(), &slow, 1e-6);
    }

    #[test]
    fn the_model_of_noisy_times_is_off_by_no_more_than_they_are() {
        let points = timed(&H100_QWEN3_8B, 0.03);
        let found = fit(&points, SERVER).unwrap();
        for point in &points {
            let exact = point.predicted_s(&H100_QWEN3_8B, SERVER);
            let error = point.predicted_s(&found, SERVER) / exact - 1.0;
            assert!(error.abs() < 0.03, "{point:?}: {error}");
        }
    }

    #[test]
    fn no_constant_is_negative() {
        // Longer contexts decode faster here, which no constant can explain.
        let mut points = timed(&H100_QWEN3_8B, 0.0);
        for point in &mut points {
            if let Point::Decode {
                context, seconds, ..
            } = point
            {
                *seconds *= 1.0 - *context * 1e-5;
            }
        }
        let found = fit(&points, SERVER).unwrap();
        assert!(found.decode_context_s.abs() < 1e-15);
        assert!(
            found
                .constants()
                .iter()
                .all(|(_, constant)| *constant >= 0.0)
        );
    }

    #[test]
    fn points_of_one_kind_are_not_enough() {
        let few: Vec<_> = timed(&H100_QWEN3_8B, 0.0)
            .into_iter()
            .filter(|point| matches!(point, Point::Decode { .. }))
            .collect();
        assert_eq!(fit(&few, SERVER), Err(Unclear { points: few.len() }));
    }

    /// The fit's factors and the engine's own arithmetic are two ways to say one thing.
    #[test]
    fn a_point_takes_as_long_as_the_engine_says() {
        let cost = H100_QWEN3_8B;
        let mut work = Work::default();
        for _ in 0..4 {
            work.add(1_023, 1);
        }
        let decode = Point::Decode {
            batch: 4,
            context: 1_024.0,
            seconds: 0.0,
        };
        let engine = cost.iteration(&work).as_secs_f64();
        assert!((decode.predicted_s(&cost, SERVER) / engine - 1.0).abs() < 1e-6);
        let (mut first, mut second) = (Work::default(), Work::default());
        first.add(1_600, 8_192);
        second.add(1_600 + 8_192, 208);
        let engine = cost.http(10_000) + cost.iteration(&first) + cost.iteration(&second);
        let prompt = Point::FirstToken {
            prompt: 10_000,
            cached: 1_600,
            seconds: 0.0,
        };
        let predicted = prompt.predicted_s(&cost, SERVER);
        assert!((predicted / engine.as_secs_f64() - 1.0).abs() < 1e-6);
    }
}
