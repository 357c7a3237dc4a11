//! Stories of silences, and what holds for any signs.

use proptest::prelude::*;

use super::*;

fn bounds(warn_s: f64, act_s: f64, action: Level) -> Bounds {
    Bounds {
        warn_s,
        act_s,
        action,
    }
}

/// A program: warned of after 10 s, failed after 30. Tasks: 50 and 200. The cell: 60.
fn rules() -> Rules {
    Rules {
        step: bounds(10.0, 30.0, Level::FailTask),
        task: bounds(50.0, 200.0, Level::StopCell),
        cell: bounds(f64::INFINITY, 60.0, Level::StopCell),
        ..Rules::default()
    }
}

fn step(program: &str) -> Sign {
    Sign::Step {
        program: Some(program.to_owned()),
    }
}

fn ended(program: &str) -> Sign {
    Sign::Ended {
        program: program.to_owned(),
    }
}

fn overflow(program: &str) -> Sign {
    Sign::Overflow {
        program: program.to_owned(),
    }
}

/// What is told of alarms: program, level, cause.
fn told(alarms: &[Alarm]) -> Vec<(Option<&str>, Level, Cause)> {
    let mut told = Vec::new();
    for alarm in alarms {
        told.push((alarm.program.as_deref(), alarm.level, alarm.cause));
    }
    told
}

#[test]
fn a_program_that_falls_silent_is_warned_of_once_and_then_given_up_once() {
    let mut dog = Watchdog::new(rules(), 0.0);
    dog.observe(5.0, step("a"));
    assert_eq!(dog.tick(14.9), []);
    let silent = Cause::ProgramSilent;
    assert_eq!(told(&dog.tick(15.0)), [(Some("a"), Level::Warn, silent)]);
    assert_eq!(dog.tick(34.0), []);
    let alarms = dog.tick(35.0);
    assert_eq!(told(&alarms), [(Some("a"), Level::FailTask, silent)]);
    assert_eq!(alarms[0].to_string(), "a was served no step for 30 s");
    assert_eq!(dog.tick(49.0), []);
}

#[test]
fn a_step_arms_the_alarm_again_and_a_late_record_does_not() {
    let mut dog = Watchdog::new(rules(), 0.0);
    dog.observe(0.0, step("a"));
    assert_eq!(dog.tick(10.0).len(), 1);
    dog.observe(-1.0, step("a"));
    assert_eq!(dog.tick(11.0), []);
    dog.observe(12.0, step("a"));
    assert_eq!(dog.tick(21.0), []);
    assert_eq!(dog.tick(22.0).len(), 1);
}

#[test]
fn a_program_that_is_over_is_silent_for_ever_even_if_a_record_of_it_comes_late() {
    let mut dog = Watchdog::new(rules(), 0.0);
    dog.observe(0.0, step("a"));
    dog.observe(1.0, ended("a"));
    dog.observe(2.0, step("a"));
    dog.observe(2.0, overflow("a"));
    dog.observe(3.0, overflow("a"));
    assert_eq!(dog.tick(45.0), []);
}

#[test]
fn a_program_that_begins_and_gets_no_step_at_all_is_noticed() {
    let mut dog = Watchdog::new(rules(), 0.0);
    let program = "a".to_owned();
    dog.observe(0.0, Sign::Began { program });
    let silent = Cause::ProgramSilent;
    assert_eq!(
        told(&dog.tick(40.0)),
        [(Some("a"), Level::FailTask, silent)]
    );
}

#[test]
fn a_cell_in_which_nothing_was_ever_served_is_stopped() {
    let mut dog = Watchdog::new(rules(), 100.0);
    assert!((dog.next_s() - 150.0).abs() < f64::EPSILON, "no task");
    assert_eq!(told(&dog.tick(150.0)), [(None, Level::Warn, Cause::NoTask)]);
    assert!((dog.next_s() - 160.0).abs() < f64::EPSILON, "no step");
    let alarms = dog.tick(160.0);
    assert_eq!(told(&alarms), [(None, Level::StopCell, Cause::NoStep)]);
    assert_eq!(alarms[0].to_string(), "no step was served for 60 s");
}

#[test]
fn tasks_that_take_long_are_waited_for_three_times_as_long() {
    let mut dog = Watchdog::new(rules(), 0.0);
    let took_s = Some(100.0);
    dog.observe(100.0, Sign::Task { took_s });
    for second in (101..=500).step_by(5) {
        dog.observe(f64::from(second), step("a"));
    }
    assert_eq!(dog.tick(399.0), []);
    let alarms = dog.tick(400.0);
    assert_eq!(told(&alarms), [(None, Level::StopCell, Cause::NoTask)]);
    assert_eq!(alarms[0].to_string(), "no task ended for 300 s");
}

