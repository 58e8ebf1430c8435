//! Makes a run's result anew from its plan and the log of who took part, without servers, protocol or ledger.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::plan::{Goal, Mode, Plan};
use windlass_tests::oracle::{Model, mean};
use windlass_worker::data::{self, ExampleStream, Gathered, Owned};
use windlass_worker::emulation::Emulation;
use windlass_worker::federated::LocalTraining;
use windlass_worker::models;

/// What a run in sync or fedavg must end in, by its log: the pushes that each step or round was closed with, and for each
/// the dealing of clients that it was computed under.
///
/// # Panics
/// If the log or the plan cannot be read, or is that of another mode.
pub fn replayed(run: &Path) -> Vec<f32> {
    let plan = plan(run);
    let path = Path::new(&plan.data.path);
    let data = data::load_for(&plan, path).expect("the data is where the plan says");
    let data = data::owned(&plan, data, WorkerId(0)).expect("the data can be dealt");
    let log = lines(run);
    match plan.mode {
        Mode::Sync { .. } => steps(&plan, &data, &log),
        Mode::Fedavg(_) => rounds(&plan, &data, &log),
        ref other => panic!("{other} cannot be made anew from its cohorts"),
    }
}

/// A run's plan.
///
/// # Panics
/// If it has none.
pub fn plan(run: &Path) -> Plan {
    let text = std::fs::read_to_string(run.join("plan.toml")).expect("a run has a plan");
    Plan::parse(&text).expect("the plan of a run can be read")
}

/// All lines of a run's log.
///
/// # Panics
/// If one of them is not JSON.
pub fn lines(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("events.jsonl")).expect("a run has a log");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// The values of a run's result, in layout order.
///
/// # Panics
/// If there is none.
pub fn result(run: &Path) -> Vec<f32> {
    let bytes = crate::model(run);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the result can be read");
    let float = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("these are four"));
    let variables = plan(run).model.variables;
    variables
        .iter()
        .flat_map(|variable| {
            let tensor = tensors.tensor(&variable.name).expect("the result has every variable");
            tensor.data().chunks_exact(4).map(float).collect::<Vec<_>>()
        })
        .collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("the log has a number here")
}

fn numbers(value: &Value) -> Vec<u32> {
    let all = value.as_array().expect("the log has numbers here");
    all.iter().map(|v| u32::try_from(number(v)).expect("ids have 32 bits")).collect()
}

/// For each term, the host of each client.
fn hosts(plan: &Plan, log: &[Value]) -> BTreeMap<u64, Vec<u32>> {
    let mut host: Vec<u32> = (0..plan.clients.count).map(|client| client % plan.cluster.workers).collect();
    let mut terms = BTreeMap::from([(0, host.clone())]);
    for line in log.iter().filter(|line| line["event"] == "term") {
        for (client, worker) in numbers(&line["moved_clients"]).into_iter().zip(numbers(&line["moved_to"])) {
            host[client as usize] = worker;
        }
        terms.insert(number(&line["term"]), host.clone());
    }
    terms
}

fn is_closed(line: &&Value) -> bool {
    line["event"] == "closed" || line["event"] == "abandoned"
}

fn steps(plan: &Plan, data: &Owned, log: &[Value]) -> Vec<f32> {
    let hosts = hosts(plan, log);
    let applied = log.iter().filter(|line| line["event"] == "applied" && line["shard"] == 0);
    let term: BTreeMap<(u64, u64), u64> = applied
        .map(|line| ((number(&line["step"]), number(&line["worker"])), number(&line["term"])))
        .collect();
    let (mut model, mut network) =
        (Model::of(plan), models::by_name(&plan.model.name).expect("it is built in"));
    let (batch, target) = (plan.training.batch, plan.examples_target().0);
    let (mut done, mut indices, mut gathered) = (0, Vec::new(), Gathered::default());
    for line in log.iter().filter(is_closed) {
        let step = number(&line["step"]);
        let mut gradients = Vec::new();
        for worker in numbers(&line["workers"]) {
            let of_term = &hosts[&term[&(step, worker.into())]];
            let hosted = (0..).zip(of_term).filter(|(_, host)| **host == worker).map(|(c, _)| ClientId(c));
            let own = data.union(&hosted.collect::<Vec<_>>());
            let mut stream = ExampleStream::new(plan.seed, WorkerId(worker), own).expect("it has examples");
            stream.batch(step, batch as usize, &mut indices);
            data.gather(&indices, &mut gathered);
            let mut gradient = vec![0.0; model.values.len()];
            network.gradient(&model.values, gathered.batch(), &mut gradient);
            gradients.push(gradient);
        }
        if gradients.is_empty() {
            continue;
        }
        let weighted: Vec<(u32, &[f32])> = gradients.iter().map(|g| (batch, g.as_slice())).collect();
        model.step(&mean(&weighted), plan.schedule.rate(done, target));
        done += u64::from(batch) * gradients.len() as u64;
    }
    model.values
}

fn rounds(plan: &Plan, data: &Owned, log: &[Value]) -> Vec<f32> {
    let work = *plan.mode.local().expect("clients train by themselves");
    let Goal::Rounds(total) = plan.goal() else { panic!("fedavg ends after rounds") };
    let (mut model, mut network) =
        (Model::of(plan), models::by_name(&plan.model.name).expect("it is built in"));
    let (mut training, mut emulation) = (LocalTraining::default(), Emulation::none());
    for line in log.iter().filter(is_closed) {
        let round = number(&line["step"]);
        let clients = numbers(&line["clients"]);
        assert!(clients.is_sorted(), "the order of the reduction is that of the clients");
        let mut pushes = Vec::new();
        for client in clients.into_iter().map(ClientId) {
            let mut push = vec![0.0; model.values.len()];
            let values = &model.values;
            let key = (plan.seed, client, round);
            let done = training.train(&mut *network, data, key, &work, values, &mut push, &mut emulation);
            done.expect("no step time is emulated here");
            pushes.push((data.of(client).len() as u32, push));
        }
        if pushes.is_empty() {
            continue;
        }
        let weighted: Vec<(u32, &[f32])> = pushes.iter().map(|(count, p)| (*count, p.as_slice())).collect();
        model.step(&mean(&weighted), plan.schedule.rate(round, total));
    }
    model.values
}
