//! Writes the plan of a run and the placement of its model.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use windlass_common::exit::Exit;
use windlass_common::ids::ShardId;
use windlass_common::plan::Plan;

use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::grouped;
use crate::flags::PlanFlags;
use crate::recipe;

/// Checks the flags as training would, and writes what they come to.
///
/// # Errors
/// As `windlass train` before it starts anything; or if the plan cannot be written.
pub(crate) fn run(flags: &PlanFlags) -> Outcome<()> {
    let source = &flags.source;
    let name = match (&source.name, &source.plan) {
        (Some(name), _) => name.clone(),
        (None, Some(file)) => recipe::read(file)?.name,
        (None, None) => recipe::base_name(&source.recipe),
    };
    let (plan, judge) = recipe::prepare(source, &name)?;
    if let Some(file) = &flags.out {
        create(file, &plan.to_text())?;
    } else if !flags.table {
        crate::print(&plan.to_text())?;
    }
    let mut table = table(&plan)?;
    if let Some(dealing) = judge.as_ref().and_then(|judge| judge.dealing()) {
        let _ =
            write!(table, "\n{} clients, {}:\n{}", plan.clients.count, plan.clients.partition, dealing.table);
    }
    if flags.table {
        return crate::print(&table);
    }
    crate::remark(table.trim_end());
    Ok(())
}

fn create(file: &Path, text: &str) -> Outcome<()> {
    let created = File::create_new(file).and_then(|mut file| file.write_all(text.as_bytes()));
    created.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::usage(format!("--out {} is there already, and is not replaced", file.display()))
        }
        _ => Failure::new(Exit::System, format!("could not write {}: {error}", file.display())),
    })
}

/// Which shard owns what, for people.
fn table(plan: &Plan) -> Outcome<String> {
    let (layout, placement) = (plan.layout().or_exit(Exit::Usage)?, plan.placement().or_exit(Exit::Usage)?);
    let mean = layout.total() as f64 / f64::from(placement.shards());
    let widest = layout.variables().iter().map(|v| v.name.len()).max().unwrap_or(0).max("variable".len());
    let mut text = format!(
        "{:>5}  {:>6}  {:<widest$}  {:>27}  {:>13}  {:>13}\n",
        "shard", "server", "variable", "range", "values", "share of mean"
    );
    for shard in (0..placement.shards()).map(ShardId) {
        let server = plan.cluster.server_of(shard).0;
        for slice in placement.of_shard(shard) {
            let name = &layout.variables()[slice.variable.index()].name;
            let range = format!("{}..{}", slice.start, slice.start + slice.len);
            let values = grouped(slice.len);
            let _ = writeln!(text, "{:>5}  {server:>6}  {name:<widest$}  {range:>27}  {values:>13}", shard.0);
        }
        let values = placement.values_of(shard);
        let share = values as f64 / mean;
        let _ = writeln!(
            text,
            "{:>5}  {server:>6}  {:<widest$}  {:>27}  {:>13}  {share:>13.4}",
            shard.0,
            "all",
            "",
            grouped(values)
        );
    }
    let _ = writeln!(
        text,
        "{} values of {} on {} shards; largest shard / mean shard: {:.4}",
        grouped(layout.total()),
        plan.model.name,
        placement.shards(),
        placement.imbalance()
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::tests::plan_of_model;

    #[test]
    fn the_table_shows_every_value_once() {
        let plan = plan_of_model("2nn", 2, 2);
        let text = table(&plan).unwrap();
        assert_eq!(text, table(&plan).unwrap());
        let totals: Vec<u64> = text
            .lines()
            .filter(|line| line.split_whitespace().nth(2) == Some("all"))
            .map(|line| line.split_whitespace().nth(3).unwrap().replace(',', "").parse().unwrap())
            .collect();
        assert_eq!(totals.len(), 4);
        assert_eq!(totals.iter().sum::<u64>(), 199_210);
        assert!(text.contains("dense1/weight") && text.contains("dense3/bias"));
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("199,210 values of 2nn on 4 shards; largest shard / mean shard: 1.0"),
            "{last}"
        );
        assert!(text.lines().nth(1).unwrap().starts_with("    0       0  dense1/weight"), "{text}");
    }

    #[test]
    fn a_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.toml");
        create(&file, "a").unwrap();
        assert_eq!(create(&file, "b").unwrap_err().exit, Exit::Usage);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a");
        assert_eq!(create(&folder.path().join("no/where"), "").unwrap_err().exit, Exit::System);
    }
}
