//! Checks and prepares a run that goes on from what is in its directory.

use std::path::Path;
use std::sync::Arc;

use windlass_common::exit::Exit;
use windlass_common::plan::{Membership, Partition, Plan};

use super::{Beginning, Prepared, check_target};
use crate::evaluator::Evaluation;
use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::{Changes, TrainFlags};
use crate::judge::Judge;
use crate::programs::Programs;
use crate::run_directory::{self, CHECKPOINTS, DECISIONS_FILE, MODEL_FILE, PLAN_FILE};
use crate::{lookout, recipe, summary};

/// Refuses a directory in which there is nothing to go on with.
///
/// # Errors
/// If it holds no run, or one that is finished or still under way.
pub(super) async fn check(directory: &Path) -> Outcome<()> {
    let place = directory.display();
    if !directory.join(PLAN_FILE).is_file() {
        let sentence = format!("--resume {place} holds no run: there is no {PLAN_FILE}");
        return Err(Failure::new(Exit::Input, sentence));
    }
    if directory.join(MODEL_FILE).exists() {
        let sentence =
            format!("--resume {place} holds a finished run ({MODEL_FILE}): there is nothing to go on with");
        return Err(Failure::usage(sentence));
    }
    let has_checkpoints =
        directory.join(CHECKPOINTS).exists() || run_directory::location(directory).is_some();
    if has_checkpoints && !run_directory::has_begun(directory) {
        let sentence = format!(
            "--resume {place} has checkpoints and no {DECISIONS_FILE}, without which it cannot be gone on with: copy it, too"
        );
        return Err(Failure::new(Exit::Input, sentence));
    }
    if let Some(address) = lookout::answering(directory).await? {
        let sentence = format!(
            "--resume {place} holds a run that is under way: its server 0 answers at {address}; end it first"
        );
        return Err(Failure::usage(sentence));
    }
    Ok(())
}

/// Makes the plan under which the run goes on, and writes it into the directory.
///
/// # Errors
/// Says in one sentence what is wrong with the flags, the plan or the data. The directory is then as it was.
pub(super) fn prepare(flags: &TrainFlags, directory: &Path) -> Outcome<Prepared> {
    let file = directory.join(PLAN_FILE);
    let mut plan = changed(&recipe::read(&file)?, flags.changes)?;
    check_target(flags.target, &plan)?;
    let programs = Programs::find(flags.source.worker_program.as_deref())?;
    let judge = recipe::judge_of(&mut plan, &flags.source, &file)?;
    if plan.clients.sizes.is_empty()
        && let Some(sizes) = judge.as_ref().and_then(Judge::sizes)
    {
        plan.clients.sizes = sizes;
    }
    plan.check().or_exit(Exit::Usage)?;
    let found = summary::read(directory).ok().flatten().unwrap_or_default();
    let stored = found.get("evaluations").and_then(serde_json::Value::as_array);
    let evaluations = stored.into_iter().flatten().filter_map(|e| Evaluation::stored(&plan, e)).collect();
    let checkpoints = match &flags.checkpoints {
        Some(location) => Some(run_directory::keep_location(directory, location)?),
        None => run_directory::location(directory),
    };
    lookout::clear(directory);
    run_directory::write_whole(directory, PLAN_FILE, &plan.to_text())?;
    let beginning = Beginning { is_resumed: true, checkpoints, evaluations };
    Ok(Prepared { plan, directory: directory.to_owned(), programs, judge: judge.map(Arc::new), beginning })
}

