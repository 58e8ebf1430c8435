//! Adds to a run's summary what only the launcher knows, and shows its key figures.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};
use windlass_common::exit::Exit;

use crate::evaluator::Evaluation;
use crate::failure::{OrExit, Outcome};
use crate::figures::{bytes, grouped, percent};
use crate::machine::Limit;
use crate::run_directory::SUMMARY_FILE;

/// A summary as it is in its file.
pub(crate) type Summary = Map<String, Value>;

/// What the launcher adds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Addition {
    pub(crate) test_accuracy: Option<f64>,
    pub(crate) test_loss: Option<f64>,
    /// From the start of the launcher to the first step; filled in from the summary.
    pub(crate) launch_to_first_step_s: Option<f64>,
    pub(crate) stolen_cpu_share: Option<f64>,
    /// Per worker, how often it was restarted.
    pub(crate) restarts: Vec<u32>,
    /// Per server, how often it was restarted.
    pub(crate) restarts_servers: Vec<u32>,
    /// Per client, the accuracy of the result on its held-out examples; null for one that holds none out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) client_accuracy: Vec<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_accuracy_spread: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<Limit>,
    pub(crate) evaluations: Vec<Evaluation>,
}

/// How the accuracy of clients spreads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) variance: f64,
    /// Mean over the worst tenth of the clients, at least one.
    pub(crate) worst_tenth: f64,
    /// Mean over the best tenth of the clients, at least one.
    pub(crate) best_tenth: f64,
}

impl Spread {
    /// None for no clients.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (tenth, all) = ((values.len() / 10).max(1), mean(&values));
        Some(Self {
            mean: all,
            variance: values.iter().map(|v| (v - all).powi(2)).sum::<f64>() / values.len() as f64,
            worst_tenth: mean(&values[..tenth]),
            best_tenth: mean(&values[values.len() - tenth..]),
        })
    }
}

/// Reads the summary of a run; none if the run has not come so far as to have one.
///
/// # Errors
/// If it is there and cannot be read.
pub(crate) fn read(run_directory: &Path) -> Outcome<Option<Summary>> {
    let file = run_directory.join(SUMMARY_FILE);
    if !file.exists() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(&file).or_fail(Exit::System, format!("could not read {}", file.display()))?;
    serde_json::from_str(&text)
        .or_fail(Exit::System, format!("{} is not a summary", file.display()))
        .map(Some)
}

/// Writes the summary, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(run_directory: &Path, summary: &Summary) -> Outcome<()> {
    let (file, new) = (run_directory.join(SUMMARY_FILE), run_directory.join(format!(".{SUMMARY_FILE}.new")));
    let text = serde_json::to_string_pretty(summary).or_exit(Exit::System)?;
    let written = fs::write(&new, text + "\n").and_then(|()| fs::rename(&new, &file));
    written.or_fail(Exit::System, format!("could not write {}", file.display()))
}

/// Puts the addition into the summary. A failure that the launcher knows takes the place of what the servers saw of it.
pub(crate) fn merge(summary: &mut Summary, began: SystemTime, mut addition: Addition, failure: Option<&str>) {
    let began_us = began.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let first_step_us = summary.get("first_step_us").and_then(Value::as_u64).map(u128::from);
    addition.launch_to_first_step_s =
        first_step_us.and_then(|first| first.checked_sub(began_us)).map(|us| us as f64 / 1e6);
    if let Some(reason) = failure {
        summary.insert("completed".into(), false.into());
        summary.insert("reason".into(), reason.into());
    }
    if let Ok(Value::Object(fields)) = serde_json::to_value(addition) {
        summary.extend(fields);
    }
}

