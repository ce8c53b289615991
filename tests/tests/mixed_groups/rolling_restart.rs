//! All brokers are restarted, one after another, while the groups read and their members change.

use crate::member::Kind;
use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn two_mixed_groups_read_through_a_rolling_restart_without_loss_repetition_or_a_second_owner() {
    let mut scene = Scene::set("rolling-restart", &["eager", "cooperative"]).await;
    // One group is upgraded by the first member of the consumer protocol; the other is a consumer group that a classic member joins.
    let kinds = [
        [Kind::Classic("range"), Kind::Consumer, Kind::Ours],
        [Kind::Ours, Kind::Consumer, Kind::Classic("cooperative-sticky")],
    ];
    for step in 0..3 {
        for (group, kinds) in scene.groups.iter_mut().zip(kinds) {
            group.enter(&scene.cluster, kinds[step]).await;
        }
        for (group, first_type) in scene.groups.iter().zip(["classic", "consumer"]) {
            group.wait_shared().await;
            if step == 0 {
                group.wait_type(&scene.client, first_type).await;
            }
        }
    }
    scene.wait_progress().await;
    for (step, id) in scene.cluster.ids().enumerate() {
        // Each kind is replaced once, the newcomer first, so that all kinds are there all the time. It joins while a broker goes.
        for (group, kinds) in scene.groups.iter_mut().zip(kinds) {
            group.enter(&scene.cluster, kinds[step]).await;
        }
        scene.note(&format!("node {id} is to stop"));
        let status = scene.cluster.sigterm(id).await;
        assert!(status.success(), "node {id}: {status}");
        scene.note(&format!("node {id} has stopped"));
        for group in &mut scene.groups {
            group.wait_shared().await;
            // The oldest member is of the kind that was just added.
            group.leave(0).await;
            group.wait_shared().await;
        }
        scene.wait_progress().await;
        scene.cluster.restart(id);
        scene.note(&format!("node {id} starts"));
        Box::pin(scene.cluster.wait_whole()).await;
        scene.note(&format!("node {id} is back"));
        scene.wait_progress().await;
    }
    // In the end members leave until only one is left, a classic one in the second group.
    let types = Box::pin(scene.finish(&["consumer", "classic"])).await;
    assert_eq!(types, [vec!["classic", "consumer"], vec!["consumer", "classic"]]);
}