#[test]
fn a_program_that_overflows_its_context_twice_in_a_row_is_ended_with_that_cause() {
    let mut dog = Watchdog::new(rules(), 0.0);
    dog.observe(1.0, overflow("a"));
    assert_eq!(dog.tick(1.0), []);
    dog.observe(2.0, step("a"));
    dog.observe(3.0, overflow("a"));
    assert_eq!(dog.tick(3.0), [], "it had found a way");
    dog.observe(4.0, overflow("a"));
    assert!(dog.next_s() < 4.0, "at once");
    let alarms = dog.tick(4.0);
    let cause = Cause::ContextOverflow;
    assert_eq!(told(&alarms), [(Some("a"), Level::FailTask, cause)]);
    dog.observe(5.0, overflow("a"));
    assert_eq!(dog.tick(5.0), [], "once");
}

#[test]
fn programs_that_are_over_are_forgotten_at_last() {
    let mut dog = Watchdog::new(rules(), 0.0);
    for number in 0..2 * REMEMBERED {
        dog.observe(0.0, ended(&number.to_string()));
    }
    assert_eq!(
        (dog.programs.len(), dog.ended.len()),
        (REMEMBERED, REMEMBERED)
    );
}

/// Some sign of one of three programs, and how long after the one before.
fn signs() -> impl Strategy<Value = Vec<(f64, Sign)>> {
    let sign = (0..5_u8, 0..3_u8).prop_map(|(what, program)| {
        let program = program.to_string();
        match what {
            0 => Sign::Began { program },
            1 => Sign::Step {
                program: Some(program).filter(|program| program != "2"),
            },
            2 => Sign::Overflow { program },
            3 => Sign::Ended { program },
            _ => Sign::Task {
                took_s: Some(f64::from(what)),
            },
        }
    });
    proptest::collection::vec((0.0..100.0_f64, sign), 0..60)
}

proptest! {
    #[test]
    fn every_sign_arms_a_bounded_number_of_alarms(signs in signs(), wait_s in 0.0..1000.0_f64) {
        let mut dog = Watchdog::new(rules(), 0.0);
        let (mut now_s, mut alarms) = (0.0, 0);
        for (gap_s, sign) in &signs {
            now_s += gap_s;
            alarms += dog.tick(now_s).len();
            dog.observe(now_s, sign.clone());
        }
        // For ever after, too.
        for second in 0..1000 {
            alarms += dog.tick(now_s + wait_s + f64::from(second)).len();
        }
        // A sign arms a warning and an action of its program, and of the cell's two rules.
        prop_assert!(alarms <= 6 * (signs.len() + 1), "{alarms}");
    }

    #[test]
    fn there_is_never_an_alarm_of_a_program_that_steps_often(gaps in proptest::collection::vec(0.0..9.9_f64, 1..200)) {
        let mut dog = Watchdog::new(rules(), 0.0);
        let mut now_s = 0.0;
        for gap_s in gaps {
            dog.observe(now_s, step("a"));
            now_s += gap_s;
            let alarms = dog.tick(now_s);
            prop_assert!(alarms.iter().all(|alarm| alarm.program.is_none()), "{alarms:?}");
            prop_assert!(alarms.iter().all(|alarm| alarm.cause != Cause::NoStep), "{alarms:?}");
        }
    }

    #[test]
    fn a_hang_is_seen_within_the_rules_time_and_a_tick(signs in signs(), tick_s in 0.1..20.0_f64) {
        let mut dog = Watchdog::new(rules(), 0.0);
        let mut now_s = 0.0;
        for (gap_s, sign) in signs {
            now_s += gap_s;
            dog.tick(now_s);
            dog.observe(now_s, sign);
        }
        dog.observe(now_s, step("hung"));
        let hung_s = now_s;
        let (mut failed_s, mut stopped_s) = (None, None);
        while now_s < hung_s + 100.0 {
            now_s += tick_s;
            for alarm in dog.tick(now_s) {
                if alarm.program.as_deref() == Some("hung") && alarm.level == Level::FailTask {
                    failed_s = Some(now_s);
                }
                if alarm.cause == Cause::NoStep {
                    stopped_s = Some(now_s);
                }
            }
        }
        for (seen_s, rule_s) in [(failed_s, 30.0), (stopped_s, 60.0)] {
            let late_s = seen_s.unwrap() - hung_s - rule_s;
            prop_assert!((-1e-6..=tick_s + 1e-6).contains(&late_s), "{late_s}");
        }
    }

    #[test]
    fn nothing_is_due_before_the_next_deadline_and_something_is_at_it(signs in signs()) {
        let mut dog = Watchdog::new(rules(), 0.0);
        let mut now_s = 0.0;
        for (gap_s, sign) in signs {
            let due_s = dog.next_s();
            if due_s.is_finite() && due_s > now_s {
                prop_assert_eq!(&dog.clone().tick(due_s - 1e-3)[..], []);
                prop_assert!(!dog.clone().tick(due_s + 1e-6).is_empty());
            }
            now_s += gap_s;
            dog.tick(now_s);
            prop_assert!(dog.next_s() > now_s, "what is due was given");
            dog.observe(now_s, sign);
        }
    }
}
