//! A group changes its protocol member by member, and back, while it reads.

use crate::member::Kind;
use crate::scene::Scene;

const MEMBERS: usize = 3;

async fn there_and_back(assignor: &'static str) {
    let mut scene = Scene::set(&format!("upgrade-{assignor}"), &["migrating"]).await;
    for _ in 0..MEMBERS {
        scene.groups[0].enter(&scene.cluster, Kind::Classic(assignor)).await;
    }
    scene.groups[0].wait_settled(&scene.client).await;
    scene.groups[0].wait_type(&scene.client, "classic").await;
    scene.wait_progress().await;
    for _ in 0..MEMBERS {
        replace_oldest(&mut scene, Kind::Consumer).await;
        scene.groups[0].wait_type(&scene.client, "consumer").await;
    }
    for left in (0..MEMBERS).rev() {
        replace_oldest(&mut scene, Kind::Classic(assignor)).await;
        scene.groups[0].wait_type(&scene.client, if left > 0 { "consumer" } else { "classic" }).await;
    }
    let types = Box::pin(scene.finish(&["classic"])).await;
    assert_eq!(types, [["classic", "consumer", "classic"]]);
}

/// The member that has been there longest leaves, and another comes.
async fn replace_oldest(scene: &mut Scene, kind: Kind) {
    scene.groups[0].leave(0).await;
    scene.groups[0].wait_settled(&scene.client).await;
    scene.groups[0].enter(&scene.cluster, kind).await;
    scene.groups[0].wait_settled(&scene.client).await;
    scene.wait_progress().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eager_classic_group_is_upgraded_and_downgraded_without_a_missed_or_repeated_record() {
    there_and_back("range").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooperative_classic_group_is_upgraded_and_downgraded_without_a_missed_or_repeated_record() {
    there_and_back("cooperative-sticky").await;
}
