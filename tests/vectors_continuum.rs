//! Every recorded scenario of Continuum comes out as its log says.

use std::path::Path;

use kvgate::harness::vectors::continuum;

#[test]
fn every_scenario_comes_out_as_recorded() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/continuum/scenarios.json"
    );
    let tally = continuum::check(Path::new(file)).expect("the fixture can be read");
    println!("{} passed, {} failed", tally.passed, tally.failed);
    assert_eq!(tally.lines, Vec::<String>::new());
    assert_eq!(tally.passed, 36);
}
