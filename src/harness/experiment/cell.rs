//! One cell: engine, gate and workload from start to report.