/// The plan with another cluster. Where each worker is the one client of its own, there are as many clients as workers.
fn changed(before: &Plan, changes: Changes) -> Outcome<Plan> {
    let mut plan = before.clone();
    let (cluster, clients) = (&mut plan.cluster, &mut plan.clients);
    let is_one_each = clients.partition == Partition::Iid
        && clients.count == before.cluster.workers
        && before.mode.local().is_none();
    cluster.servers = changes.servers.unwrap_or(cluster.servers);
    cluster.shards_per_server = changes.shards_per_server.unwrap_or(cluster.shards_per_server);
    cluster.replicas = changes.replicas.unwrap_or(cluster.replicas);
    plan.checkpoints.every = changes.every.unwrap_or(plan.checkpoints.every);
    plan.checkpoints.keep = changes.keep.unwrap_or(plan.checkpoints.keep);
    let workers = changes.workers.unwrap_or(before.cluster.workers);
    if workers == before.cluster.workers {
        plan.check().or_exit(Exit::Usage)?;
        return Ok(plan);
    }
    cluster.workers = workers;
    match cluster.membership {
        Membership::Elastic { workers_max } if is_one_each && workers_max == before.cluster.workers => {
            cluster.membership = Membership::Elastic { workers_max: workers };
        }
        Membership::Elastic { workers_max } if workers > workers_max => {
            return Err(Failure::usage(format!(
                "--workers is {workers}; the run was begun for at most {workers_max} (--workers-max)"
            )));
        }
        _ => {}
    }
    if is_one_each {
        clients.count = cluster.workers_max();
        // They are counted again when the data is loaded.
        clients.sizes.clear();
    } else if clients.partition == Partition::Own {
        return Err(Failure::usage(format!(
            "--workers is {workers}; with --partition own each of the {} workers has its own data, and all of them are \
             needed",
            clients.count
        )));
    } else if workers > clients.count {
        return Err(Failure::usage(format!(
            "--workers is {workers}; the data belong to {} clients and stay theirs, so that at most as many workers are \
             possible",
            clients.count
        )));
    }
    plan.check().or_exit(Exit::Usage)?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::ServerId;
    use windlass_common::plan::{Clients, Every, LocalWork, Mode, StalenessScaling};
    use windlass_transport::{Endpoint, Limits, Role, RunAuthority};

    use super::*;
    use crate::lookout::Lookout;
    use crate::problem::tests::plan_of_model;

    async fn refusal(directory: &Path) -> (Exit, String) {
        let failure = check(directory).await.unwrap_err();
        (failure.exit, failure.sentence())
    }

    #[tokio::test]
    async fn what_cannot_be_gone_on_with_is_refused_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        let (exit, sentence) = refusal(&run.join("nowhere")).await;
        assert!(exit == Exit::Input && sentence.ends_with("nowhere holds no run: there is no plan.toml"));
        assert_eq!(refusal(run).await.0, Exit::Input);
        std::fs::write(run.join(PLAN_FILE), "").unwrap();
        check(run).await.expect("it is begun");
        std::fs::create_dir(run.join(CHECKPOINTS)).unwrap();
        let (exit, sentence) = refusal(run).await;
        assert!(exit == Exit::Input && sentence.contains("checkpoints and no decisions.jsonl"), "{sentence}");
        std::fs::write(run.join(DECISIONS_FILE), "{}\n").unwrap();
        let authority = RunAuthority::new("run").unwrap();
        let server = authority.issue(Role::Server(ServerId(0))).unwrap();
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &server, &Limits::default()).unwrap();
        let address = endpoint.local_address().unwrap().to_string();
        let accepting = tokio::spawn(async move {
            let mut alive = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                alive.push(incoming.finish().await);
            }
        });
        let lookout = Lookout::open(run, &address, &authority.issue(Role::Observer).unwrap()).unwrap();
        let (exit, sentence) = refusal(run).await;
        assert!(
            exit == Exit::Usage && sentence.contains(&format!("server 0 answers at {address}")),
            "{sentence}"
        );
        accepting.abort();
        let _ = accepting.await;
        check(run).await.expect("nobody answers any more, although the files are there");
        lookout::clear(run);
        assert!(!run.join(run_directory::OBSERVER_FILE).exists());
        drop(lookout);
        std::fs::write(run.join(MODEL_FILE), "").unwrap();
        let (exit, sentence) = refusal(run).await;
        assert!(
            exit == Exit::Usage && sentence.contains("holds a finished run (model.safetensors)"),
            "{sentence}"
        );
    }

    #[test]
    fn a_cluster_of_another_size_goes_on_with_the_same_training() {
        let before = plan_of_model("2nn", 2, 1);
        assert_eq!(changed(&before, Changes::default()).unwrap(), before);
        let changes = Changes {
            servers: Some(3),
            shards_per_server: Some(2),
            replicas: Some(1),
            workers: Some(5),
            every: Some(Every::Steps(9)),
            keep: Some(7),
        };
        let plan = changed(&before, changes).unwrap();
        assert_eq!((plan.cluster.shards(), plan.cluster.workers, plan.clients.count), (6, 5, 5));
        assert_eq!(plan.cluster.replicas, 1);
        assert_eq!((plan.checkpoints.every, plan.checkpoints.keep), (Every::Steps(9), 7));
        assert_eq!(before.differs_in_training(&plan), None);
        let mut elastic = before.clone();
        elastic.cluster.membership = Membership::Elastic { workers_max: 2 };
        let plan = changed(&elastic, Changes { replicas: None, ..changes }).unwrap();
        assert_eq!((plan.cluster.workers_max(), plan.clients.count), (5, 5));
        assert_eq!(elastic.differs_in_training(&plan), None);
    }

    #[test]
    fn clients_with_data_of_their_own_stay_as_they_are() {
        let workers = |workers| Changes { workers: Some(workers), ..Changes::default() };
        let before = plan_of_model("2nn", 1, 1);
        let mut some = before.clone();
        some.clients = Clients { count: 4, sizes: vec![150; 4], ..some.clients };
        let plan = changed(&some, workers(3)).unwrap();
        assert_eq!((plan.cluster.workers, &plan.clients), (3, &some.clients));
        assert_eq!(some.differs_in_training(&plan), None);
        let refused = |plan: &Plan, count| changed(plan, workers(count)).unwrap_err().sentence();
        assert!(refused(&some, 5).contains("--workers is 5; the data belong to 4 clients"));
        let mut federated = before.clone();
        federated.mode = Mode::Fedasync { scaling: StalenessScaling::default(), local: LocalWork::default() };
        assert!(refused(&federated, 3).contains("the data belong to 2 clients"));
        assert_eq!(changed(&federated, workers(1)).unwrap().clients.count, 2);
        let mut own = before.clone();
        own.clients.partition = Partition::Own;
        assert!(refused(&own, 1).contains("all of them are needed"));
        let mut elastic = some.clone();
        elastic.cluster.membership = Membership::Elastic { workers_max: 3 };
        assert!(refused(&elastic, 4).contains("at most 3 (--workers-max)"));
        assert!(refused(&before, 0).contains("--workers"));
        let mut backup = before;
        backup.mode = Mode::Sync { backup: 1 };
        assert!(refused(&backup, 1).contains("--backup"));
    }
}
