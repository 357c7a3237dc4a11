//! Constants of the cost model from measured points: weighted least squares. Pure.
//!
//! Every measured time is linear in the constants once it is known, for each iteration behind it, whether its tokens
//! or the weights take longer. That depends on one number, the knee: how many tokens take as long as the weights. So
//! every knee between two measured sizes is tried, the constants are solved for on the sides it implies, and those
//! with the least error are kept. A constant that would come out negative is set to zero and the others are solved
//! for anew. Points are weighted by their own size: an error of 5 % counts the same at 8 ms and at half a second.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::harness::engine::core::CostModel;

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
        let knee = cost.weights_s / cost.token_s;
        // Without either cost the side makes no difference.
        let factors = self.factors(if knee.is_nan() { 0.0 } else { knee }, server);
        let constants = cost.constants();
        factors.iter().zip(constants).map(|(f, (_, c))| f * c).sum()
    }

    /// Tokens of each iteration behind it.
    fn iterations(&self, server: Server) -> Vec<u32> {
        match *self {
            Self::Decode { batch, .. } => vec![batch],
            Self::FirstToken { prompt, cached, .. } => {
                let new = prompt.saturating_sub(cached);
                let budget = server.max_num_batched_tokens.max(1);
                let mut chunks = vec![budget; (new / budget) as usize];
                chunks.extend(Some(new % budget).filter(|rest| *rest > 0));
                chunks
            }
        }
    }

    /// The factors, where iterations of more than `knee` tokens are bound by them and the others by the weights.
    fn factors(&self, knee: f64, server: Server) -> Factors {
        let mut factors = [0.0; CONSTANTS];
        for tokens in self.iterations(server) {
            let tokens = f64::from(tokens);
            factors[0] += 1.0;
            if tokens > knee {
                factors[2] += tokens;
            } else {
                factors[1] += 1.0;
            }
        }
        match *self {
            Self::Decode { batch, context, .. } => {
                factors[3] = f64::from(batch) * context;
                factors[5] = f64::from(batch);
            }
            Self::FirstToken { prompt, cached, .. } => {
                let new = f64::from(prompt.saturating_sub(cached));
                factors[4] = new * (f64::from(cached) + new / 2.0);
                factors[6] = 2.0;
                factors[7] = f64::from(prompt);
            }
        }
        factors
    }
}

/// The constants that explain `points` best.
///
/// # Errors
/// Too few or too similar points.
pub fn fit(points: &[Point], server: Server) -> Result<CostModel, Unclear> {
    if !are_enough(points) {
        return Err(Unclear {
            points: points.len(),
        });
    }
    let sizes: BTreeSet<u32> = points
        .iter()
        .flat_map(|point| point.iterations(server))
        .collect();
    let knees = std::iter::once(0).chain(sizes);
    let candidates = knees.filter_map(|knee| solve(points, f64::from(knee), server));
    let best =
        candidates.min_by(|a, b| squares(points, a, server).total_cmp(&squares(points, b, server)));
    best.ok_or(Unclear {
        points: points.len(),
    })
}

/// The sum of the squared relative errors.
fn squares(points: &[Point], cost: &CostModel, server: Server) -> f64 {
    let error = |point: &Point| point.predicted_s(cost, server) / point.seconds() - 1.0;
    points.iter().map(|point| error(point).powi(2)).sum()
}

/// Whether there are prompts of several lengths, new and cached ones, and several batches.
fn are_enough(points: &[Point]) -> bool {
    let (mut new, mut cached, mut batches) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for point in points {
        match *point {
            // What the model's template puts before every prompt is in the cache from the second one on.
            Point::FirstToken { prompt, cached, .. } if cached < prompt / 2 => new.insert(prompt),
            Point::FirstToken { prompt, .. } => cached.insert(prompt),
            Point::Decode { batch, .. } => batches.insert(batch),
        };
    }
    new.len() >= 3 && cached.len() >= 2 && batches.len() >= 2
}

/// Non-negative least squares on the sides of `knee`; `None` where the constants cannot be told apart.
fn solve(points: &[Point], knee: f64, server: Server) -> Option<CostModel> {
    let mut normal = [[0.0; CONSTANTS + 1]; CONSTANTS];
    for point in points.iter().filter(|point| point.seconds() > 0.0) {
        let weight = point.seconds().recip();
        let factors = point.factors(knee, server).map(|factor| factor * weight);
        for (row, a) in normal.iter_mut().zip(factors) {
            for (cell, b) in row.iter_mut().zip(factors) {
                *cell += a * b;
            }
            row[CONSTANTS] += a;
        }
    }
    // A constant that no point depends on is zero: weights, where every iteration is bound by its tokens.
    let mut free = std::array::from_fn(|index| normal[index][index] > 0.0);
    loop {
        let solution = eliminate(&normal, free)?;
        let least = (0..CONSTANTS).min_by(|a, b| solution[*a].total_cmp(&solution[*b]))?;
        if solution[least] >= 0.0 {
            return Some(from_constants(solution));
        }
        free[least] = false;
    }
}

