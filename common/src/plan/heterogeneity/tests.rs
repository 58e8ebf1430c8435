//! Holds emulated times against the distributions they are drawn from, and their texts against each other.

use proptest::prelude::*;

use super::*;

fn emulated(step_time: &str) -> Heterogeneity {
    Heterogeneity { step_time: Some(step_time.parse().unwrap()), ..Heterogeneity::default() }
}

fn slow(at: u64, emulation: &Heterogeneity, workers: u32) -> Vec<u32> {
    (0..workers).filter(|&w| emulation.is_slow(WorkerId(w), workers, Step(at))).collect()
}

#[test]
fn means_and_deviations_are_as_given() {
    for (text, deviation, tolerance) in [
        ("const:20ms", 0.0, 1e-9),
        ("exp:20ms", 1.0, 0.03),
        ("lognormal:20ms:0.5", libm::sqrt(libm::exp(0.25) - 1.0), 0.03),
    ] {
        let emulation = emulated(text);
        let time = |i: u32| {
            let (worker, step) = (WorkerId(i % 4), Step(u64::from(i / 4)));
            emulation.step_time_us(7, worker, 4, step).unwrap() as f64 / 20_000.0
        };
        let times: Vec<f64> = (0..40_000).map(time).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let variance = times.iter().map(|t| (t - mean) * (t - mean)).sum::<f64>() / times.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{text}: the mean is {mean}");
        let found = libm::sqrt(variance);
        assert!((found - deviation).abs() <= tolerance, "{text}: the deviation is {found}, not {deviation}");
    }
    // What tells the two apart: the share above the mean, 1/e against that of a normal above sigma / 2.
    for (text, expected) in [("exp:20ms", libm::exp(-1.0)), ("lognormal:20ms:0.5", 0.401_294)] {
        let emulation = emulated(text);
        let long = |&i: &u64| emulation.step_time_us(3, WorkerId(0), 1, Step(i)).unwrap() > 20_000;
        let share = (0..40_000).filter(long).count() as f64 / 40_000.0;
        assert!((share - expected).abs() < 0.01, "{text}: {share} are above the mean");
    }
}

#[test]
fn no_step_time_is_no_emulation() {
    assert_eq!(Heterogeneity::default().step_time_us(1, WorkerId(0), 1, Step(0)), None);
    assert_eq!(Heterogeneity::default().check(1), Ok(()));
}

#[test]
fn the_last_ranks_are_slow_for_ever() {
    let emulation = Heterogeneity { slow_workers: 2, slow_factor: 3.5, ..emulated("const:20ms") };
    for step in [0, 1, 17, u64::MAX] {
        assert_eq!(slow(step, &emulation, 5), [3, 4]);
    }
    let time = |worker| emulation.step_time_us(1, WorkerId(worker), 5, Step(9));
    assert_eq!((time(0), time(4)), (Some(20_000), Some(70_000)));
    let all = Heterogeneity { slow_workers: 5, ..emulation };
    assert_eq!(slow(3, &all, 5), [0, 1, 2, 3, 4]);
}

#[test]
fn one_in_turn_is_slow_for_five_steps() {
    let pattern = "rotate:5".parse().unwrap();
    let emulation = Heterogeneity { slow_workers: 1, slow_pattern: pattern, ..emulated("const:20ms") };
    let mut counts = [0; 4];
    for step in 0..20 {
        assert_eq!(slow(step, &emulation, 4), [step as u32 / 5], "step {step}");
        slow(step, &emulation, 4).iter().for_each(|&w| counts[w as usize] += 1);
    }
    assert_eq!(counts, [5; 4]);
    let two = Heterogeneity { slow_workers: 2, ..emulation };
    assert_eq!([0, 5, 10, 15].map(|step| slow(step, &two, 5)), [[0, 1], [2, 3], [0, 4], [1, 2]]);
}

#[test]
fn flags_are_read_and_written() {
    let (mean_us, sigma) = (20_000, 0.5);
    assert_eq!("const:20ms".parse(), Ok(StepTime::Const { mean_us }));
    assert_eq!("exp:500us".parse(), Ok(StepTime::Exp { mean_us: 500 }));
    assert_eq!("lognormal:20ms:0.5".parse(), Ok(StepTime::Lognormal { mean_us, sigma }));
    for text in ["const:20ms", "exp:1500us", "exp:2s", "lognormal:20ms:0.5", "lognormal:1us:0.0"] {
        assert_eq!(text.parse::<StepTime>().unwrap().to_string(), text);
    }
    for text in ["permanent", "rotate:5"] {
        assert_eq!(text.parse::<SlowPattern>().unwrap().to_string(), text);
    }
    for (text, rate) in [("500kbit", 500_000), ("100mbit", 100_000_000), ("1gbit", 1_000_000_000)] {
        assert_eq!(text.parse(), Ok(LinkRate(rate)));
        assert_eq!(LinkRate(rate).to_string(), text);
    }
    assert_eq!("1500mbit".parse::<LinkRate>().unwrap().to_string(), "1500mbit");
}

