//! Holds schedules against hand-computed rates and against what every schedule promises.

use proptest::prelude::*;

use super::*;

fn schedule(warm_up: f64, shape: &str) -> Schedule {
    let schedule = Schedule { rate: 0.5, warm_up, shape: shape.parse().unwrap() };
    schedule.check().unwrap();
    schedule
}

#[test]
fn the_rate_rises_to_its_peak_without_a_jump() {
    for shape in ["constant", "cosine:0.25", "step:0.5,0.75:0.5"] {
        let schedule = schedule(0.125, shape);
        assert_eq!(schedule.rate(0, 8000), 0.05, "{shape}");
        assert_eq!(schedule.rate(500, 8000), 0.275, "{shape}");
        assert!(schedule.rate(999, 8000) < 0.5, "{shape}");
        assert!(schedule.rate(999, 8000) > 0.499, "{shape}");
        assert_eq!(schedule.rate(1000, 8000), 0.5, "{shape}");
    }
}

#[test]
fn a_constant_rate_stays() {
    let schedule = schedule(0.0, "constant");
    assert!([0, 1, 500, 1000, 5000].iter().all(|&applied| schedule.rate(applied, 1000) == 0.5));
}

#[test]
fn a_cosine_ends_at_its_final_share() {
    let schedule = schedule(0.5, "cosine:0.25");
    let rate = |applied| schedule.rate(applied, 1000);
    assert_eq!(rate(500), 0.5);
    assert_eq!(rate(750), 0.3125); // half way: the mean of 0.5 and 0.125
    assert_eq!((rate(1000), rate(1001), rate(u64::MAX)), (0.125, 0.125, 0.125));
    // Equation 5 of SGDR, at a third of the way: 0.125 + 0.375 / 2 * (1 + 1/2).
    let third = Schedule { warm_up: 0.0, ..schedule.clone() }.rate(1000, 3000);
    assert!((third - 0.406_25).abs() < 1e-7, "{third}");
}

#[test]
fn steps_drop_at_their_shares() {
    let schedule = schedule(0.03125, "step:0.5,0.75:0.5");
    let rate = |applied| schedule.rate(applied, 1000);
    assert_eq!((rate(100), rate(499), rate(500), rate(749)), (0.5, 0.5, 0.25, 0.25));
    assert_eq!((rate(750), rate(1000), rate(9999)), (0.125, 0.125, 0.125));
}

#[test]
fn a_run_of_no_examples_is_at_its_end() {
    assert_eq!(schedule(0.03, "cosine:0.25").rate(0, 0), 0.125);
    assert_eq!(schedule(0.03, "constant").rate(0, 0), 0.5);
}

#[test]
fn flags_are_read_and_written() {
    let step = |at: &[f64], factor| Ok(Shape::Step { at: at.to_vec(), factor });
    assert_eq!("constant".parse(), Ok(Shape::Constant));
    assert_eq!("cosine".parse(), Ok(Shape::default()));
    assert_eq!("cosine:0.5".parse(), Ok(Shape::Cosine { final_share: 0.5 }));
    assert_eq!("step".parse(), step(&[0.5, 0.75], 0.1));
    assert_eq!("step:0.25".parse(), step(&[0.25], 0.1));
    assert_eq!("step:0.25, 0.5:0.5".parse(), step(&[0.25, 0.5], 0.5));
    for text in ["constant", "cosine:0.01", "step:0.5,0.75:0.1", "cosine:1e-9"] {
        assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
    }
}

#[test]
fn files_are_read_and_written() {
    for shape in ["constant", "cosine:0.125", "step:0.5,0.75:0.1"] {
        let schedule = schedule(0.25, shape);
        let written = toml::to_string(&schedule).unwrap();
        assert_eq!(toml::from_str(&written), Ok(schedule), "{written}");
    }
    assert_eq!(toml::from_str(""), Ok(Schedule::default()));
    let text = "rate = 1\nshape = { name = \"step\", at = [0.25] }";
    let shape = Shape::Step { at: vec![0.25], factor: 0.1 };
    assert_eq!(toml::from_str(text), Ok(Schedule { rate: 1.0, warm_up: 0.03, shape }));
}

#[test]
fn a_file_that_cannot_be_meant_is_refused() {
    let error = |text: &str| toml::from_str::<Schedule>(text).unwrap_err().to_string();
    assert!(error("peak = 0.1").contains("peak"));
    assert!(error("[shape]\nname = \"linear\"").contains("linear"));
    assert!(error("[shape]\nfinal_share = 0.1").contains("name"));
    for name in ["constant", "cosine", "step"] {
        let sentence = error(&format!("[shape]\nname = \"{name}\"\nslope = 1.0"));
        assert!(sentence.contains("slope"), "{name}: {sentence}");
    }
}

