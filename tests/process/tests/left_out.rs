//! Kills runs whose codecs leave something out, up or down, and shows that it is in their checkpoints.

use rustix::process::Signal;
use windlass_process_tests::kills::{
    FEDAVG, SYNC, WITHIN, copy_folder, kill_all, killed_again_and_again, restored, resume, same,
    since_restored,
};
use windlass_process_tests::{child, lines, model, reach, send, train, until};

/// What a codec leaves out of pushes is in checkpoints: in sync with each of those that leave something out for good.
#[test]
fn runs_with_codecs_that_leave_something_out_end_in_the_same_bytes() {
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    for (mode, codec, killed) in [
        (SYNC, "int8", ("40steps", 2, 3700)),
        (SYNC, "topk:1%", ("40steps", 2, 3700)),
        (FEDAVG, "sign", ("4steps", 2, 480)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let flags = format!("{mode} --push-codec {codec}");
        train(&whole, &flags).end(WITHIN).well();
        let killed = killed_again_and_again(folder.path(), &flags, &roles, killed);
        same(&whole, &killed, &["steps", "pushes"]);
        // With others than wrote them: what was left out is cut anew.
        if mode == SYNC {
            let running = train(&folder.path().join("cut"), &format!("{flags} --checkpoint-every 100steps"));
            let run = folder.path().join("cut");
            until("a checkpoint", || lines(&run).iter().any(|l| l["event"] == "checkpoint").then_some(()));
            kill_all(running, &roles);
            resume(&run, "--servers 3").end(WITHIN).well();
            assert_eq!(model(&whole), model(&run), "{codec} on 3 servers");
        }
    }
}

/// The same where the run goes back because a server was killed, and the workers' processes live on.
#[test]
fn what_was_left_out_goes_back_with_all_when_a_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let flags = format!("{SYNC} --push-codec sign");
    train(&whole, &flags).end(WITHIN).well();
    let running = train(&killed, &format!("{flags} --checkpoint-every 60steps --restarts 3"));
    for role in ["server-1", "server-0"] {
        reach(500, "pushes", || since_restored(&killed));
        let lineage = restored(&killed);
        send(child(running.id(), role, None), Signal::KILL);
        until("it goes on", || (restored(&killed) > lineage).then_some(()));
    }
    running.end(WITHIN).well();
    assert_eq!(model(&whole), model(&killed));
}

#[test]
fn what_workers_were_sent_in_patches_is_restored_on_any_number_of_servers() {
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("{SYNC} --pull-codec topk:2%");
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    train(&whole, &flags).end(WITHIN).well();
    let running = train(&run, &format!("{flags} --checkpoint-every 100steps"));
    until("a checkpoint", || lines(&run).iter().any(|l| l["event"] == "checkpoint").then_some(()));
    kill_all(running, &["server-0", "server-1", "worker-0", "worker-1"]);
    for servers in ["1", "2", "5"] {
        let copy = folder.path().join(format!("on-{servers}"));
        copy_folder(&run, &copy);
        resume(&copy, &format!("--servers {servers}")).end(WITHIN).well();
        assert_eq!(restored(&copy), 1);
        assert_eq!(model(&whole), model(&copy), "on {servers} servers");
    }
}