#[test]
fn what_cannot_be_meant_gets_a_sentence() {
    let time = |text: &str| text.parse::<StepTime>().unwrap_err();
    for text in ["", "20ms", "const", "const:20ms:1", "lognormal:20ms", "uniform:20ms"] {
        assert!(time(text).contains("write const:20ms, exp:20ms or lognormal:20ms:0.5"), "{text}");
    }
    for text in ["const:20", "const:1.5ms", "exp:-1ms", "exp:ms", "exp:20h", "const:99999999999999999s"] {
        assert!(time(text).contains("write a whole number of us, ms or s"), "{text}");
    }
    assert!(time("exp:0ms").contains("1us to 600s"));
    assert!(time("exp:601s").contains("1us to 600s"));
    for text in ["lognormal:20ms:-1", "lognormal:20ms:4", "lognormal:20ms:nan"] {
        assert!(time(text).contains("from 0 to 3"), "{text}");
    }
    assert!("rotate:0".parse::<SlowPattern>().unwrap_err().contains("at least 1 step"));
    for text in ["rotate", "rotate:x", "sometimes", "permanent:1"] {
        assert!(text.parse::<SlowPattern>().unwrap_err().contains("permanent, or rotate:5"), "{text}");
    }
    for text in ["100", "100mb", "1.5gbit", "-1mbit", "mbit"] {
        assert!(text.parse::<LinkRate>().unwrap_err().contains("such as 500kbit"), "{text}");
    }
    assert!("99kbit".parse::<LinkRate>().unwrap_err().contains("100kbit to 1000gbit"));
}

#[test]
fn files_are_read_and_written() {
    let full = Heterogeneity {
        step_time: Some(StepTime::Lognormal { mean_us: 20_000, sigma: 0.5 }),
        slow_workers: 1,
        slow_factor: 2.5,
        slow_pattern: SlowPattern::Rotate { steps: 5 },
        dropout: 0.25,
        link_rate: Some(LinkRate(100_000_000)),
    };
    for emulation in [full, Heterogeneity::default()] {
        let text = toml::to_string(&emulation).unwrap();
        assert_eq!(toml::from_str(&text), Ok(emulation), "{text}");
    }
    assert!(toml::to_string(&full).unwrap().contains("step_time = \"lognormal:20ms:0.5\""));
    assert_eq!(toml::from_str(""), Ok(Heterogeneity::default()));
    for text in ["step = 1", "step_time = \"soon\"", "slow_pattern = \"rotate:0\"", "link_rate = 5"] {
        assert!(toml::from_str::<Heterogeneity>(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_out_of_range_is_named_by_its_flag() {
    let base = emulated("exp:20ms");
    let rotate = SlowPattern::Rotate { steps: 0 };
    for (flag, wrong) in [
        ("--step-time", Heterogeneity { step_time: Some(StepTime::Exp { mean_us: 0 }), ..base }),
        ("--slow-workers", Heterogeneity { slow_workers: 4, ..base }),
        ("--slow-workers", Heterogeneity { slow_workers: 1, step_time: None, ..base }),
        ("--slow-factor", Heterogeneity { slow_factor: 0.5, ..base }),
        ("--slow-factor", Heterogeneity { slow_factor: f64::NAN, ..base }),
        ("--slow-pattern", Heterogeneity { slow_pattern: rotate, ..base }),
        ("--dropout", Heterogeneity { dropout: 1.0, ..base }),
        ("--dropout", Heterogeneity { dropout: -0.1, ..base }),
        ("--link-rate", Heterogeneity { link_rate: Some(LinkRate(1)), ..base }),
    ] {
        let sentence = wrong.check(3).unwrap_err().to_string();
        assert!(sentence.starts_with(flag), "{sentence}");
    }
    assert_eq!(Heterogeneity { slow_workers: 3, dropout: 0.99, ..base }.check(3), Ok(()));
}

proptest! {
    #[test]
    fn a_time_depends_on_its_arguments_alone(seed: u64, worker in 0_u32..64, step: u64) {
        let emulation = emulated("lognormal:20ms:1.5");
        let time = |seed, worker, step| emulation.step_time_us(seed, WorkerId(worker), 64, Step(step));
        prop_assert_eq!(time(seed, worker, step), time(seed, worker, step));
        // Others are other draws: of three neighbours at least one differs even in whole microseconds.
        let neighbours = [time(!seed, worker, step), time(seed, worker + 1, step), time(seed, worker, !step)];
        prop_assert!(neighbours.iter().any(|&other| other != time(seed, worker, step)));
    }

    #[test]
    fn slow_steps_are_the_same_draws_times_the_factor(seed: u64, step in 0_u64..1000, factor in 1.0..100.0_f64) {
        let plain = emulated("exp:20ms");
        let slow = Heterogeneity { slow_workers: 1, slow_factor: factor, ..plain };
        let time = |emulation: Heterogeneity, w| emulation.step_time_us(seed, WorkerId(w), 2, Step(step)).unwrap();
        prop_assert_eq!(time(slow, 0), time(plain, 0));
        let (found, expected) = (time(slow, 1) as f64, time(plain, 1) as f64 * factor);
        prop_assert!((found - expected).abs() <= factor / 2.0 + 0.5, "{} is not {}", found, expected);
    }

    #[test]
    fn as_many_are_slow_as_the_plan_says(workers in 1_u32..40, slow_workers in 0_u32..40, step: u64, steps in 1_u64..9) {
        let slow_workers = slow_workers.min(workers);
        for slow_pattern in [SlowPattern::Permanent, SlowPattern::Rotate { steps }] {
            let emulation = Heterogeneity { slow_workers, slow_pattern, ..Heterogeneity::default() };
            prop_assert_eq!(slow(step, &emulation, workers).len() as u32, slow_workers);
        }
    }
}
