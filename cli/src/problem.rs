//! Loads what a run trains on, and checks that its model fits.

use std::path::{Path, PathBuf};

use windlass_common::exit::Exit;
use windlass_common::plan::{Data, Model, Partition, Plan};
use windlass_worker::data::partition::ClassTable;
use windlass_worker::data::{self, check_fit};
use windlass_worker::models::by_name;

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::SourceFlags;
use crate::judge::Judge;

/// The environment variable that says where the data is, unless a flag does.
const DATA_VARIABLE: &str = "WINDLASS_DATA";
/// Where the data is, unless either does.
const DATA_PATH: &str = "data/mnist";
/// What the plan calls a model that only a worker of one's own knows.
pub(crate) const OWN_MODEL: &str = "own";

/// What is trained and on what.
pub(crate) struct Problem {
    pub(crate) model: Model,
    pub(crate) data: Data,
    /// None for a model that is not built in.
    pub(crate) judge: Option<Judge>,
    /// The number of each client's examples; empty where they are not known.
    pub(crate) sizes: Vec<u32>,
}

/// Whether the model can be computed here.
pub(crate) fn is_built_in(model: &str) -> bool {
    by_name(model).is_ok()
}

/// What the flags name, dealt as the plan says, which holds all else that flags say.
///
/// # Errors
/// If there is no such model or data, they do not fit each other, or they cannot be dealt so.
pub(crate) fn of_flags(source: &SourceFlags, plan: &Plan) -> Outcome<Problem> {
    let recipe = &source.recipe;
    if let (Some(examples), false) = (recipe.examples, recipe.variables.is_empty()) {
        let data = Data {
            path: source.data.as_deref().map_or_else(|| Ok(String::new()), text_of)?,
            label_column: recipe.label_column.clone(),
            validation: 0,
            train_examples: examples,
            fingerprint: String::new(),
        };
        let variables = recipe.variables.iter().map(|v| v.0.clone()).collect();
        return Ok(Problem {
            model: Model { name: OWN_MODEL.to_owned(), variables },
            data,
            judge: None,
            sizes: Vec::new(),
        });
    }
    let model = by_name(&recipe.model).or_fail(Exit::Usage, "--model")?;
    let usual = || std::env::var_os(DATA_VARIABLE).map_or_else(|| DATA_PATH.into(), PathBuf::from);
    let path = source.data.clone().unwrap_or_else(usual);
    let loaded = load(&path, plan)?;
    check_fit(&recipe.model, model.input(), &loaded).or_exit(Exit::Input)?;
    let train_examples = loaded.train.len() as u64;
    if u64::from(plan.clients.count) > train_examples {
        let flag = if recipe.clients.clients.is_some() { "--clients" } else { "--workers" };
        return Err(Failure::usage(format!(
            "{flag} is {}; {} has {train_examples} training examples, and each needs one",
            plan.clients.count,
            path.display()
        )));
    }
    let fingerprint = match plan.clients.partition {
        // Each worker has its own.
        Partition::Own => String::new(),
        _ => format!("{:016x}", loaded.fingerprint()),
    };
    let data = Data {
        path: text_of(&path)?,
        label_column: recipe.label_column.clone(),
        validation: plan.data.validation,
        train_examples,
        fingerprint,
    };
    let dealing = dealing(plan, &loaded)?;
    let sizes = dealing.as_ref().map_or_else(Vec::new, Dealing::sizes);
    let data = Data { train_examples: dealing.as_ref().map_or(train_examples, Dealing::examples), ..data };
    let judge = Some(Judge::new(recipe.model.clone(), loaded, dealing));
    Ok(Problem {
        model: Model { name: recipe.model.clone(), variables: model.variables() },
        data,
        judge,
        sizes,
    })
}

/// Who has which of the data; `None` where each worker has its own.
fn dealing(plan: &Plan, loaded: &data::Data) -> Outcome<Option<Dealing>> {
    if plan.clients.partition == Partition::Own {
        return Ok(None);
    }
    let (dealt, held) = data::dealt(plan, loaded).or_exit(Exit::Usage)?;
    let table = ClassTable::new(&dealt, loaded.train.labels(), loaded.train.classes());
    Ok(Some(Dealing { table, held, clients: dealt.clients }))
}

/// Who has which of the data.
#[derive(Debug)]
pub(crate) struct Dealing {
    /// Clients by class.
    pub(crate) table: ClassTable,
    /// For each client the examples that it trains on.
    pub(crate) clients: Vec<Vec<u32>>,
    /// For each client the training examples that it is judged by.
    pub(crate) held: Vec<Vec<u32>>,
}

impl Dealing {
    pub(crate) fn sizes(&self) -> Vec<u32> {
        self.table.sizes().iter().map(|&size| u32::try_from(size).unwrap_or(u32::MAX)).collect()
    }

    fn examples(&self) -> u64 {
        self.table.sizes().iter().sum()
    }
}

/// What is needed to score the model of a stored plan, with its own data or the same elsewhere.
///
/// # Errors
/// If the data is not that of the plan, or the plan's model is not the one that is built in here.
pub(crate) fn of_plan(plan: &Plan, elsewhere: Option<&Path>) -> Outcome<Judge> {
    let loaded = load_for(plan, elsewhere)?;
    let fingerprint = format!("{:016x}", loaded.fingerprint());
    if !plan.data.fingerprint.is_empty() && fingerprint != plan.data.fingerprint {
        return Err(Failure::new(
            Exit::Input,
            format!(
                "the data in {} is not that of the plan: its fingerprint is {fingerprint}, the plan says {}",
                loaded.source.display(),
                plan.data.fingerprint
            ),
        ));
    }
    judge(plan, loaded, true)
}

