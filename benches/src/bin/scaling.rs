//! Measures whole trainings with more and more workers and servers, in each mode, in turn.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::machine::{spread, stolen, stolen_share};
use windlass_benches::training::{Program, UNEVALUATED};

/// Measures whole trainings in each mode with each number of workers and servers. In each round each of them is trained once.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Modes: sync, async, or ssp:BOUND.
    #[arg(long, value_delimiter = ',', default_value = "sync,async,ssp:4")]
    modes: Vec<Rule>,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    workers: Vec<u32>,
    /// Numbers of servers.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    servers: Vec<u32>,
    /// Passes over the data in each training, all workers together.
    #[arg(long, default_value_t = 2.0)]
    passes: f64,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// More flags for each training, as in --more=--push-codec=int8,--pull-codec=int8.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    more: Vec<String>,
    #[command(flatten)]
    program: Program,
}

/// When pushes count and pulls are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    mode: String,
    staleness: Option<String>,
}

impl FromStr for Rule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (mode, staleness) = match text.split_once(':') {
            Some((mode, bound)) => (mode, Some(bound.to_owned())),
            None => (text, None),
        };
        ensure!(
            matches!((mode, &staleness), ("sync" | "async", None) | ("ssp", Some(_))),
            "a mode is sync, async or ssp:BOUND, not {text}"
        );
        Ok(Self { mode: mode.to_owned(), staleness })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mode)?;
        self.staleness.iter().try_for_each(|bound| write!(f, ":{bound}"))
    }
}

/// One kind of training, and what its rounds made.
struct Cell<'a> {
    rule: &'a Rule,
    workers: u32,
    servers: u32,
    steps_per_s: Vec<f64>,
    pushes_per_s: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let mut cells = Vec::new();
    for rule in &flags.modes {
        for &servers in &flags.servers {
            for &workers in &flags.workers {
                let (steps_per_s, pushes_per_s) = (Vec::new(), Vec::new());
                cells.push(Cell { rule, workers, servers, steps_per_s, pushes_per_s });
            }
        }
    }
    ensure!(!cells.is_empty() && flags.rounds > 0, "there is nothing to measure");
    let before = stolen();
    for round in 0..flags.rounds {
        for cell in &mut cells {
            train(&flags, cell).with_context(|| {
                format!("{}, {} workers, {} servers", cell.rule, cell.workers, cell.servers)
            })?;
            println!(
                "round {round}, {}, {} workers, {} servers: {:.0} steps/s, {:.0} pushes/s",
                cell.rule, cell.workers, cell.servers, cell.steps_per_s[round], cell.pushes_per_s[round]
            );
        }
    }
    println!("\n{}, batch 64 per worker, {} passes, {} rounds", flags.model, flags.passes, flags.rounds);
    println!("| mode | servers | workers | steps/s | pushes/s |\n|---|---|---|---|---|");
    for Cell { rule, workers, servers, steps_per_s, pushes_per_s } in &cells {
        println!("| {rule} | {servers} | {workers} | {} | {} |", spread(steps_per_s), spread(pushes_per_s));
    }
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

fn train(flags: &Flags, cell: &mut Cell<'_>) -> anyhow::Result<()> {
    let [workers, servers, passes] =
        [cell.workers.to_string(), cell.servers.to_string(), flags.passes.to_string()];
    let mut arguments = vec!["--mode", &cell.rule.mode, "--model", &flags.model, "--batch", "64"];
    arguments.extend(["--workers", &workers, "--servers", &servers, "--passes", &passes]);
    arguments.extend(["--checkpoint-every", "never"]);
    arguments.extend(cell.rule.staleness.iter().flat_map(|bound| ["--staleness", bound]));
    arguments.extend(UNEVALUATED);
    arguments.extend(flags.more.iter().map(String::as_str));
    let trained = flags.program.train(&arguments)?;
    cell.steps_per_s.push(trained.figure("steps_per_s")?);
    cell.pushes_per_s.push(trained.figure("pushes_per_s")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written_alike_and_others_are_refused() {
        for text in ["sync", "async", "ssp:4", "ssp:inf"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        for text in ["ssp", "sync:1", "fedavg", "", "async:"] {
            assert!(text.parse::<Rule>().unwrap_err().to_string().contains("ssp:BOUND"), "{text}");
        }
    }
}
