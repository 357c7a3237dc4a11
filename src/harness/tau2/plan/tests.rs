//! Stories of the plan.

use proptest::prelude::*;

use super::*;

fn catalogue() -> Catalogue {
    let tasks = |count: usize| (0..count).map(|n| n.to_string()).collect();
    let counts = [("retail", 3), ("telecom", 2), ("airline", 1)];
    counts
        .map(|(name, count)| (name.to_owned(), tasks(count)))
        .into()
}

fn names(units: &[Unit]) -> Vec<String> {
    let name = |unit: &Unit| format!("{}{}.{}", unit.domain, unit.task_id, unit.trial);
    units.iter().map(name).collect()
}

fn workload(change: impl FnOnce(&mut Workload)) -> Workload {
    let mut workload = Workload::default();
    change(&mut workload);
    workload
}

fn units(count: usize) -> Vec<Unit> {
    let all = workload(|w| w.trials = 9).list(&catalogue()).unwrap();
    all.into_iter().take(count).collect()
}

fn schedule(count: usize, rules: Rules) -> Schedule {
    Schedule::new(units(count), rules, &[]).unwrap()
}

fn rules(concurrency: usize) -> Rules {
    Rules {
        concurrency,
        ..Rules::default()
    }
}

#[track_caller]
fn plays(schedule: &mut Schedule, now_s: f64) -> Attempt {
    match schedule.next(now_s) {
        Next::Play(attempt) => attempt,
        other @ (Next::At(_) | Next::Wait | Next::Over) => panic!("{other:?}"),
    }
}

#[test]
fn domains_take_turns_and_one_that_is_through_is_passed_over() {
    let units = Workload::default().list(&catalogue()).unwrap();
    let order = [
        "retail0.0",
        "telecom0.0",
        "airline0.0",
        "retail1.0",
        "telecom1.0",
        "retail2.0",
    ];
    assert_eq!(names(&units), order);
}

#[test]
fn trials_follow_each_other_each_with_the_seed_that_tau2_draws() {
    let twice = workload(|w| (w.trials, w.tasks_per_domain) = (2, Some(1)));
    let units = twice.list(&catalogue()).unwrap();
    let order = [
        "retail0.0",
        "telecom0.0",
        "airline0.0",
        "retail0.1",
        "telecom0.1",
        "airline0.1",
    ];
    assert_eq!(names(&units), order);
    let seeds: Vec<u32> = units.iter().map(|unit| unit.seed).step_by(3).collect();
    assert_eq!(seeds, [626_729, 373_753]);
    // Python 3.11: random.seed(7); [random.randint(0, 1000000) for _ in range(40)][-3:]
    let last: Vec<u32> = trial_seeds(7).skip(37).take(3).collect();
    assert_eq!(last, [613_984, 415_949, 51_998]);
}

#[test]
fn a_plan_can_be_cut_short_by_domain_or_as_a_whole() {
    let of_domain = workload(|w| w.tasks_per_domain = Some(2));
    assert_eq!(of_domain.list(&catalogue()).unwrap().len(), 5);
    let whole = workload(|w| w.units = Some(4));
    let order = ["retail0.0", "telecom0.0", "airline0.0", "retail1.0"];
    assert_eq!(names(&whole.list(&catalogue()).unwrap()), order);
}

