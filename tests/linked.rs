//! A program that names the crate with the caches: their data sets are in its plans.

use larder_linking_entity::Lamp;

larder::link!(larder_linking_caches);

#[test]
fn the_plan_has_the_data_sets_of_crates_that_are_named() {
    assert_eq!(
        larder::plan::<Lamp>().to_string(),
        "lamp_is_on on lamp: is_on; created, deleted; the key of its id\n"
    );
}