/// As [`of_plan`], on whatever data fits the model; the second result says whether it is the plan's own.
///
/// # Errors
/// If the data does not fit, or the plan's model is not the one that is built in here.
pub(crate) fn of_plan_on_any(plan: &Plan, elsewhere: Option<&Path>) -> Outcome<(Judge, bool)> {
    let loaded = load_for(plan, elsewhere)?;
    let same = format!("{:016x}", loaded.fingerprint()) == plan.data.fingerprint;
    Ok((judge(plan, loaded, same)?, same))
}

fn judge(plan: &Plan, loaded: data::Data, is_same: bool) -> Outcome<Judge> {
    let model = by_name(&plan.model.name).or_exit(Exit::Input)?;
    if model.variables() != plan.model.variables {
        let sentence =
            format!("the plan's model {} has other variables than the one built in here", plan.model.name);
        return Err(Failure::new(Exit::Input, sentence));
    }
    check_fit(&plan.model.name, model.input(), &loaded).or_exit(Exit::Input)?;
    let dealing = if is_same { dealing(plan, &loaded)? } else { None };
    Ok(Judge::new(plan.model.name.clone(), loaded, dealing))
}

fn load_for(plan: &Plan, elsewhere: Option<&Path>) -> Outcome<data::Data> {
    let path = elsewhere.unwrap_or(Path::new(&plan.data.path));
    if elsewhere.is_none() && !path.exists() {
        let sentence = format!(
            "the plan says that the data is in {}, and there is nothing; name the place with --data",
            plan.data.path
        );
        return Err(Failure::new(Exit::Input, sentence));
    }
    load(path, plan)
}

fn load(path: &Path, plan: &Plan) -> Outcome<data::Data> {
    data::load_for(plan, path).or_exit(Exit::Input)
}

/// A path as text for the plan, which holds nothing else.
pub(crate) fn text_of(path: &Path) -> Outcome<String> {
    let text = path.to_str().ok_or_else(|| {
        Failure::usage(format!("--data is {}; a plan holds only paths that are valid UTF-8", path.display()))
    })?;
    Ok(text.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use windlass_common::optimizer::Optimizer;
    use windlass_common::plan::{
        Clients, Cluster, FORMAT, LEASE_S, Membership, Mode, STALL_DEADLINE_S, Training,
    };

    use super::*;

    /// A plan as good as any other.
    pub(crate) fn plan_of_model(model: &str, servers: u32, shards_per_server: u32) -> Plan {
        let plan = Plan {
            format: FORMAT,
            name: "run".into(),
            seed: 1,
            mode: Mode::Sync { backup: 0 },
            cluster: Cluster {
                servers,
                shards_per_server,
                replicas: 0,
                workers: 2,
                membership: Membership::Fixed,
                join_deadline_s: 60,
                rejoin_deadline_s: 30,
                lease_s: LEASE_S,
                stall_deadline_s: STALL_DEADLINE_S,
            },
            clients: Clients::one_per_worker(2),
            heterogeneity: Default::default(),
            training: Training {
                batch: 64,
                passes: 8.0,
                compute_threads: 1,
                evaluate_every: 600,
                overlap: true,
            },
            codecs: Default::default(),
            optimizer: Optimizer::default(),
            schedule: Default::default(),
            checkpoints: Default::default(),
            data: Data {
                path: "nowhere".into(),
                label_column: "label".into(),
                validation: 0,
                train_examples: 600,
                fingerprint: "0".into(),
            },
            model: Model { name: model.into(), variables: by_name(model).unwrap().variables() },
        };
        plan.check().unwrap();
        plan
    }

    #[test]
    fn data_that_is_gone_is_said_with_the_way_out() {
        let sentence = of_plan(&plan_of_model("softmax", 1, 1), None).unwrap_err().sentence();
        assert_eq!(
            sentence,
            "the plan says that the data is in nowhere, and there is nothing; name the place with --data"
        );
    }

    #[test]
    fn other_data_than_the_plans_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for part in ["train.csv", "test.csv"] {
            std::fs::write(folder.path().join(part), "a,b,label\n1,2,x\n3,4,y\n").unwrap();
        }
        let mut plan = plan_of_model("mlp:2-2", 1, 1);
        let failure = of_plan(&plan, Some(folder.path())).unwrap_err();
        assert!(failure.sentence().contains("is not that of the plan"), "{}", failure.sentence());
        let (_, same) = of_plan_on_any(&plan, Some(folder.path())).unwrap();
        assert!(!same);
        let loaded = load(folder.path(), &plan).unwrap();
        plan.data.fingerprint = format!("{:016x}", loaded.fingerprint());
        of_plan(&plan, Some(folder.path())).unwrap();
        plan.model = plan_of_model("mlp:3-2", 1, 1).model;
        assert!(of_plan(&plan, Some(folder.path())).unwrap_err().sentence().contains("takes 3 features"));
        plan.model.variables.pop();
        assert!(of_plan(&plan, Some(folder.path())).unwrap_err().sentence().contains("other variables"));
    }
}