#[test]
fn a_plan_that_cannot_be_played_says_why() {
    for (workload, word) in [
        (
            workload(|w| w.domains = vec!["bank".to_owned()]),
            "airline, retail, telecom",
        ),
        (
            workload(|w| w.domains.push("retail".to_owned())),
            "\"retail\" is named twice",
        ),
        (workload(|w| w.domains.clear()), "nothing to play"),
        (workload(|w| w.trials = 0), "nothing to play"),
    ] {
        let error = workload.list(&catalogue()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let with = |arrivals| Rules {
        arrivals,
        ..rules(1)
    };
    let rate = |per_minute| {
        with(Arrivals::Poisson {
            per_minute,
            seed: 1,
        })
    };
    for (rules, word) in [
        (rules(0), "at least 1"),
        (rate(0.0), "positive"),
        (rate(f64::NAN), "positive"),
        (with(Arrivals::Recorded(vec![1.0])), "need 2 times"),
        (with(Arrivals::Recorded(vec![2.0, 1.0])), "ascending"),
        (with(Arrivals::Recorded(vec![-1.0, 1.0])), "not negative"),
    ] {
        let error = Schedule::new(units(2), rules, &[]).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_closed_loop_keeps_its_places_taken_and_starts_one_for_each_that_ends() {
    let mut schedule = schedule(3, rules(2));
    let first = plays(&mut schedule, 0.0);
    let second = plays(&mut schedule, 0.0);
    assert_eq!(schedule.next(0.0), Next::Wait);
    assert!(schedule.ended(&first, None));
    let third = plays(&mut schedule, 5.0);
    assert_eq!(schedule.next(5.0), Next::Wait);
    assert!(schedule.ended(&second, None));
    assert_eq!(schedule.next(6.0), Next::Wait);
    assert!(schedule.ended(&third, None));
    assert_eq!(schedule.next(7.0), Next::Over);
}

#[test]
fn recorded_arrivals_start_at_their_times_and_wait_for_a_place() {
    let arrivals = Arrivals::Recorded(vec![0.0, 2.0, 2.5]);
    let mut schedule = schedule(
        3,
        Rules {
            arrivals,
            ..rules(2)
        },
    );
    let first = plays(&mut schedule, 0.0);
    assert_eq!(schedule.next(1.9), Next::At(2.0));
    let _second = plays(&mut schedule, 2.0);
    assert_eq!(schedule.next(2.6), Next::Wait, "no place");
    schedule.ended(&first, None);
    assert_eq!(plays(&mut schedule, 3.0).unit, units(3)[2]);
}

#[test]
fn poisson_arrivals_come_at_their_rate_and_the_same_again_for_the_same_seed() {
    let arrivals = |seed| Arrivals::Poisson {
        per_minute: 30.0,
        seed,
    };
    let times = arrivals(1).times(4_000).unwrap();
    let mean_gap_s = times[3_999] / 4_000.0;
    assert!((1.9..2.1).contains(&mean_gap_s), "{mean_gap_s}");
    assert!(times.is_sorted());
    assert_eq!(times, arrivals(1).times(4_000).unwrap());
    assert_ne!(times, arrivals(2).times(4_000).unwrap());
}

#[test]
fn a_failed_unit_is_tried_again_under_another_name_and_no_more_often_than_allowed() {
    let mut schedule = schedule(
        1,
        Rules {
            retries: 1,
            ..rules(1)
        },
    );
    let first = plays(&mut schedule, 0.0);
    assert!(!schedule.ended(&first, Some(Cause::Llm)));
    let second = plays(&mut schedule, 1.0);
    assert_eq!((first.number, second.number), (1, 2));
    assert_eq!(first.unit, second.unit);
    assert_ne!(first.job_id, second.job_id);
    assert!(schedule.ended(&second, Some(Cause::WorkerDied)));
    assert_eq!(schedule.next(2.0), Next::Over);
}

#[test]
fn a_context_that_overflowed_is_not_tried_again() {
    let mut schedule = schedule(1, rules(1));
    let first = plays(&mut schedule, 0.0);
    assert!(schedule.ended(&first, Some(Cause::ContextOverflow)));
    assert_eq!(schedule.next(0.0), Next::Over);
}

#[test]
fn a_stopped_schedule_hands_out_nothing_more_and_leaves_what_was_cut_off_to_a_later_run() {
    let mut schedule = schedule(3, rules(2));
    let first = plays(&mut schedule, 0.0);
    let second = plays(&mut schedule, 0.0);
    schedule.stop();
    assert_eq!(schedule.next(0.0), Next::Wait);
    assert!(schedule.ended(&first, None));
    assert!(!schedule.ended(&second, Some(Cause::Stopped)));
    assert_eq!(schedule.next(0.0), Next::Over);
}

#[test]
fn a_resumed_run_plays_what_is_left_and_failed_units_only_on_request() {
    let all = units(4);
    let past = |index: usize, attempts, ended| Past {
        unit: all[index].clone(),
        attempts,
        ended,
    };
    let past = [
        past(0, 1, Some(PastEnd::Done)),
        past(1, 3, Some(PastEnd::Failed)),
        past(2, 1, None),
    ];
    let left = |redo_errors| {
        let rules = Rules {
            redo_errors,
            ..rules(9)
        };
        let mut schedule = Schedule::new(all.clone(), rules, &past).unwrap();
        let attempts = std::iter::from_fn(move || match schedule.next(0.0) {
            Next::Play(attempt) => Some((attempt.unit, attempt.number)),
            Next::At(_) | Next::Wait | Next::Over => None,
        });
        attempts.collect::<Vec<_>>()
    };
    let (two, three) = ((all[2].clone(), 2), (all[3].clone(), 1));
    assert_eq!(left(false), [two.clone(), three.clone()]);
    assert_eq!(left(true), [(all[1].clone(), 4), two, three]);
}

#[test]
fn a_resumed_open_loop_does_not_wait_for_arrivals_that_are_past() {
    let all = units(3);
    let rules = Rules {
        arrivals: Arrivals::Recorded(vec![0.0, 60.0, 90.0]),
        ..rules(2)
    };
    let done = Past {
        ended: Some(PastEnd::Done),
        ..Past::of(&all[0])
    };
    let mut schedule = Schedule::new(all, rules, &[done]).unwrap();
    let _first = plays(&mut schedule, 0.0);
    assert_eq!(schedule.next(1.0), Next::At(30.0));
}

#[test]
fn a_program_is_named_as_the_reference_names_it() {
    let id = "[mobile_data_issue]data_mode_off|data_usage_exceeded[PERSONA:None]";
    let unit = Unit {
        domain: "telecom".to_owned(),
        task_id: id.to_owned(),
        trial: 0,
        seed: 1,
    };
    let stem =
        "telecom___mobile_data_issue_data_mode_off_data_usage_exceeded_PERSONA_None___trial0";
    assert_eq!(unit.file_stem(), stem);
    let name = Attempt::new(unit.clone(), 1, 0, 7).job_id;
    let hex = name.strip_prefix(&format!("tau2:telecom:{id}:")).unwrap();
    assert!(
        hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
        "{name}"
    );
    assert_eq!(name, Attempt::new(unit.clone(), 1, 2, 7).job_id);
    assert_ne!(name, Attempt::new(unit, 1, 0, 8).job_id, "another run");
}

proptest! {
    #[test]
    fn every_unit_gets_one_last_word_whatever_fails_and_in_whatever_order(
        count in 1_usize..7,
        concurrency in 1_usize..5,
        retries in 0_u32..3,
        choices in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..4), 64),
    ) {
        let mut schedule = schedule(count, Rules { retries, ..rules(concurrency) });
        let mut running = Vec::new();
        let mut last_words = Vec::new();
        let mut choices = choices.into_iter().cycle();
        loop {
            match schedule.next(0.0) {
                Next::Play(attempt) => running.push(attempt),
                Next::Over => break,
                Next::At(_) => prop_assert!(false, "everything has arrived"),
                Next::Wait => {
                    let (which, how) = choices.next().unwrap();
                    let attempt = running.swap_remove(which.index(running.len()));
                    let causes = [None, Some(Cause::Llm), Some(Cause::ContextOverflow), Some(Cause::Silent)];
                    if schedule.ended(&attempt, causes[how]) {
                        last_words.push(attempt.unit);
                    }
                }
            }
            prop_assert!(running.len() <= concurrency);
        }
        last_words.sort();
        let mut wanted = units(count);
        wanted.sort();
        prop_assert_eq!(last_words, wanted);
    }
}
