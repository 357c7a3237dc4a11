//! What a run's folder says of how it was made.

use std::fs;

use crate::support::{experiment, json, place, replay, said};

#[test]
fn all_settings_of_the_policy_in_force_are_in_the_manifest_and_none_without_a_gate() {
    let (temp, dir) = place();
    let file = temp.path().join("mine.toml");
    fs::write(&file, "[gate.continuum]\nttl_fixed_s = 2.5\n").expect("a file");
    let line = replay("matrix", 1, 150, &dir) + " --concurrency 1 --policy continuum,direct";
    let run = experiment(&format!("{line} --config {}", file.display()));
    assert!(run.status.success(), "{}", said(&run));

    let parameters = |cell: &str| {
        let manifest = json(&dir.join("cells").join(cell).join("manifest.json"));
        manifest.expect("a manifest")["policy_parameters"].clone()
    };
    let settings = parameters("continuum-c1");
    assert_eq!(settings["ttl_fixed_s"], 2.5, "{settings}");
    assert!(settings["max_held"].is_u64(), "a default: {settings}");
    assert!(parameters("direct-c1").is_null());
}