/// The key figures of a run, for people.
pub(crate) fn table(summary: &Summary) -> String {
    let number = |name: &str| summary.get(name).and_then(Value::as_f64);
    let count = |name: &str| summary.get(name).and_then(Value::as_u64).unwrap_or(0);
    let list = |name: &str| summary.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let per_s = |name: &str| number(name).map_or_else(String::new, |rate| format!(" ({rate:.1}/s)"));
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let (Some(accuracy), Some(loss)) = (number("test_accuracy"), number("test_loss")) {
        rows.push(("test accuracy", percent(accuracy)));
        rows.push(("test loss", format!("{loss:.4}")));
    }
    if let Some(spread) = summary.get("client_accuracy_spread") {
        let part = |name: &str| spread.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let (mean, worst, best) = (part("mean"), part("worst_tenth"), part("best_tenth"));
        rows.push((
            "accuracy of clients",
            format!(
                "mean {}, worst tenth {}, best tenth {}, variance {:.5}",
                percent(mean),
                percent(worst),
                percent(best),
                part("variance")
            ),
        ));
    }
    if count("rounds") > 0 {
        let abandoned = match count("rounds_abandoned") {
            0 => String::new(),
            n => format!(", {} of them abandoned for want of a quorum", grouped(n)),
        };
        rows.push(("rounds", grouped(count("rounds")) + &abandoned));
    }
    rows.push(("steps", grouped(count("steps")) + &per_s("steps_per_s")));
    rows.push(("pushes", grouped(count("pushes")) + &per_s("pushes_per_s")));
    for (label, name) in
        [("  late", "pushes_late"), ("  void", "pushes_void"), ("  on some shards only", "pushes_partial")]
    {
        if count(name) > 0 {
            rows.push((label, grouped(count(name))));
        }
    }
    if count("examples_wasted") > 0 {
        rows.push(("  examples in vain", grouped(count("examples_wasted"))));
    }
    let tallies = list("client_tallies");
    let lost: u64 = tallies.iter().filter(|t| t["aggregated"] == 0).count() as u64;
    if lost > 0 {
        rows.push(("  clients never heard", format!("{lost} of {}", tallies.len())));
    }
    rows.push(("examples", grouped(count("examples")) + &per_s("examples_per_s")));
    rows.extend(number("training_s").map(|seconds| ("first to last step", format!("{seconds:.1} s"))));
    rows.extend(
        number("launch_to_first_step_s").map(|seconds| ("launch to first step", format!("{seconds:.2} s"))),
    );
    let both =
        |up: &str, down: &str| format!("{} up, {} down", bytes(count(up) as f64), bytes(count(down) as f64));
    let per_second = match number("training_s") {
        Some(seconds) if seconds > 0.0 => {
            let all = count("payload_bytes_up") + count("payload_bytes_down");
            format!(" ({}/s)", bytes(all as f64 / seconds))
        }
        _ => String::new(),
    };
    rows.push(("payload", both("payload_bytes_up", "payload_bytes_down") + &per_second));
    rows.push(("wire", both("wire_bytes_up", "wire_bytes_down")));
    rows.extend(limit(summary).map(|text| ("beside the limit", text)));
    if let Some(mean) = number("staleness_mean") {
        rows.push(("staleness", format!("mean {mean:.2}, 95th percentile {}", count("staleness_p95"))));
    }
    let idle: Vec<String> = list("idle_share")
        .iter()
        .map(|share| share.as_f64().map_or("-".into(), |s| format!("{:.0} %", s * 100.0)))
        .collect();
    // A worker of one's own need not measure itself.
    if idle.iter().any(|share| share != "-") {
        rows.push(("idle, per worker", idle.join(", ")));
    }
    let share = |name: &str| summary.get("time_shares")?.get(name)?.as_f64().map(percent);
    if let (Some(compute), Some(encode), Some(exchange), Some(shards)) =
        (share("compute"), share("encode"), share("exchange"), share("shards"))
    {
        let text =
            format!("compute {compute}, encode {encode}, wire and waiting {exchange}; shards busy {shards}");
        rows.push(("time of workers", text));
    }
    for (label, name) in [("restarts, per worker", "restarts"), ("restarts, per server", "restarts_servers")]
    {
        if list(name).iter().any(|times| times.as_u64() != Some(0)) {
            let times: Vec<String> = list(name).iter().map(Value::to_string).collect();
            rows.push((label, times.join(", ")));
        }
    }
    rows.extend(number("stolen_cpu_share").map(|share| ("stolen processor time", percent(share))));
    rows.into_iter().map(|(label, value)| format!("  {label:<22} {value}\n")).collect()
}

