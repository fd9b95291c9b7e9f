//! The stage of these tests themselves: `FIRN_TEST_STAGE`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use firn_tests::Work;

#[test]
fn a_stage_has_the_rules_that_were_asked_for_and_goes_with_its_test_even_if_that_fails() {
    let mut path = None;
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let work = Work::new().unwrap();
        path = Some(work.path().to_owned());
        let (stage, emulated) = (work.stage(), work.behind() != work.stage());
        assert_eq!(emulated, std::env::var("FIRN_TEST_STAGE").is_ok_and(|kind| kind == "emulated"));
        fs::create_dir_all(stage.join("folder")).unwrap();
        fs::write(stage.join("folder/file"), "whole").unwrap();
        assert_eq!(fs::read_to_string(work.behind().join("folder/file")).unwrap(), "whole");
        assert_eq!(fs::rename(stage.join("folder/file"), stage.join("folder/other")).is_err(), emulated);
        panic!("as a test does");
    }));
    assert_eq!(failed.unwrap_err().downcast_ref(), Some(&"as a test does"));
    assert!(!path.unwrap().exists(), "a folder with a mount in it can't be removed");
}