/// Solves the normal equations for the free constants; the others are zero. Gauss with pivots on columns that are
/// scaled to their diagonal, since the constants differ by seven orders of magnitude.
fn eliminate(
    normal: &[[f64; CONSTANTS + 1]; CONSTANTS],
    free: [bool; CONSTANTS],
) -> Option<Factors> {
    let at: Vec<usize> = (0..CONSTANTS).filter(|index| free[*index]).collect();
    let scale = |index: usize| normal[index][index].sqrt();
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
    use crate::harness::calibrate::plan::{Cache, Plan};
    use crate::harness::engine::core::cost::{CPU_TINY, H100_QWEN3_8B, RTX5090_QWEN3_8B, Work};
    use crate::harness::engine::core::output::mix;

    const SERVER: Server = Server {
        max_num_batched_tokens: 8_192,
    };

    /// What `kvgate calibrate` measures by this plan, without a time.
    fn points_of(plan: &Plan, cache: Cache) -> Vec<Point> {
        let seconds = 0.0;
        let first = |(prompt, cached)| Point::FirstToken {
            prompt,
            cached,
            seconds,
        };
        let lengths = plan.prompts.iter();
        let lengths = lengths.flat_map(|prompt| [(*prompt, 0), (*prompt, prompt - cache.block)]);
        let decodes = plan.contexts.iter().flat_map(|&context| {
            let batches = plan.batches_within(context, cache);
            batches.map(move |batch| Point::Decode {
                batch,
                context: context.into(),
                seconds,
            })
        });
        lengths.map(first).chain(decodes).collect()
    }

    /// What it measures where there is room.
    fn plan() -> Vec<Point> {
        let cache = Cache {
            tokens: 95_472,
            block: 16,
        };
        points_of(&Plan::default(), cache)
    }

    /// The points as a server with these constants would time them, off by up to `noise` either way.
    fn timed(points: Vec<Point>, cost: &CostModel, noise: f64) -> Vec<Point> {
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
        points.into_iter().enumerate().map(time).collect()
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
            assert_close(
                &fit(&timed(plan(), &known, 0.0), SERVER).unwrap(),
                &known,
                1e-6,
            );
        }
        // Ten times as slow: where each point lies has to be found out.
        let constants = H100_QWEN3_8B
            .constants()
            .map(|(_, constant)| 10.0 * constant);
        let slow = from_constants(constants);
        assert_close(
            &fit(&timed(plan(), &slow, 0.0), SERVER).unwrap(),
            &slow,
            1e-6,
        );
    }

    /// What a server of 3,072 tokens a request and a cache of about as many is measured by is enough.
    #[test]
    fn the_constants_behind_a_small_servers_times_are_found() {
        let cache = Cache {
            tokens: 3_168,
            block: 16,
        };
        let plan = Plan::default().within(cache, Some(3_072)).unwrap();
        let points = points_of(&plan, cache);
        for known in [H100_QWEN3_8B, RTX5090_QWEN3_8B] {
            let points = timed(points.clone(), &known, 0.0);
            assert_close(&fit(&points, SERVER).unwrap(), &known, 1e-6);
        }
    }

    /// As a server reports it whose template begins every prompt with the same block.
    #[test]
    fn new_prompts_may_begin_with_what_is_cached() {
        let mut points = plan();
        for point in &mut points {
            if let Point::FirstToken { cached, .. } = point {
                *cached = (*cached).max(16);
            }
        }
        let points = timed(points, &H100_QWEN3_8B, 0.0);
        let found = fit(&points, SERVER).unwrap();
        assert_close(&found, &H100_QWEN3_8B, 1e-6);
    }

    #[test]
    fn the_model_of_noisy_times_is_off_by_no_more_than_they_are() {
        let points = timed(plan(), &H100_QWEN3_8B, 0.03);
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
        let mut points = timed(plan(), &H100_QWEN3_8B, 0.0);
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
    fn a_device_without_weights_to_speak_of_is_explained_by_its_tokens() {
        let known = CostModel {
            weights_s: 0.0,
            ..CPU_TINY
        };
        let points = timed(plan(), &known, 0.0);
        let found = fit(&points, SERVER).unwrap();
        for point in &points {
            let error = point.predicted_s(&found, SERVER) / point.seconds() - 1.0;
            assert!(error.abs() < 1e-6, "{point:?}: {error}");
        }
    }

    #[test]
    fn points_of_one_kind_are_not_enough() {
        let few: Vec<_> = timed(plan(), &H100_QWEN3_8B, 0.0)
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