/// How near the run came to what its machine or its links allow, if that is known.
fn limit(summary: &Summary) -> Option<String> {
    let limit = summary.get("limit")?;
    let number = |name: &str| limit.get(name).and_then(Value::as_f64);
    let (share, pushes) = (number("share")?, number("pushes_per_s")?);
    let ms = |name: &str| limit.pointer(&format!("/costs/{name}")).and_then(Value::as_f64).map(|s| s * 1e3);
    let of = match (number("cores"), ms("gradient_s"), ms("wire_s"), ms("apply_s")) {
        (Some(cores), Some(gradient), Some(wire), Some(apply)) => {
            format!(
                "{cores} cores: gradient {gradient:.2} ms, wire {wire:.2} ms, codecs and update {apply:.2} ms"
            )
        }
        _ => "the links".into(),
    };
    Some(format!("{} of {pushes:.1} pushes/s ({of})", percent(share)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn addition() -> Addition {
        let evaluation = Evaluation {
            examples: 600,
            pushes: 10,
            at_us: 0,
            step: None,
            accuracy: 0.5,
            loss: 1.5,
            consistent: "newest of each shard",
        };
        Addition {
            test_accuracy: Some(0.975),
            test_loss: Some(0.08),
            launch_to_first_step_s: None,
            stolen_cpu_share: None,
            restarts: vec![0, 1],
            restarts_servers: vec![2, 0],
            client_accuracy: Vec::new(),
            client_accuracy_spread: None,
            limit: None,
            evaluations: vec![evaluation],
        }
    }

    fn summary() -> Summary {
        let text = r#"{"name": "x", "completed": true, "reason": "completed", "first_step_us": 2500000, "steps": 1875,
            "steps_per_s": 150.25, "idle_share": [0.25, null], "staleness_mean": 1.5, "staleness_p95": 3,
            "wire_bytes_up": 7000000}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn additions_come_after_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_none());
        let mut merged = summary();
        merge(&mut merged, UNIX_EPOCH + Duration::from_secs(2), addition(), None);
        write(folder.path(), &merged).unwrap();
        let again = read(folder.path()).unwrap().unwrap();
        assert_eq!(again, merged);
        assert_eq!(again["launch_to_first_step_s"], 0.5);
        assert_eq!(again["stolen_cpu_share"], Value::Null);
        assert_eq!(again["restarts"], serde_json::json!([0, 1]));
        assert_eq!(again["restarts_servers"], serde_json::json!([2, 0]));
        assert_eq!(again["evaluations"][0]["consistent"], "newest of each shard");
        assert_eq!(again["evaluations"][0]["step"], Value::Null);
        assert_eq!((again["completed"].as_bool(), again["reason"].as_str()), (Some(true), Some("completed")));
        assert_eq!(again.keys().next().map(String::as_str), Some("name"));
        assert_eq!(again.keys().next_back().map(String::as_str), Some("evaluations"));
    }

    #[test]
    fn clients_spread_around_their_mean() {
        let spread = Spread::of((0..20).map(|i| f64::from(i) / 20.0).collect()).unwrap();
        assert!((spread.mean - 0.475).abs() < 1e-12 && (spread.variance - 0.083_125).abs() < 1e-12);
        assert_eq!((spread.worst_tenth, spread.best_tenth), (0.025, 0.925));
        assert_eq!(Spread::of(vec![0.5]).unwrap().worst_tenth, 0.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_failure_is_named_as_the_launcher_knows_it() {
        let mut merged = summary();
        merge(&mut merged, UNIX_EPOCH + Duration::from_secs(9), addition(), Some("worker 1 is gone"));
        assert_eq!(
            (merged["completed"].as_bool(), merged["reason"].as_str()),
            (Some(false), Some("worker 1 is gone"))
        );
        // A first step before the launch can only be a clock that was set.
        assert_eq!(merged["launch_to_first_step_s"], Value::Null);
    }

    #[test]
    fn the_table_shows_what_is_there() {
        let mut merged = summary();
        merge(&mut merged, UNIX_EPOCH + Duration::from_secs(2), addition(), None);
        let text = table(&merged);
        for part in [
            "97.50 %",
            "1,875 (150.2/s)",
            "mean 1.50, 95th percentile 3",
            "25 %, -",
            "7.0 MB up",
            "0.50 s",
            "restarts, per worker   0, 1\n",
            "restarts, per server   2, 0\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("stolen") && !text.contains("late"), "{text}");
        assert!(table(&Summary::new()).contains("steps"));
    }
}
