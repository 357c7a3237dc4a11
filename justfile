# The steps of .ci/run, one at a time: `just test`. Without `just`, read the lines below.

# Everything, as CI does it.
ci:
    .ci/run

fmt:
    cargo fmt

clippy:
    cargo clippy --all-targets -- -D warnings

# `just test cancel` runs the tests whose name contains it.
test *filter:
    cargo test {{filter}}

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

deny:
    .ci/dependencies

# Every bench once, to see that it runs; `cargo bench` measures.
bench-once:
    cargo bench --benches -- --test

# A gate in front of a real vLLM on the CPU; the first time it downloads 1 GB.
vllm:
    tests/vllm/run.sh

quickstart:
    cargo run --release -- quickstart
