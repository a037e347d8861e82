//! A program that depends on the crate with the caches and never names it: the linker leaves it out. That is why each
//! process compares its plans with what its generation has registered, and refuses to commit what it couldn't flush
//! (`tests/it/write`).

use larder_linking_entity::Lamp;

#[test]
fn the_plan_lacks_the_data_sets_of_crates_that_are_not_named() {
    assert_eq!(larder::plan::<Lamp>().accessors().count(), 0);
    assert_eq!(
        larder::plan::<Lamp>().to_string(),
        "lamp: nothing cached watches it\n"
    );
}