#[test]
fn a_flag_that_cannot_be_meant_gets_a_sentence() {
    let error = |text: &str| text.parse::<Shape>().unwrap_err().to_string();
    for text in ["", "linear", "constant:1", "cosine:0.1:0.1", "step:0.5:0.1:1", "Cosine"] {
        assert!(error(text).starts_with(&format!("there is no schedule {text:?}; write constant")), "{text}");
    }
    assert_eq!(
        error("cosine:x"),
        "schedule \"cosine:x\" has \"x\" where a number should be; write it as cosine:0.01"
    );
    assert!(error("cosine:").contains("has \"\" where a number"));
    assert!(error("step:0.5,:0.1").contains("has \"\" where a number"));
    assert!(error("step:0.5:y").contains("has \"y\" where a number"));
    assert!(error("cosine:1.5").contains("ends at 1.5"));
    assert!(error("cosine:nan").contains("ends at NaN"));
    assert!(error("step:0.5:0").contains("by 0.0"));
    assert!(error("step:0.5:2").contains("by 2.0"));
    assert!(error("step:0.75,0.5").contains("drops at 0.5 of the run; each drop must come after 0.75"));
    assert!(error("step:0.5,0.5").contains("drops at 0.5"));
    assert!(error("step:1").contains("drops at 1.0"));
    assert!(error(&format!("step:{}", vec!["0.5"; 65].join(","))).contains("65 drops"));
}

#[test]
fn numbers_out_of_range_get_a_sentence() {
    let error = |schedule: Schedule| schedule.check().unwrap_err().to_string();
    for rate in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        let sentence = error(Schedule { rate, ..Schedule::default() });
        assert!(sentence.starts_with(&format!("the learning rate is {rate:?}; its peak")), "{sentence}");
    }
    for warm_up in [-0.1, 1.0, f64::NAN] {
        let sentence = error(Schedule { warm_up, ..Schedule::default() });
        assert!(sentence.starts_with(&format!("the warm-up is {warm_up:?}")), "{sentence}");
    }
    let shape = Shape::Step { at: vec![0.25], factor: 0.1 };
    assert!(error(Schedule { warm_up: 0.25, shape, ..Schedule::default() }).contains("after 0.25"));
    let shape = Shape::Step { at: vec![], factor: 0.1 };
    assert!(error(Schedule { shape, ..Schedule::default() }).contains("0 drops"));
    assert_eq!(Schedule::default().check(), Ok(()));
}

fn shapes() -> impl Strategy<Value = Shape> {
    let step = |(mut at, factor): (Vec<f64>, f64)| {
        at.sort_by(f64::total_cmp);
        at.dedup();
        Shape::Step { at, factor }
    };
    prop_oneof![
        Just(Shape::Constant),
        (0.0..=1.0).prop_map(|final_share| Shape::Cosine { final_share }),
        (prop::collection::vec(0.5..1.0, 1..8), 0.01..=1.0).prop_map(step),
    ]
}

proptest! {
    #[test]
    fn rates_rise_then_fall_within_their_bounds(
        peak in 1e-4..10.0, warm_up in 0.0..0.5, shape in shapes(), total in 1_u64..1 << 40,
        points in prop::collection::vec(0.0..1.2, 2..40),
    ) {
        let schedule = Schedule { rate: peak, warm_up, shape };
        prop_assert_eq!(schedule.check(), Ok(()));
        let mut applied: Vec<u64> = points.iter().map(|share| (share * total as f64) as u64).collect();
        applied.extend([0, total]);
        applied.sort_unstable();
        let last = schedule.rate(total, total);
        for pair in applied.windows(2) {
            let (before, after) = (schedule.rate(pair[0], total), schedule.rate(pair[1], total));
            prop_assert!(before >= 0.0 && before <= peak as f32);
            if (pair[1] as f64) < warm_up * total as f64 {
                prop_assert!(before <= after, "the warm-up falls from {} to {}", before, after);
            } else if pair[0] as f64 >= warm_up * total as f64 {
                prop_assert!(before >= after && after >= last, "{} then {}, at last {}", before, after, last);
            }
            if pair[1] >= total {
                prop_assert_eq!(after, last);
            }
        }
        prop_assert!(schedule.rate(0, total) > 0.0);
    }

    #[test]
    fn rates_are_continuous_but_for_the_drops(
        warm_up in 0.01..0.9, final_share in 0.0..=1.0, total in 1000_u64..100_000, at in 0.0..1.0,
    ) {
        let applied = (at * total as f64) as u64;
        // The steepest slopes of the warm-up and of the cosine, and the rounding of both rates to f32.
        let slope = f64::max(0.9 / warm_up, PI / 2.0 / (1.0 - warm_up)) / total as f64;
        for shape in [Shape::Constant, Shape::Cosine { final_share }] {
            let schedule = Schedule { rate: 1.0, warm_up, shape };
            let (one, other) = (schedule.rate(applied, total), schedule.rate(applied + 1, total));
            prop_assert!(f64::from((one - other).abs()) <= slope + 1.3e-7, "{} then {}", one, other);
        }
    }

    #[test]
    fn flags_round_trip(shape in shapes()) {
        prop_assert_eq!(shape.to_string().parse(), Ok(shape));
    }
}
