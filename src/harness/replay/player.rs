//! Plays one program: step, gap, step, gap, …, release.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Served, StepError};
use super::history::{History, RequestShape};
use crate::clock::Clock;
use crate::harness::rundir::{Ending, ProgramRecord};
use crate::harness::trace::{Program, Step};
use crate::policy::Time;
use crate::telemetry::StepRecord;

/// Longest wait before a retry, in seconds of the run.
const MAX_BACKOFF_S: u64 = 10;

/// What a player reports while it plays.
#[derive(Debug)]
pub enum Note {
    /// One request ended.
    Step(Box<StepRecord>),
    /// A gap was waited for.
    Gap {
        /// How long it should have been.
        planned: Duration,
        /// How much longer it was.
        late: Duration,
    },
    /// A program ended.
    Program(ProgramRecord),
    /// The gate could not be told that a program is over, because of this.
    ReleaseFailed(String),
}

/// Programs in flight, each of which can be given up by name.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<BTreeMap<String, CancellationToken>>>);

impl InFlight {
    /// Fails the program, whatever it is waiting for. Without effect if it is not in flight.
    pub fn give_up(&self, program: &str) {
        if let Some(token) = self.0.lock().get(program) {
            token.cancel();
        }
    }

    fn enter(&self, program: &str, run: &CancellationToken) -> CancellationToken {
        let token = run.child_token();
        self.0.lock().insert(program.to_owned(), token.clone());
        token
    }

    fn leave(&self, program: &str) {
        self.0.lock().remove(program);
    }
}

/// What all players of a run share.
#[derive(Debug)]
pub struct Session {
    /// Where requests go.
    pub client: Client,
    /// The run's time.
    pub clock: Clock,
    /// What requests have in common.
    pub shape: RequestShape,
    /// Retries of one step.
    pub max_retries: u32,
    /// Where notes go. Bounded: a reader that is slow slows the players.
    pub notes: mpsc::Sender<Note>,
    /// Ends the run.
    pub cancel: CancellationToken,
    /// Who is playing.
    pub in_flight: InFlight,
}

/// The cause of a program that was given up from outside.
pub const GIVEN_UP: &str = "given_up";

/// Why a program stops before its end.
enum Stop {
    Failed(StepError),
    Cancelled,
}

impl Session {
    /// Plays `program` under `name` to its end.
    pub async fn play(&self, name: String, program: &Program) {
        let mut record = ProgramRecord {
            program: name,
            kind: program.kind.clone(),
            started_s: self.clock.unix(self.clock.now()),
            finished_s: 0.0,
            steps: 0,
            errors: 0,
            ending: Ending::Done,
            cause: None,
        };
        let over = self.in_flight.enter(&record.program, &self.cancel);
        if let Err(stop) = self.play_steps(program, &mut record, &over).await {
            (record.ending, record.cause) = match stop {
                Stop::Failed(error) => (Ending::Failed, Some(error.cause)),
                Stop::Cancelled if self.cancel.is_cancelled() => (Ending::Cancelled, None),
                Stop::Cancelled => (Ending::Failed, Some(GIVEN_UP.to_owned())),
            };
        }
        self.in_flight.leave(&record.program);
        record.finished_s = self.clock.unix(self.clock.now());
        if let Err(cause) = self.client.release(&record.program).await {
            self.note(Note::ReleaseFailed(cause)).await;
        }
        self.note(Note::Program(record)).await;
    }

    async fn play_steps(
        &self,
        program: &Program,
        record: &mut ProgramRecord,
        over: &CancellationToken,
    ) -> Result<(), Stop> {
        let mut history = History::new(&self.shape, &record.program, program);
        let mut gap_s = None;
        for (index, step) in program.steps.iter().enumerate() {
            let body = Bytes::from(history.body(step));
            let served = self.serve(&body, index, gap_s, record, over).await?;
            record.steps += 1;
            if let Some(next) = program.steps.get(index + 1) {
                history.advance(step, &served.reply, next);
                self.gap(step, over).await?;
                gap_s = Some(step.gap_s);
            }
        }
        Ok(())
    }

    /// One step, retried while that can help.
    async fn serve(
        &self,
        body: &Bytes,
        index: usize,
        gap_s: Option<f64>,
        record: &mut ProgramRecord,
        over: &CancellationToken,
    ) -> Result<Served, Stop> {
        let mut retries = 0;
        loop {
            let arrived = self.clock.now();
            let result = tokio::select! {
                biased;
                () = over.cancelled() => return Err(Stop::Cancelled),
                result = self.client.step(Some(&record.program), body.clone(), self.shape.stream) => result,
            };
            let mut note = self.step_record(arrived, &result);
            note.program = Some(record.program.clone());
            note.step_index = u32::try_from(index).unwrap_or(u32::MAX);
            note.tool_gap_s = gap_s;
            self.note(Note::Step(Box::new(note))).await;
            let error = match result {
                Ok(served) => return Ok(served),
                Err(error) => error,
            };
            record.errors += 1;
            if !error.retryable || retries == self.max_retries {
                return Err(Stop::Failed(error));
            }
            let due = self.clock.now() + backoff(retries);
            self.sleep_until(due, over).await?;
            retries += 1;
        }
    }

    /// Waits for the gap after `step`.
    async fn gap(&self, step: &Step, over: &CancellationToken) -> Result<(), Stop> {
        let planned = Duration::from_secs_f64(step.gap_s);
        let due = self.clock.now() + planned;
        self.sleep_until(due, over).await?;
        let late = self.clock.now().since(due);
        self.note(Note::Gap { planned, late }).await;
        Ok(())
    }

    async fn sleep_until(&self, due: Time, over: &CancellationToken) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = over.cancelled() => Err(Stop::Cancelled),
            () = tokio::time::sleep_until(self.clock.instant(due).into()) => Ok(()),
        }
    }

    async fn note(&self, note: Note) {
        // A closed channel means that the run is being torn down: a note has no reader then.
        drop(self.notes.send(note).await);
    }

    /// The request as the client saw it.
    fn step_record(&self, arrived: Time, result: &Result<Served, StepError>) -> StepRecord {
        let unix = |time| self.clock.unix(time);
        let arrived_s = unix(arrived);
        let mut record = StepRecord {
            path: "/v1/chat/completions".to_owned(),
            model: Some(self.shape.model.clone()),
            stream: self.shape.stream,
            arrived_s,
            finished_s: unix(self.clock.now()),
            ..StepRecord::default()
        };
        match result {
            Ok(served) => {
                let usage = served.reply.usage;
                record.first_byte_s = Some(unix(served.first_byte));
                record.first_token_s = Some(unix(served.first_token));
                record.ttft_s = self
                    .shape
                    .stream
                    .then(|| unix(served.first_token) - arrived_s);
                record.prompt_tokens = usage.map(|u| u.prompt);
                record.output_tokens = usage.map(|u| u.output);
                record.cached_tokens = usage.and_then(|u| u.cached);
                let call = served.reply.tool_calls.first();
                record.tool = call.map(|call| call.function.name.clone());
                let outcome = if call.is_some() {
                    "tool_calls"
                } else {
                    "length"
                };
                outcome.clone_into(&mut record.outcome);
                record.status = 200;
            }
            Err(error) => {
                error.cause.clone_into(&mut record.outcome);
                record.status = error.status;
            }
        }
        record
    }
}

/// Half a second, doubled with each retry.
fn backoff(retries: u32) -> Duration {
    let millis = 500_u64.saturating_mul(1 << retries.min(20));
    Duration::from_millis(millis.min(MAX_BACKOFF_S * 1_000))
}
