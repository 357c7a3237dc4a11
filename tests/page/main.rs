//! The HTML page.
mod example;
use kvgate::harness::page::render;

#[test]
fn write_it() {
    let html = render(&example::page());
    println!("{} bytes", html.len());
    std::fs::write(
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.html"),
        html,
    )
    .unwrap();
}
