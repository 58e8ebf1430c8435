//! That the check of a run's log finds what it is there to find.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::panic::catch_unwind;

use serde_json::{Value, json};
use windlass_process_tests::ledger::Ledger;

/// A push of a run with two shards and two workers: shard, worker, sequence and the version made, or none if it is void.
type Line = (u64, u64, u64, Option<u64>);

/// Worker 0 has two pushes and worker 1 has two, of which the last is void on shard 1.
const GOOD: [Line; 8] = [
    (0, 0, 0, Some(1)),
    (0, 1, 0, Some(2)),
    (0, 0, 1, Some(3)),
    (0, 1, 1, Some(4)),
    (1, 1, 0, Some(1)),
    (1, 0, 0, Some(2)),
    (1, 0, 1, Some(3)),
    (1, 1, 1, None),
];

fn summary() -> Value {
    json!({ "completed": true, "shards": 2, "workers": 2, "steps": 4, "pushes": 4, "pushes_partial": 1 })
}

/// What the check says, or what it complains about.
fn read(lines: &[Line], summary: &Value) -> Result<(u64, u64), String> {
    let folder = tempfile::tempdir().unwrap();
    let line = |&(shard, worker, sequence, version): &Line| {
        let event = if version.is_some() { "applied" } else { "void" };
        json!({ "event": event, "shard": shard, "worker": worker, "sequence": sequence, "version": version })
    };
    let text: Vec<String> = lines.iter().map(|each| line(each).to_string() + "\n").collect();
    fs::write(folder.path().join("events.jsonl"), text.concat()).unwrap();
    fs::write(folder.path().join("summary.json"), summary.to_string()).unwrap();
    let read = catch_unwind(|| {
        let ledger = Ledger::read(folder.path());
        (ledger.pushes(1), ledger.void())
    });
    read.map_err(|panic| panic.downcast_ref::<String>().unwrap().clone())
}

#[test]
fn a_log_in_order_is_read_and_each_fault_is_named() {
    assert_eq!(read(&GOOD, &summary()), Ok((2, 1)));
    let changed = |change: &dyn Fn(&mut Vec<Line>)| {
        let mut lines = GOOD.to_vec();
        change(&mut lines);
        read(&lines, &summary()).unwrap_err()
    };
    let twice = changed(&|lines| lines.push((0, 1, 0, Some(5))));
    assert!(twice.contains("push (0, 1, 0) is settled twice"), "{twice}");
    let lost = changed(&|lines| lines.retain(|line| (line.1, line.2) != (0, 0)));
    assert!(lost.contains("of worker 0 the push of this number is lost"), "{lost}");
    let on_one_shard = changed(&|lines| lines.retain(|line| *line != (1, 1, 1, None)));
    assert!(on_one_shard.contains("worker 1, on one of shards 0 and 1: [1]"), "{on_one_shard}");
    let nowhere = changed(&|lines| lines[3].3 = None);
    assert!(nowhere.contains("push 1 of worker 1 is void on every shard"), "{nowhere}");
    let same_version = changed(&|lines| lines[2].3 = Some(2));
    assert!(same_version.contains("shard 0: [1, 2, 2, 4]"), "{same_version}");
    for (field, wrong) in [("steps", 5), ("pushes", 3), ("pushes_partial", 0)] {
        let mut summary = summary();
        summary[field] = wrong.into();
        assert!(read(&GOOD, &summary).is_err(), "{field}");
    }
}
